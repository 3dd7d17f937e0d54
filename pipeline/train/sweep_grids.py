"""What a sweep tries of each head.

A grid maps parameters to the values to try; a sweep tries every combination.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import Final

from pipeline.config.fields import spelled
from pipeline.errors import ConfigError, unknown_name
from pipeline.heads import check_type

Grid = Mapping[str, Sequence[object]]


def _spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    """Return numbers of equal ratio from ``10**low`` to ``10**high``, of three digits."""
    step = (high - low) / (count - 1)
    return tuple(float(f"{10 ** (low + step * number):.3g}") for number in range(count))


# Kornblith, Shlens and Le 2019, "Do Better ImageNet Models Transfer Better?": 45 values of the L2
# strength from 1e-6 to 1e5, of which C is the inverse.
_KORNBLITH: Final = tuple(10.0 ** (6 - number / 4) for number in range(45))

GRIDS: Final[Mapping[str, Mapping[str, Grid]]] = MappingProxyType(
    {
        # Wider than the grids that heads have by themselves, from which train-head chooses.
        "default": {
            "centroid": {},
            "dense": {
                "learning_rate": (1e-4, 3e-4, 1e-3),
                "dropout": (0.2, 0.5),
                "weight_decay": (0.0, 1e-2),
            },
            "knn": {"grid": (1.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)},
            "linear": {
                "learning_rate": _spaced(-4, 0, 16),
                "weight_decay": (0.0, 1e-4, 1e-3, 1e-2),
            },
            "linear-svc": {"grid": _spaced(-6, 0, 7)},
            "logreg": {"grid": _spaced(-5, 4, 10)},
            "majority": {},
            "ridge": {"grid": _spaced(-2, 7, 19)},
        },
        "kornblith": {"logreg": {"grid": _KORNBLITH}},
    }
)


def grid_of(name: str, grid: str, own: Mapping[str, Grid]) -> Grid:
    """Return what to try of a head: the user's own grid, or the named one.

    Raises:
        ConfigError: There is no such grid of this head.
    """
    if name in own:
        return own[name]
    if name in GRIDS[grid]:
        return GRIDS[grid][name]
    if grid == "default":
        return {}
    raise ConfigError(
        f"--grid {grid}: expected heads of {', '.join(GRIDS[grid])}. Received: {name!r}.",
        hint=f"Use --head {next(iter(GRIDS[grid]))}, or another --grid.",
    )


def settings_of(name: str, grid: Grid, known: Mapping[str, object]) -> list[dict[str, object]]:
    """Return every combination of a grid's values, as parameters of a head.

    The parameter ``grid`` of heads that have one becomes single values, so that each is a
    setting of its own.

    Raises:
        ConfigError: A parameter is unknown, or has no list of values.
    """
    for param, values in grid.items():
        if param not in known:
            raise unknown_name("parameter", param, known, where=f"[grids.{name}]")
        if not isinstance(values, list | tuple) or not values:
            is_list = isinstance(known[param], list | tuple) and param != "grid"
            one = [values] if is_list else values
            raise ConfigError(
                f"[grids.{name}] {param}: expected a list of values to try. "
                f"Received: {spelled(values)}.",
                hint=f"One value is a list, too: [{spelled(one)}]." if values != [] else "",
            )
        for value in values:
            # The parameter ``grid`` is a list itself, of which a setting has one value.
            shown = [value] if param == "grid" else value
            check_type(f"[grids.{name}]", param, known[param], shown)
    axes = [
        [(value,) if param == "grid" else value for value in values]
        for param, values in grid.items()
    ]
    return [dict(zip(grid, combination, strict=True)) for combination in product(*axes)]
