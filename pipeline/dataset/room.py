"""Whether memory has room for features and heads, asked before the features are read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from pipeline import heads
from pipeline.config.options import StageTwoOptions
from pipeline.dataset.examples import Examples
from pipeline.errors import ConfigError
from pipeline.system import machine
from pipeline.system.progress import Reporter
from pipeline.system.wording import counted

# Arrays of scores that are held together at most: of the images to choose on, where a temperature
# is fitted; of these and test, with their probabilities, at the end.
_TO_CHOOSE: Final = 6
_AT_THE_END: Final = 4
# Seconds from which it is said how long a head takes.
_LONG: Final = 600
_STREAMING: Final = ", ".join(heads.STREAMING)

if TYPE_CHECKING:  # scikit-learn takes two seconds to import
    from pipeline.heads.head import Head


@dataclass(frozen=True)
class Room:
    """What heads, and the features that they are fitted on, ask of memory and time.

    Attributes:
        heads: The heads by name.
        examples: The rows.
        dim: Length of a feature row.
        options: Which views are fitted on, and averaged over.
        settings: How many settings of each head are tried; one by default.
        folds: Parts of cross-validation that chooses where there is no val; none by default.
        in_parts: Whether heads are fitted on parts of train, whatever chooses.
    """

    heads: "Mapping[str, Head]"
    examples: Examples
    dim: int
    options: StageTwoOptions
    settings: Mapping[str, int] = field(default_factory=dict)
    folds: int = 0
    in_parts: bool = False

    def for_features(self) -> bool:
        """Tell whether features fit into memory, beside what fitting takes; else they stay on disk.

        Raises:
            ConfigError: They do not, though a head or views need them there; or scores of that
                many images and classes have no room, whatever the head.
        """
        free, scores = machine.free_memory(), self._scores()
        if scores > free:
            raise self._no_room_for_scores(scores, free)
        needed = {name: self._to_fit(name) for name in self.heads}
        features = 4 * self.dim * len(self.examples) * (1 + self._num_views)
        total = features + max(scores, *needed.values(), 0)
        if total <= free:
            return True
        if self._num_views:
            raise ConfigError(
                f"Expected memory for the features of {len(self.examples):,} images and "
                f"{counted(self._num_views, 'view')}, and to fit on them: {_size(total, free)}",
                hint="Leave out --augment and --average: without views, features can stay on disk.",
            )
        whole = {name: needed[name] for name, head in self.heads.items() if not head.streams}
        if whole:
            # Alone it may have room, and another that would stream may not beside its features.
            name = max(whole, key=lambda name: whole[name])
            if features + whole[name] <= free:
                name = f"{', '.join(self.heads)}, of which {name} needs features there,"
            raise ConfigError(
                f"Expected memory to fit {name} on {self._fitted:,} images, beside all features: "
                f"{_size(total, free)}",
                hint=f"Give heads alone that read features in a stream ({_STREAMING}), or take a "
                "part of the images, with --manifest.",
            )
        return False

    def say_what_takes_long(self, reporter: Reporter) -> None:
        """Say of heads that do not scale how long they take."""
        images, classes = len(self.examples), len(self.examples.names)
        for name, head in self.heads.items():
            settings = self.settings.get(name, 1)
            seconds = head.seconds(self._fitted, images, self.dim, classes, settings)
            seconds *= self.folds if self._is_folded else 1
            if seconds >= _LONG:
                reporter.say(
                    f"{name} takes about {seconds / 60:,.0f} minutes for so many images, on two "
                    "processors; ridge and centroid read them twice"
                )

    @property
    def _num_views(self) -> int:
        return len({*self.options.augment, *self.options.average})

    @cached_property
    def _counts(self) -> Mapping[str, int]:
        return self.examples.counts()

    @property
    def _is_folded(self) -> bool:
        return self.folds > 0 and not self._counts["val"]

    @property
    def _chosen_on(self) -> int:
        """How many images settings are chosen on."""
        return self._counts["train" if self._is_folded else "val"]

    @property
    def _fitted(self) -> int:
        """How many rows of features a head is fitted on at most."""
        images = self._counts["train"] + (self._counts["val"] if self.options.refit else 0)
        return images * (1 + len(self.options.augment))

    def _to_fit(self, name: str) -> float:
        """Return the bytes that a head takes beside the features."""
        # Rows of a part, or of several views, are put together for it.
        is_joined = bool(self.options.augment) or self._is_folded or self.in_parts
        joined = 4 * self.dim * self._fitted if is_joined else 0
        classes, settings = len(self.examples.names), self.settings.get(name, 1)
        return joined + self.heads[name].memory(self._fitted, self.dim, classes, settings)

    def _scores(self) -> int:
        """Return the bytes that scores take at most."""
        chosen = self._chosen_on
        arrays = max(_TO_CHOOSE * chosen, _AT_THE_END * (chosen + self._counts["test"]))
        arrays += max(self.settings.values(), default=1) * chosen if self._is_folded else 0
        return 8 * len(self.examples.names) * (1 + len(self.options.average)) * arrays

    def _no_room_for_scores(self, scores: int, free: int) -> ConfigError:
        held_out = self._chosen_on + self._counts["test"]
        return ConfigError(
            f"Expected memory for scores of {held_out:,} images (to choose on, and test) and "
            f"{len(self.examples.names):,} classes: {_size(scores, free)}",
            hint="Take a part of the images, with --manifest, or "
            + ("give val a share, with --split." if self._is_folded else "hold fewer of them out."),
        )


def _size(needed: float, free: int) -> str:
    return f"{needed / 1e9:.1f} GB. Received: {free / 1e9:.1f} GB free."
