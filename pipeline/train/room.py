"""Whether memory has room for heads, asked before the first of them is fitted."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline import heads
from pipeline.dataset.features import SplitFeatures
from pipeline.errors import ConfigError
from pipeline.store.stream import StoredFeatures
from pipeline.system import machine

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


def require_room(wanted: "Mapping[str, Head]", data: SplitFeatures) -> None:
    """Refuse heads that need more memory than there is, before any is fitted.

    Args:
        wanted: The heads by name.
        data: What they are fitted on; left on disk where it does not fit into memory.

    Raises:
        ConfigError: Names the first head that has no room, what it needs, and what streams.
    """
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
