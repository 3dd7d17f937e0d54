"""One epoch of the linear head over features on disk: time, and peak memory above the libraries.

A million rows take about 8 GB in a temporary folder; peak memory is that of this process, with
TensorFlow loaded first.

Usage: python benchmarks/stream.py [--rows 1000000] [--work FOLDER]
"""

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import IDENTITY, note, report

from pipeline.heads.linear import LinearHead
from pipeline.store.shard import SHARD_ROWS
from pipeline.store.store import Store
from pipeline.store.stream import StoredFeatures
from pipeline.system.keras_setup import import_keras


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where the store goes; a temporary folder")
    options = parser.parse_args()
    import_keras()
    libraries = peak()
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        check_disk(Path(temporary), options.rows * options.dim * 4)
        stored, y = write(Path(temporary) / "store", options)
        before = peak()
        note(f"written; {before / 1e6:.0f} MB at most so far")
        began = time.perf_counter()
        head = LinearHead(epochs=1, batch_size=options.batch_size, seed=options.seed)
        head.fit(stored, y)
        seconds = time.perf_counter() - began
        after = peak()
        part = np.random.default_rng(options.seed).permutation(options.rows)[:2000]
        accuracy = float((head.predict(stored.read(part)) == y[part]).mean())
    results = {
        "seconds": round(seconds, 1),
        "rows_a_second": round(options.rows / seconds),
        "peak_mb_libraries": round(libraries / 1e6),
        "peak_mb_written": round(before / 1e6),
        "peak_mb": round(after / 1e6),
        # Writing the store counts here too, so training alone has taken no more than this.
        "growth_mb": round((after - libraries) / 1e6),
        "accuracy_on_train": accuracy,
    }
    report("stream", vars(options), results)


def check_disk(folder: Path, needed: int) -> None:
    """Stop where the store would not fit, with a fifth to spare."""
    free = shutil.disk_usage(folder).free
    if free < 1.2 * needed:
        raise SystemExit(
            f"Expected {1.2 * needed / 1e9:.1f} GB free in {folder}. Received: {free / 1e9:.1f}. "
            "Choose another folder with --work, or fewer --rows."
        )


def write(path: Path, options: Any) -> tuple[StoredFeatures, Any]:
    """Write a store whose rows lie class by class, a shard at a time."""
    rng = np.random.default_rng(options.seed)
    y = np.sort(np.arange(options.rows) % options.classes)
    centres = 0.2 * rng.standard_normal((options.classes, options.dim), dtype=np.float32)
    keys = np.array([rng.bytes(32).hex().encode() for _ in range(options.rows)], dtype="S64")
    store = Store.create(path, identity=IDENTITY, dim=options.dim, root=path)
    for start in range(0, options.rows, SHARD_ROWS):
        rows = slice(start, min(start + SHARD_ROWS, options.rows))
        features = rng.standard_normal((rows.stop - start, options.dim), dtype=np.float32)
        features += centres[y[rows]]
        store.plain.add_shard(keys[rows], features)
    return StoredFeatures.of(Store.open(path).plain, keys), y


def peak() -> int:
    """Return the most bytes of memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
