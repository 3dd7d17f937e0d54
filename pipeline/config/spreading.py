"""Options of commands that may spread their work over a cluster."""

from typing import Final

from pipeline.config import fields

LOCAL: Final = "local"
RAY: Final = "ray"


def executor(what: str) -> str:
    """Return the field of what does the work."""
    return fields.choice(LOCAL, (LOCAL, RAY), f"{what} (extra 'ray')")


def address() -> str | None:
    """Return the field of the cluster to join."""
    return fields.text(
        None,
        "HOST:PORT of the Ray cluster to join, or 'auto' for the one that this machine is part of "
        "(default: RAY_ADDRESS, else Ray on this machine alone)",
        "ADDRESS",
    )


def actor_cores() -> int | None:
    """Return the field of what an actor takes."""
    return fields.integer(
        None,
        "processors of one encoding actor of --executor ray; 0 for one GPU (default: one GPU where "
        "the cluster has any, else all processors of its smallest node)",
        0,
    )
