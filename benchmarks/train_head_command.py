"""The whole command ``train-head --head logreg``, against a bare script for the same fits.

Usage: python benchmarks/train_head_command.py [--quick]
The peer loads two arrays, standardizes, fits scikit-learn's LogisticRegression for every C of the
head's grid, and scores val and test; nothing is saved.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import IDENTITY, command, pooled_features, ratio, report, timed

from pipeline.heads.logreg import LogregHead
from pipeline.images.manifest import Manifest
from pipeline.store.shard import SHARD_ROWS
from pipeline.store.store import Store

PEER = """
import json, sys
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
arrays = np.load(sys.argv[1])
X, y, split = arrays["X"], arrays["y"], arrays["split"]
scaler = StandardScaler().fit(X[split == 0].astype(np.float64))
rows = [split == part for part in (0, 1, 2)]
parts = [(scaler.transform(X[row].astype(np.float64)), y[row]) for row in rows]
best = None
for C in json.loads(sys.argv[2]):
    model = LogisticRegression(C=C, max_iter=1000, tol=1e-4).fit(*parts[0])
    if best is None or model.score(*parts[1]) > best.score(*parts[1]):
        best = model
print(json.dumps({"C": best.C, "test": best.score(*parts[2])}))
"""
TRACED = (
    "import json, sys; from pipeline.cli.main import main; status = main(sys.argv[1:]);"
    "print(json.dumps({'tensorflow': 'tensorflow' in sys.modules})); sys.exit(status)"
)


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.dim, options.repeats = 600, 32, 1
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        arrays = write(work, options)
        grid = json.dumps(list(LogregHead().grid))
        flags = ("train-head", "--store", work / "store", "--run", work / "run", "--head", "logreg",
                 "--force", "--json", "--quiet")  # fmt: skip
        found: dict[str, Any] = {}

        def ours() -> None:
            found["ours"] = command("-m", "pipeline", *flags)[1]["heads"]["logreg"]

        def bare() -> None:
            found["bare"] = command("-c", PEER, arrays, grid)[1]

        seconds = timed({"train_head": ours, "bare_script": bare}, options.repeats)
        traced = command("-c", TRACED, *flags)[1]
    results = {
        "seconds": seconds,
        "train_head_over_bare_script": ratio(seconds["train_head"], seconds["bare_script"]),
        "test_accuracy": {"ours": found["ours"]["test"]["accuracy"], "bare": found["bare"]["test"]},
        "tensorflow_loaded": traced["tensorflow"],
    }
    report("train_head_command", vars(options), results)


def write(work: Path, options: argparse.Namespace) -> Path:
    """Write a store with its manifest, and the same rows as plain arrays."""
    X, y = pooled_features(options.rows, options.dim, options.classes, options.seed)
    rng = np.random.default_rng(options.seed)
    keys = np.array([rng.bytes(32).hex().encode() for _ in range(options.rows)], dtype="S64")
    split = rng.choice(3, options.rows, p=(0.7, 0.15, 0.15))
    store = Store.create(work / "store", identity=IDENTITY, dim=options.dim, root=work)
    for start in range(0, options.rows, SHARD_ROWS):
        store.plain.add_shard(keys[start : start + SHARD_ROWS], X[start : start + SHARD_ROWS])
    names = ["train", "val", "test"]
    manifest = Manifest(
        root=work,
        paths=[f"{number:06}.jpg" for number in range(options.rows)],
        labels=[f"class {label}" for label in y],
        splits=[names[part] for part in split],
        keys=keys,
        statuses=["ok"] * options.rows,
    )
    store.save_manifest(store.manifest_path, manifest)
    np.savez(work / "arrays.npz", X=X, y=y, split=split)
    return work / "arrays.npz"


if __name__ == "__main__":
    main()
