"""Accuracy of heads on the sample over five split seeds; prints one JSON object.

Usage: python benchmarks/heads_on_sample.py [STORE]   (default: stores/sample, made by `make demo`)
"""

import json
import platform
import statistics
import sys
from pathlib import Path

from pipeline import heads
from pipeline.dataset.examples import SplitRule, prepare
from pipeline.dataset.features import SplitFeatures
from pipeline.store.store import Store
from pipeline.train.fit import fit_head

SPLIT_SEEDS = range(5)
TUTORIAL_PRESET = dict(heads.PRESETS["tutorial"]["dense"])
CASES = {
    "majority": ("majority", {}),
    "centroid": ("centroid", {}),
    "knn": ("knn", {}),
    "linear": ("linear", {}),
    "linear-svc": ("linear-svc", {}),
    "ridge": ("ridge", {}),
    "logreg": ("logreg", {}),
    "dense: tutorial preset": ("dense", TUTORIAL_PRESET),
    "dense: tutorial preset + scaler": ("dense", {**TUTORIAL_PRESET, "scale": True}),
    "dense: + dropout 0.5, 30 epochs": (
        "dense",
        {**TUTORIAL_PRESET, "scale": True, "dropout": 0.5, "epochs": 30},
    ),
    "dense: + 256 instead of 1024 units": (
        "dense",
        {**TUTORIAL_PRESET, "scale": True, "dropout": 0.5, "epochs": 30, "hidden": (256,)},
    ),
    "dense: default (+ cosine decay, 40 epochs)": ("dense", {}),
}


def main() -> None:
    """Fit every case on every split and print means."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "stores/sample")
    store = Store.open(path)
    rows = {}
    for name, (head, params) in CASES.items():
        scores = [measure(store, head, params, seed) for seed in SPLIT_SEEDS]
        rows[name] = {
            "test_accuracy_mean": round(statistics.mean(test for _, test, _, _ in scores), 4),
            "test_accuracy": [round(test, 4) for _, test, _, _ in scores],
            "test_log_loss_mean": round(statistics.mean(loss for *_, loss in scores), 4),
            "val_accuracy_mean": round(statistics.mean(val for val, _, _, _ in scores), 4),
            "fit_seconds_median": round(statistics.median(took for _, _, took, _ in scores), 2),
        }
        print(name, rows[name], file=sys.stderr)
    machine = {"platform": platform.platform(), "python": platform.python_version()}
    print(json.dumps({"split_seeds": list(SPLIT_SEEDS), "machine": machine, "heads": rows}))


def measure(store: Store, head: str, params: dict, split_seed: int) -> tuple[float, ...]:
    """Return val accuracy, test accuracy, fit seconds and test log loss."""
    examples = prepare(store.read_manifest(), SplitRule(seed=split_seed))
    data = SplitFeatures.of(examples, store.read(examples.keys))
    record = fit_head(heads.create(head, params, seed=0), data).record
    return record.val.accuracy, record.test.accuracy, record.fit_seconds, record.test.log_loss


if __name__ == "__main__":
    main()
