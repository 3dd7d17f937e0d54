"""What int8 is worth beside float32: images a second, and accuracy on photos of one's own.

The rates are those of the openvino engine on preloaded batches, both networks in turns in one
process, each with the requests that it chooses. The accuracy is that of logistic regression by
split seed, on features of the same photos in both precisions, compared in pairs.

Usage: python benchmarks/int8.py [DATA...] [--parts rate accuracy] [--seeds 5] [--work FOLDER]
It needs NNCF (the extra int8) and a processor with instructions for int8. With --work, features and
runs stay there, and what is there is not made again.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bare_rate import loop
from common import note, ratio, report
from finetune_outcomes import pipeline

from pipeline import engines
from pipeline.backbones import frozen, quantized_file
from pipeline.engines import int8
from pipeline.engines.encoder import Encoder, Images

PRECISIONS = ("float32", "int8")
BATCH = 32
# Scales do not change the rate, so that it takes few images to calibrate for it.
CALIBRATED_ON = 8


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", type=Path, help="folders of class folders")
    parser.add_argument("--parts", nargs="+", choices=("rate", "accuracy"),
                        default=("rate", "accuracy"))  # fmt: skip
    parser.add_argument("--backbones", nargs="+", default=["efficientnetlite0", "resnet50"],
                        help="whose rates are measured, with random weights")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a repetition, about")
    parser.add_argument("--seeds", type=int, default=5, help="of split and training")
    parser.add_argument("--backbone", default="efficientnetlite0", help="of the accuracy")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--work", type=Path, help="where features and runs stay")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if "rate" in options.parts:
            found["rate"] = {name: rate(name, work, options) for name in options.backbones}
        if "accuracy" in options.parts:
            found["accuracy"] = {
                data.name: accuracy(data, work / data.name, options) for data in options.data
            }
    given = {**vars(options), "data": [str(data) for data in options.data]}
    report("int8", given, found)


def rate(name: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Images a second in both precisions, in turns."""
    side = options.image_size
    images = np.random.default_rng(0).integers(0, 256, (4 * BATCH, side, side, 3), dtype=np.uint8)
    encoders = _encoders(name, work, images)
    counts = {}
    for precision, encoder in encoders.items():
        loop(encoder, images, 2)
        counts[precision] = max(4, round(4 * options.seconds / loop(encoder, images, 4)))
    rates: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(options.repeats):
        for precision, encoder in encoders.items():
            count = counts[precision]
            rates[precision].append(round(count * BATCH / loop(encoder, images, count), 1))
    note(f"{name}: {rates}")
    return {
        "images_per_second": rates,
        "device": encoders["int8"].device,
        "int8_over_float32": ratio(rates["int8"], rates["float32"]),
    }


def accuracy(data: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy of logistic regression in both precisions, in percent, by split seed."""
    found = {}
    for precision in PRECISIONS:
        store = work / f"store-{precision}"
        pipeline("extract", data, "--store", store, "--backbone", options.backbone, "--weights",
                 options.weights, "--image-size", options.image_size, "--precision", precision,
                 "--engine", "openvino")  # fmt: skip
        found[precision] = [_scored(store, seed) for seed in range(options.seeds)]
    differences = np.subtract(found["int8"], found["float32"])
    note(f"{data.name}: {json.dumps(found)}")
    return {
        "test_accuracy_percent": found,
        "means": {name: round(float(np.mean(values)), 2) for name, values in found.items()},
        "int8_minus_float32_points": {
            "mean": round(float(differences.mean()), 2),
            "standard_error": round(float(differences.std(ddof=1) / len(differences) ** 0.5), 2)
            if len(differences) > 1
            else None,
        },
    }


def _encoders(name: str, work: Path, images: Images) -> dict[str, Encoder]:
    side = images.shape[1]
    loaded = frozen.load(name, weights="random", seed=0, image_size=side, pooling="avg")
    loaded.converted = work / f"encoder-{name}-{side}"
    loaded.converted.mkdir(exist_ok=True)
    content = int8.quantize(loaded, images[:CALIBRATED_ON], [])
    loaded.quantized = quantized_file.keep(loaded.converted, content)
    return {
        precision: engines.create("openvino", loaded, batch_size=BATCH, precision=precision)
        for precision in PRECISIONS
    }


def _scored(store: Path, seed: int) -> float:
    run = store.with_name(f"{store.name}-run-{seed}")
    seeds = ("--split-seed", seed, "--seed", seed)
    made = pipeline("train-head", "--store", store, "--run", run, "--head", "logreg", *seeds)
    return round(100 * made["heads"]["logreg"]["test"]["accuracy"], 2)


if __name__ == "__main__":
    main()
