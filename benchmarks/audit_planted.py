"""What an audit finds of what is planted: copies across splits, flipped labels, outliers.

Of the photos of a folder a part is split into train and test. Twenty images of train get a copy in
test: cut, mirrored, or saved again at a low quality. Three in a hundred labels are flipped. Ten
images of another folder are outliers.

Usage: python benchmarks/audit_planted.py PHOTOS --others PHOTOS [--images 1500]
       [--backbone efficientnetlite0] [--weights imagenet] [--image-size 224]
"""

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import note, report
from PIL import Image

import pipeline

COPIES = 20
FLIPPED = 0.03
OUTLIERS = 10
WAYS = ("cut", "mirrored", "saved again")


def main() -> None:
    """Plant, extract, audit, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="folder with one sub-folder per class")
    parser.add_argument("--others", type=Path, required=True, help="photos of something else")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--backbone", default="efficientnetlite0")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--image-size", type=int, default=224)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        photos, store = Path(work, "photos"), Path(work, "store")
        planted = plant(photos, options.photos, options.others, options.images)
        note(f"planted in {options.images:,} images; extracting")
        pipeline.extract_features(photos, store=store, backbone=options.backbone,
                                  weights=options.weights, image_size=options.image_size,
                                  quiet=True)  # fmt: skip
        found = pipeline.audit_store(store, out=str(Path(work, "audit")), quiet=True)
    report("audit_planted", vars(options), judged(planted, found))


def plant(photos: Path, source: Path, others: Path, count: int) -> dict[str, Any]:
    """Write photos with what is to be found; return it.

    Returns:
        ``copies``: way and original by path; ``flips``: true label by path; ``outliers``: paths.
    """
    rng = np.random.default_rng(0)
    classes = sorted(path.name for path in source.iterdir() if path.is_dir())
    drawn = rng.permutation(files_of(source))[:count]
    train, test = np.split(drawn, [3 * count // 4])
    placed = {
        file: Path(split, file.parent.name, file.name)
        for split, files in (("train", train), ("test", test))
        for file in files
    }
    flips = {}
    for file in rng.permutation(train)[: round(FLIPPED * count)]:
        label = str(rng.choice([name for name in classes if name != file.parent.name]))
        placed[file] = Path("train", label, f"flipped-{file.parent.name}-{file.name}")
        flips[placed[file].as_posix()] = file.parent.name
    for file, place in placed.items():
        (photos / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, photos / place)
    kept = [file for file in train if placed[file].as_posix() not in flips]
    copies = {}
    for number, file in enumerate(rng.permutation(kept)[:COPIES]):
        way = WAYS[number % len(WAYS)]
        place = Path("test", file.parent.name, f"copy-{number}.jpg")
        copied(file, way).save(photos / place, quality=30 if way == "saved again" else 90)
        copies[place.as_posix()] = (way, placed[file].as_posix())
    outliers = []
    for file in rng.permutation(files_of(others))[:OUTLIERS]:
        place = Path("train", str(rng.choice(classes)), f"outlier-{file.name}")
        shutil.copy(file, photos / place)
        outliers.append(place.as_posix())
    return {"copies": copies, "flips": flips, "outliers": outliers}


def files_of(folder: Path) -> Any:
    """Return the JPEG files of class folders, in order, as an array."""
    return np.array(sorted(folder.glob("*/*.jpg")), dtype=object)


def copied(file: Path, way: str) -> Image.Image:
    """Return an image as its copy is."""
    image = Image.open(file).convert("RGB")
    width, height = image.size
    if way == "cut":
        return image.crop((width // 12, height // 20, width - width // 16, height - height // 12))
    if way == "mirrored":
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def judged(planted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return how many of the planted were found, and how many others were said."""
    pairs = {
        (path, other) for group in found["near_duplicates"] for path in group["paths"]
        for other in group["paths"]
    }  # fmt: skip
    flips, outliers = planted["flips"], set(planted["outliers"])
    ranked = [error["path"] for error in found["label_errors"]]
    proposed = {error["path"]: error["proposed"] for error in found["label_errors"]}
    strangest = [item["path"] for item in found["outliers"]]
    return {
        "threshold": found["threshold"],
        "copies": {
            way: of(
                [(path, other) in pairs for path, (how, other) in planted["copies"].items()
                 if how == way]
            )
            for way in WAYS
        },
        "leaks": len(found["leaks"]),
        "flips": {
            "listed": of([path in proposed for path in flips]),
            "right_label": of([proposed.get(path) == label for path, label in flips.items()]),
            "among_first_as_many": of([path in flips for path in ranked[: len(flips)]]),
        },
        "likely_errors": found["label_error_head"]["estimated"],
        "outliers": of([path in strangest for path in outliers]),
        "other_outliers": len(set(strangest) - outliers),
    }  # fmt: skip


def of(is_found: Sequence[bool]) -> str:
    """Return how many of how many."""
    return f"{sum(is_found)} of {len(is_found)}"


if __name__ == "__main__":
    main()
