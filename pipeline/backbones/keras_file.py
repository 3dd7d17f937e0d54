"""A user's own network: a ``.keras`` file as a backbone, with a declared preprocessing.

A file is loaded only if its architecture is made of Keras' own classes, whatever the program that
loads it has registered; see ``_require_built_in``.
"""

import functools
import hashlib
import importlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import MappingProxyType, ModuleType
from typing import Any, Final

import h5py
import numpy as np

from pipeline.backbones import network_shapes
from pipeline.backbones.forms import CLIP_MEAN, CLIP_SCALE, KERAS, SUFFIXES
from pipeline.config.extracting import PREPROCESSINGS
from pipeline.errors import ConfigError, WeightsUnavailableError
from pipeline.files import hdf5
from pipeline.files.records import canonical_json
from pipeline.files.regular import open_regular
from pipeline.system.keras_setup import KerasModel, Tensor, import_keras

SUFFIX: Final = KERAS.suffix
_CONFIG: Final = "config.json"
_WEIGHTS: Final = "model.weights.h5"
# Keras' largest architectures take a hundredth of it.
_MAX_CONFIG_BYTES: Final = 16 << 20
# Keras packs nothing; a file that others packed unpacks to a few times its size.
_MAX_GROWTH: Final = 100
# What damage in an archive, its JSON and its HDF5 can raise.
_ERRORS: Final = (*hdf5.HDF5_ERRORS, EOFError, RecursionError, zipfile.BadZipFile)
_HDF5: Final = b"\x89HDF\r\n\x1a\n"

_SAVE: Final = "Save it with model.save('NAME.keras'), and give that file."
_CONVERT: Final = (
    "Save it again: keras.models.load_model('OLD.h5', compile=False).save('NEW.keras')."
)
_FOREIGN: Final = (
    "Export the network to ONNX, such as with torch.onnx.export, or build it in Keras 3, give it "
    "these weights, and save it with model.save('NAME.keras')."
)
_SAVED_MODEL: Final = (
    "A SavedModel has no layers to read: save the Keras model that it was exported from with "
    "model.save('NAME.keras')."
)
# What to do with a network in a file that ends so; the first that fits counts.
_OTHER_FORMS: Final = (
    ((".weights.h5",), "These are weights alone: give them with --weights and --backbone NAME."),
    ((".h5", ".hdf5"), _CONVERT),
    (
        (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tflite", ".msgpack", ".pkl"),
        _FOREIGN,
    ),
    ((".pb", ".savedmodel"), _SAVED_MODEL),
    ((".zip", ".json", ".py", ".keras"), _SAVE),
)

# Keras' own layers that run code, or read files, that the architecture names.
_OPEN_ENDED: Final = frozenset(
    {
        "FlaxLayer",
        "IndexLookup",
        "IntegerLookup",
        "JaxLayer",
        "Lambda",
        "StringLookup",
        "TFSMLayer",
        "TextVectorization",
        "TorchModuleWrapper",
    }
)
# What stands for values in an architecture, and is no class.
_VALUES: Final = frozenset(
    {"__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__"}
)


def checked_preprocessing(preprocessing: str | None) -> str:
    """Return the preprocessing of a file, which must be declared.

    Raises:
        ConfigError: It is missing.
    """
    if preprocessing is None:
        meanings = "; ".join(f"{name}: {meaning}" for name, meaning in PREPROCESSINGS.items())
        raise ConfigError(
            "--preprocessing: expected what the network was trained with. Received: nothing.",
            hint=f"{meanings}.",
        )
    return preprocessing


def preprocess(pixels: Tensor, preprocessing: str) -> Tensor:
    """Apply a preprocessing to float32 pixels of 0 to 255, as a part of a Keras graph."""
    return _FUNCTIONS[preprocessing](pixels)


def architecture(path: Path) -> str:
    """Return the name of a file's network: a digest of its architecture, without its weights.

    Raises:
        WeightsUnavailableError: The file is missing or is no ``.keras`` archive.
    """
    try:
        text = canonical_json(_config(path).get("config", {}))
    except (ValueError, RecursionError) as error:
        raise _unusable(path, error) from error
    return KERAS.prefix + hashlib.sha256(text.encode()).hexdigest()


def require_no_other_file(name: str) -> None:
    """Refuse a network in another form than those of ``forms``, and say how to come to one.

    Raises:
        ConfigError: The name is that of a file or folder, or ends as one does.
    """
    path = Path(name)
    known = [hint for suffixes, hint in _OTHER_FORMS if name.lower().endswith(suffixes)]
    is_saved_model = (path / "saved_model.pb").exists()
    if not known and not (os.sep in name or is_saved_model or path.is_file()):
        return
    found = "a folder" if path.is_dir() else "a file" if path.exists() else "which does not exist"
    hint = known[0] if known else _SAVED_MODEL if is_saved_model else _SAVE
    raise ConfigError(
        f"--backbone: expected a name, or a network in a {SUFFIXES} file. "
        f"Received: {name!r}, {found}.",
        hint=hint,
    )


def require_input(path: Path, image_size: int) -> None:
    """Refuse a network that does not take such images, as far as its architecture tells.

    Keras, which tells it of every network, takes seconds to import.

    Raises:
        ConfigError: It takes others; see ``network_shapes``.
        WeightsUnavailableError: The file is missing or is no ``.keras`` archive.
    """
    shapes = network_shapes.declared_inputs(_config(path))
    if shapes:
        network_shapes.check_inputs(path, shapes, image_size)


def load(path: Path, *, image_size: int, pooling: str) -> Tensor:
    """Return the network of a file, float32 ``(n, S, S, 3)`` to ``(n, dim)``.

    Args:
        path: The file.
        image_size: Side S of the images.
        pooling: ``avg`` or ``max``, for a network that ends in a feature map.

    Raises:
        ConfigError: The network does not take such images, or gives no features.
        WeightsUnavailableError: The file cannot be loaded, or names what is not Keras' own.
    """
    # How it was compiled is not loaded, and may name a loss of its maker's own.
    _require_built_in(path, {**_config(path), "compile_config": None})
    _require_plain_weights(path)
    keras = import_keras()
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever the line at hand does
        raise _unusable(path, error) from error
    if not isinstance(model, keras.Model) or not model.built:
        raise _unusable(path, f"a {type(model).__name__}, which is not a model that was built")
    _require_finite(path, model, keras)
    network_shapes.check_inputs(path, [tuple(item.shape) for item in model.inputs], image_size)
    network_shapes.check_outputs(path, [tuple(item.shape) for item in model.outputs])
    model = _of_size(keras, model, image_size)
    shape = model.outputs[0].shape
    features = model.outputs[0]
    if len(shape) == 4:
        layer = {"avg": "GlobalAveragePooling2D", "max": "GlobalMaxPooling2D"}[pooling]
        features = getattr(keras.layers, layer)()(features)
    # Also where nothing is added: a Sequential tells nothing of its graph, which cuts are made in.
    return keras.Model(model.inputs, features)


def _of_size(keras: Any, model: Any, image_size: int) -> Any:
    """Return a network that takes images of any size as one for a single size.

    Fine-tuning keeps what is computed at a cut, and has to know how large that is.
    """
    if None not in model.inputs[0].shape[1:]:
        return model
    pixels = keras.Input((image_size, image_size, 3), name=model.inputs[0].name)
    sized = keras.models.clone_model(model, input_tensors=pixels)
    sized.set_weights(model.get_weights())
    return sized


def _config(path: Path) -> dict[str, object]:
    """Return the architecture of a file, as Keras recorded it.

    Raises:
        WeightsUnavailableError: The file is missing or is no ``.keras`` archive.
    """
    try:
        _require_file(path)
        with _archive(path) as archive:
            size = archive.getinfo(_CONFIG).file_size
            if size > _MAX_CONFIG_BYTES:
                raise ValueError(f"{_CONFIG} of {size:,} bytes")
            config = json.loads(archive.read(_CONFIG))
        if not isinstance(config, dict):
            raise TypeError(f"{_CONFIG} of a {type(config).__name__}")
        return config
    except WeightsUnavailableError:
        raise
    except _ERRORS as error:
        raise _unusable(path, error) from error


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a file as an archive that unpacks to about what it is, into one folder.

    Raises:
        ValueError: It unpacks to more, or elsewhere.
        OSError: It is no regular file, or cannot be read.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        size = file.seek(0, 2)
        # No more than this is ever unpacked, whatever is packed: zipfile stops there.
        total = sum(item.file_size for item in archive.infolist())
        if total > _MAX_GROWTH * size:
            raise ValueError(f"{size:,} bytes that unpack to {total:,}")
        for name in archive.namelist():
            if "\\" in name or name.startswith("/") or ".." in PurePosixPath(name).parts:
                raise ValueError(f"a member {name!r}")
        yield archive


def _require_plain_weights(path: Path) -> None:
    """Refuse weights that name other files, or are more than there is.

    Raises:
        WeightsUnavailableError: Says which.
    """
    try:
        with _archive(path) as archive, tempfile.TemporaryFile() as copy:
            with archive.open(_WEIGHTS) as member:
                while chunk := member.read(1 << 20):
                    copy.write(chunk)
            size = copy.tell()
            with h5py.File(copy, "r") as file:
                held = sum(dataset.nbytes for _, dataset in hdf5.datasets(file))
        if held > size:
            raise ValueError(f"{size:,} bytes of weights that unpack to {held:,}")
    except _ERRORS as error:
        raise _unusable(path, error) from error


def _require_finite(path: Path, model: KerasModel, keras: ModuleType) -> None:
    """Refuse weights that are not finite, as in every other file of weights."""
    for variable in model.weights:
        values = np.asarray(keras.ops.convert_to_numpy(variable))
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise _unusable(path, f"NaN or infinity in {variable.path}")


def _require_built_in(path: Path, config: Any) -> None:
    """Refuse an architecture that names classes or functions which are not Keras' own.

    Safe mode keeps code out that lies in the file, not what a name makes Keras import or call.

    Raises:
        WeightsUnavailableError: Says which it names.
    """
    open_parts = [config]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, list):
            open_parts.extend(part)
        elif isinstance(part, dict):
            if "class_name" in part and not _is_built_in(part):
                named = f"{part.get('module')}.{part['class_name']}"
                raise _unusable(path, f"{named}, registered as {part.get('registered_name')!r}")
            open_parts.extend(part.values())


def _is_built_in(part: Mapping[str, object]) -> bool:
    """Tell whether a part of an architecture is a value or of a class of Keras itself."""
    name, module = str(part["class_name"]), str(part.get("module"))
    if name in _VALUES:
        return True
    is_of_keras = module == "keras" or module.startswith("keras.")
    # Classes are capitalized; functions (utils.get_file) are not.
    is_class = name.isidentifier() and name[0].isupper()
    # Keras registers its own classes under their names, others as PACKAGE>NAME.
    is_registered = part.get("registered_name") not in (None, name)
    return is_of_keras and is_class and not is_registered and name not in _OPEN_ENDED


def _require_file(path: Path) -> None:
    """Refuse what is no file, and an HDF5 file under this name.

    Raises:
        WeightsUnavailableError: Says what it is.
    """
    if not path.is_file():
        received = "not a regular file" if path.exists() else "no such file"
        raise WeightsUnavailableError(
            f"{path}: expected a network in a {SUFFIX} file. Received: {received}.",
            hint="Correct the path.",
        )
    try:
        with path.open("rb") as file:
            begins = file.read(len(_HDF5))
    except OSError as error:
        raise WeightsUnavailableError(
            f"{path}: the network cannot be read: {error.strerror}.", hint="Check its permissions."
        ) from error
    if begins == _HDF5:
        raise WeightsUnavailableError(
            f"{path}: expected a network in Keras 3's form. Received: an HDF5 file.",
            hint=_CONVERT,
        )


def _unusable(path: Path, error: Exception | str) -> WeightsUnavailableError:
    cause = " ".join(str(error).split())[:300]
    return WeightsUnavailableError(
        f"{path}: expected a network that Keras 3 saved, of Keras' own layers, without Lambda. "
        f"Received: {cause}",
        hint="Save it with model.save('NAME.keras').",
    )


def _imagenet(pixels: Tensor, mode: str) -> Tensor:
    utilities = importlib.import_module("keras.applications.imagenet_utils")
    return utilities.preprocess_input(pixels, mode=mode)


_FUNCTIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = MappingProxyType(
    {
        "caffe": functools.partial(_imagenet, mode="caffe"),
        "clip": lambda pixels: (
            (pixels / 255.0 - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_SCALE, np.float32)
        ),
        "none": lambda pixels: pixels,
        "tf": functools.partial(_imagenet, mode="tf"),
        "torch": functools.partial(_imagenet, mode="torch"),
        "unit": lambda pixels: pixels / 255.0,
    }
)
