"""Where something was made: versions, platform, host; kept beside results, never compared."""

import functools
import platform
import sys
from importlib import metadata

from pipeline._version import __version__


def provenance() -> dict[str, object]:
    """Return versions and host, as a record of where something was made."""
    packages = (
        *("h5py", "jax", "keras", "numpy", "onnxruntime", "openvino", "pillow", "scikit-learn"),
        *("scipy", "tensorflow", "tf2onnx"),
    )
    return {
        "pipeline": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "argv": sys.argv[1:],
        "packages": {name: _version(name) for name in packages},
    }


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
