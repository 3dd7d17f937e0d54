"""Settings of heads against their defaults, on stores, by five split seeds; prints one JSON object.

Every setting is scored on the same splits as the default of its head, so that differences are
paired: their mean over the seeds and their standard deviation.

Usage: python benchmarks/head_defaults.py [STORE...] [--heads dense knn] [--seeds 5]
(default: stores/sample, made by `make demo`)
"""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import note, report
from finetune_outcomes import spread

from pipeline import heads
from pipeline.dataset.examples import SplitRule, prepare
from pipeline.dataset.features import SplitFeatures
from pipeline.store.store import Store
from pipeline.train.fit import fit_head

TUTORIAL_PRESET = dict(heads.PRESETS["tutorial"]["dense"])


def as_they_are(features: np.ndarray) -> np.ndarray:
    """Features as stage 1 wrote them."""
    return features


def unit_length(features: np.ndarray) -> np.ndarray:
    """Each row divided by its length."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def square_root(features: np.ndarray) -> np.ndarray:
    """Signed square root, then unit length (Perronnin et al. 2010, section 3.2)."""
    return unit_length(np.sign(features) * np.sqrt(np.abs(features)))


class Case(NamedTuple):
    """A setting: parameters that differ from the default, and what features are made into."""

    params: Mapping[str, Any]
    made: Callable[[np.ndarray], np.ndarray] = as_they_are


DEFAULT = "default"
FEATURES = {
    "unit length": Case({}, unit_length),
    "square root, unit length": Case({}, square_root),
}
CASES: dict[str, dict[str, Case]] = {
    "majority": {},
    "centroid": {},
    "linear-svc": {},
    "knn": {
        "k of 1, 3, 5, 10, 20, 50, 100": Case({"grid": (1, 3, 5, 10, 20, 50, 100)}),
        "weights of temperature 0.03": Case({"temperature": 0.03}),
        "weights of temperature 0.2": Case({"temperature": 0.2}),
        "square root": Case({}, square_root),
    },
    "ridge": {
        "three to a decade": Case({"grid": tuple(10 ** (power / 3) for power in range(-3, 19))}),
        **FEATURES,
    },
    "logreg": {
        "three to a decade": Case({"grid": tuple(10 ** (power / 3) for power in range(-12, 7))}),
        **FEATURES,
    },
    "linear": {
        "weight decay 1e-4": Case({"weight_decay": 1e-4}),
        "weight decay 1e-1": Case({"weight_decay": 1e-1}),
        "learning rate 3e-4": Case({"learning_rate": 3e-4}),
        "learning rate 3e-3": Case({"learning_rate": 3e-3}),
        "20 epochs": Case({"epochs": 20}),
        "80 epochs": Case({"epochs": 80}),
        "label smoothing 0.1": Case({"label_smoothing": 0.1}),
        **FEATURES,
    },
    "dense": {
        "tutorial preset": Case(TUTORIAL_PRESET),
        "64 units": Case({"hidden": (64,)}),
        "1024 units": Case({"hidden": (1024,)}),
        "dropout 0.2": Case({"dropout": 0.2}),
        "dropout 0.7": Case({"dropout": 0.7}),
        "20 epochs": Case({"epochs": 20}),
        "80 epochs": Case({"epochs": 80}),
        "learning rate 1e-4": Case({"learning_rate": 1e-4}),
        "learning rate 1e-3": Case({"learning_rate": 1e-3}),
        "no decay of the rate": Case({"decay": False}),
        "weight decay 1e-2": Case({"weight_decay": 1e-2}),
        "label smoothing 0.1": Case({"label_smoothing": 0.1}),
        "features not scaled": Case({"scale": False}),
        **FEATURES,
    },
}  # fmt: skip


def main() -> None:
    """Fit every case on every split and print means and paired differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="*", type=Path, default=[Path("stores/sample")])
    parser.add_argument("--heads", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=5, help="of the split")
    options = parser.parse_args()
    found = {str(path): measured(path, options.heads, options.seeds) for path in options.stores}
    report("head_defaults", {"heads": options.heads, "seeds": options.seeds}, {"stores": found})


def measured(path: Path, names: Iterable[str], seeds: int) -> dict[str, Any]:
    """Return by head the default's scores and each case's difference from it."""
    splits = [split_features(Store.open(path), seed) for seed in range(seeds)]
    found = {}
    for name in names:
        default = [scored(name, Case({}), data) for data in splits]
        found[name] = {DEFAULT: summary(default)}
        note(f"{path.parent.name}, {name}: {found[name][DEFAULT]}")
        for title, case in CASES[name].items():
            scores = [scored(name, case, data) for data in splits]
            found[name][title] = differences(scores, default)
            note(f"{path.parent.name}, {name}, {title}: {found[name][title]}")
    return found


def split_features(store: Store, seed: int) -> SplitFeatures:
    """Return the features by split."""
    examples = prepare(store.read_manifest(), SplitRule(seed=seed))
    return SplitFeatures.of(examples, store.read(examples.keys))


def scored(name: str, case: Case, data: SplitFeatures) -> dict[str, float]:
    """Fit one head on train and return its scores."""
    changed = SplitFeatures(
        case.made(np.asarray(data.X)).astype(np.float32), data.y, data.keys, data.rows,
        data.num_classes,
    )  # fmt: skip
    record = fit_head(heads.create(name, dict(case.params), seed=0), changed).record
    return {
        "val_log_loss": record.val.log_loss,
        "test_log_loss": record.test.log_loss,
        "test_accuracy": record.test.accuracy,
        "fit_seconds": record.fit_seconds,
    }


def summary(scores: list[dict[str, float]]) -> dict[str, Any]:
    """Return mean and standard deviation of each score."""
    return {key: spread([item[key] for item in scores]) for key in scores[0]}


def differences(scores: list[dict[str, float]], default: list[dict[str, float]]) -> dict[str, Any]:
    """Return mean and standard deviation of each score's difference from the default's."""
    return {
        key: spread([item[key] - base[key] for item, base in zip(scores, default, strict=True)])
        for key in scores[0]
    }


if __name__ == "__main__":
    main()
