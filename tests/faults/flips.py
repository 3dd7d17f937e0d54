"""One flipped byte at a time in every file of a store, a run and an exported folder."""

import faulthandler
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from fakes import planted_store

from pipeline import heads
from pipeline.backbones import probe, weights
from pipeline.backbones.forms import KERAS, Form
from pipeline.backbones.identity import Identity
from pipeline.backbones.probe import Probe
from pipeline.config.options import CommonOptions, TrainHeadOptions
from pipeline.dataset.examples import load
from pipeline.errors import PipelineError
from pipeline.files.regular import sha256_file
from pipeline.files.state import FileState
from pipeline.images import probe_images
from pipeline.runs import checkpoint, model_folder
from pipeline.runs.checkpoint import Arrays, Progress
from pipeline.runs.leaderboard import compare
from pipeline.runs.model_folder import ModelRecord
from pipeline.runs.run import FINETUNED, Run
from pipeline.store import activations
from pipeline.store.store import Store
from pipeline.system.progress import Silence
from pipeline.train.prepare import create_heads, open_run, prepare_data
from pipeline.train.train_head import train_head
from pipeline.verify.run import verify_folder, verify_run
from pipeline.verify.store import verify

# How often a file is damaged: a few places in the suite, many where all faults are asked for.
_ASKED: Final = os.environ.get("PIPELINE_FAULTS", "6")
FLIPS: Final = 300 if _ASKED == "all" else int(_ASKED)
COUNTS: Final = {"ant": 14, "bee": 14, "cow": 14}
_OPTIONS: Final = {"head": ("logreg", "centroid"), "min_per_class": 1}

Use = Callable[[Path], Any]


@dataclass(frozen=True)
class Target:
    """Files that are damaged, and what is then done with them.

    Attributes:
        pattern: Which files, relative to the folder of all.
        use: Does what commands do with them; returns what must not change.
        check: The check of all bytes; returns whether all are right.
        errors: What says that a file is damaged.
        is_hidden: Whether the store is told that it checked the damaged file, as if the damage had
            come with the right size and times.
        by_others: Whether only others read the file, and no command.
        is_named: Whether a digest of all its bytes is kept, so that a check finds every change; of
            other files one of what they say is.
    """

    pattern: str
    use: Use
    check: Callable[[Path], bool]
    errors: tuple[type[Exception], ...] = (PipelineError,)
    is_hidden: bool = False
    by_others: bool = False
    is_named: bool = True


def build(folder: Path) -> Path:
    """Make a store with everything in it, a run on it, and an exported head of that."""
    store = planted_store(folder / "store", COUNTS)
    with store.scan_cache() as cache:
        for path in photos(folder):
            path.write_bytes(path.name.encode())
            # What it would learn of files that are not as young as these.
            state = FileState.of(path.stat()).stamp
            cache._put("files", os.fsencode(path), state, sha256_file(path))
    store.refresh_view()
    arrays = {"conv/kernel": np.arange(12, dtype=np.float32).reshape(3, 4)}
    digest = weights.digest(arrays)
    weights.save(store.encoder_path(digest), arrays)
    probe.keep(store.path, probe_of(store.identity, store.dim))
    content = bytes(range(200))
    name = weights.converted_digest("0" * 64, hashlib.sha256(content).hexdigest())
    (store.encoder_folder / f"{name}.graph-1.pb").write_bytes(content)
    identity = {"features": store.identity.as_json(), "cut": "conv5"}
    values = np.random.default_rng(0).normal(size=(42, 3, 3)).astype("<f2")
    where = activations.folder_of(store.boundary_folder, identity)
    activations.write(where, identity, store.index.keys, values)
    train(folder, **_OPTIONS)
    path = folder / "run" / FINETUNED / checkpoint.FILE
    path.parent.mkdir()
    state = [np.arange(30.0), np.zeros((2, 3), np.float32)]
    checkpoint.write(path, {"seed": 1}, Progress(epoch=2), Arrays(state, state[:1], []))
    _export(folder, digest, arrays)
    return folder


def probe_of(identity: Identity, dim: int) -> Probe:
    """Return a probe that no encoder made."""
    features = np.random.default_rng(1).normal(size=(8, dim)).astype(np.float32)
    pixels = tuple("0" * 64 for _ in probe_images.NAMES)
    return Probe(identity, pixels, features, {"Pillow": "13.0.0"}, {"engine": "fake"})


def photos(folder: Path) -> list[Path]:
    """Return files whose keys the scan cache knows."""
    return [folder / f"photo{number}.png" for number in range(20)]


def train(folder: Path, **options: Any) -> dict[str, Any]:
    """Train heads into the run."""
    places = {"store": str(folder / "store"), "run": str(folder / "run")}
    chosen = TrainHeadOptions(**places, **options)
    parameters = {"logreg": {"grid": (1.0,)}}
    return train_head(chosen, CommonOptions(), Silence(), parameters)


def targets() -> dict[str, Target]:
    """Return every kind of file by name."""
    return {
        "store.json": Target("store/store.json", use_store, check_store, is_named=False),
        "manifest.csv": Target("store/manifest.csv", use_store, check_store),
        "shards": Target("store/shards/*.h5", use_store, check_store),
        "shards, size and times as before": Target(
            "store/shards/*.h5", use_store, check_store, is_hidden=True
        ),
        "features.h5": Target(
            "store/features.h5",
            use_view,
            check_store,
            errors=(OSError, KeyError, RuntimeError),
            by_others=True,
        ),
        "scan.sqlite": Target("store/scan.sqlite", use_cache, check_store, is_named=False),
        "encoder/*.h5": Target("store/encoder/*.h5", use_weights, check_store, is_named=False),
        "converted network": Target("store/encoder/*.pb", use_converted, check_store),
        "probe.json": Target("store/probe.json", use_probe, check_store, is_named=False),
        "boundary": Target("store/boundary/*/*.h5", use_boundary, check_store),
        "run.json": Target("run/run.json", use_run, check_run, is_named=False),
        "run's manifest.csv": Target("run/manifest.csv", use_run, check_run),
        "predictions.csv": Target("run/predictions.csv", use_run, check_run),
        "probabilities.npy": Target("run/heads/*/probabilities.npy", use_run, check_run),
        "head.json": Target("run/heads/*/head.json", use_run, check_run),
        "arrays.npz": Target("run/heads/*/arrays.npz", use_run, check_run),
        "checkpoint.h5": Target(
            "run/finetune/checkpoint.h5", use_checkpoint, check_run, is_named=False
        ),
        "model.json": Target("model/model.json", use_folder, check_folder, is_named=False),
        "model's head": Target("model/head/*", use_folder, check_folder),
        "model's probe": Target("model/encoder/probe.json", use_folder, check_folder),
        "model's weights": Target("model/encoder/*.h5", use_folder, check_folder, is_named=False),
    }


def damage(folder: Path, target: Target, flips: int, seed: int) -> Counter[str]:
    """Flip bytes one at a time; return how often which outcome was seen.

    ``silent`` and ``crashed`` are faults. ``found`` is an error that says what is damaged,
    ``harmless`` that all results were those of the sound file.
    """
    rng = np.random.default_rng(seed)
    truth = target.use(folder)
    paths = sorted(folder.glob(target.pattern))
    outcomes: Counter[str] = Counter()
    for _ in range(flips):
        path = paths[int(rng.integers(len(paths)))]
        data = path.read_bytes()
        place, bits = int(rng.integers(len(data))), int(rng.integers(1, 256))
        changed = bytearray(data)
        changed[place] ^= bits
        path.write_bytes(changed)
        try:
            if target.is_hidden:
                _hide(folder, path)
            outcomes[_isolated(lambda: _outcome(folder, target, truth))] += 1
            outcomes[_isolated(lambda: _checked(folder, target))] += 1
        finally:
            path.write_bytes(data)
    if target.by_others:
        # What crashes on a damaged file is the library of those who read it.
        outcomes["found"] += sum(outcomes.pop(name) for name in [*outcomes] if "status" in name)
    outcomes["flips"] = flips
    return outcomes


def _isolated(tell: Callable[[], str]) -> str:
    """Return what a child process tells: libraries in C may crash on what is damaged."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which the child does not need
        child = os.fork()
    if not child:
        faulthandler.disable()
        try:
            os.write(write, tell().encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return told or f"crashed: status {status}"


def _checked(folder: Path, target: Target) -> str:
    try:
        return "verify passed" if target.check(folder) else "verify found"
    except Exception as error:  # what the harness is for
        return f"crashed: verify: {type(error).__name__}: {error}"[:200]


def _outcome(folder: Path, target: Target, truth: Any) -> str:
    try:
        return "harmless" if target.use(folder) == truth else "silent"
    except target.errors:
        return "found"
    except Exception as error:  # what the harness is for
        return f"crashed: {type(error).__name__}: {error}"[:200]


def _hide(folder: Path, path: Path) -> None:
    with Store.unchecked(folder / "store").scan_cache() as cache:
        cache.remember_check(path.stem, path.stat())


def use_store(folder: Path) -> Any:
    """Load features, labels and splits, and prepare a training."""
    X, y, names = load(folder / "store")
    store = Store.open(folder / "store")
    found = [X.tobytes(), y.tobytes(), names, store.identity, store.dim, store.record.root]
    options = TrainHeadOptions(store=str(folder / "store"), run=str(folder / "none"), **_OPTIONS)
    prepared = prepare_data(options, {})
    return [*found, prepared.examples.splits, prepared.examples.paths, prepared.inputs]


def use_view(folder: Path) -> Any:
    """Read features as users do."""
    with h5py.File(folder / "store/features.h5", "r") as file:
        keys, features = file["keys"][:], file["features"][:]
    return [keys.tobytes(), features.tobytes()]


def use_cache(folder: Path) -> Any:
    """Look files up, learn something, and use the store; what is not known is no fault."""
    with Store.unchecked(folder / "store").scan_cache() as cache:
        for path in photos(folder):
            key = cache.key(path, FileState.of(path.stat()))
            if key not in (None, sha256_file(path)):
                return key
        cache.remember_failure("a" * 64, "decoder", "reason")
    return use_store(folder)


def use_weights(folder: Path) -> Any:
    """Read the weights in use."""
    (path,) = (folder / "store/encoder").glob("*.h5")
    return {name: array.tobytes() for name, array in weights.load(path).items()}


def use_converted(folder: Path) -> Any:
    """Tell whether a copy is taken: a changed one is not."""
    (path,) = (folder / "store/encoder").glob("*.pb")
    kept = weights.converted_digest("0" * 64, sha256_file(path)) == path.name.partition(".")[0]
    if not kept:
        raise PipelineError("it is made anew")
    return path.read_bytes()


def use_probe(folder: Path) -> Any:
    """Read the probe of the store."""
    store = Store.unchecked(folder / "store")
    found = probe.find(store.path, store.identity, store.dim)
    assert found is not None
    return [found.features.tobytes(), found.pixels, found.decoder, found.network]


def use_boundary(folder: Path) -> Any:
    """Read frozen activations, as if the shard had been checked."""
    (path,) = (folder / "store/boundary").glob("*/*.h5")
    keys = activations.checked_keys(path, is_checked=lambda path: True)
    return [keys.tobytes(), activations.read(path).tobytes()]


def use_run(folder: Path) -> Any:
    """Compare, predict, read the rows, and look whether a head can be added."""
    run = Run.open(folder / "run")
    X = np.linspace(-1, 1, 36, dtype=np.float32).reshape(3, 12)
    options = TrainHeadOptions(store=str(folder / "store"), run=str(folder / "run"), **_OPTIONS)
    prepared = prepare_data(options, {})
    added = open_run(prepared, folder / "run", force=False, reporter=Silence())
    wanted = create_heads(options.head, {"logreg": {"grid": (1.0,)}}, seed=0)
    rows = run.manifest()
    return [
        compare([run]),
        {name: run.load_head(name).predict_proba(X).tobytes() for name in wanted},
        [list(rows.paths), list(rows.labels), list(rows.splits), rows.keys.tobytes()],
        added.record,
    ]


def use_checkpoint(folder: Path) -> Any:
    """Take up a training."""
    path = folder / "run" / FINETUNED / checkpoint.FILE
    shapes = {"state": [(30,), (2, 3)], "optimizer": [(30,)]}
    progress, arrays = checkpoint.read(path, {"seed": 1}, **shapes)
    kept = [*arrays.state, *arrays.optimizer, *arrays.best]
    return [progress, [array.tobytes() for array in kept]]


def use_folder(folder: Path) -> Any:
    """Predict with an exported head, and read its backbone's weights."""
    found = model_folder.read(folder / "model")
    X = np.linspace(-1, 1, 36, dtype=np.float32).reshape(3, 12)
    path = folder / "model/encoder" / f"{found.backbone.weights_sha256}.h5"
    arrays = {name: array.tobytes() for name, array in weights.load(path).items()}
    kept = found.backbone.probe
    probed = [] if kept is None else [kept.features.tobytes(), kept.pixels, kept.decoder]
    return [found.head.predict_proba(X).tobytes(), found.record.as_json(), arrays, probed]


def check_store(folder: Path) -> bool:
    """Verify the store."""
    return _is_ok(lambda: verify(folder / "store"))


def check_run(folder: Path) -> bool:
    """Verify the run."""
    return _is_ok(lambda: verify_run(folder / "run"))


def check_folder(folder: Path) -> bool:
    """Verify the exported folder."""
    return _is_ok(lambda: verify_folder(folder / "model"))


def _is_ok(check: Callable[[], dict[str, Any]]) -> bool:
    try:
        return bool(check()["ok"])
    except PipelineError:
        return False


@dataclass(frozen=True)
class _Network:
    """As much of a backbone as is exported."""

    weights_sha256: str
    values: dict[str, Any]
    probe: Probe
    form: Form = KERAS

    def arrays(self) -> dict[str, Any]:
        """Return the weights."""
        return self.values


def _export(folder: Path, digest: str, arrays: dict[str, Any]) -> None:
    run = Run.open(folder / "run")
    record = ModelRecord(
        schema_version=model_folder.SCHEMA_VERSION,
        classes=run.record.classes,
        identity=replace(run.inputs.identity, weights_sha256=digest),
        dim=12,
        head="logreg",
        average=[],
        reject_below=0.0,
    )
    head = heads.load(folder / "run/heads/logreg")
    network: Any = _Network(digest, arrays, probe_of(record.identity, record.dim))
    model_folder.write(folder / "model", network, head, record, None)
