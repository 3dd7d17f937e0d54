"""The forms in which a model leaves the package; how each is written and run.

Every form carries class names and identity; one that was written is loaded again the way its users
will, so that it can be checked before it gets its final name.
"""

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.backbones.forms import FORMS as NETWORK_FORMS
from pipeline.backbones.forms import KERAS, ONNX, Form
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.engines.onnx import onnx_model
from pipeline.errors import ConfigError
from pipeline.files.atomic import recover, rename_durably, set_aside, temporary_folder, write_json
from pipeline.runs import model_folder
from pipeline.runs.model_folder import ModelRecord
from pipeline.runs.stitch import Predict, cached_probabilities, runner
from pipeline.serving import assembly
from pipeline.system.keras_setup import (
    KerasModel,
    Tensor,
    import_keras,
    import_tensorflow,
    quiet_loggers,
    tensorflow_writing,
)

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head

INPUT: Final = "images"
OUTPUT: Final = "probabilities"
# In a .keras archive, and in a SavedModel's folder for what others add to it.
METADATA: Final = "pipeline.json"

_EXTRA: Final = "assets.extra"
_SIGNATURE: Final = "serving_default"


@dataclass(frozen=True, slots=True)
class Package:
    """What is exported.

    Attributes:
        backbone: The frozen backbone.
        head: The fitted head.
        record: What the model is to say of itself.
        network_file: The file of a backbone that is in no table.
    """

    backbone: FrozenBackbone
    head: "Head"
    record: ModelRecord
    network_file: Path | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes of the run."""
        return len(self.record.classes)

    def assembled(self) -> Tensor:
        """Return the whole as one model in the form of its backbone; see ``assembly``."""
        if self.backbone.form is ONNX:
            return assembly.assemble_onnx(self.backbone, self.head, self.num_classes, name=OUTPUT)
        return assembly.assemble(self.backbone, self.head, self.num_classes)

    def running(self, model: Tensor) -> Predict:
        """Return what ``assembled`` returned as a function."""
        if self.backbone.form is ONNX:
            return _predict_onnx(model.SerializeToString())
        return runner(model)

    def predict(self) -> Predict:
        """Return backbone and head as a function, for a head that is no network."""
        encode = assembly.encoding(self.backbone)
        return lambda pixels: cached_probabilities(self.head, [encode(pixels)], self.num_classes)


@dataclass(frozen=True, slots=True)
class Format:
    """One form of a model.

    Attributes:
        name: What it is called.
        suffix: What a file's name must end in; empty for a folder.
        is_network: Whether the head must be a network.
        needs_tensorflow: Whether Keras must run on TensorFlow, for a backbone in its form.
        record: Where the metadata lies in a folder; by it an earlier export is known.
        write: Writes the assembled model (None where the head need be no network) to a path.
        load: Loads what was written as a function.
        describe: Reads the metadata of what was written.
        forms: Forms of backbones that it can hold.
    """

    name: str
    suffix: str
    is_network: bool
    needs_tensorflow: bool
    record: str
    write: Callable[[Package, KerasModel, Path], None]
    load: Callable[[Path], Predict]
    describe: Callable[[Path], Mapping[str, object]]
    forms: tuple[Form, ...] = (KERAS,)


@contextmanager
def staged(out: Path, form: Format, *, force: bool) -> Iterator[Path]:
    """Give a temporary place beside ``out``; what is there at the end of the context becomes it.

    Args:
        out: The file or folder to make.
        form: Its form.
        force: Whether to replace an existing file, or the folder of an earlier export.

    Raises:
        ConfigError: ``out`` exists and may not be replaced, or cannot be written.
    """
    require_free(out, form, force=force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(out) as folder:
            temporary = folder / out.name
            yield temporary
            _flush(temporary)
            if out.is_dir():
                set_aside(out, folder)
            rename_durably(temporary, out)
    except OSError as error:
        if error.strerror is None:
            raise
        raise ConfigError(
            f"The model cannot be written to {str(out)!r}: {error.strerror}.",
            hint="Give a place that can be written to and has room.",
        ) from error


def require_free(out: Path, form: Format, *, force: bool) -> None:
    """Refuse a place that holds something; an export that a killed one set aside is put back.

    Raises:
        ConfigError: It holds an earlier export and ``force`` is off, or something else.
    """
    recover(out)
    if not out.exists() and not out.is_symlink():
        return
    is_export = is_of(out, form)
    if force and is_export:
        return
    kind = "a file" if form.suffix else "an export of this format"
    raise ConfigError(
        f"Expected nothing at {str(out)!r}, or with --force {kind}. "
        f"Received: {'a folder' if out.is_dir() else 'a file'} that is there.",
        hint="Replace it with --force, or choose another OUT."
        if is_export
        else "Choose another OUT.",
    )


def is_of(out: Path, form: Format) -> bool:
    """Tell whether a place holds what may be an export of a form, by its looks."""
    looks = out.is_file() if form.suffix else out.is_dir() and (out / form.record).is_file()
    return looks and not out.is_symlink()


def described(out: Path, form: Format) -> Mapping[str, object] | None:
    """Return the metadata of an export; None where there is none that can be read."""
    if not is_of(out, form):
        return None
    try:
        return dict(form.describe(out))
    except Exception:  # zipfile, JSON and ONNX Runtime each have errors of their own
        return None


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return sum(item.stat().st_size for item in files)


def _flush(path: Path) -> None:
    """Put the files of a folder on the disk; ``rename_durably`` does so for what it renames."""
    for item in path.rglob("*") if path.is_dir() else ():
        descriptor = os.open(item, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_keras(package: Package, model: KerasModel, path: Path) -> None:
    """Save a ``.keras`` archive with one more member, which Keras passes over."""
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(METADATA, json.dumps(package.record.as_json(), indent=2, allow_nan=False))


def _describe_keras(path: Path) -> Mapping[str, object]:
    with zipfile.ZipFile(path) as archive:
        found: Mapping[str, object] = json.loads(archive.read(METADATA))
        return found


def _load_keras(path: Path) -> Predict:
    return runner(import_keras().saving.load_model(path, compile=False, safe_mode=True))


def _write_savedmodel(package: Package, model: KerasModel, path: Path) -> None:
    keras, tf = import_keras(), import_tensorflow()

    side = package.backbone.image_size
    signature = tf.TensorSpec((None, side, side, 3), tf.uint8, name=INPUT)
    archive = keras.export.ExportArchive()
    # Not `track`ed, which would keep every weight twice; what the endpoint uses is found anyway.
    archive.add_endpoint(
        "serve", lambda images: {OUTPUT: model(images, training=False)}, [signature]
    )
    with quiet_loggers("tensorflow"), tensorflow_writing():
        archive.write_out(str(path), verbose=False)
    (path / _EXTRA).mkdir()
    write_json(path / _EXTRA / METADATA, package.record.as_json())


def _describe_savedmodel(path: Path) -> Mapping[str, object]:
    return _read_json(path / _EXTRA / METADATA)


def _load_savedmodel(path: Path) -> Predict:
    tf = import_tensorflow()

    loaded = tf.saved_model.load(str(path))

    def predict(pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
        # By way of the loaded object, without which its variables would be let go.
        found = loaded.signatures[_SIGNATURE](images=tf.constant(pixels))[OUTPUT]
        return np.asarray(found.numpy())

    return predict


def _write_onnx(package: Package, model: Tensor, path: Path) -> None:
    """Convert the graph with its weights as constants; metadata are texts of JSON by name."""
    converted = model
    if package.backbone.form is not ONNX:
        whole = _whole(package, model)
        converted = onnx_model(whole, name="classifier", rename=(INPUT, OUTPUT))
    for name, value in package.record.as_json().items():
        converted.metadata_props.add(key=name, value=json.dumps(value, allow_nan=False))
    path.write_bytes(converted.SerializeToString())


def _whole(package: Package, model: KerasModel) -> FrozenBackbone:
    """Return the assembled model in the place of a backbone, as the converter takes it."""
    return FrozenBackbone(
        lambda: model,
        name=package.backbone.name,
        image_size=package.backbone.image_size,
        pooling=package.backbone.pooling,
        dim=package.num_classes,
        weights_sha256=package.backbone.weights_sha256,
    )


def _describe_onnx(path: Path) -> Mapping[str, object]:
    texts = _onnx_session(path).get_modelmeta().custom_metadata_map
    return {name: json.loads(text) for name, text in texts.items()}


def _predict_onnx(model: Path | bytes) -> Predict:
    session = _onnx_session(model)
    return lambda pixels: np.asarray(session.run([OUTPUT], {INPUT: pixels})[0])


def _onnx_session(model: Path | bytes) -> Tensor:
    import onnxruntime

    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def _write_folder(package: Package, model: KerasModel, path: Path) -> None:
    model_folder.write(path, package.backbone, package.head, package.record, package.network_file)


def _load_folder(path: Path) -> Predict:
    found = model_folder.read(path)
    return Package(found.backbone, found.head, found.record).predict()


def _describe_folder(path: Path) -> Mapping[str, object]:
    return _read_json(path / model_folder.RECORD)


def _read_json(path: Path) -> Mapping[str, object]:
    found: Mapping[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found


_FORMATS: Final = (
    Format(
        *("folder", "", False, False, model_folder.RECORD),
        *(_write_folder, _load_folder, _describe_folder, NETWORK_FORMS),
    ),
    Format("keras", ".keras", True, False, "", _write_keras, _load_keras, _describe_keras),
    Format(
        "onnx", ".onnx", True, True, "", _write_onnx, _predict_onnx, _describe_onnx, NETWORK_FORMS
    ),
    Format(
        *("savedmodel", "", True, True, f"{_EXTRA}/{METADATA}"),
        *(_write_savedmodel, _load_savedmodel, _describe_savedmodel),
    ),
)
FORMATS: Final[Mapping[str, Format]] = MappingProxyType({form.name: form for form in _FORMATS})
