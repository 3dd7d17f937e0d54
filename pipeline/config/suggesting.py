"""The options of whatever says what to label next; see ``options``."""

from dataclasses import dataclass

from pipeline.config import fields


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestOptions:
    """Options of ``suggest``."""

    store: str = fields.path(
        "",
        "feature store made by extract: a folder or an address",
        "STORE",
        positional=True,
        required=True,
    )
    n: int = fields.integer(50, "images to suggest", 1)
    run: str | None = fields.path(
        None, "run whose head says what is uncertain (default: one is fitted now)", "DIR"
    )
    head: str | None = fields.text(
        None,
        "head that says what is uncertain (default: the run's best; without --run, logreg, fitted "
        "on all labelled images)",
        "NAME",
    )
    manifest: str | None = fields.path(
        None, "use this manifest instead of STORE/manifest.csv", "FILE"
    )
    out: str | None = fields.path(
        None,
        "table to write (default: suggestions/<base name of STORE>/suggest.csv)",
        "FILE",
    )
