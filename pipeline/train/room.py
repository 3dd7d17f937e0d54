"""Whether memory has room for heads, asked before the first of them is fitted."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from pipeline import heads
from pipeline.dataset.features import SplitFeatures
from pipeline.errors import ConfigError
from pipeline.store.stream import StoredFeatures
from pipeline.system import machine

# Arrays of the held-out images' scores that are held together: scores, and probabilities of them,
# of the best setting so far and of the next one.
_ARRAYS_OF_SCORES: Final = 3

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


def require_room(wanted: "Mapping[str, Head]", data: SplitFeatures) -> None:
    """Refuse heads that need more memory than there is, before any is fitted.

    Args:
        wanted: The heads by name.
        data: What they are fitted on; left on disk where it does not fit into memory.

    Raises:
        ConfigError: Names the first head that has no room, what it needs, and what streams; or
            the held-out images are too many for the number of classes.
    """
    _require_room_of_scores(data)
    images, dim = data.X.shape
    is_on_disk = isinstance(data.X, StoredFeatures)
    fitted = len(data.part("train")[1]) * (1 + len(data.augment))
    free = machine.free_memory()
    for name, head in wanted.items():
        if head.streams:
            continue
        # On disk they are because they, too, need room.
        needed = 4 * dim * (head.copies * fitted + (images if is_on_disk else 0))
        if needed > free or is_on_disk:
            raise ConfigError(
                f"Expected memory to fit {name} on {fitted:,} images: {needed / 1e9:.1f} GB. "
                f"Received: {free / 1e9:.1f} GB free.",
                hint=f"Use heads that read features in a stream ({', '.join(heads.STREAMING)}), or "
                "take a part of the images, with --manifest.",
            )


def _require_room_of_scores(data: SplitFeatures) -> None:
    """Refuse more held-out images times classes than memory has room for, whatever the heads."""
    held_out = sum(len(data.part(name)[1]) for name in ("val", "test"))
    needed = 8 * _ARRAYS_OF_SCORES * held_out * data.num_classes
    free = machine.free_memory()
    if needed > free:
        raise ConfigError(
            f"Expected memory for probabilities of {held_out:,} images in val and test and "
            f"{data.num_classes:,} classes: {needed / 1e9:.1f} GB. Received: {free / 1e9:.1f} GB "
            "free.",
            hint="Hold fewer images out, such as --split 96/2/2, or take a part of them, with "
            "--manifest.",
        )
