"""Fakes of the seams, for tests that need no network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline import backbones, engines
from pipeline.backbones import frozen, quantized_file, weights
from pipeline.backbones import identity as identities
from pipeline.backbones.forms import KERAS, Form
from pipeline.backbones.probe import Probe
from pipeline.engines import int8
from pipeline.engines.encoder import Encoder
from pipeline.files.records import write_record
from pipeline.files.regular import sha256_file
from pipeline.images.manifest import Manifest
from pipeline.store.store import Store
from pipeline.system.progress import Silence

DIM = 16
PLANTED_DIM = 12
IDENTITY = identities.of(
    backbones.find("resnet50"),
    weights_sha256="0" * 64,
    image_size=32,
    resize="squash",
    pooling="avg",
    precision="float32",
    engine="",
)

Command = Callable[..., tuple[int, dict[str, Any]]]


@dataclass
class FakeEncoder(Encoder):
    """A fixed random projection of the pixels; counts the images it encodes."""

    image_size: int = 32
    batch_size: int = 8
    engine: str = "fake"
    device: str = "CPU (fake)"
    dim: int = DIM
    drift: float = 0.0
    images: int = field(default=0, init=False)

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.images += len(images)
        pixels = images.reshape(len(images), -1).astype(np.float32) / 255
        projection = np.random.default_rng(0).normal(size=(pixels.shape[1], DIM))
        rows = [(row @ projection).astype(np.float32) for row in pixels]  # no row has company
        return np.stack(rows) * np.float32(1 + self.drift)


@dataclass
class FakeBackbone:
    """What ``backbone.load`` returns, as far as extraction looks at it."""

    weights_sha256: str
    dim: int = DIM
    scale: float = 1.0
    form: Form = KERAS
    probe: Probe | None = None

    @classmethod
    def drawn(cls, source: str) -> FakeBackbone:
        """Weights of their own for each text."""
        scale = float(np.float32(int(hashlib.sha256(source.encode()).hexdigest()[:6], 16)))
        drawn = cls("", scale=scale)
        return cls(weights.digest(drawn.arrays()), scale=scale)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        return {"conv/kernel": np.full((2, 2), self.scale, np.float32)}


def replace_network(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    """Replace the backbone by a random projection; the weights' digest follows name and seed."""
    encoder = FakeEncoder()

    def load(name: str, *, weights: str, seed: int, **_: object) -> FakeBackbone:
        return FakeBackbone.drawn(f"{name}{weights}{seed}")

    def create(*_: object, batch_size: int, **__: object) -> FakeEncoder:
        encoder.batch_size = batch_size
        return encoder

    monkeypatch.setattr(frozen, "load", load)
    monkeypatch.setattr(engines, "create", create)
    return encoder


def replace_quantization(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fake network be in int8 on every processor, without NNCF."""
    monkeypatch.setattr(int8, "require", lambda engine: None)
    monkeypatch.setattr(int8, "require_nncf", lambda: None)
    monkeypatch.setattr(
        int8, "quantize", lambda loaded, images, keys: quantized_file.pack(b"", b"", {})
    )


class Bar:
    """A progress bar that remembers what it was told."""

    def __init__(self) -> None:
        self.steps = 0

    def advance(self, **shown: object) -> None:
        self.steps += 1


def write_image(path: Path, seed: int, size: int = 12) -> bytes:
    """Write a small PNG that no other seed gives, and return its bytes."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    return path.read_bytes()


def write_classes(folder: Path, counts: dict[str, int], first_seed: int = 0) -> None:
    """Write class folders of different images."""
    seed = first_seed
    for name, count in counts.items():
        for number in range(count):
            write_image(folder / name / f"{number:03}.png", seed)
            seed += 1


def planted_store(
    path: Path,
    counts: dict[str, int],
    *,
    separation: float = 1.5,
    splits: list[str] | None = None,
    dim: int = PLANTED_DIM,
) -> Store:
    """Write a store of Gaussian classes, with its manifest."""
    rng = np.random.default_rng(7)
    labels = [name for name, count in counts.items() for _ in range(count)]
    centres = {name: rng.normal(size=dim) * separation for name in counts}
    features = np.stack([centres[label] + rng.normal(size=dim) for label in labels])
    keys = np.array([f"{number:064x}".encode() for number in range(len(labels))], dtype="S64")
    store = Store.create(path, identity=IDENTITY, dim=dim, root=path)
    store.plain.add_shard(keys, features.astype(np.float32))
    with store.scan_cache() as cache:
        store.reindex(cache)
    paths = [f"{label}/{number:04}.png" for number, label in enumerate(labels)]
    store.save_manifest(
        store.manifest_path,
        Manifest(path, paths, labels, splits or [""] * len(labels), keys, ["ok"] * len(labels)),
    )
    return store


def edit_record(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a record says as its writer would, digest and all."""
    record = json.loads(path.read_text())
    change(record)
    write_record(path, record, version=record.get("schema_version", 0))


def as_before(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a record as the release before wrote it, without digests, and with another content."""
    record = json.loads(path.read_text())
    if record.pop("record_sha256", None):
        record["schema_version"] -= 1
    for part in (record, *record.get("heads", {}).values()):
        part.pop("files", None)
    change(record)
    path.write_text(json.dumps(record))


def edit_head(run: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the record of a run's head says."""
    edit_record(run / "heads" / name / "head.json", change)
    list_heads(run)


def list_heads(run: Path) -> None:
    """List the heads of a run as they are now."""

    def relist(record: dict[str, Any]) -> None:
        for name, head in record["heads"].items():
            files = [
                path for path in (run / "heads" / name).iterdir() if path.name in head["files"]
            ]
            head["files"] = {path.name: [sha256_file(path)] for path in files}

    edit_record(run / "run.json", relist)


class Notes(Silence):
    """A reporter that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def write_photos(folder: Path, count: int) -> None:
    """Three classes that differ in colour by about as much as their images do among them."""
    rng = np.random.default_rng(2)
    colours = {"ant": (130, 100, 100), "bee": (100, 130, 100), "cow": (100, 100, 130)}
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = rng.normal(0, 12, 3) + rng.integers(-70, 71, (40, 48, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")


# What runs for milliseconds is not worth optimizing for seconds.
UNOPTIMIZED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
JAX = {"KERAS_BACKEND": "jax", "XLA_FLAGS": UNOPTIMIZED}
# Compiles in a third of the time; not every release of XLA knows it.
FEWER_KERNELS = "--xla_cpu_use_fusion_emitters=false"


def on_jax(files: Sequence[str], names: str, cache: Path) -> str:
    """Run the tests of files that ``-k`` selects on JAX; return what pytest says.

    What one test has compiled, those after it take from the cache.
    """
    environment = {
        **JAX,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    plugins = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    for flags in (f"{UNOPTIMIZED} {FEWER_KERNELS}", UNOPTIMIZED):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *plugins, *files, "-k", names],
            env={**os.environ, **environment, "XLA_FLAGS": flags},
            cwd=Path(__file__).parent.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        if "Unknown flag" not in done.stderr:
            break
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def save_nothing(path: Path, arrays: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch()
