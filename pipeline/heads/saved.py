"""What ``head.json`` says of a saved head, beside which its arrays or its estimator lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.files.typed_record import Record, lenient


@dataclass(frozen=True, kw_only=True)
class SavedHead(Record):
    """A saved head.

    Attributes:
        head: Its name in ``HEADS``, or a dotted name.
        params: Its parameters.
        lists: How many arrays each fitted attribute is made of that is a list of them.
        arrays_sha256: Digest of the file of its arrays; None of a head by dotted name.
        estimator_sha256: Digest of the file of its estimator; None of other heads.
        temperature: What scores are divided by; whoever uses the head looks whether it can be.
        converged: Whether its fit converged; None where that has no meaning.
        notes: Plain sentences that the user should read.
    """

    head: str
    params: Mapping[str, object]
    lists: Mapping[str, int] = field(metadata=lenient({}))
    arrays_sha256: str | None = None
    estimator_sha256: str | None = None
    temperature: object
    converged: bool | None
    notes: Sequence[str]

    def restore(self, head: object) -> None:
        """Give a head what is recorded of its fit beside its arrays."""
        fit = {
            "temperature_": self.temperature,
            "converged_": self.converged,
            "notes_": tuple(self.notes),
        }
        for name, value in fit.items():
            setattr(head, name, value)
