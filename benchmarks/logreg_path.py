"""Logistic regression for ten and for 45 values of C, against one scikit-learn fit at C = 1.

Usage: python benchmarks/logreg_path.py [--quick] [--repeats 3]

Repetitions are interleaved in one process; ratios are of the shortest times. The features have
the decaying spectrum and the zeros of pooled ones. ``--label-noise 0`` gives classes that can be
separated, which scikit-learn leaves early.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from common import note, report
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from pipeline.heads.logreg.path import LogisticFit, fit_path
from pipeline.heads.scaler import FeatureScaler

TEN: Final = tuple(float(C) for C in np.logspace(-4, 2, 10))
FORTY_FIVE: Final = tuple(float(C) for C in 1 / np.logspace(5, -6, 45))
SPECTRUM_POWER: Final = 1.0
CLASS_SPREAD: Final = 0.6
TOL: Final = 1e-4
MAX_ITER: Final = 1000
QUICK: Final = {"rows": 600, "dim": 64, "repeats": 1}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--label-noise", type=float, default=0.1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few rows, one repetition")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    X, y = problem(options)
    calls: dict[str, Callable[[], Any]] = {
        "scikit_learn_one": lambda: peer(X, y, 1.0),
        "ten": lambda: ours(X, y, TEN),
        "forty_five": lambda: ours(X, y, FORTY_FIVE),
        "dgemm": lambda: products(X),
        "sgemm": lambda: products(X.astype(np.float32)),
    }
    seconds, results = measure(calls, options.repeats)
    best = {name: min(each) for name, each in seconds.items()}
    report(
        "logreg_path",
        vars(options),
        {
            "seconds": seconds,
            "ten_over_one": round(best["ten"] / best["scikit_learn_one"], 2),
            "forty_five_over_one": round(best["forty_five"] / best["scikit_learn_one"], 2),
            "scikit_learn_iterations": int(results["scikit_learn_one"].n_iter_[0]),
            "gflops": {name: results[name] for name in ("dgemm", "sgemm")},
            **product_rate(X, options.classes, results["ten"], best["ten"]),
            "objectives": objectives(X, y, results["ten"]),
            "all_converged": all(fit.converged for fit in results["forty_five"]),
        },
    )


def problem(options: argparse.Namespace) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Draw standardized features ``(rows, dim)`` and labels, some of them wrong."""
    rng = np.random.default_rng(options.seed)
    rows, dim, classes = options.rows, options.dim, options.classes
    y = np.arange(rows) % classes
    spectrum = np.arange(1, dim + 1) ** -SPECTRUM_POWER
    centres = rng.normal(size=(classes, dim)) * CLASS_SPREAD
    hidden = (rng.normal(size=(rows, dim)) + centres[y]) * spectrum
    mixed = hidden @ np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    features = np.maximum(mixed / mixed.std() - 0.3, 0)
    features += 0.05 * np.abs(rng.normal(size=features.shape))
    wrong = rng.random(rows) < options.label_noise
    y = np.where(wrong, rng.integers(0, classes, rows), y)
    return FeatureScaler().fit_transform(features), y


def measure(
    calls: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Time every call in turn, ``repeats`` times; return seconds and the last results."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, Any] = {}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            results[name] = call()
            seconds[name].append(round(time.perf_counter() - began, 4))
        note(str(seconds))
    return seconds, results


def peer(X: NDArray[np.float64], y: NDArray[np.intp], C: float) -> LogisticRegression:
    """Fit scikit-learn's."""
    return LogisticRegression(C=C, tol=TOL, max_iter=MAX_ITER).fit(X, y)


def ours(
    X: NDArray[np.float64], y: NDArray[np.intp], values: tuple[float, ...]
) -> list[LogisticFit]:
    """Fit all values."""
    return list(fit_path(X, y, values, tol=TOL, max_iter=MAX_ITER))


def products(X: NDArray[np.floating], columns: int = 100, repeats: int = 5) -> float:
    """Return the rate of products with ten stacked values, in 10^9 operations a second."""
    stack = np.ones((columns, X.shape[1]), X.dtype)
    best = np.inf
    for _ in range(repeats):
        began = time.perf_counter()
        (stack @ X.T) @ X
        best = min(best, time.perf_counter() - began)
    return round(4 * X.size * columns / best / 1e9, 1)


def product_rate(
    X: NDArray[np.float64], classes: int, fits: list[LogisticFit], seconds: float
) -> dict[str, Any]:
    """Return iterations of ten values, and the rate of their products over the whole fit."""
    iterations = [fit.n_iter for fit in fits]
    rate = 4 * X.size * classes * sum(iterations) / seconds / 1e9
    return {"ten_iterations": iterations, "ten_gflops_over_all": round(rate, 1)}


def objectives(
    X: NDArray[np.float64], y: NDArray[np.intp], fits: list[LogisticFit]
) -> dict[str, Any]:
    """Compare each objective with scikit-learn's at that C: ours over theirs, minus one."""
    excess = []
    for C, fit in zip(TEN, fits, strict=True):
        model = peer(X, y, C)
        log_probabilities = model.predict_log_proba(X)[np.arange(len(y)), y]
        penalty = (model.coef_**2).sum() / (2 * C * len(y))
        excess.append(float(fit.objective / (penalty - log_probabilities.mean()) - 1))
        note(f"C = {C:g}: {excess[-1]:g}")
    return {"excess": excess, "no_worse": max(excess) <= 1e-6}


if __name__ == "__main__":
    main()
