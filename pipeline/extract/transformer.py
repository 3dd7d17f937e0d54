"""Stage 1 as a scikit-learn transformer: paths of images in, pooled features out.

For users of the library: ``make_pipeline(FeatureExtractor(...), LogisticRegression())``. Features
go through a store, so cross-validation, grid searches and reruns never encode an image twice.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

from pipeline.backbones import find
from pipeline.config.extracting import ExtractOptions
from pipeline.config.options import build, default_of
from pipeline.errors import ConfigError, DecodeError, mention
from pipeline.extract.fill import fill, store_of
from pipeline.extract.lazy_encoder import LazyEncoder
from pipeline.files import remote
from pipeline.files.location import Remote, locate
from pipeline.images.manifest import OK, Manifest, listing_of
from pipeline.images.sources import with_states
from pipeline.system.progress import Silence

_ROOT: Final = Path("/")


class FeatureExtractor(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Pooled features of image files by a frozen backbone, kept in a store.

    The parameters are those of ``pipeline extract``. ``store`` is a folder of stores, one for each
    way to make features, so that a search over ``image_size`` or ``pooling`` finds its own; where
    it is a store that ``extract`` made in the way asked for, that one is used. No manifest is
    written; ``pipeline prune`` keeps what manifests need, so keep such a store apart or do not
    prune it. Threads and processes may share it: one writes at a time, and who finds every feature
    there writes nothing.

    Example:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_score
        from sklearn.pipeline import make_pipeline

        classifier = make_pipeline(FeatureExtractor("stores/cv"), LogisticRegression())
        cross_val_score(classifier, paths, labels)
    """

    def __init__(
        self,
        store: str | Path,
        *,
        backbone: str = default_of(ExtractOptions, "backbone"),
        preprocessing: str | None = default_of(ExtractOptions, "preprocessing"),
        output: str | None = default_of(ExtractOptions, "output"),
        weights: str = default_of(ExtractOptions, "weights"),
        image_size: int = default_of(ExtractOptions, "image_size"),
        resize: str = default_of(ExtractOptions, "resize"),
        pooling: str = default_of(ExtractOptions, "pooling"),
        engine: str = default_of(ExtractOptions, "engine"),
        precision: str = default_of(ExtractOptions, "precision"),
        batch_size: int = default_of(ExtractOptions, "batch_size"),
        workers: int | None = default_of(ExtractOptions, "workers"),
        seed: int = default_of(ExtractOptions, "seed"),
    ) -> None:
        self.store = store
        self.backbone = backbone
        self.preprocessing = preprocessing
        self.output = output
        self.weights = weights
        self.image_size = image_size
        self.resize = resize
        self.pooling = pooling
        self.engine = engine
        self.precision = precision
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed

    def fit(self, X: object, y: object = None) -> Self:
        """Do nothing: the backbone is frozen."""
        return self

    def transform(self, X: object) -> NDArray[np.float32]:
        """Return the features of images, encoding those that the store lacks.

        Args:
            X: Paths, ``(n,)`` or ``(n, 1)``, relative to the working directory or absolute; or
                addresses.

        Returns:
            float32 ``(n, dim)``, in the order of the paths, copies included.

        Raises:
            DecodeError: An image is missing or bad; nothing stands in for it.
            ConfigError: A parameter is out of range, or X holds no paths.
            StaleFeaturesError: Decoder or network make other features than they did.
        """
        paths = _paths(X)
        options = build(ExtractOptions, self.get_params(deep=False))
        distinct = sorted(set(paths))
        remote.forget()  # whatever is known of objects, an edited one is seen
        listing = with_states(listing_of(_ROOT, [(path, "", "") for path in distinct]))
        network = LazyEncoder.of(options, Silence())
        filled = fill(
            network,
            store_of(network, locate(str(options.store))),
            listing,
            target=None,
            force=False,
            started=time.monotonic(),
            wait=True,
        )
        self._dim = filled.store.dim
        _require_good(filled.manifest)
        place = {path: index for index, path in enumerate(distinct)}
        return filled.store.read(filled.manifest.keys[[place[path] for path in paths]])

    @property
    def _n_features_out(self) -> int:
        """How many features there are, from which scikit-learn makes their names.

        Raises:
            ConfigError: Only the network can tell, and nothing was transformed yet.
        """
        known = vars(self).get("_dim")
        dim = known or find(self.backbone, self.preprocessing, self.output).dim
        if dim is None:
            raise ConfigError(
                f"Expected a backbone of the table, whose number of features is known. "
                f"Received: {self.backbone!r}, before anything was transformed.",
                hint="Call transform first.",
            )
        return int(dim)

    def __sklearn_is_fitted__(self) -> bool:
        return True


def _paths(X: object) -> list[str]:
    """Return paths relative to the root of the file system, as the manifest writes them."""
    values = np.asarray(X, dtype=object)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or not len(values) or not _are_paths(values):
        raise ConfigError(
            "FeatureExtractor: expected paths of images, of shape (n,). "
            f"Received: {type(X).__name__} of shape {values.shape}.",
            hint="Give a list of texts or of pathlib paths.",
        )
    return [_below_root(value) for value in values]


def _below_root(path: str | Path) -> str:
    """Return a path relative to the root of the file system; an address as it is."""
    place = locate(path)
    if isinstance(place, Remote):
        return str(place)
    return place.absolute().relative_to(_ROOT).as_posix()


def _are_paths(values: Iterable[object]) -> bool:
    return all(isinstance(value, str | Path) for value in values)


def _require_good(manifest: Manifest) -> None:
    bad = [
        f"/{path}: {status}"
        for path, status in zip(manifest.paths, manifest.statuses, strict=True)
        if status != OK
    ]
    if bad:
        raise DecodeError(
            f"Expected images that can be decoded. Received {len(bad):,} that cannot: "
            f"{mention(bad)}.",
            hint="Leave them out of the paths.",
        )
