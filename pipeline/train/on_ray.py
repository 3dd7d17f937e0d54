"""A sweep on a cluster of Ray: the settings of each head on a node of their own."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.dataset.features import SplitFeatures
from pipeline.errors import ClusterError, PipelineError
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
    """Yield each head with what ``sweep_head`` finds of it, in the order given.

    Args:
        bases: The heads by name.
        settings: What to try of each.
        data: Features in memory are sent once to every node; nodes read those on disk themselves,
            by the same path.
        folds: Folds of cross-validation where there is no val.
        address: The cluster, as ``cluster.joined`` takes it.

    Raises:
        ClusterError: No cluster, or a node that cannot be used.
        PipelineError: See ``sweep_head``.
    """
    size = sum(
        block.nbytes
        for block in (data.X, *data.augment, *data.average)
        if isinstance(block, np.ndarray)
    )
    with cluster.joined(address, memory=_MEMORY + size) as joined:
        ray = joined.ray
        members = nodes.require_fit(ray)
        # A head takes a whole node, whose processors its products use.
        cores = min((int(node.cpus) for node in members if node.cpus >= 1), default=1)
        task = ray.remote(num_cpus=cores, scheduling_strategy="SPREAD")(_swept)
        sent, folder = ray.put(data), Path.cwd()
        answers = {
            name: task.remote(name, base, settings[name], sent, folds, folder)
            for name, base in bases.items()
        }
        for name, answer in answers.items():
            try:
                yield name, ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, PipelineError):
                    raise error.cause from None
                raise _lost(name, error) from error
            except ray.exceptions.RayError as error:
                raise _lost(name, error) from error


def _swept(
    name: str,
    base: "Head",
    settings: Sequence[Setting],
    data: SplitFeatures,
    folds: int,
    folder: Path,
) -> SweepResult:
    with contextlib.ExitStack() as stack:
        if not isinstance(data.X, np.ndarray):
            # The store may have been named from here.
            stack.enter_context(contextlib.chdir(folder))
        return sweep_head(name, base, settings, data, folds=folds)


def _lost(name: str, error: Exception) -> ClusterError:
    said = ray_output.one_line(str(error))
    return ClusterError(
        f"{name}: expected a node that tries its settings. Received: {said}.",
        hint="Look at the cluster with ray status; heads that were done are kept.",
    )
