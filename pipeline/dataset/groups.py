"""Groups of images that stay in one split: what a column names, and near duplicates.

Each says of some images that they belong together; what they connect is one group.
"""

from collections.abc import Sequence

# Whether it is a key rather than a name of a column, and its text. The least of a group names it:
# a name of the column before any key.
_Node = tuple[bool, str]


def united(
    keys: Sequence[str], names: Sequence[str], copies: Sequence[Sequence[str]] = ()
) -> dict[str, str]:
    """Return the name of the group of each key that is in one; others are on their own.

    A group has the name that the column gives it, the first in order of several that are one, or
    else its smallest key.

    Args:
        keys: Content keys of rows.
        names: Group of each row by a column, empty where the image is alone; may be of no rows.
        copies: Keys of near duplicates, two or more in each group.
    """
    forest = _Forest()
    for key, name in zip(keys, names or [""] * len(keys), strict=True):
        if name:
            forest.unite((True, key), (False, name))
    for first, *others in copies:
        for other in others:
            forest.unite((True, first), (True, other))
    return forest.names()


class _Forest:
    """Trees of nodes that belong together, each with its least one as the root."""

    def __init__(self) -> None:
        self._above: dict[_Node, _Node] = {}

    def unite(self, first: _Node, second: _Node) -> None:
        """Make one tree of the trees of two nodes."""
        low, high = sorted((self._root(first), self._root(second)))
        self._above[high] = low

    def names(self) -> dict[str, str]:
        """Return the text of the root of each key."""
        return {node[1]: self._root(node)[1] for node in list(self._above) if node[0]}

    def _root(self, node: _Node) -> _Node:
        above = self._above.setdefault(node, node)
        while above != node:
            # Each node on the way hangs one step higher from now on, so that ways stay short.
            self._above[node] = self._above[above]
            node, above = above, self._above[above]
        return node
