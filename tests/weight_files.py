"""Writers of every form of weights file, for tests; h5py alone, so fast tests need no Keras."""

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import weights
from pipeline.backbones.variables import Variable

Arrays = Mapping[str, NDArray[np.float32]]

STORED_CLASS: Final = {
    "BatchNormalization": "batch_normalization",
    "Conv2D": "conv2d",
    "Dense": "dense",
}
TOP: Final = (
    Variable("predictions", "Dense", "kernel", (4, 3)),
    Variable("predictions", "Dense", "bias", (3,)),
)


def small_resnet(blocks: int = 2, **options: Any) -> Any:
    """Return a network as Keras builds its ResNets, of a few small blocks."""
    from keras.src.applications import resnet

    def stack(tensor: Any) -> Any:
        return resnet.stack_residual_blocks_v1(tensor, 8, blocks, stride1=1, name="conv2")

    return resnet.ResNet(stack, preact=False, use_bias=True, **options)


def small_network() -> list[Variable]:
    """The variables of a network with twelve convolutions, eleven of them of one shape."""
    variables = _convolution("conv1_conv", (3, 3, 2, 4)) + _batch_norm("conv1_bn", 4)
    for number in range(11):
        variables += _convolution(f"block{number}_conv", (1, 1, 4, 4))
    return variables + _batch_norm("last_bn", 4)


def values_of(variables: Sequence[Variable], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Different values in every variable."""
    generator = np.random.default_rng(seed)
    return {
        variable.path: generator.standard_normal(variable.shape).astype(np.float32)
        for variable in variables
    }


def write_keras_weights(
    path: Path | io.BytesIO,
    variables: Sequence[Variable],
    arrays: Arrays,
    *,
    names: bool = True,
    root: str = "layers",
) -> None:
    """Keras 3's ``.weights.h5``: groups by class and position; newer ones hold names too."""
    seen: dict[str, int] = {}
    with h5py.File(path, "w") as file:
        for layer in dict.fromkeys(variable.layer for variable in variables):
            members = [variable for variable in variables if variable.layer == layer]
            kind = STORED_CLASS[members[0].layer_class]
            number = seen[kind] = seen.get(kind, -1) + 1
            group = file.create_group(f"{root}/{kind}_{number}/vars".replace("_0/", "/"))
            if names:
                group.attrs["name"] = layer
            for position, variable in enumerate(members):
                group[str(position)] = arrays[variable.path]
        file.create_group(f"{root}/activation/vars")
        file["optimizer/vars/0"] = np.int64(3)


def write_archive(path: Path, variables: Sequence[Variable], arrays: Arrays) -> None:
    """A ``.keras`` archive."""
    inner = io.BytesIO()
    write_keras_weights(inner, variables, arrays)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", "this is not read")
        archive.writestr("model.weights.h5", inner.getvalue())


def write_legacy(
    path: Path,
    variables: Sequence[Variable],
    arrays: Arrays,
    *,
    suffix: str = ":0",
    root: str = "/",
) -> None:
    """The old ``.h5``: groups by layer name, as in Keras' own ImageNet downloads."""
    with h5py.File(path, "w") as file:
        group = file.require_group(root)
        layers = list(dict.fromkeys(variable.layer for variable in variables))
        group.attrs["layer_names"] = [layer.encode() for layer in ["input_1", *layers]]
        group.create_group("input_1").attrs["weight_names"] = []
        for layer in layers:
            paths = [variable.path for variable in variables if variable.layer == layer]
            names = [path + suffix for path in paths]
            group.create_group(layer).attrs["weight_names"] = [name.encode() for name in names]
            for path_, name in zip(paths, names, strict=True):
                group[f"{layer}/{name}"] = arrays[path_]
        if root != "/":
            group.create_group("top_level_model_weights").attrs["weight_names"] = []
            file["optimizer_weights/adam/m:0"] = np.zeros(3)


def write_flat(path: Path, variables: Sequence[Variable], arrays: Arrays) -> None:
    """Our own form."""
    weights.save(path, {variable.path: arrays[variable.path] for variable in variables})


Writer = Callable[[Path, Sequence[Variable], Arrays], None]

WRITERS: Final[Mapping[str, Writer]] = {
    "archive.keras": write_archive,
    "flat.h5": write_flat,
    "keras2.weights.h5": lambda path, variables, arrays: write_keras_weights(
        path, variables, arrays, names=False, root="_layer_checkpoint_dependencies"
    ),
    "legacy.h5": write_legacy,
    "legacy_keras3.h5": lambda path, variables, arrays: write_legacy(
        path, variables, arrays, suffix=""
    ),
    "legacy_model.h5": lambda path, variables, arrays: write_legacy(
        path, variables, arrays, root="model_weights"
    ),
    "named.weights.h5": write_keras_weights,
    "unnamed.weights.h5": lambda path, variables, arrays: write_keras_weights(
        path, variables, arrays, names=False
    ),
}


def _convolution(layer: str, shape: tuple[int, ...]) -> list[Variable]:
    return [
        Variable(layer, "Conv2D", "kernel", shape),
        Variable(layer, "Conv2D", "bias", shape[-1:]),
    ]


def _batch_norm(layer: str, channels: int) -> list[Variable]:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return [Variable(layer, "BatchNormalization", name, (channels,)) for name in names]
