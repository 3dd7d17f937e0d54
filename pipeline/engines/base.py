"""What the engines share: checking batches, saying when memory runs out, refusing precisions."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from pipeline.backbones.forms import ONNX, Form
from pipeline.backbones.frozen import FrozenBackbone
from pipeline.engines.encoder import DRIFT_TOLERANCE, Encoder, Features, Images, drift
from pipeline.errors import ConfigError, PipelineError
from pipeline.system import machine


class EngineEncoder(Encoder):
    """An encoder that checks what it is given; engines implement ``submit``.

    Attributes:
        image_shape: Shape of one image, ``(S, S, 3)``.
    """

    def __init__(self, loaded: FrozenBackbone, *, batch_size: int) -> None:
        if batch_size < 1:
            raise ConfigError(f"--batch-size: expected 1 or more. Received: {batch_size}.")
        self.batch_size = batch_size
        self.dim = loaded.dim
        self.image_shape = (loaded.image_size, loaded.image_size, 3)
        self._process = os.getpid()

    def __call__(self, images: Images) -> Features:
        """Encode images; see ``Encoder``."""
        return self.submit(images)()

    def check(self, images: Images) -> None:
        """Refuse what is no batch of this encoder, and a process that it was not made in.

        Raises:
            ConfigError: The type, the shape or the number of images is wrong.
            PipelineError: The process was forked since; the engine would wait for ever for threads
                that only the parent has.
        """
        if os.getpid() != self._process:
            raise PipelineError(
                f"Expected the process {self._process}, which loaded the {self.engine} engine. "
                f"Received: {os.getpid()}, forked from it, which has none of its threads.",
                hint="Load the network in every process after the fork, or start processes with "
                "'spawn' or 'forkserver', to which a Classifier can be sent.",
            )
        fits = images.dtype == np.uint8 and images.shape[1:] == self.image_shape
        if not fits or not 1 <= len(images) <= self.batch_size:
            raise ConfigError(
                f"Expected 1 to {self.batch_size} uint8 images of shape {self.image_shape}. "
                f"Received: {images.dtype} of shape {images.shape}."
            )

    def padded(self, images: Images) -> Images:
        """Return ``batch_size`` images, blank ones after those given."""
        if len(images) == self.batch_size:
            return images
        batch = np.zeros((self.batch_size, *self.image_shape), np.uint8)
        batch[: len(images)] = images
        return batch

    def warm_up(self) -> None:
        """Encode one blank image, so that compiling is over and missing memory shows.

        Raises:
            ValueError: The network gives other features than its backbone.
        """
        features = self(np.zeros((1, *self.image_shape), np.uint8))
        if features.shape != (1, self.dim):
            raise ValueError(f"features of shape {features.shape} instead of {(1, self.dim)}")


@contextmanager
def readable_errors(batch_size: int) -> Iterator[None]:
    """Say what to do when memory runs out; let every other error pass."""
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        signs = ("RESOURCE_EXHAUSTED", "ResourceExhausted", "bad_alloc", "BFCArena")
        if not isinstance(error, MemoryError) and not any(sign in text for sign in signs):
            raise
        halved = f"Try --batch-size {batch_size // 2}."
        raise PipelineError(
            f"Expected memory for batches of {batch_size} images. Received: out of memory.",
            hint=halved if batch_size > 1 else "Use a smaller image size.",
        ) from error


def require_apart(encoder: Encoder, image_size: int) -> None:
    """Refuse a network that gives an image other features in company than alone.

    One that was exported while it trained normalizes over the batch or drops at random, and one
    that was traced with a single image may have that number built in.

    Args:
        encoder: The network on its engine.
        image_size: Side of its images.

    Raises:
        ConfigError: It does; says by how much.
    """
    shape = (min(3, encoder.batch_size), image_size, image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    together, alone = encoder(images), [encoder(image[np.newaxis]) for image in images]
    largest = float(drift(np.concatenate(alone), together).max())
    if not largest <= DRIFT_TOLERANCE:
        raise ConfigError(
            f"Expected a network that gives an image the same features alone and beside others. "
            f"Received: features that differ by {largest:.1e} of the largest value.",
            hint="Export it for inference (model.eval()), with a batch axis that varies.",
        )


@contextmanager
def usable_network(engine: str, form: Form) -> Iterator[None]:
    """Say what to do about a network that an engine cannot load or run, whatever it raises.

    A converted copy in a store that came from elsewhere can be anything, and so can a file.
    """
    hint = "Delete its converted copies (STORE/encoder), or use --engine keras."
    if form is ONNX:
        hint = (
            "Export it again with a batch axis that varies and an opset such as 17, or use another "
            "--engine; delete converted copies that came from elsewhere (STORE/encoder)."
        )
    try:
        yield
    except (PipelineError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise PipelineError(
            f"Expected a network that the {engine} engine can run. Received: "
            f"{' '.join(str(error).split())[:300]}.",
            hint=hint,
        ) from error


def cpu_device() -> str:
    """Describe the processor as a device."""
    return f"CPU ({machine.processor_name()}, {machine.processors()} threads)"


def require_precision(engine: str, device: str, precision: str, known: Sequence[str]) -> None:
    """Refuse a precision that an engine has not on a device.

    Raises:
        ConfigError: Names the ones it has; nothing is replaced by another precision.
    """
    if precision not in known:
        raise ConfigError(
            f"--precision: the {engine} engine computes in {' or '.join(known)} on this {device}. "
            f"Received: {precision!r}.",
            hint="Use one of these, or another engine or machine.",
        )


def cpu_precisions(candidates: Sequence[str]) -> list[str]:
    """Return those of some precisions that the processor has instructions for."""
    return [precision for precision in candidates if machine.computes_in(precision)]
