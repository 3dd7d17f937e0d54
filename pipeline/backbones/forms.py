"""The forms of a network that is in no table but in a file, and what readers of both share."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Form:
    """One form.

    Attributes:
        name: What it is called in messages.
        suffix: What its files' names end in.
        prefix: What the name of a network in such a file begins with, in an identity.
    """

    name: str
    suffix: str
    prefix: str


# Named networks have this form too: Keras builds them.
KERAS: Final = Form("Keras", ".keras", "keras-file:")
ONNX: Final = Form("ONNX", ".onnx", "onnx-file:")
FORMS: Final = (KERAS, ONNX)
# What takes the place of a network's name in the identity of features that were made elsewhere.
IMPORTED: Final = "imported:"
# What CLIP's images are normalized with (https://github.com/openai/CLIP, clip/clip.py); the other
# preprocessings are those of keras.applications.imagenet_utils.
CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_SCALE: Final = (0.26862954, 0.26130258, 0.27577711)
SUFFIXES: Final = " or ".join(form.suffix for form in FORMS)


def of_file(name: str) -> Form | None:
    """Return the form of a file by its name; None of what names no such file."""
    return next((form for form in FORMS if name.endswith(form.suffix)), None)


def of_identity(backbone: str) -> Form | None:
    """Return the form of the file that a backbone of an identity is from; None of the table's."""
    return next((form for form in FORMS if backbone.startswith(form.prefix)), None)
