"""Stage 1 on a GPU, for each precision: decoding alone, the model alone, and both end to end.

The rate end to end is that of whole commands, the difference of a large and a small folder, and
beside it stands that of PyTorch's own way (``torch_idiom.py``) on the same photos, if PyTorch and
torchvision are installed.

Usage: KERAS_BACKEND=jax python benchmarks/gpu.py [--precisions float32 bfloat16]
"""

import argparse
import shutil
import sys
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import ROOT, command, note, photo_folder, report

from pipeline.images import manifest, reading, reading_processes
from pipeline.images.readers import Readers
from pipeline.system import keras_setup, machine

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
SIDE = 224
PEER = ("torch", "torchvision")


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="where photos are kept (default: temporary)")
    parser.add_argument("--small", type=int, default=2000)
    parser.add_argument("--large", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not machine.has_gpu() or keras_setup.gpu_name() is None:
        sys.exit("No GPU that Keras can use: nothing to measure.")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        small, large = (
            photo_folder(work / f"photos-{count}", count, 0)
            for count in (options.small, options.large)
        )
        decoding = {
            name: [decode_rate(large, in_threads=in_threads) for _ in range(options.repeats)]
            for name, in_threads in (("as_extract", False), ("in_threads", True))
        }
        note(f"decode: {decoding}")
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in options.precisions}
        for _ in range(options.repeats):
            for precision, found in rows.items():
                best = max(decoding["as_extract"])
                found.append(measured(precision, (small, large), best, options))
                note(f"{precision}: {found[-1]}")
    found = {"gpu": keras_setup.gpu_name(), "decode": decoding, "by_precision": rows}
    report("gpu", vars(options), found)


def measured(
    precision: str, folders: tuple[Path, Path], decoding: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the rates of one precision, in images per second."""
    _, model = command(
        ROOT / "benchmarks" / "bare_rate.py", "--engine", "keras", "--precision", precision,
        "--batch-size", options.batch_size, "--images", options.large,
    )  # fmt: skip
    ways = {"end_to_end": extract_seconds}
    if all(map(find_spec, PEER)):
        ways["torch"] = torch_seconds
    row = {"bare": float(model["images_per_second"])}
    for name, way in ways.items():
        short, long = (way(folder, precision, options.batch_size) for folder in folders)
        row[name] = (options.large - options.small) / (long - short)
        row[f"{name}_small_seconds"], row[f"{name}_large_seconds"] = short, long
    row["over_smaller"] = row["end_to_end"] / min(decoding, row["bare"])
    if "torch" in row:
        row["over_torch"] = row["end_to_end"] / row["torch"]
    return {name: round(value, 3) for name, value in row.items()}


def decode_rate(folder: Path, *, in_threads: bool) -> float:
    """Return the photos a second that are read and decoded, in threads or as ``extract`` does."""
    listing = manifest.listing_of(
        folder, [(str(path.relative_to(folder)), "", "") for path in sorted(folder.rglob("*.jpg"))]
    )
    workers = machine.processors()
    images = ((row, reading.reference(listing, row)) for row in range(len(listing)))
    chosen = (
        nullcontext(Readers(workers))
        if in_threads
        else reading_processes.readers(workers, images=len(listing), pixels=3 * SIDE * SIDE)
    )
    with chosen as readers:
        began = time.perf_counter()
        for _ in readers.read(images, lambda key: [""], SIDE, "squash", late=lambda future: None):
            pass
    return round(len(listing) / (time.perf_counter() - began), 1)


def extract_seconds(folder: Path, precision: str, batch_size: int) -> float:
    """Return the wall-clock seconds of a whole extraction."""
    store = folder.parent / "store"
    shutil.rmtree(store, ignore_errors=True)
    seconds, result = command(
        "-m", "pipeline", "extract", folder, "--weights", "random", "--engine", "keras",
        "--precision", precision, "--batch-size", batch_size, "--store", store,
        "--json", "--quiet",
    )  # fmt: skip
    note(str(result["bottleneck"]))
    return seconds


def torch_seconds(folder: Path, precision: str, batch_size: int) -> float:
    """Return the wall-clock seconds of PyTorch's own way."""
    script = partial(command, ROOT / "benchmarks" / "torch_idiom.py", folder)
    return script(
        folder.parent / "torch.npy", "--precision", precision, "--batch-size", batch_size
    )[0]


if __name__ == "__main__":
    main()
