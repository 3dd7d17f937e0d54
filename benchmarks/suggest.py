"""What suggest is worth: accuracy against labels, paired with labels of images drawn at random.

A third of the images is test, the others may be chosen. From a first set of random images on, each
way of choosing labels so many more a round; the head of ``suggest`` is fitted on what is labelled
and scored on test. All ways begin with the same images of a seed, so differences are paired.

Usage: python benchmarks/suggest.py STORE [--ways suggest margin] [--seeds 10] [--start 50]
       [--batch 50] [--rounds 10]
The store holds labelled images; no image is encoded. ``--start 0`` is a cold start: the first
batch of ``suggest`` is what it chooses without labels.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import note, report
from numpy.typing import NDArray

from pipeline.copies.distinct import distinct_images
from pipeline.store.store import Store
from pipeline.suggest import choosing, judging

Rows = NDArray[np.intp]
Features = NDArray[np.float32]
Probabilities = NDArray[np.float64]
# Features, candidates, labelled images, probabilities of the candidates, how many, a generator.
Way = Callable[[Features, Rows, Rows, Probabilities, int, np.random.Generator], Rows]


def main() -> None:
    """Measure what is asked for and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, help="features of labelled images")
    parser.add_argument("--ways", nargs="+", default=["suggest"], choices=WAYS, metavar="WAY")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--start", type=int, default=50, help="random images at first")
    parser.add_argument("--batch", type=int, default=50, help="images a round")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    store = Store.open(options.store)
    images = distinct_images(store, store.read_manifest())
    labels = [images.manifest.labels[row] for row in images.first_row.tolist()]
    y = np.unique(labels, return_inverse=True)[1]
    names = ["random", *(name for name in options.ways if name != "random")]
    curves: dict[str, list[list[float]]] = {name: [] for name in names}
    own_test = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name in names:
            found = curve(images.units, y, name, seed, options)
            curves[name].append(found["accuracies"])
            if name == "suggest":
                own_test.append(held_out(images.units, y, found["labelled"], seed))
        note(f"seed {seed}: " + ", ".join(f"{name} {curves[name][-1][-1]:.3f}" for name in names))
    report("suggest", vars(options), {
        "images": len(y),
        "test": len(y) // 3,
        "labels": [max(options.start, options.batch * (not options.start)) + options.batch * step
                   for step in range(options.rounds + 1)],
        "random": np.mean(curves["random"], axis=0).round(4).tolist(),
        "against_random": {name: paired(curves[name], curves["random"]) for name in names[1:]},
        "accuracy_on_test_of_chosen_images": own_test_of(own_test, curves["suggest"])
        if own_test else None,
    })  # fmt: skip


def curve(
    units: Features, y: NDArray[np.int64], name: str, seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the accuracy on test after each round."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(y))
    test, others = order[: len(y) // 3], np.sort(order[len(y) // 3 :])
    first = order[len(y) // 3 :][: options.start or options.batch]
    rng = np.random.default_rng([seed, 1])
    if not options.start and name != "random":
        first = choosing.choose_typical(units, others, others[:0], options.batch)
    labelled, accuracies = first, []
    for step in range(options.rounds + 1):
        names, numbers = np.unique(y[labelled], return_inverse=True)
        head = judging.fit(units[labelled], numbers, judging.DEFAULT)[0]
        right = names[head.predict(units[test])] == y[test]
        accuracies.append(float(right.mean()))
        if step == options.rounds:
            break
        candidates = np.setdiff1d(others, labelled)
        found = head.predict_proba(units[candidates])
        chosen = WAYS[name](units, candidates, labelled, found, options.batch, rng)
        labelled = np.concatenate([labelled, chosen])
    return {"accuracies": accuracies, "labelled": labelled}


def held_out(units: Features, y: NDArray[np.int64], labelled: Rows, seed: int) -> float:
    """Return the accuracy that a test of 15 % of the labelled images themselves would show."""
    rows = np.random.default_rng([seed, 2]).permutation(labelled)
    count = round(0.15 * len(rows))
    names, numbers = np.unique(y[rows[count:]], return_inverse=True)
    head = judging.fit(units[rows[count:]], numbers, judging.DEFAULT)[0]
    return float((names[head.predict(units[rows[:count]])] == y[rows[:count]]).mean())


def by_margin(found: Probabilities, count: int) -> Rows:
    """Return the places of the smallest margins."""
    return np.argsort(-choosing.uncertainties(found), kind="stable")[:count]


def by_entropy(found: Probabilities, count: int) -> Rows:
    """Return the places of the highest entropy."""
    return np.argsort((found * np.log(np.maximum(found, 1e-12))).sum(axis=1), kind="stable")[:count]


def by_distance(units: Features, candidates: Rows, labelled: Rows, count: int) -> Rows:
    """Return images, each the farthest from all before (k-center, Sener and Savarese 2018)."""
    rows = units[candidates]
    nearest = (rows @ units[labelled].T).max(axis=1)
    chosen = []
    for _ in range(count):
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, rows @ rows[chosen[-1]])
        nearest[chosen] = np.inf
    return candidates[chosen]


def by_gradients(
    units: Features, candidates: Rows, found: Probabilities, count: int, rng: np.random.Generator
) -> Rows:
    """Return images drawn as k-means++ draws its seeds, on gradients (BADGE, Ash et al. 2020)."""
    errors, rows = found.copy(), units[candidates]
    errors[np.arange(len(found)), found.argmax(axis=1)] -= 1
    # Of an outer product, norms and products are those of its factors; rows have a norm of one.
    norms = (errors**2).sum(axis=1)
    chosen = [int(norms.argmax())]
    nearest = np.full(len(norms), np.inf)
    while len(chosen) < count:
        last = chosen[-1]
        products = (errors @ errors[last]) * (rows @ rows[last])
        nearest = np.minimum(nearest, np.maximum(norms + norms[last] - 2 * products, 0))
        nearest[chosen] = 0
        chosen.append(int(rng.choice(len(nearest), p=nearest / nearest.sum())))
    return candidates[chosen]


WAYS: Mapping[str, Way] = {
    "badge": lambda units, candidates, labelled, found, count, rng: by_gradients(
        units, candidates, found, count, rng
    ),
    "entropy": lambda units, candidates, labelled, found, count, rng: candidates[
        by_entropy(found, count)
    ],
    "k-center": lambda units, candidates, labelled, found, count, rng: by_distance(
        units, candidates, labelled, count
    ),
    "margin, k-center": lambda units, candidates, labelled, found, count, rng: by_distance(
        units, candidates[by_margin(found, 4 * count)], labelled, count
    ),
    "margin": lambda units, candidates, labelled, found, count, rng: candidates[
        by_margin(found, count)
    ],
    "random": lambda units, candidates, labelled, found, count, rng: rng.choice(
        candidates, count, replace=False
    ),
    "suggest": lambda units, candidates, labelled, found, count, rng: choosing.choose(
        units, candidates, choosing.uncertainties(found), count
    ),
    "typical": lambda units, candidates, labelled, found, count, rng: choosing.choose_typical(
        units, candidates, labelled, count
    ),
}


def paired(found: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return mean differences by round, and of the mean over rounds, with 95 % intervals."""
    differences = np.array(found) - np.array(others)
    return {
        "difference": differences.mean(axis=0).round(4).tolist(),
        "ci95": [interval(column) for column in differences.T],
        "mean": round(float(differences[:, 1:].mean()), 4),
        "mean_ci95": interval(differences[:, 1:].mean(axis=1)),
    }


def interval(values: NDArray[np.floating]) -> list[float] | None:
    """Return the 95 % interval of a mean by Student's t, over seeds; None of a single one."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return [round(float(values.mean() + side * half), 4) for side in (-1, 1)]


def own_test_of(own: Sequence[float], curves: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return what a test of chosen images shows, against random ones, at the last round."""
    last = [accuracies[-1] for accuracies in curves]
    return {
        "shown": round(float(np.mean(own)), 4),
        "true": round(float(np.mean(last)), 4),
        "difference_ci95": interval(np.array(own) - np.array(last)),
    }


if __name__ == "__main__":
    main()
