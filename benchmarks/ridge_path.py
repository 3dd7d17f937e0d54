"""Ridge for 20 values of alpha, against one value, and against scikit-learn's Ridge for one.

Usage: python benchmarks/ridge_path.py [--quick]
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from common import pooled_features, ratio, report, timed
from sklearn.linear_model import Ridge

from pipeline.heads.ridge import RidgeHead
from pipeline.heads.scaler import FeatureScaler

ALPHA = 10.0


def main() -> None:
    """Measure and print one JSON object."""
    options = read_options()
    X, y = pooled_features(options.rows, options.dim, options.classes, options.seed)
    validation = pooled_features(options.rows // 5, options.dim, options.classes, options.seed + 1)
    indicators = np.eye(options.classes)[y]
    alphas = np.logspace(-1, 6, options.alphas)
    settings = [{"grid": (float(alpha),)} for alpha in alphas]

    def scikit_learn() -> Any:
        scaled = FeatureScaler().fit(X).transform(X.astype(np.float64))
        return scaled, Ridge(alpha=ALPHA).fit(scaled, indicators)

    calls: dict[str, Callable[[], Any]] = {
        "one": lambda: RidgeHead(grid=(ALPHA,)).fit(X, y),
        "path": lambda: list(RidgeHead().fit_many(X, y, settings)),
        "path_chosen_on_val": lambda: RidgeHead(grid=alphas).fit(X, y, validation=validation),
        "scikit_learn_one": scikit_learn,
    }
    seconds = timed(calls, options.repeats)
    scaled, theirs = scikit_learn()
    ours = RidgeHead(grid=(ALPHA,)).fit(X, y)
    results = {
        "seconds": seconds,
        "largest_difference_of_scores": float(
            np.abs(ours.scores(X) - theirs.predict(scaled)).max()
        ),
        **{
            f"{name}_over_{other}": {
                **ratio(seconds[name], seconds[other]),
                "of_minima": round(min(seconds[name]) / min(seconds[other]), 3),
            }
            for name in ("path", "path_chosen_on_val")
            for other in ("one", "scikit_learn_one")
        },
    }
    report("ridge_path", vars(options), results)


def read_options() -> argparse.Namespace:
    """Read the command line; ``--quick`` is a small problem, to see that the script runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--alphas", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.dim, options.repeats = 500, 64, 1
    return options


if __name__ == "__main__":
    main()
