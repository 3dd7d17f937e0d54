"""Sixty-four linear heads in one pass, against one Keras fit of one head, and one by one.

All train in one process, in turn; importing and compiling are not counted.

Usage: python benchmarks/linear_sweep.py [--batch-sizes 32 128 256 512]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import note, ratio, report

from pipeline.heads.linear import LinearHead
from pipeline.heads.scaler import FeatureScaler
from pipeline.system.keras_setup import import_keras


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rates", type=int, default=16)
    parser.add_argument("--decays", type=int, default=4)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128, 256, 512])
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adam"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    X, y = blobs(options)
    results = {}
    for optimizer in options.optimizers:
        for batch_size in options.batch_sizes:
            name = f"{optimizer}, batches of {batch_size}"
            results[name] = measure(options, X, y, optimizer, batch_size)
            note(f"{name}: {results[name]}")
    report("linear_sweep", vars(options), {"results": results})


def blobs(options: Any) -> tuple[Any, Any]:
    """Return features and labels of classes that overlap."""
    rng = np.random.default_rng(options.seed)
    y = rng.integers(0, options.classes, options.rows)
    centres = 0.05 * rng.standard_normal((options.classes, options.dim), dtype=np.float32)
    noise = rng.standard_normal((options.rows, options.dim), dtype=np.float32)
    return centres[y] + noise, y


def measure(options: Any, X: Any, y: Any, optimizer: str, batch_size: int) -> dict[str, Any]:
    """Return seconds of each way, and the ratios of their minima."""
    head = LinearHead(optimizer, epochs=options.epochs, batch_size=batch_size, seed=options.seed)
    settings = [
        {"learning_rate": float(rate), "weight_decay": float(decay)}
        for rate in np.logspace(-5, -2, options.rates)
        for decay in np.linspace(0, 0.1, options.decays)
    ]
    calls: dict[str, Callable[[], object]] = {
        "keras_one": keras_fit(options, X, y, optimizer, batch_size),
        "bank": lambda: list(head.fit_many(X, y, settings)),
        "one_by_one": lambda: [head.set_params(**params).fit(X, y) for params in settings],
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(round(time.perf_counter() - began, 4))
    best = {name: min(values) for name, values in seconds.items()}
    return {
        "seconds": seconds,
        "bank_over_keras_one": ratio(seconds["bank"], seconds["keras_one"]),
        "one_by_one_over_bank": ratio(seconds["one_by_one"], seconds["bank"]),
        "bank_over_keras_one_of_minima": round(best["bank"] / best["keras_one"], 3),
        "one_by_one_over_bank_of_minima": round(best["one_by_one"] / best["bank"], 3),
    }


def keras_fit(
    options: Any, X: Any, y: Any, optimizer: str, batch_size: int
) -> Callable[[], object]:
    """Return the fit of one compiled Dense softmax on scaled features, which are made here."""
    keras = import_keras()
    scaled = FeatureScaler().fit_transform(X)
    layer = keras.layers.Dense(options.classes, activation="softmax")
    network = keras.Sequential([keras.Input((options.dim,)), layer])
    rule = {
        "adam": lambda: keras.optimizers.Adam(1e-3),
        "sgd": lambda: keras.optimizers.SGD(1e-3, momentum=0.9),
    }[optimizer]()
    network.compile(optimizer=rule, loss="sparse_categorical_crossentropy")
    network.fit(scaled[:batch_size], y[:batch_size], batch_size=batch_size, verbose=0)
    return lambda: network.fit(scaled, y, batch_size=batch_size, epochs=options.epochs, verbose=0)


if __name__ == "__main__":
    main()
