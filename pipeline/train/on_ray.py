"""A sweep on a cluster of Ray: the settings of each head on a node of their own."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pipeline.dataset.features import SplitFeatures
from pipeline.errors import ClusterError, PipelineError, StoreError
from pipeline.store.stream import StoredFeatures
from pipeline.system import cluster, nodes, ray_output
from pipeline.train.search import Setting, SweepResult, sweep_head

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

# Beside the features, what Ray keeps in shared memory: heads, and what belongs to them.
_MEMORY: Final = 200 << 20


def sweep_heads(
    bases: Mapping[str, "Head"],
    settings: Mapping[str, Sequence[Setting]],
    data: SplitFeatures,
    *,
    folds: int,
    address: str | None,
) -> Iterator[tuple[str, SweepResult]]:
    """Yield each head with what ``sweep_head`` finds of it, as soon as it is found.

    Args:
        bases: The heads by name.
        settings: What to try of each.
        data: Features in memory are sent once to every node; nodes read those on disk themselves,
            by the same path.
        folds: Folds of cross-validation where there is no val.
        address: The cluster, as ``cluster.joined`` takes it.

    Raises:
        ClusterError: No cluster, a node that cannot be used, or none for as long as one is waited
            for.
        PipelineError: See ``sweep_head``.
    """
    size = sum(
        block.nbytes
        for block in (data.X, *data.augment, *data.average)
        if isinstance(block, np.ndarray)
    )
    check = None
    if isinstance(data.X, StoredFeatures):
        check = partial(_require_sight, data.X.one())
    with cluster.joined(address, memory=_MEMORY + size) as joined:
        ray = joined.ray
        members = nodes.require_fit(ray, check)
        # A head takes a whole node, whose processors its products use.
        cores = min((int(node.cpus) for node in members if node.cpus >= 1), default=1)
        wanted = {"num_cpus": cores}
        task = ray.remote(scheduling_strategy="SPREAD", **wanted)(_swept)
        sent = ray.put(data)
        names = {
            task.remote(name, base, settings[name], sent, folds): name
            for name, base in bases.items()
        }
        for answer in nodes.awaited(ray, names, wanted):
            yield names[answer], _result(ray, names[answer], answer)


def _result(ray: ModuleType, name: str, answer: Any) -> SweepResult:
    """Return what a node found of a head.

    Raises:
        PipelineError: As on the node; names the node that is lost.
    """
    try:
        found: SweepResult = ray.get(answer)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, PipelineError):
            raise cause from None
        said = ray_output.one_line(str(error))
        raise ClusterError(
            f"{name}: expected a node that tries its settings. Received: {said}.",
            hint=cluster.LOOK,
        ) from error
    return found


def _swept(
    name: str, base: "Head", settings: Sequence[Setting], data: SplitFeatures, folds: int
) -> SweepResult:
    """Try the settings of a head on this node, which is named by whatever goes wrong."""
    try:
        return sweep_head(name, base, settings, data, folds=folds)
    except PipelineError:
        raise
    except Exception as error:
        raise ClusterError(
            f"{name}: the node {nodes.here()}: {type(error).__name__}: {error}.",
            hint=cluster.LOOK,
        ) from error


def _require_sight(features: StoredFeatures) -> None:
    """Refuse a node that does not see the store.

    Raises:
        ClusterError: Says what it does not see.
    """
    try:
        features.read(np.arange(len(features)))
    except StoreError as error:
        raise ClusterError(
            f"Expected the features that this run reads. Received: {error.message}",
            hint="Let every node see the store under the same path.",
        ) from error
