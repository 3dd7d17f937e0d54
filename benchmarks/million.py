"""What the pipeline itself costs per image, from ten thousand images to a million in tar shards.

Usage: python benchmarks/million.py [--images 10000 100000 1000000] [--work FOLDER]
Every image is another one, of 2 x 2 pixels, with its label in a .cls; the network costs nothing.
Each command runs in a process of its own: extract, extract again with nothing changed, prune,
verify; then a tenth of the shards is deleted, and extract and prune run once more. A million
images take 2.1 GB of shards, and 0.4 GB of features of 64 numbers.
"""

import argparse
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

from common import ROOT, command, note, report

FAKE = ROOT / "benchmarks" / "fake_network.py"
SHARD = 10_000
BLOCK = 512
CLASSES = 10


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--work", type=Path, help="where data goes; a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        results = {
            str(count): measured(Path(temporary), count, options.dim) for count in options.images
        }
    report("million", vars(options), {"by_images": results})


def measured(work: Path, images: int, dim: int) -> dict[str, Any]:
    """Return seconds and peak memory of each command over a number of images."""
    data, store = work / f"shards-{images}", work / f"store-{images}"
    began = time.perf_counter()
    write_shards(data, images)
    note(f"{images:,} images written in {time.perf_counter() - began:.0f} s")
    time.sleep(2.1)  # files so young are not trusted by their times
    extract = ("extract", data, "--weights", "random", "--image-size", 32, "--store", store)
    found = {}
    steps = {"extract": extract, "rerun": extract, "prune": ("prune", store),
             "verify": ("verify", store), "rerun_less": extract,
             "prune_a_tenth": ("prune", store)}  # fmt: skip
    for name, arguments in steps.items():
        if name == "rerun_less":
            for path in sorted(data.iterdir())[: max(1, images // SHARD // 10)]:
                path.unlink()
        seconds, result = command(FAKE, "--dim", dim, *arguments)
        found[name] = {
            "seconds": round(seconds, 1),
            "microseconds_per_image": round(seconds / images * 1e6, 1),
            "peak_mb": round(result["peak_bytes"] / 1e6),
            "bytes_per_image": round(result["peak_bytes"] / images),
            **{key: result[key] for key in ("encoded", "reused", "dropped", "ok") if key in result},
        }
        note(f"{name}: {found[name]}")
    shutil.rmtree(data)
    shutil.rmtree(store)
    return found


def write_shards(folder: Path, images: int) -> None:
    """Write WebDataset shards of images of 2 x 2 pixels that are all different."""
    folder.mkdir(parents=True)
    size = min(SHARD, -(-images // 2))  # two shards at least, so that one may go
    for start in range(0, images, size):
        with (folder / f"shard-{start // size:05}.tar").open("wb") as file:
            for number in range(start, min(images, start + size)):
                digits = b"%08d" % number
                file.write(member(digits, ".cls", b"%d" % (number % CLASSES)))
                pixels = number.to_bytes(12, "big")
                file.write(member(digits, ".ppm", b"P6 2 2 255\n" + pixels))
            file.write(bytes(2 * BLOCK))


def member(digits: bytes, suffix: str, data: bytes) -> bytes:
    """Return a member of a tar file, its header first, named by eight digits and a suffix."""
    rest, total = header(suffix, len(data))
    checksum = b"%06o\0 " % (total + sum(digits))
    block = digits + rest[:140] + checksum + rest[148:]
    return block + data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")


@cache
def header(suffix: str, size: int) -> tuple[bytes, int]:
    """Return a header but for the digits it begins with, and the sum of its bytes."""
    fields = (
        suffix.encode().ljust(92, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0",
        b"%011o\0" % size, b"00000000000\0", b" " * 8, b"0", bytes(100), b"ustar\00000",
    )  # fmt: skip
    rest = b"".join(fields).ljust(BLOCK - 8, b"\0")
    return rest, sum(rest)


if __name__ == "__main__":
    main()
