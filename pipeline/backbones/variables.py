"""The variables of a network, with names that no counter of Keras changes."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.errors import WeightsUnavailableError
from pipeline.system.keras_setup import KerasModel, KerasVariable, Tensor

_COUNTED: Final = re.compile(r"(?P<stem>.*?)(?:_\d+)?")


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of a backbone, as the network declares it.

    Attributes:
        layer: Name of its layer, such as ``conv1_conv``.
        layer_class: Class of its layer, such as ``Conv2D``.
        name: Its name within the layer, such as ``kernel``.
        shape: Its shape.
    """

    layer: str
    layer_class: str
    name: str
    shape: tuple[int, ...]

    @property
    def path(self) -> str:
        """Name within the network, such as ``conv1_conv/kernel``."""
        return f"{self.layer}/{self.name}"


def stable_names(names: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Return layer names that do not depend on how many networks were built before.

    Keras names a layer that nobody named by its class and a count over the whole process:
    ``layer_normalization_7``. Such names are counted anew; all others stay.

    Example:
        >>> stable_names(["stem", "dense_4", "dense_5"], ["Conv2D", "Dense", "Dense"])
        ['stem', 'dense', 'dense_1']

    Args:
        names: Layer names in the network's order.
        kinds: Their classes.
    """
    counts: Counter[str] = Counter()
    stable = []
    for name, kind in zip(names, kinds, strict=True):
        stem, _ = class_and_index(name)
        counted = stem == kind.replace("_", "").lower() and _COUNTED.fullmatch(name)
        if counted:
            stem = counted["stem"]
            name = f"{stem}_{counts[stem]}" if counts[stem] else stem
            counts[stem] += 1
        stable.append(name)
    return stable


def class_and_index(layer: str) -> tuple[str, int]:
    """Split ``batch_normalization_10`` into ``("batchnormalization", 10)``."""
    kind, _, index = layer.rpartition("_")
    if not index.isdecimal():
        kind, index = layer, "0"
    return kind.replace("_", "").lower(), int(index)


def variables_of(network: KerasModel) -> list[Variable]:
    """Return a network's variables in the order of its layers, those of nested ones included.

    Layers and variables that Keras named by counting (``layer_normalization_7``) are counted anew
    from the start of the network, so that names do not tell what else was built before.

    Raises:
        WeightsUnavailableError: Two variables have one name, so that weights have no clear place.
    """
    layers = [layer for layer in _leaves(network) if layer.weights]
    kinds = [type(layer).__name__ for layer in layers]
    names = stable_names([layer.name for layer in layers], kinds)
    variables = []
    for layer, name, kind in zip(layers, names, kinds, strict=True):
        owned = [variable.name for variable in layer.weights]
        inner = stable_names(owned, ["Variable"] * len(owned))
        variables += [
            Variable(name, kind, own, tuple(variable.shape))
            for own, variable in zip(inner, layer.weights, strict=True)
        ]
    twice = [path for path, count in Counter(item.path for item in variables).items() if count > 1]
    if twice:
        raise WeightsUnavailableError(
            f"Expected every variable to have a name of its own. Received: {twice[0]!r} twice.",
            hint="Give the network's layers different names.",
        )
    return variables


def keras_variables(network: KerasModel) -> Sequence[Tensor]:
    """Return the variables of a network as Keras holds them, in the order of ``variables_of``."""
    return [variable for layer in _leaves(network) for variable in layer.weights]


def _leaves(network: KerasModel) -> Iterator[KerasVariable]:
    """Yield the layers that hold no other layers, in order."""
    for layer in network.layers:
        if hasattr(layer, "layers"):
            yield from _leaves(layer)
        else:
            yield layer
