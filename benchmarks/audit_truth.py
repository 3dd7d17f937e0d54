"""How well an audit finds what people found: near duplicates, and wrong labels.

The images are those of CIFAR-10 as ``train/CLASS/NNNN`` and ``test/CLASS/NNNN``. Near duplicates
are pairs that people judged (1: nearly the same, 2: very similar); label errors are labels as
people gave them against those of the folders, ranked by the audit and, for comparison, by the loss
of the given label alone.

Usage: python benchmarks/audit_truth.py STORE [--pairs FILE.csv] [--labels FILE.csv.gz]
       [--flagged OUT.csv] [--single logreg]
The store holds the features of all images; no image is encoded. ``--flagged`` writes pairs between
test and train that people did not judge, to look at.
"""

import argparse
import csv
import gzip
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import note, report
from numpy.typing import NDArray

from pipeline.audit import label_errors as labels
from pipeline.audit.listing import Listing, read_listing
from pipeline.copies.duplicates import Duplicates, find_duplicates
from pipeline.copies.photos import read_photos
from pipeline.runs import metrics
from pipeline.store.store import Store
from pipeline.system.progress import Silence

FIRST = 500
RESAMPLES = 50


def main() -> None:
    """Measure what is asked for and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, help="features of all images")
    parser.add_argument("--pairs", type=Path, help="CSV test,train,judgment")
    parser.add_argument("--labels", type=Path, help="CSV path,label,given, may be gzipped")
    parser.add_argument("--flagged", type=Path, help="write pairs that nobody judged here")
    parser.add_argument("--single", default="logreg", help="head whose loss is compared with")
    options = parser.parse_args()
    listing = read_listing(Store.open(options.store), None, None)
    began = time.perf_counter()
    photos = read_photos(listing, Silence())
    note(f"read {len(listing):,} files in {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    found = find_duplicates(listing, photos, None)
    seconds = {"search": round(time.perf_counter() - began, 1)}
    results: dict[str, Any] = {"images": len(listing), "missing": photos.missing}
    if options.pairs:
        results["copies"] = copies(listing, found, options.pairs, options.flagged)
    if options.labels:
        results["labels"] = label_ranks(listing, found, options.labels, options.single)
    report("audit_truth", vars(options), {**results, "seconds": seconds})


def rows_of(path: Path) -> list[dict[str, str]]:
    """Read a table, gzipped or not."""
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return list(csv.DictReader(text.decode().splitlines()))


def copies(
    listing: Listing, found: Duplicates, pairs: Path, flagged: Path | None
) -> dict[str, Any]:
    """Return how many of the judged pairs were found, and how many others between the splits."""
    image = dict(zip(listing.manifest.paths, listing.image_of.tolist(), strict=True))
    first, second = found.pairs.first.tolist(), found.pairs.second.tolist()
    together = dict(
        zip(zip(first, second, strict=True), found.pairs.similarity.tolist(), strict=True)
    )
    judged: dict[tuple[int, ...], str] = {
        tuple(sorted((image[row["test"]], image[row["train"]]))): row["judgment"]
        for row in rows_of(pairs)
    }
    split = [listing.manifest.splits[row] for row in listing.first_row.tolist()]
    leaks = [pair for pair in together if {split[image] for image in pair} == {"test", "train"}]
    others = [pair for pair in leaks if pair not in judged]
    if flagged:
        write_flagged(listing, {pair: together[pair] for pair in others}, flagged)
    return {
        "threshold": found.threshold.similarity,
        "candidates": found.threshold.candidates,
        "pairs": len(found.pairs),
        "groups": len(found.groups),
        "largest_group": max(map(len, found.groups), default=0),
        **{
            f"judged_{judgment}": share_found(
                [pair in together for pair, value in judged.items() if value == judgment]
            )
            for judgment in sorted(set(judged.values()))
        },
        "others_between_splits": len(others),
        "leaked_test_images": len(
            {image for pair in leaks for image in pair if split[image] == "test"}
        ),
    }


def share_found(is_found: Sequence[bool]) -> dict[str, Any]:
    """Return how many of some pairs were found."""
    hits = sum(is_found)
    return {
        "pairs": len(is_found),
        "found": hits,
        "share": hits / len(is_found),
        "ci95": metrics.wilson(hits, len(is_found)),
    }


def write_flagged(listing: Listing, pairs: Mapping[tuple[int, int], float], path: Path) -> None:
    """Write pairs that nobody judged, to look at."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("first", "second", "similarity"))
        for (first, second), similarity in pairs.items():
            writer.writerow((listing.path(first), listing.path(second), f"{similarity:.4f}"))


def label_ranks(listing: Listing, found: Duplicates, path: Path, single: str) -> dict[str, Any]:
    """Return how well wrong labels are ranked by the audit, and by the loss of the given label."""
    given = {row["path"]: (row["label"], row["given"]) for row in rows_of(path)}
    paths = listing.manifest.paths
    kept = [image for image in range(len(listing)) if paths[int(listing.first_row[image])] in given]
    pairs = [given[paths[int(listing.first_row[image])]] for image in kept]
    names, y = np.unique([item[1] for item in pairs], return_inverse=True)
    is_wrong = np.array([label != typed for label, typed in pairs])
    groups = labels.group_numbers(found, len(listing))[kept]
    began = time.perf_counter()
    cleanlab = labels.require_cleanlab()
    made = labels.agreed(cleanlab, listing.units[kept], y, groups)
    seconds = time.perf_counter() - began
    scores, likely = labels.judged(cleanlab, made)
    alone = labels.out_of_fold(listing.units[kept], y, groups, head=single)
    loss = -np.log(np.maximum(alone.probabilities[np.arange(len(y)), y], 1e-12))
    true = np.searchsorted(names, [label for label, _ in pairs])
    rankings = {"audit": -scores, "loss_alone": loss}
    return {
        "images": len(y),
        "wrong": int(is_wrong.sum()),
        "seconds": round(seconds, 1),
        "accuracy_to_given": float((made.probabilities.argmax(axis=1) == y).mean()),
        "accuracy_to_true": float((made.probabilities.argmax(axis=1) == true).mean()),
        "likely": {
            "count": int(likely.sum()),
            "precision": float(is_wrong[likely].mean()),
            "recall": float(likely[is_wrong].mean()),
        },
        **ranked(is_wrong, rankings),
    }


def ranked(
    is_wrong: NDArray[np.bool_], rankings: Mapping[str, NDArray[np.floating]]
) -> dict[str, Any]:
    """Return average precision with bootstrap intervals, and precision of the first ones."""
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(is_wrong), len(is_wrong)) for _ in range(RESAMPLES)]
    resampled = {
        name: np.array([average_precision_score(is_wrong[rows], values[rows]) for rows in draws])
        for name, values in rankings.items()
    }
    first = resampled["audit"] - resampled["loss_alone"]
    return {
        "average_precision": {
            name: {
                "value": float(average_precision_score(is_wrong, values)),
                "ci95": interval(resampled[name]),
            }
            for name, values in rankings.items()
        },
        "difference_ci95": interval(first),
        f"precision_of_first_{FIRST}": {
            name: float(is_wrong[np.argsort(-values, kind="stable")[:FIRST]].mean())
            for name, values in rankings.items()
        },
    }


def interval(values: NDArray[np.floating]) -> Sequence[float]:
    """Return the 95 % interval of resampled values."""
    return [float(value) for value in np.quantile(values, (0.025, 0.975))]


if __name__ == "__main__":
    main()
