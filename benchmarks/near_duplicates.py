"""How long the exact search for near duplicates takes, and how much memory.

Features like pooled ones are drawn, every fiftieth a noisy copy of another; the threshold is that
which the audit chooses. What is found is compared with all planted pairs.

Usage: python benchmarks/near_duplicates.py [--rows 50000] [--dim 2048]
"""

import argparse
import resource
import time

import numpy as np
from common import note, pooled_features, report

from pipeline.copies.duplicates import choose
from pipeline.copies.neighbours import pairs_within, similarities

SHARE = 50


def main() -> None:
    """Search once and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=2048)
    options = parser.parse_args()
    units, first, second = planted(options.rows, options.dim)
    note("drawn")
    began = time.perf_counter()
    threshold = choose(units)
    chosen = time.perf_counter()
    found = pairs_within(units, threshold.similarity)
    ended = time.perf_counter()
    expected = similarities(units, first, second) >= threshold.similarity
    together = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    wanted = {
        pair
        for pair, is_near in zip(zip(first.tolist(), second.tolist(), strict=True), expected,
                                 strict=True)
        if is_near
    }  # fmt: skip
    results = {
        "threshold": threshold.similarity,
        "pairs": len(found),
        "planted": len(first),
        "planted_above_threshold": len(wanted),
        "planted_found": len(wanted & together),
        "seconds": {
            "threshold": round(chosen - began, 2),
            "search": round(ended - chosen, 2),
            "both": round(ended - began, 2),
        },
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
    }
    report("near_duplicates", vars(options), results)


def planted(rows: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit features, and the pairs of rows of which one is a noisy copy of the other."""
    units, _ = pooled_features(rows, dim, 10, 0)
    rng = np.random.default_rng(1)
    count = max(1, rows // SHARE)
    first, second = np.arange(count), rows - count + np.arange(count)
    units[second] = units[first] + rng.normal(0, 0.05, (count, dim)).astype(np.float32)
    for start in range(0, rows, 4096):
        part = units[start : start + 4096]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return units, first, second


if __name__ == "__main__":
    main()
