"""Options of what runs the work: this process, or the nodes of a Ray cluster."""

from typing import Final

from pipeline.config import fields

# What features are made by, and settings tried by.
LOCAL: Final = "local"
RAY: Final = "ray"


def executor(what: str) -> str:
    """Return the option that chooses."""
    return fields.choice(LOCAL, (LOCAL, RAY), f"{what} (extra 'ray')")


def address() -> str | None:
    """Return the option that names a cluster."""
    return fields.text(
        None,
        "HOST:PORT of the Ray cluster to join, or 'auto' for the one that this machine is part of "
        "(default: RAY_ADDRESS, else Ray on this machine alone)",
        "ADDRESS",
    )
