"""How long the exact search for near duplicates takes, and a whole audit; and how much memory.

Features like pooled ones are drawn, every fiftieth a noisy copy of another; the threshold is that
which the audit chooses. What is found is compared with all planted pairs.

Usage: python benchmarks/near_duplicates.py [--rows 50000] [--dim 2048] [--no-audit]
"""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import note, plant_copies, pooled_features, report

from pipeline.audit import stage
from pipeline.audit.listing import Listing
from pipeline.config.auditing import AuditOptions
from pipeline.copies.duplicates import choose
from pipeline.copies.neighbours import pairs_within, similarities
from pipeline.images.manifest import Manifest
from pipeline.system.progress import Silence


def main() -> None:
    """Search once and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--no-audit", action="store_true", help="search only")
    options = parser.parse_args()
    units, y, first, second = planted(options.rows, options.dim)
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
    results: dict[str, Any] = {
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
    }
    if not options.no_audit:
        began = time.perf_counter()
        found_all = stage.find(listing_of(units, y), AuditOptions(store="none"), None, Silence())
        results["seconds"]["audit"] = round(time.perf_counter() - began, 2)
        results["label_errors"] = found_all.label_errors.estimated
        results["label_accuracy"] = found_all.label_errors.accuracy
    results["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
    report("near_duplicates", vars(options), results)


def listing_of(units: np.ndarray, y: np.ndarray) -> Listing:
    """Return images without files, with these features and labels."""
    count = len(units)
    manifest = Manifest(
        root=Path("/nowhere"),
        paths=[f"{number:07}.jpg" for number in range(count)],
        labels=[f"class {number}" for number in y.tolist()],
        splits=[("train", "test")[number % 5 == 0] for number in range(count)],
        keys=np.array([f"{number:064x}" for number in range(count)], "S64"),
        statuses=["ok"] * count,
    )
    return Listing(manifest, np.arange(count), units, "manifest", skipped=())


def planted(rows: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return unit features, labels, and the pairs of rows of which one is a copy of the other."""
    units, y = pooled_features(rows, dim, 10, 0)
    count = plant_copies(units, y, np.random.default_rng(1))
    first, second = np.arange(count), rows - count + np.arange(count)
    for start in range(0, rows, 4096):
        part = units[start : start + 4096]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return units, y, first, second


if __name__ == "__main__":
    main()
