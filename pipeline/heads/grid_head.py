"""Heads with one parameter on a grid: all values are fitted together, val chooses.

A subclass says how to fit the whole grid at once (``_fit_path``), so that what the fits share is
computed once; fitting, choosing and the notes about it are here.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from pipeline.heads.calibration import calibrated_loss
from pipeline.heads.head import Head, Rule, is_grid
from pipeline.heads.rows import Features, Validation, is_stream

State = Mapping[str, object]


class GridHead(Head):
    """A head whose parameter ``grid`` holds the values of one strength to try.

    The choice is by val log loss after a temperature was fitted on val, ties by the value that
    comes first in the order of fitting. Without val, or with one value, nothing is chosen.

    Class attributes:
        strength: What the grid is of, such as ``C``; the chosen value is the attribute ``C_``.
        fallback: The value without val.
    """

    strength: ClassVar[str]
    fallback: ClassVar[float]
    grid: Sequence[float]

    @abstractmethod
    def _fit_path(
        self,
        X: NDArray[np.floating],
        numbers: NDArray[np.intp],
        weights: NDArray[np.float64] | None,
        values: Sequence[float],
    ) -> Iterable[State]:
        """Fit every value; yield the fitted attributes of each, in order of ``values``."""

    def fit(
        self,
        X: object,
        y: object,
        sample_weight: object = None,
        *,
        validation: Validation | None = None,
    ) -> Self:
        """Fit on X ``(n, dim)`` and y; choose on ``validation``, a pair ``(X, y)``.

        Raises:
            ConfigError: A parameter is out of range.
        """
        X, numbers, weights = self._begin(X, y, sample_weight)
        values = self._values(has_validation=validation is not None)
        best, best_state = np.inf, None
        for state in self._states(X, numbers, weights, values):
            self._adopt(state)
            loss = self._loss(validation) if validation and len(values) > 1 else 0.0
            if loss < best:
                best, best_state = loss, state
        if best_state is not None:
            self._adopt(best_state)
        self.notes_ = (*self._choice_notes(values), *self._fit_notes())
        return self

    def fit_many(
        self,
        X: object,
        y: object,
        settings: Sequence[Mapping[str, object]],
        sample_weight: object = None,
    ) -> Iterator[Head]:
        """Fit one copy a setting; see ``Head.fit_many``. Settings of the grid share a path."""
        of_settings = [_only_value(params) for params in settings]
        if None in of_settings:
            yield from super().fit_many(X, y, settings, sample_weight)
            return
        first = clone(self)
        rows, numbers, weights = first._begin(X, y, sample_weight)
        values = sorted({value for value in of_settings if value is not None})
        states: dict[float | None, State] = {}
        for value, state in zip(values, self._states(rows, numbers, weights, values), strict=True):
            states[value] = state
            self._one_done(len(values))
        for params, chosen in zip(settings, of_settings, strict=True):
            head = clone(self).set_params(**params)
            head.classes_, head.n_features_in_ = first.classes_, first.n_features_in_
            head._adopt(states[chosen])
            head.notes_ = tuple(head._fit_notes())
            yield head

    def selected_params(self) -> dict[str, object]:
        """Return the chosen value, as the only one of the grid."""
        return {"grid": (getattr(self, f"{self.strength}_"),)}

    def _states(
        self,
        X: NDArray[np.floating],
        numbers: NDArray[np.intp],
        weights: NDArray[np.float64] | None,
        values: Sequence[float],
    ) -> Iterator[State]:
        states = self._fit_path(X, numbers, weights, values)
        for value, state in zip(values, states, strict=True):
            yield {f"{self.strength}_": value, **state}

    def _one_done(self, count: int) -> None:
        """Tell that one of some values was fitted; a path that tells more does so itself."""
        self.progress(1 / count)

    def _adopt(self, state: State) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def _loss(self, validation: Validation) -> float:
        """Return the calibrated log loss on the rows of val whose class train has."""
        X, y = validation[0], np.asarray(validation[1])
        known = np.isin(y, self.classes_)
        if not known.any():
            return 0.0
        rows: Features = X[known] if is_stream(X) else np.asarray(X)[known]
        return calibrated_loss(self.scores(rows), np.searchsorted(self.classes_, y[known]))

    def _values(self, *, has_validation: bool) -> list[float]:
        """Return the values to fit, ascending; one where nothing can be chosen."""
        values = sorted({float(value) for value in self.grid})
        return values if has_validation or len(values) == 1 else [self.fallback]

    def _rules(self) -> Iterable[Rule]:
        return (("grid", is_grid(self.grid), "a list of positive numbers"),)

    def _fit_notes(self) -> Iterable[str]:
        """Return what the user should read about the fit at hand."""
        return ()

    def _choice_notes(self, values: Sequence[float]) -> Iterable[str]:
        chosen = getattr(self, f"{self.strength}_")
        if chosen not in self.grid:
            yield f"{self.name}: no val to choose {self.strength} on; {self.strength} = {chosen:g}"
        if len(values) > 1 and chosen in (values[0], values[-1]):
            yield (
                f"{self.name}: the best {self.strength}, {chosen:g}, is at the edge of its grid "
                f"({values[0]:g} to {values[-1]:g}); widen it with grid = [...] under "
                f"[heads.{self.name}]"
            )


def _only_value(params: Mapping[str, object]) -> float | None:
    """Return the value of a setting that is one of the grid alone; None of another setting."""
    grid = params.get("grid")
    if len(params) != 1 or not isinstance(grid, list | tuple | np.ndarray) or len(grid) != 1:
        return None
    return float(grid[0])
