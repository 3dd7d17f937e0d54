"""What a source is given: the place of the data, and how the user says that it is laid out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.errors import ConfigError, mention
from pipeline.files.location import Location
from pipeline.files.state import FileState
from pipeline.images.sources.folder_tree import Tree


@dataclass(frozen=True, slots=True)
class Given:
    """Data to list.

    Attributes:
        data: Where it is.
        tree: What is below it; None of a file.
        layout: What folders are: ``classes``, ``splits``, or ``auto``, by their names.
        unlabelled: Names of folders whose images have no label.
        image_column: The column of a table that images are in, or what ends their names in tar
            shards; None for the only one.
        label_column: The column of a table that labels are in, or where tar shards have them:
            ``cls``, or a key of their .json; None for the only one.
        states: Of data at an address that is listed as a folder, the state of each path.
        left_out: What is there and not read, with the reason.
    """

    data: Location
    tree: Tree | None
    layout: str = "auto"
    unlabelled: Sequence[str] = ()
    states: Mapping[str, FileState] = field(default_factory=dict)
    image_column: str | None = None
    label_column: str | None = None
    left_out: Sequence[str] = ()

    def is_file(self, *suffixes: str) -> bool:
        """Tell whether the data is a file whose name ends in one of some suffixes."""
        return self.tree is None and self.data.name.lower().endswith(suffixes)

    def require_no_folders(self, what: str, why: str) -> None:
        """Refuse what says how folders are laid out, for data that says it itself.

        Args:
            what: What the data is, such as ``a table``.
            why: What says its splits, after that.

        Raises:
            ConfigError: A layout is given, or unlabelled folders.
        """
        if self.layout != "auto":
            raise ConfigError(
                f"--layout: expected none for {what}, {why}. Received: {self.layout!r} for "
                f"{str(self.data)!r}.",
                hint="Leave it out.",
            )
        self.require_no_unlabelled(what)

    def require_no_unlabelled(self, what: str) -> None:
        """Refuse names of unlabelled folders, for data without folders.

        Raises:
            ConfigError: Some are given.
        """
        if self.unlabelled:
            raise ConfigError(
                f"--unlabelled: expected none for {what}. Received: {mention(self.unlabelled)} "
                f"for {str(self.data)!r}.",
                hint="Leave it out, and leave the label of such images empty.",
            )

    def require_no_columns(self, kind: str) -> None:
        """Refuse what says which columns to read, for data that has none to choose from.

        Raises:
            ConfigError: A column is named.
        """
        asked = (("--image-column", self.image_column), ("--label-column", self.label_column))
        for option, name in asked:
            if name is not None:
                raise ConfigError(
                    f"{option}: expected none but for tables, and tar shards with a .cls or .json "
                    f"beside each image. Received: {name!r} for {kind}, {str(self.data)!r}.",
                    hint="Leave it out.",
                )
