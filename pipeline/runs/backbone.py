"""The backbone that a run was made with, found by the digest of its weights.

Its weights are in the run's store, else they are given, else they are those that Keras downloads,
that an installed package brings or that a seed draws; wherever they come from, their digest must be
the run's. Keras is imported only when the network is built.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pipeline import backbones
from pipeline.backbones import frozen, kept_file, probe, quantized_file, weights_file
from pipeline.backbones import weights as weight_files
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.backbones.identity import Identity, require_equal, require_reproducible
from pipeline.config.extracting import ExtractOptions
from pipeline.config.options import default_of
from pipeline.errors import RunError, WeightsUnavailableError
from pipeline.images import views
from pipeline.runs.record import RunInputs
from pipeline.runs.run import FINETUNED, Run
from pipeline.store.store import Store
from pipeline.system.keras_setup import Tensor

_BACKBONE: Final = "backbone/"


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """Where ``extract`` had weights from, where that is known.

    Attributes:
        option: The option that they were asked for with.
        seed: The seed of weights that are drawn.
    """

    option: str | None
    seed: int | None

    @classmethod
    def of_run(cls, run: Run) -> "WeightsSource":
        """Return where the weights of a run's backbone came from."""
        return cls(run.record.source.weights, run.record.source.weights_seed)

    def is_known_by_name(self, identity: Identity) -> bool:
        """Tell whether the weights can be had by name: downloaded, of a package, or drawn."""
        return self.option in weights_file.KEYWORDS and not identity.is_from_file


def inputs_of(run: Run) -> RunInputs:
    """Return what a run was made from, if this release makes its features the same way.

    Raises:
        RunError: Something is missing.
        ConfigError: The backbone or a view is unknown.
        StaleFeaturesError: The features were made in another way.
    """
    inputs = run.inputs
    require_reproducible(inputs.identity)
    views.check(list(dict.fromkeys(inputs.average or ())))
    return inputs


def require_features_of(store: Store, run: Run) -> None:
    """Refuse a run on features that were made in another way than those of a store.

    Raises:
        RunError: They were.
    """
    if run.inputs.identity != store.identity:
        raise RunError(
            f"Expected a run on the features of {str(store.place)!r}. Received: "
            f"{str(run.path)!r}, whose features were made in another way.",
            hint="Give the store that the run was trained on.",
        )


def open_store(run: Run) -> Store:
    """Open the store of a run's features.

    Raises:
        RunError: It is gone.
        StoreError: It is damaged, or of other features.
    """
    path, identity = run.store_path, run.inputs.identity
    if not Store.exists(path):
        raise RunError(
            f"Expected the store of the run {str(run.path)!r} at {str(path)!r}. "
            "Received: there is none.",
            hint="Put it back, or say where it is with --store DIR.",
        )
    # Before the shards are looked at, which would be called damaged under another identity.
    Store.unchecked(path).require_identity(identity)
    return Store.open(path)


def find_for(run: Run, name: str, weights: str | None) -> FrozenBackbone:
    """Return the backbone that one head of a run is for; see ``find`` and ``finetuned``."""
    network = find(run, weights)
    return finetuned(run, network) if is_finetuned(run, name) else network


def averages_of(run: Run, name: str) -> Sequence[str]:
    """Return the views that a head's answers are averaged over.

    Fine-tuning scores its head on the images as they are.
    """
    return () if is_finetuned(run, name) else tuple(run.inputs.average or ())


def find(run: Run, weights: str | None) -> FrozenBackbone:
    """Return the backbone of a run's features; it is built when it is first needed.

    Args:
        run: The run, of which ``inputs_of`` was asked.
        weights: Where the weights are, if not in the run's store.

    Raises:
        WeightsUnavailableError: The store is gone, and no weights are given or known by name.
        StaleFeaturesError: The store holds features that were made in another way.
    """
    identity, source = run.inputs.identity, WeightsSource.of_run(run)
    # A network in int8 is in the store alone.
    is_elsewhere = weights is not None or source.is_known_by_name(identity)
    store = _store(run, is_needed=identity.quantized is not None or not is_elsewhere)
    if store is None:
        return load(identity, weights, source=source)
    return of_store(store, weights, source)


def of_store(store: Store, weights: str | None, source: WeightsSource) -> FrozenBackbone:
    """Return the backbone of a store's features; it is built when it is first needed.

    Args:
        store: The store.
        weights: Where the weights are, if not in the store.
        source: Where ``extract`` had them from.
    """
    identity = store.identity
    return FrozenBackbone(
        lambda: load(identity, weights, source=source, store=store).built,
        name=identity.backbone,
        image_size=identity.image_size,
        pooling=identity.pooling,
        dim=store.dim,
        weights_sha256=identity.weights_sha256,
        converted=store.encoder_folder,
        form=identity.form,
        probe=probe.find(store.path, identity, store.dim),
        quantized=quantized_file.of_store(store.encoder_folder, identity.quantized),
    )


def load(
    identity: Identity,
    weights: str | None,
    *,
    source: WeightsSource,
    store: Store | None = None,
) -> FrozenBackbone:
    """Load a backbone by its weights' digest: from the store, else what is given, else by name.

    Args:
        identity: How the features were made.
        weights: What the user gives: as for ``extract``, or the file of a network in no table.
        source: Where ``extract`` had them from.
        store: Where the weights are kept.

    Raises:
        WeightsUnavailableError: The weights are nowhere.
        StaleFeaturesError: They are others than those of the identity.
    """
    expected, name, preprocessing = identity.weights_sha256, identity.backbone, None
    kept = store.encoder_path(expected) if store is not None else None
    saved = kept if kept is not None and kept.is_file() else None
    asked = weights or source.option
    where = f"from --weights {asked}"
    if identity.is_from_file:
        name, preprocessing = str(network_file(identity, weights, store)), identity.preprocessing
        asked, saved, where = default_of(ExtractOptions, "weights"), None, f"in {name!r}"
    elif saved is None and weights is None and not source.is_known_by_name(identity):
        raise WeightsUnavailableError(
            f"Expected the weights {expected} of {name} at {str(kept)!r}. Received: no such file.",
            hint="Give them with --weights PATH.",
        )
    loaded = frozen.load(
        name,
        weights=str(asked),
        seed=source.seed or default_of(ExtractOptions, "seed"),
        image_size=identity.image_size,
        pooling=identity.pooling,
        saved=saved,
        preprocessing=preprocessing,
        output=identity.output,
    )
    received = replace(identity, weights_sha256=loaded.weights_sha256)
    require_equal(identity.as_json(), received.as_json(), where)
    return loaded


def network_file(identity: Identity, weights: str | None, store: Store | None) -> Path:
    """Return the file of a network that is in no table: what is given, else what a store keeps.

    Args:
        identity: How the network's features were made.
        weights: What the user gives.
        store: Where ``extract`` kept it.

    Raises:
        WeightsUnavailableError: There is none, or the kept one is damaged.
        StaleFeaturesError: It is of another architecture; in ONNX, another file.
    """
    suffix = identity.form.suffix
    kept = kept_file.find(store.encoder_folder) if store is not None else None
    path, where = str(kept), "in its store"
    if weights is None and kept is not None:
        kept_file.require_as_kept(kept)
    elif weights is not None and weights.endswith(suffix):
        path, where = weights, f"from --weights {weights}"
    else:
        place = f" in {str(store.encoder_folder)!r}" if store is not None else ""
        raise WeightsUnavailableError(
            f"Expected the {suffix} file of the network that made the run's features. "
            f"Received: {f'--weights {weights}' if weights else f'no --weights, and none{place}'}.",
            hint=f"Give it with --weights PATH{suffix}, or to extract, which keeps it in the "
            "store.",
        )
    found = backbones.find(path, identity.preprocessing, identity.output)
    received = replace(identity, backbone=found.name)
    require_equal(identity.as_json(), received.as_json(), where)
    return Path(path)


def is_finetuned(run: Run, name: str) -> bool:
    """Tell whether a head is for a network that fine-tuning changed."""
    return name == FINETUNED and run.record.finetune is not None


def identity_of(run: Run, name: str) -> Identity:
    """Return how the features are made that a head of a run is for.

    Args:
        run: The run, of which ``inputs_of`` was asked.
        name: Name of the head.
    """
    identity = run.inputs.identity
    # Fine-tuning scores its head in float32, whatever the store holds.
    return identity.in_float32() if is_finetuned(run, name) else identity


def finetuned_identity(identity: Identity, backbone_sha256: str) -> Identity:
    """Return how a network that fine-tuning changed makes features, which are in no store."""
    return replace(identity.in_float32(), weights_sha256=backbone_sha256)


def finetuned(run: Run, original: FrozenBackbone) -> FrozenBackbone:
    """Return a backbone with the variables that fine-tuning changed.

    Raises, when the network is built:
        WeightsUnavailableError: They are gone, damaged, or of another network.
        StaleFeaturesError: They do not make the network that the run's head is for.
    """
    record, folder = run.record.finetuned(), run.path / FINETUNED
    expected = str(record.backbone_sha256)

    def build() -> Tensor:
        changed = weight_files.load(folder / f"{record.weights_sha256}.h5")
        arrays = original.arrays() | {
            path.removeprefix(_BACKBONE): values
            for path, values in changed.items()
            if path.startswith(_BACKBONE)
        }
        received = {"backbone_sha256": weight_files.digest(arrays)}
        require_equal({"backbone_sha256": expected}, received, f"in {str(folder)!r}")
        frozen.assign(original.network, arrays)
        return original.model

    return FrozenBackbone(
        build,
        name=original.name,
        image_size=original.image_size,
        pooling=original.pooling,
        dim=original.dim,
        weights_sha256=expected,
        converted=folder / expected,
        probe=probe.find(folder, finetuned_identity(run.inputs.identity, expected), original.dim),
    )


def _store(run: Run, *, is_needed: bool) -> Store | None:
    """Open the run's store; None where it is gone or another, and not needed.

    Raises:
        WeightsUnavailableError: It is gone.
        StaleFeaturesError: It holds features that were made in another way.
    """
    path, identity = run.store_path, run.inputs.identity
    average = run.inputs.average or ()
    where = f"in its store {str(path)!r}"
    if not Store.exists(path):
        if not is_needed:
            return None
        raise WeightsUnavailableError(
            f"Expected the run's store at {str(path)!r}, which keeps the backbone's weights "
            f"{identity.weights_sha256}. Received: no store there.",
            hint="Put it back, or say where it is with --store DIR."
            if identity.quantized is not None
            else "Put it back, say where it is with --store DIR, or give the weights with "
            "--weights PATH.",
        )
    store = Store.unchecked(path)
    if store.identity != identity and not is_needed:
        return None
    require_equal(identity.as_json(), store.identity.as_json(), where)
    schemes = {name: views.VIEWS[name].scheme for name in average}
    require_equal(schemes, {name: store.record.views.get(name) for name in average}, where)
    return store
