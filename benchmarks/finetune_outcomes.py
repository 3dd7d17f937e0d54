"""Does fine-tuning help, and how does the tutorial's recipe do? Accuracy, not speed.

By default a class is a picture, and its images are crops of it: train from the left, val and test
from two parts further right, so that no image of test shows what one of train does. Stage 2, our
fine-tuning and ``--preset tutorial`` run as commands, and their answers to the same test images are
compared in pairs. Weights are random unless given, and the same for every seed.

Crops of one picture overlap, so that intervals and p-values of one seed look narrower than they
are; the spread over seeds does not.

Usage: python benchmarks/finetune_outcomes.py [--pictures FOLDER | --data sample|strokes]
       [--seeds 3] [--weights PATH] [--finetune-flags="--learning-rate 1e-5"] [--quick]
"""

import argparse
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import command, note, photos, report
from numpy.typing import NDArray
from PIL import Image

from pipeline.runs import metrics
from pipeline.runs.run import Run

HEADS = ("dense", "linear", "logreg")
# Parts of a picture's width, which are shares of its crops too.
SPLITS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
WIDTH, HEIGHT = 1280, 960
# Sides of crops, as shares of the largest square that fits into every part.
SMALLEST_CROP, LARGEST_CROP = 0.25, 0.5
SUFFIXES = (".avif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SCORES = ("n", "accuracy", "accuracy_ci95", "log_loss")
TRAININGS = ("default", "preset_tutorial")


def main() -> None:
    """Run everything for each seed and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", choices=("crops", "sample", "strokes"), default="crops")
    source.add_argument("--pictures", type=Path, help="folder of big photos, instead of drawn ones")
    parser.add_argument("--classes", type=int, default=12)
    parser.add_argument("--crops", type=int, default=100, help="of each picture, over all splits")
    parser.add_argument("--strokes", type=int, default=900, help="images of --data strokes")
    parser.add_argument("--light", type=float, default=0.25, help="0 makes drawn pictures alike")
    parser.add_argument("--weights", default="random", help="random, imagenet or a file")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--finetune-flags", default="", help="more flags of our fine-tuning")
    parser.add_argument("--seeds", type=int, default=1, help="of crops or split, and of training")
    parser.add_argument("--quick", action="store_true", help="few small images, one epoch")
    options = parser.parse_args()
    if options.quick:
        options.classes, options.crops, options.image_size = 3, 15, 32
        options.finetune_flags = "--epochs 1 --unfreeze-from conv5_block3"
    found = [outcome(options, seed) for seed in range(options.seeds)]
    report("finetune_outcomes", vars(options), {"by_seed": found, "summary": summary(found)})


def outcome(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Run the three stages on the data of one seed."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = {"sample": sample, "strokes": strokes, "crops": crops}[options.data](
            options, work, seed
        )
        pipeline("extract", data, "--store", work / "store", "--weights", options.weights,
                 "--image-size", options.image_size)  # fmt: skip
        heads = [part for head in HEADS for part in ("--head", head)]
        stage_two = pipeline("train-head", "--store", work / "store", "--run", work / "run", *heads,
                             "--split-seed", seed, "--seed", seed)  # fmt: skip
        flags = (shlex.split(options.finetune_flags), ("--preset", "tutorial"))
        trained = {
            name: pipeline("finetune", work / "run", "--run", work / name, "--seed", seed, *more)
            for name, more in zip(TRAININGS, flags, strict=True)
        }
        between = paired(*(Run.open(work / name) for name in TRAININGS))
    for name, result in trained.items():
        note(f"seed {seed}, {name}: {result['finetune']['verdict']['text']}")
    # Both begin at the head that is best on val.
    (start,) = set(trained["default"]["heads"]) - {"finetune"}
    return {
        "seed": seed,
        "images": stage_two["split"],
        "stage_two": {head: scores(stage_two["heads"][head]) for head in HEADS},
        "starting_head": start,
        **{name: training(result) for name, result in trained.items()},
        "default_against_preset_tutorial": between,
    }


def pipeline(*arguments: object) -> dict[str, Any]:
    """Run a command in a new process; return its result."""
    return command("-m", "pipeline", *arguments, "--json", "--quiet")[1]


def scores(record: dict[str, Any]) -> dict[str, Any]:
    """Return what is reported of a head on val and test."""
    return {split: {name: record[split][name] for name in SCORES} for split in ("val", "test")}


def training(result: dict[str, Any]) -> dict[str, Any]:
    """Return what is reported of a fine-tuning; epoch 0 is its start."""
    record, verdict = result["finetune"], result["finetune"]["verdict"]
    compared = ("recommended", "difference", "difference_ci95", "p_value")
    return {
        **scores(result["heads"]["finetune"]),
        "against_stage_two": {name: verdict[name] for name in compared},
        "start_difference": record["start_difference"],
        "kept_epoch": record["kept_epoch"],
        "val_loss_by_epoch": [row["val_loss"] for row in record["epochs"]],
        "epoch_seconds": round(float(np.median([row["seconds"] for row in record["epochs"]])), 2),
    }


def paired(default: Run, preset: Run) -> dict[str, Any]:
    """Compare two fine-tunings on the same test images (McNemar); the first less the second."""
    first, second = correct(default), correct(preset)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return {
        "n": len(first),
        "only_default": only_first,
        "only_preset_tutorial": only_second,
        "difference": (only_first - only_second) / len(first),
        "difference_ci95": metrics.paired_difference(only_first, only_second, len(first)),
        "p_value": metrics.mcnemar(only_first, only_second),
    }


def correct(run: Run) -> NDArray[np.bool_]:
    """Return whether each test image is classified rightly, in the manifest's order."""
    rows = run.manifest()
    splits, labels = np.array(rows.splits), np.array(rows.labels)
    is_scored = splits != "train"
    predicted = np.array(run.record.classes)[run.probabilities("finetune").argmax(axis=1)]
    right: NDArray[np.bool_] = (predicted == labels[is_scored])[splits[is_scored] == "test"]
    return right


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return means over seeds, and standard deviations where there are several."""
    methods = {
        "stage_two": [item["stage_two"][item["starting_head"]] for item in found],
        **{name: [item[name] for item in found] for name in TRAININGS},
    }
    means = {
        method: {
            f"{split}_{score}": spread([item[split][score] for item in items])
            for split in ("val", "test")
            for score in ("accuracy", "log_loss")
        }
        for method, items in methods.items()
    }
    differences = [item["default_against_preset_tutorial"]["difference"] for item in found]
    return {**means, "default_less_preset_tutorial": {"test_accuracy": spread(differences)}}


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and standard deviation; one value has none."""
    deviation = round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None
    return {"mean": round(float(np.mean(values)), 4), "sd": deviation}


def strokes(options: argparse.Namespace, work: Path, seed: int) -> Path:
    """Write images of strokes, which features of an untrained network do not tell."""
    photos.strokes(work / "strokes", options.strokes)
    return work / "strokes"


def sample(options: argparse.Namespace, work: Path, seed: int) -> Path:
    """Write the embedded sample."""
    pipeline("sample", work / "sample")
    return work / "sample"


def crops(options: argparse.Namespace, work: Path, seed: int) -> Path:
    """Write split folders of crops, a class a picture; every seed has crops of its own."""
    rng = np.random.default_rng([seed, 0])
    for number, picture in enumerate(pictures(options, seed)):
        for split, (start, end) in SPLITS.items():
            folder = work / "crops" / split / f"picture{number:02}"
            folder.mkdir(parents=True)
            for place in range(round(options.crops * (end - start))):
                crop(picture, start, end, rng).save(folder / f"{place:03}.jpg", quality=90)
    return work / "crops"


def crop(picture: Image.Image, start: float, end: float, rng: np.random.Generator) -> Image.Image:
    """Return a square of random size and place from between two shares of the width."""
    narrowest = min(end - start for start, end in SPLITS.values())
    fitting = min(picture.height, int(narrowest * picture.width))
    side = int(rng.integers(int(SMALLEST_CROP * fitting), int(LARGEST_CROP * fitting) + 1))
    left = int(rng.integers(int(start * picture.width), int(end * picture.width) - side + 1))
    top = int(rng.integers(0, picture.height - side + 1))
    return picture.crop((left, top, left + side, top + side))


def pictures(options: argparse.Namespace, seed: int) -> list[Image.Image]:
    """Return a picture a class: the first ones of a folder by name, else drawn ones."""
    if options.pictures is None:
        return [drawn(options.light, [seed, 1, number]) for number in range(options.classes)]
    paths = sorted(path for path in options.pictures.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) < options.classes:
        raise SystemExit(
            f"--pictures: expected {options.classes} pictures or more. Received: {len(paths)} in "
            f"{str(options.pictures)!r}. Give another folder, or fewer --classes."
        )
    return [opened(path) for path in paths[: options.classes]]


def drawn(light: float, seed: Sequence[int]) -> Image.Image:
    """Draw a picture with a photo's statistics, in a light of its own.

    Without that, two parts of one picture have no more in common than those of two pictures.
    """
    rng = np.random.default_rng(seed)
    pixels = photos.natural(WIDTH, HEIGHT, int(rng.integers(2**31))).astype(np.float32)
    mixing = np.eye(3, dtype=np.float32) + light * rng.standard_normal((3, 3), dtype=np.float32)
    return Image.fromarray(np.rint(pixels @ mixing).clip(0, 255).astype(np.uint8))


def opened(path: Path) -> Image.Image:
    """Open a picture, as large as a drawn one."""
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((WIDTH, WIDTH))
    return picture


if __name__ == "__main__":
    main()
