"""The options of whatever looks after stores and runs; see ``options``."""

from dataclasses import dataclass

from pipeline.config import fields


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoOptions:
    """Options of ``info``."""

    path: str = fields.path(
        "",
        "store or run: a directory, or the address of a store",
        "STORE|RUN",
        positional=True,
        required=True,
    )
    per_class: bool = fields.switch(
        "of a run, show the scores of every class and the confusion matrix"
    )
    head: str | None = fields.text(None, "head for --per-class (default: the run's best)", "NAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """Options of ``verify``."""

    store: str = fields.path(
        "",
        "directory of a store, a run or an exported model, or the address of a store",
        "STORE|RUN",
        positional=True,
        required=True,
    )
    repair: bool = fields.switch("drop what is bad, so that the next command makes just that again")
    reencode: int = fields.integer(
        0, "encode this many rows of every shard of a store again, and compare them", 0
    )
    weights: str | None = fields.path(
        None, "weights file for --reencode, if the store no longer has them", "PATH"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneOptions:
    """Options of ``prune``."""

    store: str = fields.path(
        "", "store: a directory or an address", "STORE", positional=True, required=True
    )
