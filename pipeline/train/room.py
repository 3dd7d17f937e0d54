"""Whether memory has room for heads, asked before the first of them is fitted."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from pipeline import heads
from pipeline.dataset.features import SplitFeatures
from pipeline.dataset.splits import SPLITS
from pipeline.errors import ConfigError
from pipeline.store.stream import StoredFeatures
from pipeline.system import machine

# Arrays of scores that are held together at most: of the images to choose on, where a temperature
# is fitted; of these and test, with their probabilities, at the end.
_TO_CHOOSE: Final = 6
_AT_THE_END: Final = 4

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


def require_room(
    wanted: "Mapping[str, Head]", data: SplitFeatures, *, most_settings: int = 0
) -> None:
    """Refuse heads that need more memory than there is, before any is fitted.

    Args:
        wanted: The heads by name.
        data: What they are fitted on; left on disk where it does not fit into memory.
        most_settings: How many settings of a head cross-validation scores, where there is no val.

    Raises:
        ConfigError: Names the first head that has no room, what it needs, and what streams; or
            scores of that many images and classes have no room, whatever the head.
    """
    _require_room_of_scores(data, most_settings)
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


def _require_room_of_scores(data: SplitFeatures, most_settings: int) -> None:
    train, val, test = (len(data.part(name)[1]) for name in SPLITS)
    is_folded = not val and most_settings > 0
    chosen = train if is_folded else val
    arrays = max(_TO_CHOOSE * chosen, _AT_THE_END * (chosen + test))
    arrays += most_settings * train if is_folded else 0
    needed = 8 * data.num_classes * (1 + len(data.average)) * arrays
    free = machine.free_memory()
    if needed > free:
        raise ConfigError(
            f"Expected memory for scores of {chosen + test:,} images (to choose on, and test) and "
            f"{data.num_classes:,} classes: {needed / 1e9:.1f} GB. Received: {free / 1e9:.1f} GB "
            "free.",
            hint="Take a part of the images, with --manifest, or "
            + ("give val a share, with --split." if is_folded else "hold fewer of them out."),
        )
