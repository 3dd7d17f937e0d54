"""What stage 2 and its pages cost over many images: whole commands, their seconds and memory.

Features like pooled ones are drawn into a store, once; every fiftieth is a noisy copy of another.
Each command runs in a process of its own: sweep, report, and audit, whose planted copies are
counted. A million images of 2,048 numbers are 8 GB.

Usage: python benchmarks/stage_two.py [--rows 50000] [--dim 2048] [--heads ridge linear]
       [--work DIR]
"""

import argparse
import csv
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import (
    ROOT,
    SHARD,
    command,
    copies_among,
    feature_store,
    note,
    plant_copies,
    pooled_features,
    report,
)

from pipeline.store.store import Store


def main() -> None:
    """Write a store, run every command once, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--heads", nargs="+", default=["ridge", "linear"])
    parser.add_argument("--work", type=Path, help="keep the store here")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        results = measured(options.work or Path(temporary), options)
    report("stage_two", vars(options), results)


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and peak memory of each command, and what the audit found of the copies."""
    store, run, out = folder / "store", folder / "run", folder / "audit"
    if not (store / "manifest.csv").exists():
        feature_store(
            store, options.rows, options.dim, lambda rows, seed: drawn(rows, seed, options)
        )
    kept = Store.open(store)
    if (len(kept), kept.dim) != (options.rows, options.dim):
        raise SystemExit(f"{store} holds {len(kept):,} x {kept.dim}: give another --work")
    note("written")
    heads = [part for head in options.heads for part in ("--head", head)]
    steps = {
        "sweep": ("sweep", "--store", store, "--run", run, *heads),
        "report": ("report", run),
        "audit": ("audit", store, "--run", run, "--out", out),
    }
    found: dict[str, Any] = {}
    for name, arguments in steps.items():
        seconds, result = command(ROOT / "benchmarks/peak.py", *arguments, "--force")
        found[name] = {
            "seconds": round(seconds, 1),
            "peak_mb": round(result["peak_bytes"] / 1e6),
        }
        note(f"{name}: {found[name]}")
        if name == "audit":
            found["threshold"], found["notes"] = result["threshold"], result["notes"]
            found["label_accuracy"] = result["label_error_head"]["accuracy"]
    found["planted"] = planted(store, out / "audit.csv", found["threshold"]["similarity"])
    return found


def planted(folder: Path, table: Path, threshold: float) -> dict[str, int]:
    """Return how many pairs were planted, are as similar as the audit asks, and were found."""
    with table.open(newline="", encoding="utf-8") as file:
        groups = {
            row["path"]: {word for word in row["found"].split("; ") if word.startswith("copies")}
            for row in csv.DictReader(file)
            if "copies" in row["found"]
        }
    store = Store.open(folder)
    manifest = store.read_manifest()
    counts = {"pairs": 0, "above_threshold": 0, "found": 0}
    for start in range(0, len(manifest), SHARD):
        rows = min(SHARD, len(manifest) - start)
        count = copies_among(rows)
        first, second = np.arange(start, start + count), np.arange(count) + start + rows - count
        one, other = (unit(store.read(manifest.keys[part])) for part in (first, second))
        counts["pairs"] += count
        for place in np.flatnonzero(np.einsum("ij,ij->i", one, other) >= threshold):
            paths = [manifest.paths[part[place]] for part in (first, second)]
            counts["above_threshold"] += 1
            counts["found"] += bool(set.intersection(*(groups.get(p, set()) for p in paths)))
    return counts


def unit(features: np.ndarray) -> np.ndarray:
    """Return rows of a norm of one."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def drawn(rows: int, seed: int, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Return features and class numbers; the last ones are noisy copies of the first ones."""
    features, y = pooled_features(rows, options.dim, options.classes, seed)
    plant_copies(features, y, np.random.default_rng([1, seed]))
    return features, y


if __name__ == "__main__":
    main()
