"""Reading stored features back, against ``numpy.load`` of the same array.

Usage: python benchmarks/read_features.py [--rows 50000]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import IDENTITY, note, ratio, report

from pipeline.store.shard import SHARD_ROWS
from pipeline.store.store import Store


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    features = rng.standard_normal((options.rows, options.dim), dtype=np.float32)
    keys = np.array([rng.bytes(32).hex().encode() for _ in range(options.rows)], dtype="S64")
    shuffled = rng.permutation(options.rows)
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary) / "features.npy"
        np.save(plain, features)
        path = Path(temporary) / "store"
        store = Store.create(path, identity=IDENTITY, dim=options.dim, root=path)
        for start in range(0, options.rows, SHARD_ROWS):
            rows = slice(start, start + SHARD_ROWS)
            store.plain.add_shard(keys[rows], features[rows])
        store = Store.open(path)
        calls: dict[str, Callable[[], np.ndarray]] = {
            "numpy_load": lambda: np.load(plain),
            "manifest_order": lambda: store.read(keys),
            "random_order": lambda: store.read(keys[shuffled]),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for repeat in range(options.repeats + 1):
            for name, call in calls.items():
                began = time.perf_counter()
                result = call()
                took = time.perf_counter() - began
                wanted = features[shuffled] if name == "random_order" else features
                if not np.array_equal(result, wanted):
                    raise SystemExit(f"{name} gives other features")
                del result, wanted
                if repeat:
                    seconds[name].append(round(took, 4))
        note(str(seconds))
    results = {
        "seconds": seconds,
        "manifest_order_over_load": ratio(seconds["manifest_order"], seconds["numpy_load"]),
        "random_order_over_load": ratio(seconds["random_order"], seconds["numpy_load"]),
    }
    report("read_features", vars(options), results)


if __name__ == "__main__":
    main()
