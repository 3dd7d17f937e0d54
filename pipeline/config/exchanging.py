"""The options of what takes features from plain files and writes them into one; see ``options``."""

from dataclasses import dataclass

from pipeline.config import fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFeaturesOptions:
    """Options of ``import-features``."""

    file: str = fields.path(
        "",
        "features, one row per image: .npy with a list of paths, .parquet, .h5 or .hdf5",
        "FILE",
        positional=True,
        required=True,
    )
    store: str | None = fields.path(
        None,
        "feature store to make: a folder or an address (default: stores/<base name of FILE>)",
        "DIR",
    )
    paths: str | None = fields.path(
        None,
        "rows of a file that has no paths: a CSV path[,label][,split][,group][,key], or a text of "
        "one path a line (default: FILE with .csv or .txt for its suffix)",
        "LIST",
    )
    column: str | None = fields.text(
        None, "column or dataset that holds the features, where there are several", "NAME"
    )
    data: str | None = fields.path(
        None,
        "folder that the paths are relative to; images there are read for their keys "
        "(default: the folder of what lists them)",
        "DIR",
    )
    name: str | None = fields.text(
        None, "what the features are called in their identity (default: base name of FILE)", "NAME"
    )
    merge_labels: bool = fields.switch(
        "merge labels that differ only in blanks, capitals, encoding or how a number is written"
    )
    on_error: str = fields.choice(
        "skip", ("skip", "raise"), "what to do with a row that is not finite"
    )
    max_errors: int | None = fields.integer(None, "stop when more rows than this are bad", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportFeaturesOptions:
    """Options of ``export-features``."""

    store: str = fields.path(
        "", "store: a directory or an address", "STORE", positional=True, required=True
    )
    file: str = fields.path(
        "",
        "file to write: .h5, .parquet, or .npy with a .csv beside it",
        "FILE",
        positional=True,
        required=True,
    )
    manifest: str | None = fields.path(
        None, "rows of this manifest instead of STORE/manifest.csv", "FILE"
    )
    all: bool = fields.switch(
        "after the rows of the manifest, also what no row of it has: path and key are the key"
    )
    view: str | None = fields.text(None, "stored view instead of the images as they are", "NAME")
