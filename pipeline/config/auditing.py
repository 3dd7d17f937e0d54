"""The options of whatever looks for faults of the data; see ``options``."""

from dataclasses import dataclass

from pipeline.config import fields


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """Options of ``audit``."""

    store: str = fields.path(
        "",
        "feature store made by extract: a folder or an address",
        "STORE",
        positional=True,
        required=True,
    )
    run: str | None = fields.path(
        None, "run whose labels and splits are taken, and whose heads are scored again", "DIR"
    )
    manifest: str | None = fields.path(
        None, "use this manifest instead of STORE/manifest.csv", "FILE"
    )
    out: str | None = fields.path(
        None, "folder for audit.csv and audit.html (default: audits/<base name of STORE>)", "DIR"
    )
    threshold: float = fields.number(
        0.0,
        "cosine of features from which images are nearly the same; 0 lets the data say, and "
        "compares pixels too",
        0.0,
        1.0,
    )
    relabel: bool = fields.switch(
        "in audit.csv, put the proposed label in the place of the given one, where that is likely "
        "an error"
    )
