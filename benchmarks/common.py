"""What the benchmarks share: the machine's description, photos, timed commands."""

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from pipeline import backbones
from pipeline.backbones import identity as identities
from pipeline.images.manifest import Manifest
from pipeline.store.store import Store
from pipeline.system import machine
from pipeline.system.provenance import provenance

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
photos = importlib.import_module("photos")

# Of features that no network made.
IDENTITY: Final = identities.of(
    backbones.find("resnet50"),
    weights_sha256="0" * 64,
    image_size=224,
    resize="squash",
    pooling="avg",
    precision="float32",
    engine="",
)

# Rows of a shard of a store that a benchmark writes.
SHARD: Final = 20_000

# This checkout comes before all others, and bytecode is kept, as it is wherever nobody says
# otherwise: without, every process, ours and a peer's, compiles all that it imports.
_ENVIRONMENT: Final = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "PYTHONDONTWRITEBYTECODE": "",
}
_BASE_PICTURES: Final = 24
_INSTRUCTIONS: Final = ("bfloat16", "float16")


def about() -> dict[str, Any]:
    """Return what figures depend on: processor, threads, versions."""
    made = provenance()
    return {
        "processor": machine.processor_name(),
        "processors": machine.processors(),
        "instructions": [name for name in _INSTRUCTIONS if machine.computes_in(name)],
        "system": platform.platform(),
        "python": made["python"],
        "packages": made["packages"],
    }


def photo_folder(path: Path, count: int, seed: int) -> Path:
    """Write ``count`` different JPEG photos near 500 x 375 into class folders, once.

    Pictures with a photo's statistics, of which each file is another window, mirrored or not and
    brighter or darker, quality 90: the same bytes on every machine with the same libraries.
    """
    if (path / "complete").exists():
        return path / "photos"
    rng = np.random.default_rng(seed)
    base = [
        Image.fromarray(photos.natural(640, 480, seed + number))
        for number in range(min(count, _BASE_PICTURES))
    ]
    with ThreadPoolExecutor() as pool:
        writing = []
        for number in range(count):
            width, height = (int(side) for side in rng.integers((480, 360), (520, 390)))
            left, top = (int(place) for place in rng.integers(0, (640 - width, 480 - height)))
            window = (left, top, left + width, top + height)
            is_mirrored = rng.random() < 0.5
            gain = float(rng.uniform(0.8, 1.1))
            file = path / "photos" / f"class{number % 4}" / f"{number:05}.jpg"
            picture = base[number % len(base)]
            writing.append(pool.submit(_write_photo, file, picture, window, is_mirrored, gain))
        for written in writing:
            written.result()
    (path / "complete").touch()
    return path / "photos"


def _write_photo(
    file: Path, picture: Image.Image, window: tuple[int, ...], is_mirrored: bool, gain: float
) -> None:
    """Write a window of a picture."""
    photo = picture.crop(window)
    if is_mirrored:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    file.parent.mkdir(parents=True, exist_ok=True)
    photo.point(lambda level: level * gain).save(file, quality=90)


def tiny_folder(path: Path, count: int, *, first: int = 0) -> Path:
    """Write ``count`` different PNG files of 8 x 8 pixels into class folders."""
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = path / f"class{number % 10}" / f"{number:06}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return path


def pooled_features(rows: int, dim: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw features like pooled ones: not negative, correlated, with a spectrum that falls."""
    rng, shared = np.random.default_rng([seed]), np.random.default_rng([12345])
    mixing = shared.standard_normal((dim, dim), dtype=np.float32) / np.sqrt(dim)
    mixing *= (1 / np.sqrt(1 + np.arange(dim, dtype=np.float32)))[:, None] * np.sqrt(dim / 8)
    centres = shared.standard_normal((classes, dim), dtype=np.float32) / 2
    y = np.arange(rows) % classes
    features = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 8192):
        part = features[start : start + 8192]
        hidden = rng.standard_normal(part.shape, dtype=np.float32)
        hidden += centres[y[start : start + 8192]]
        np.maximum(hidden @ mixing, 0, out=part)
    return features, y


def plant_copies(features: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> int:
    """Make the last rows noisy copies of the first, one in fifty; return how many there are."""
    count = copies_among(len(features))
    noise = rng.normal(0, 0.05, (count, features.shape[1])).astype(np.float32)
    features[len(features) - count :] = features[:count] + noise
    y[len(y) - count :] = y[:count]
    return count


def copies_among(rows: int) -> int:
    """Return how many of some rows ``plant_copies`` makes copies."""
    return max(1, rows // 50)


def feature_store(
    folder: Path,
    rows: int,
    dim: int,
    draw: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
) -> Manifest:
    """Write a store of features that no network made; its images are nowhere.

    Args:
        folder: The store.
        rows: Images.
        dim: Numbers of each.
        draw: Given how many rows and the number of the first, returns features and class numbers.

    Returns:
        The manifest, with a label each; it is written too.
    """
    store = Store.create(folder, identity=IDENTITY, dim=dim, root=folder.parent)
    keys = np.array([f"{number:064x}".encode() for number in range(rows)], dtype="S64")
    labels: list[str] = []
    for start in range(0, rows, SHARD):
        part = keys[start : start + SHARD]
        features, y = draw(len(part), start)
        store.plain.add_shard(part, features)
        labels += [f"class{number}" for number in y.tolist()]
    with store.scan_cache() as cache:
        store.reindex(cache)
    paths = [f"{number:07}.jpg" for number in range(rows)]
    manifest = Manifest(folder.parent, paths, labels, [""] * rows, keys, ["ok"] * rows)
    store.save_manifest(store.manifest_path, manifest)
    return manifest


def timed(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Time calls in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            took = time.perf_counter() - began
            if repeat:
                seconds[name].append(round(took, 4))
        note(str(seconds))
    return seconds


def started(
    *arguments: object, environment: Mapping[str, str] | None = None, **streams: int
) -> subprocess.Popen[str]:
    """Start a Python script or module in a new process; stdout is a pipe, if streams do not say."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        **{"stdout": subprocess.PIPE, **streams},
        text=True,
        env={**os.environ, **_ENVIRONMENT, **(environment or {})},
    )


def command(
    *arguments: object, environment: Mapping[str, str] | None = None
) -> tuple[float, dict[str, Any]]:
    """Run a Python script or module that prints JSON; return wall-clock seconds and the object."""
    began = time.perf_counter()
    process = started(*arguments, environment=environment)
    out, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    seconds = time.perf_counter() - began
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return seconds, result


def note(text: str) -> None:
    """Say on stderr what goes on."""
    print(text, file=sys.stderr, flush=True)


def report(name: str, options: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """Print the one JSON object of a benchmark."""
    plain = {
        key: str(value) if isinstance(value, Path) else value for key, value in options.items()
    }
    print(
        json.dumps({"benchmark": name, "options": plain, "machine": about(), **results}, indent=2)
    )


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Return the ratio of two medians, and those of the repetitions, pairwise."""
    pairs = [round(a / b, 3) for a, b in zip(numerator, denominator, strict=False)]
    return {
        "ratio": round(float(np.median(numerator) / np.median(denominator)), 3),
        "by_repetition": pairs,
    }
