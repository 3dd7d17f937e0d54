"""The heads that a run has kept: their names, and the fitted head that is that of the run."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import RunError, unknown_name
from pipeline.runs import backbone as run_backbone
from pipeline.runs.run import Run

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


def head_name(run: Run, asked: str | None) -> str:
    """Return the name of a head that a run has kept.

    Args:
        run: The run.
        asked: The name that is asked for; None for the run's best head.

    Raises:
        ConfigError: The run has no such head.
        RunError: It has none at all, or could not save this one.
    """
    records = run.record.heads
    name = asked or run.record.best
    if not records or name is None:
        raise RunError(
            f"Expected a run with heads at {str(run.path)!r}. Received: none is trained yet.",
            hint="Train some with pipeline train-head.",
        )
    if name not in records:
        raise unknown_name("head", name, records, where=str(run.path))
    if records[name].not_saved:
        raise RunError(
            f"Expected a head that was saved. Received: {name}: {records[name].not_saved}",
            hint="Choose another --head.",
        )
    return name


def fitted_head(run: Run, name: str, dim: int) -> "Head":
    """Load a head of a run.

    Args:
        run: The run.
        name: Name of the head.
        dim: Length of the features that it must take.

    Raises:
        RunError: It is damaged, or its classes, temperature or arrays cannot be those of the run.
    """
    head = run.load_head(name)
    command = "finetune" if run_backbone.is_finetuned(run, name) else "train-head"
    hint = f"Train it again with {command} --force."
    require_fit(head, name, run.path, len(run.record.classes), dim, hint)
    return head


def require_fit(
    head: "Head", name: str, where: Path, num_classes: int, dim: int, hint: str
) -> None:
    """Refuse a head whose classes, temperature or arrays cannot be those of its run.

    Args:
        head: The fitted head.
        name: Its name.
        where: The run, or the exported folder.
        num_classes: Number of classes of the run.
        dim: Length of its features.
        hint: How to make it again.

    Raises:
        RunError: Says what was expected and what it is.
    """
    misfit = _misfit(head, num_classes, dim)
    if misfit is not None:
        raise RunError(
            f"Expected the head {name!r} of {str(where)!r} to have {misfit[0]}. "
            f"Received: {misfit[1]}.",
            hint=hint,
        )


def _misfit(head: "Head", num_classes: int, dim: int) -> tuple[str, str] | None:
    """Return what is expected of a head and what it has instead; None where it fits."""
    classes, temperature = np.asarray(head.classes_), head.temperature_
    known = sorted(set(range(num_classes)).intersection(classes.ravel().tolist()))
    if classes.dtype.kind not in "iu" or not known or classes.tolist() != known:
        return f"ascending classes of 0 to {num_classes - 1}", str(classes.tolist())
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        return "a temperature above 0", repr(temperature)
    expected = f"scores of {len(known)} classes from {dim} features"
    try:
        scores = head.scores(np.zeros((1, dim), np.float32))
    except Exception as error:  # whatever NumPy says of arrays that do not fit together
        return expected, " ".join(str(error).split())
    fits = scores.shape == (1, len(known)) and not np.isnan(scores).any()
    return None if fits else (expected, str(scores.tolist()))
