"""Label errors: labels that heads, fitted on the other images, speak against.

Probabilities are out of fold, and near duplicates are in one fold: a wrong label that stands twice
does not speak for itself. Two heads are fitted twice, the second time without the labels that
confident learning (Northcutt et al. 2021) counts as errors after the first, and the mean of the
four is what cleanlab ranks by.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline import heads
from pipeline.audit.findings import LabelError, LabelErrors
from pipeline.audit.listing import Listing
from pipeline.copies.distinct import BYTES_OF_FILE
from pipeline.copies.duplicates import Duplicates
from pipeline.dataset.folds import grouped_folds
from pipeline.errors import EngineUnavailableError
from pipeline.heads.calibration import fit_temperature, probabilities
from pipeline.system import machine
from pipeline.system.progress import Reporter

# The heads whose out-of-fold probabilities are averaged; see docs/audit.md for what each is worth.
HEADS: Final = ("logreg", "ridge")
FOLDS: Final = 5
# Images from which ridge alone judges: logistic regression takes a quarter of an hour for 100,000.
LARGE: Final = 200_000
_OF_LARGE: Final = ("ridge",)
# Principal components of the features: more cost time and change little.
_COMPONENTS: Final = 512
# Rows that are read together.
_AT_ONCE: Final = 8192
# Fewest images of a class whose labels can be judged.
_FEWEST: Final = 3


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """What a head says of images that it was not fitted on.

    Attributes:
        probabilities: float64 ``(k, classes)``.
        y: Class numbers, ``(k,)``.
        folds: How many folds there were.
        params: What the head chose on the first fold; None of the mean of several.
    """

    probabilities: NDArray[np.float64]
    y: NDArray[np.int64]
    folds: int
    params: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which labels are judged, and by what.

    Attributes:
        images: The images, ``(k,)``.
        names: Numbers of their classes, ``(classes,)``.
        y: Place of each one's class among these, ``(k,)``.
        judges: Names of the heads.
        refusal: Why none are judged; empty where they are.
        notes: What is left out.
    """

    images: NDArray[np.intp]
    names: NDArray[np.int64]
    y: NDArray[np.intp]
    judges: Sequence[str]
    refusal: str
    notes: Sequence[str]

    @property
    def note(self) -> str:
        """Why there are no errors, or what is left out; empty if nothing is."""
        return self.refusal or "; ".join(self.notes)


def foreseen(listing: Listing) -> str:
    """Return why no labels will be judged, or what will be left out; empty if nothing will be.

    What their files say is in memory by then.
    """
    return _planned(listing, beside=BYTES_OF_FILE * len(listing)).note


def find_label_errors(
    listing: Listing, found: Duplicates, reporter: Reporter
) -> tuple[LabelErrors, str]:
    """Rank the labels that may be wrong.

    Returns:
        The errors, and why there are none or what was left out; empty if nothing was.
    """
    plan = _planned(listing)
    if plan.refusal:
        return LabelErrors(), plan.note
    cleanlab = require_cleanlab()
    groups = group_numbers(found, len(listing))[plan.images]
    judges = " and ".join(plan.judges)
    reporter.say(f"Fitting {judges} on folds of {len(plan.images):,} images, for label errors")
    with reporter.bar(num_fits(plan.y, groups, plan.judges), "fit") as bar:
        made = agreed(
            cleanlab, listing.units, plan.y, groups,
            images=plan.images, judges=plan.judges, progress=bar.advance,
        )  # fmt: skip
    scores, is_likely = judged(cleanlab, made)
    proposed = made.probabilities.argmax(axis=1)
    differs = np.flatnonzero(proposed != plan.y)
    order = differs[np.argsort(scores[differs], kind="stable")]
    errors = [
        LabelError(
            path=listing.manifest.paths[row],
            split=listing.manifest.splits[row],
            given=listing.names[plan.names[plan.y[place]]],
            proposed=listing.names[plan.names[proposed[place]]],
            score=float(scores[place]),
            is_likely=bool(is_likely[place]),
        )
        for place in order.tolist()
        for row in listing.rows_of[plan.images[place]].tolist()
    ]
    result = LabelErrors(
        errors=errors,
        head=judges,
        folds=made.folds,
        accuracy=float((proposed == plan.y).mean()),
        estimated=int(is_likely[differs].sum()),
    )
    return result, plan.note


def _planned(listing: Listing, *, beside: int = 0) -> _Plan:
    """Choose which labels are judged and by what, as far as memory has room beside some bytes."""
    counts = np.bincount(listing.y, minlength=1)
    is_judged = counts[listing.y] >= _FEWEST
    images = listing.labelled[is_judged]
    names, y = np.unique(listing.y[is_judged], return_inverse=True)
    judges = HEADS if len(images) <= LARGE else _OF_LARGE
    small = len(listing.names) - len(names)
    notes = [f"classes of fewer than {_FEWEST} images are not judged: {small}"] * bool(small)
    if judges != HEADS:
        notes.append(f"of more than {LARGE:,} images, {' and '.join(judges)} alone judges")
    refusal = ""
    try:
        require_cleanlab()
    except EngineUnavailableError as error:
        refusal = str(error)
    if not refusal and len(names) < 2:
        refusal = (
            f"label errors need two classes of {_FEWEST} images or more; there "
            f"{'is one' if len(names) else 'is none'}"
        )
    if not refusal:
        dim = listing.units.shape[1]
        refusal = _without_room(len(images), dim, len(names), judges, beside)
    return _Plan(images, names, y, judges, refusal, notes)


def _without_room(count: int, dim: int, classes: int, judges: Sequence[str], beside: int) -> str:
    """Return that memory has no room for heads on folds; empty where it has."""
    width = min(dim, _COMPONENTS)
    # Components, those of the other folds, what the head takes beside them; then the scores of
    # every head in both rounds, their mean, and what cleanlab makes of it.
    fitting = max(heads.create(head, {}, seed=0).memory(count, width, classes) for head in judges)
    needed = count * (8 * width + 8 * classes * (6 + 4 * len(judges))) + fitting
    free = machine.free_memory() - beside
    if needed <= free:
        return ""
    return (
        f"label errors of {count:,} images need memory: {needed / 1e9:.1f} GB, of which "
        f"{max(0, free) / 1e9:.1f} GB are free; take a part of the images, with --manifest"
    )


def group_numbers(found: Duplicates, count: int) -> NDArray[np.intp]:
    """Return a number for each image, ``(count,)``, which its near duplicates share."""
    numbers = np.arange(count)
    for images in found.groups:
        numbers[images] = images.min()
    return numbers


def agreed(
    cleanlab: Any,
    units: NDArray[np.float32],
    y: NDArray[np.integer],
    groups: NDArray[np.intp],
    *,
    images: NDArray[np.intp] | None = None,
    judges: Sequence[str] = HEADS,
    progress: Callable[[], None] = lambda: None,
) -> OutOfFold:
    """Return the mean of what the heads say in both rounds.

    Args:
        cleanlab: See ``require_cleanlab``.
        units: Features with a norm of one, ``(n, dim)``.
        y: Class numbers from 0, each of which occurs, ``(k,)``.
        groups: Numbers that rows share which have to be in one fold, ``(k,)``.
        images: The rows of ``units`` that are judged, ``(k,)``; all by default.
        judges: Names of the heads.
        progress: Called as often as ``num_fits`` says.
    """
    images = np.arange(len(units)) if images is None else images
    features = _components(units, images)
    first = [out_of_fold(features, y, groups, head=head, progress=progress) for head in judges]
    before = _mean(first)
    trusted = ~judged(cleanlab, before)[1]
    second = [
        out_of_fold(
            features, y, groups, head=head, trusted=trusted, params=part.params, progress=progress
        )
        for head, part in zip(judges, first, strict=True)
    ]
    return _mean([*first, *second])


def num_fits(y: NDArray[np.integer], groups: NDArray[np.intp], judges: Sequence[str]) -> int:
    """Return how often ``agreed`` tells of its progress."""
    folds = _num_folds(y, groups)
    return 2 * len(judges) * folds if folds > 1 else 0


def _mean(parts: Sequence[OutOfFold]) -> OutOfFold:
    together = np.mean([part.probabilities for part in parts], axis=0)
    return OutOfFold(together, parts[0].y, parts[0].folds)


def out_of_fold(
    features: NDArray[np.float32],
    y: NDArray[np.integer],
    groups: NDArray[np.intp],
    *,
    head: str,
    trusted: NDArray[np.bool_] | None = None,
    params: Mapping[str, object] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> OutOfFold:
    """Return probabilities of each row by a head that was fitted on the other folds.

    Args:
        features: float32 ``(k, dim)``.
        y: Class numbers from 0, each of which occurs, ``(k,)``.
        groups: Numbers that rows share which have to be in one fold, ``(k,)``.
        head: Name of the head.
        trusted: Rows to fit on, ``(k,)``; all by default.
        params: Parameters of the head; by default it chooses on the first fold that is held out.
        progress: Called once a fold.
    """
    trusted = np.ones(len(y), bool) if trusted is None else trusted
    folds = _num_folds(y, groups)
    scores = np.full((len(y), int(y.max()) + 1), -np.inf)
    # Where every class is one picture, saved again, no fold can judge another.
    for rows, held_out in grouped_folds(y, groups, folds) if folds > 1 else ():
        fit_rows = rows[trusted[rows]]
        if len(held_out) and len(np.unique(y[fit_rows])) > 1:
            fitted = heads.create(head, params or {}, seed=0)
            # What the first fold chooses, the others take: of one number nothing leaks.
            validation = None if params is not None else (features[held_out], y[held_out])
            fitted.fit(features[fit_rows], y[fit_rows], validation=validation)
            params = fitted.selected_params()
            scores[np.ix_(held_out, fitted.classes_)] = fitted.scores(features[held_out])
        progress()
    # Of a row that no fold could judge, every class is as likely.
    scores[~np.isfinite(scores).any(axis=1)] = 0.0
    temperature = fit_temperature([scores[trusted]], y[trusted])
    return OutOfFold(probabilities([scores], temperature), y.astype(np.int64), folds, params)


def _num_folds(y: NDArray[np.integer], groups: NDArray[np.intp]) -> int:
    """Return the number of folds: no class has fewer images, nor the largest fewer groups."""
    first = np.unique(groups, return_index=True)[1]
    return min(FOLDS, max(2, int(np.bincount(y).min())), int(np.bincount(y[first]).max()))


def _components(units: NDArray[np.float32], images: NDArray[np.intp]) -> NDArray[np.float32]:
    """Return some rows in the space of their principal components, float32 ``(k, at most 512)``.

    The axes are turned at random, so that all vary alike: heads standardize them, which would lift
    the last principal components, mostly noise, to the level of the first.
    """
    if units.shape[1] <= _COMPONENTS:
        return units[images]
    parts = [images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE)]
    sums = sum(units[part].sum(axis=0, dtype=np.float64) for part in parts)
    mean = (sums / len(images)).astype(np.float32)
    gram = np.zeros((units.shape[1], units.shape[1]))
    for part in parts:
        centred = units[part] - mean
        gram += centred.T @ centred
    _, vectors = np.linalg.eigh(gram)
    drawn = np.random.default_rng(0).standard_normal((_COMPONENTS, _COMPONENTS))
    turned = vectors[:, ::-1][:, :_COMPONENTS] @ np.linalg.qr(drawn)[0]
    basis = np.ascontiguousarray(turned, np.float32)
    found = np.empty((len(images), _COMPONENTS), np.float32)
    for number, part in enumerate(parts):
        start = number * _AT_ONCE
        found[start : start + len(part)] = (units[part] - mean) @ basis
    return found


def require_cleanlab() -> Any:
    """Return cleanlab with the two modules of it that are used.

    Raises:
        EngineUnavailableError: It is not installed.
    """
    try:
        import cleanlab.filter
        import cleanlab.rank
    except ImportError as error:
        raise EngineUnavailableError(
            "label errors need cleanlab, which is not installed.",
            hint="Install it: pip install 'embedding-pipeline[audit]'.",
        ) from error
    return cleanlab


def judged(cleanlab: Any, made: OutOfFold) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return how good each label is, from 0 to 1, and which are counted among the errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = cleanlab.rank.get_label_quality_scores(
            made.y, made.probabilities, method="self_confidence"
        )
        likely = cleanlab.filter.find_label_issues(
            made.y, made.probabilities, n_jobs=1, filter_by="prune_by_noise_rate"
        )
    return np.asarray(scores, np.float64), np.asarray(likely, np.bool_)
