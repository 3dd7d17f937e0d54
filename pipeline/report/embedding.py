"""The map of a report: features in two dimensions, for a sample of the images."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EngineUnavailableError
from pipeline.report.scored import ScoredHead
from pipeline.store.store import Store

PIP_LINE: Final = "pip install 'embedding-pipeline[umap]'"
# What a page has room for: points, each with a picture, and bytes of their names.
POINTS: Final = 2000
_NAMES: Final = 1_000_000
# Mistakes are shown first, as far as they leave room for the others.
_MISTAKES: Final = POINTS // 3
_PCA_DIM: Final = 50
_SEED: Final = 0
FEWEST: Final = 5


@dataclass(frozen=True, slots=True)
class Map:
    """Where images lie.

    Attributes:
        places: Two numbers for each row, float32 ``(n, 2)``.
        variance: Share of the features' variance that two dimensions hold; None of UMAP.
    """

    places: NDArray[np.float32]
    variance: float | None


def require_umap() -> None:
    """Refuse to begin what needs UMAP where it is not installed.

    Raises:
        EngineUnavailableError: It is not.
    """
    from importlib.util import find_spec

    if find_spec("umap") is None:
        raise EngineUnavailableError(
            "--map umap: expected the library 'umap'. Received: none.",
            hint=f"Install it: {PIP_LINE}",
        )


def sample(head: ScoredHead) -> NDArray[np.intp]:
    """Return the rows of the run's manifest that the map shows, ascending.

    All of them where there is room; else mistakes first, then others in the order of their keys,
    which are hashes: the same images each time.
    """
    manifest = head.manifest
    wrong = head.rows[head.predicted != head.y]
    order = np.argsort(manifest.keys, kind="stable")
    is_wrong = np.zeros(len(manifest), dtype=bool)
    is_wrong[wrong] = True
    first = order[is_wrong[order]][:_MISTAKES]
    rest = order[~np.isin(order, first)]
    chosen, room = [], _NAMES
    for row in [*first.tolist(), *rest.tolist()][:POINTS]:
        room -= len(manifest.paths[row])
        if room < 0:
            break
        chosen.append(row)
    return np.sort(np.array(chosen, dtype=np.intp))


def embed(store: Store, keys: NDArray[np.bytes_], method: str) -> Map:
    """Return the map of some images.

    Args:
        store: Where their features are.
        keys: Their keys, ``S64`` ``(n,)``, at least ``FEWEST``.
        method: ``pca``, or ``umap`` of the first 50 dimensions of PCA, or all.

    Raises:
        MissingFeaturesError: The store lacks some of them.
    """
    from sklearn.decomposition import PCA

    features = store.read(keys)
    wanted = 2 if method == "pca" else _PCA_DIM
    dim = min(wanted, *features.shape)
    pca = PCA(dim, svd_solver="randomized", random_state=_SEED)
    with np.errstate(invalid="ignore"):  # features that are all alike have no variance to share
        found = pca.fit_transform(features).astype(np.float32)
    if method == "umap":
        return Map(_umap(found), None)
    share = float(np.nan_to_num(pca.explained_variance_ratio_).sum())
    return Map(np.pad(found, ((0, 0), (0, 2 - dim))), share)


def _umap(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return UMAP's two dimensions (McInnes et al. 2018) of features ``(n, dim)``."""
    import warnings

    with warnings.catch_warnings():
        # A seed means one thread, which it says; and so do its own dependencies of theirs.
        warnings.simplefilter("ignore")
        from umap import UMAP

        neighbours = min(15, len(features) - 1)
        reducer = UMAP(n_neighbors=neighbours, random_state=_SEED, n_jobs=1)
        return np.asarray(reducer.fit_transform(features), dtype=np.float32)
