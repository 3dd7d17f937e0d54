"""Stage 1 on a GPU: decoding alone, the model alone, and both end to end.

Usage: KERAS_BACKEND=jax python benchmarks/gpu.py [--precision bfloat16]
"""

import argparse
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import ROOT, command, note, photo_folder, report

from pipeline.images.decoder import decode
from pipeline.system import keras_setup, machine


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="where photos are kept (default: temporary)")
    parser.add_argument("--small", type=int, default=500)
    parser.add_argument("--large", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", default="float32")
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
        rows = []
        for _ in range(options.repeats):
            row = {"decode": decode_rate(large), "bare": bare_rate(options)}
            short, long = (extract_seconds(folder, work, options) for folder in (small, large))
            row["end_to_end"] = (options.large - options.small) / (long - short)
            row["ratio"] = row["end_to_end"] / min(row["decode"], row["bare"])
            rows.append({name: round(value, 3) for name, value in row.items()})
            note(str(rows[-1]))
    report("gpu", vars(options), {"repetitions": rows})


def decode_rate(folder: Path) -> float:
    """Return the photos a second that all processors decode."""
    files = sorted(folder.rglob("*.jpg"))
    began = time.perf_counter()
    with ThreadPoolExecutor(machine.processors()) as pool:
        for _ in pool.map(lambda path: decode(path.read_bytes(), 224), files):
            pass
    return len(files) / (time.perf_counter() - began)


def bare_rate(options: argparse.Namespace) -> float:
    """Return the images a second of the model on preloaded batches."""
    _, result = command(
        ROOT / "benchmarks" / "bare_rate.py", "--engine", "keras", "--precision",
        options.precision, "--batch-size", options.batch_size, "--images", options.large,
    )  # fmt: skip
    return float(result["images_per_second"])


def extract_seconds(folder: Path, work: Path, options: argparse.Namespace) -> float:
    """Return the wall-clock seconds of a whole extraction."""
    store = work / "store"
    shutil.rmtree(store, ignore_errors=True)
    seconds, result = command(
        "-m", "pipeline", "extract", folder, "--weights", "random", "--engine", "keras",
        "--precision", options.precision, "--batch-size", options.batch_size, "--store", store,
        "--json", "--quiet",
    )  # fmt: skip
    note(str(result["bottleneck"]))
    return seconds


if __name__ == "__main__":
    main()
