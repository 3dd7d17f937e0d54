"""The options of whatever uses a trained head; see ``options``."""

from dataclasses import dataclass

from pipeline.config import fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """Options of whatever classifies images with a head of a run."""

    run: str = fields.path(
        "",
        "run directory, or a folder of export --format folder",
        "RUN",
        positional=True,
        required=True,
    )
    head: str | None = fields.text(None, "head to use (default: the run's best)", "NAME")
    weights: str | None = fields.path(
        None, "weights file, if the run's store no longer has them", "PATH"
    )
    store: str | None = fields.path(None, "store of the run, if it has moved since", "DIR")
    engine: str = fields.text("auto", "what runs the backbone: keras, openvino or onnx", "NAME")
    batch_size: int = fields.integer(32, "images per call of the backbone", 1)
    workers: int | None = fields.integer(
        None, "reading threads (default: one per processor; of images at addresses 16, or 128)", 1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictOptions(ServingOptions):
    """Options of ``predict``."""

    paths: tuple[str, ...] = fields.paths(
        (),
        "image files, folders and packed files, or their addresses",
        "PATH",
        positional=True,
        required=True,
    )
    top: int = fields.integer(1, "classes to list for each image", 1)
    csv: str | None = fields.path(
        None, "write path,label,probability and the other classes here", "FILE"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions(ServingOptions):
    """Options of ``evaluate``."""

    data: str = fields.path(
        "",
        "labelled images: class folders, split folders above those, a CSV path,label, or "
        "packed files",
        "DATA",
        positional=True,
        required=True,
    )
    layout: str = fields.choice(
        "auto", ("auto", "classes", "splits"), "what the top folders of DATA are, as for extract"
    )
    image_column: str | None = fields.text(
        None,
        "column of a table, or what names end in in tar shards, that the images are in, as for "
        "extract",
        "NAME",
    )
    label_column: str | None = fields.text(
        None,
        "column of a table, or key in tar shards, that the labels are in, as for extract",
        "NAME",
    )
    csv: str | None = fields.path(
        None, "write path,label,predicted,probability,status here", "FILE"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Options of ``export``."""

    run: str = fields.path("", "run directory", "RUN", positional=True, required=True)
    out: str = fields.path("", "file or folder to write", "OUT", positional=True, required=True)
    head: str | None = fields.text(None, "head to export (default: the run's best)", "NAME")
    format: str | None = fields.text(
        None,
        "form of the model: folder, keras, onnx or savedmodel (default: by OUT: .keras, .onnx, or "
        "a folder where there is no suffix)",
        "NAME",
    )
    weights: str | None = fields.path(
        None, "weights file, if the run's store no longer has them", "PATH"
    )
    store: str | None = fields.path(None, "store of the run, if it has moved since", "DIR")
    data: str | None = fields.path(
        None, "folder of the run's images, if they have moved since extract", "DIR"
    )
