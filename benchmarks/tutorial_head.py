"""Training the dense head: against Keras' fit, against a call a step, and many heads in a pass.

Three parts, each with its peers in turn in one process: the tutorial's head once all are compiled;
a small fit with its compilation; several heads in one pass against one at a time.

Usage: python benchmarks/tutorial_head.py [--parts seed small many] [--epochs 10] [--repeats 3]
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from common import note, ratio, report

from pipeline import heads
from pipeline.heads.dense import DenseHead
from pipeline.heads.dense.steps import compiled
from pipeline.system.keras_setup import import_keras


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["seed", "small", "many"])
    parser.add_argument("--rows", type=int, default=10_000, help="of the tutorial's head")
    parser.add_argument("--small-rows", type=int, default=1257, help="of the other parts")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=10, help="of the tutorial's head")
    parser.add_argument("--small-epochs", type=int, default=40)
    parser.add_argument("--heads", type=int, default=8, help="in one pass")
    parser.add_argument("--widths", type=int, nargs="+", default=[0, 64, 256],
                        help="of their hidden layer; 0 stands for none")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    measures = {"seed": tutorial_head, "small": small_fit, "many": many_heads}
    results = {}
    for part in options.parts:
        results[part] = measures[part](options)
        note(f"{part}: {results[part]}")
    report("tutorial_head", vars(options), {"results": results})


def tutorial_head(options: Any) -> dict[str, Any]:
    """Measure the preset once all are compiled."""
    X, y = features(options, options.rows)
    params = {**heads.PRESETS["tutorial"]["dense"], "epochs": options.epochs, "seed": options.seed}
    calls = {
        "keras_fit": keras_fit(options, X, y, params, {}),
        "keras_fit_compiled": keras_fit(
            options, X, y, params, {"jit_compile": True, "steps_per_execution": 50}
        ),
        "head": lambda: DenseHead(**params).fit(X, y),
    }
    return against(seconds_of(calls, options.repeats, warm=True), "head")


def small_fit(options: Any) -> dict[str, Any]:
    """Measure default heads on few rows, each compiled anew."""
    X, y = features(options, options.small_rows)
    params = {"epochs": options.small_epochs, "seed": options.seed}

    def head_compiled_anew() -> None:
        compiled.cache_clear()
        DenseHead(**params).fit(X, y)

    calls = {
        "train_on_batch": lambda: call_a_step(options, X, y, DenseHead(**params)),
        "head": head_compiled_anew,
        "head_compiled_before": lambda: DenseHead(**params).fit(X, y),
    }
    return against(seconds_of(calls, options.repeats, warm=False), "head")


def many_heads(options: Any) -> dict[str, Any]:
    """Measure ``fit_many`` against one head at a time, once both are compiled."""
    X, y = features(options, options.small_rows)
    settings = [{"learning_rate": float(rate)} for rate in np.logspace(-5, -3, options.heads)]
    found = {}
    for width in options.widths:
        hidden = (width,) if width else ()
        head = DenseHead(hidden=hidden, epochs=options.small_epochs, seed=options.seed)
        calls: dict[str, Callable[[], object]] = {
            "one_at_a_time": lambda head=head: [
                head.set_params(**params).fit(X, y) for params in settings
            ],
            "fit_many": lambda head=head: list(head.fit_many(X, y, settings)),
        }
        name = f"hidden {list(hidden)}"
        found[name] = against(seconds_of(calls, options.repeats, warm=True), "fit_many")
    return found


def features(options: Any, num_rows: int) -> tuple[Any, Any]:
    """Return float32 features and labels of classes that overlap."""
    rng = np.random.default_rng(options.seed)
    y = rng.integers(0, options.classes, num_rows)
    centres = 0.1 * rng.standard_normal((options.classes, options.dim), dtype=np.float32)
    noise = rng.standard_normal((num_rows, options.dim), dtype=np.float32)
    return centres[y] + noise, y


def keras_fit(
    options: Any, X: Any, y: Any, params: Mapping[str, Any], compile_options: Mapping[str, Any]
) -> Callable[[], object]:
    """Return Keras' fit of the head's network."""
    network = DenseHead(**params).network(options.dim, options.classes, num_rows=len(X))
    keras = import_keras()
    optimizer = keras.optimizers.Adam(params["learning_rate"])
    network.compile(optimizer=optimizer, loss="categorical_crossentropy", **compile_options)
    targets = np.eye(options.classes, dtype=np.float32)[y]
    return lambda: network.fit(
        X, targets, batch_size=params["batch_size"], epochs=options.epochs, verbose=0
    )


def call_a_step(options: Any, X: Any, y: Any, head: DenseHead) -> None:
    """Train the head's network with one call of Keras for each batch."""
    network = head.network(options.dim, options.classes, num_rows=len(X))
    targets = np.eye(options.classes, dtype=np.float32)[y]
    for epoch in range(head.epochs):
        order = np.random.default_rng([head.seed, 1, epoch]).permutation(len(X))
        for start in range(0, len(X), head.batch_size):
            rows = order[start : start + head.batch_size]
            network.train_on_batch(X[rows], targets[rows])


def seconds_of(
    calls: Mapping[str, Callable[[], object]], repeats: int, *, warm: bool
) -> dict[str, list[float]]:
    """Return seconds of each call, made in turn; ``warm`` makes each once before."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + warm):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if repeat or not warm:
                seconds[name].append(round(time.perf_counter() - began, 4))
    return seconds


def against(seconds: Mapping[str, list[float]], ours: str) -> dict[str, Any]:
    """Return seconds, and how many times faster ours is than each peer."""
    peers = [name for name in seconds if name != ours]
    return {
        "seconds": seconds,
        **{f"{name}_over_{ours}": ratio(seconds[name], seconds[ours]) for name in peers},
        **{
            f"{name}_over_{ours}_of_minima": round(min(seconds[name]) / min(seconds[ours]), 2)
            for name in peers
        },
    }


if __name__ == "__main__":
    main()
