"""Two-stage transfer learning for image classification.

Stage 1 runs a frozen backbone once over the images and stores its pooled features; stage 2
trains heads on them in seconds. The command line is ``pipeline --help``.

Example:
    >>> import pipeline
    >>> X, y, names = pipeline.load("stores/sample", split="train")  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

from pipeline._version import __version__

if TYPE_CHECKING:
    from pipeline.dataset.examples import load as load
    from pipeline.extract.transformer import FeatureExtractor as FeatureExtractor
    from pipeline.serving.classifier import Classifier as Classifier

__all__ = ["Classifier", "FeatureExtractor", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # NumPy and h5py are loaded by the first use, so that `pipeline --help` answers at once.
    if name == "load":
        from pipeline.dataset.examples import load

        return load
    if name == "Classifier":
        from pipeline.serving.classifier import Classifier

        return Classifier
    if name == "FeatureExtractor":
        from pipeline.extract.transformer import FeatureExtractor

        return FeatureExtractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
