"""Two-stage transfer learning for image classification.

Stage 1 runs a frozen backbone once over the images and stores its pooled features; stage 2
trains heads on them in seconds; stage 3 fine-tunes. The command line is ``pipeline --help``.

Example:
    >>> import pipeline
    >>> pipeline.extract_features("photos")  # doctest: +SKIP
    >>> pipeline.train_heads("stores/photos")  # doctest: +SKIP
    >>> X, y, names = pipeline.load("stores/photos", split="train")  # doctest: +SKIP
    >>> pipeline.Classifier.load("runs/photos").predict(["new.jpg"])  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING

from pipeline._version import __version__

if TYPE_CHECKING:
    from pipeline.dataset.batches import batches as batches
    from pipeline.dataset.examples import load as load
    from pipeline.extract.transformer import FeatureExtractor as FeatureExtractor
    from pipeline.notebook import audit_store as audit_store
    from pipeline.notebook import compare_runs as compare_runs
    from pipeline.notebook import evaluate_run as evaluate_run
    from pipeline.notebook import export_features as export_features
    from pipeline.notebook import export_model as export_model
    from pipeline.notebook import extract_features as extract_features
    from pipeline.notebook import fine_tune as fine_tune
    from pipeline.notebook import import_features as import_features
    from pipeline.notebook import report_run as report_run
    from pipeline.notebook import suggest_images as suggest_images
    from pipeline.notebook import sweep_heads as sweep_heads
    from pipeline.notebook import train_heads as train_heads
    from pipeline.serving.classifier import Classifier as Classifier

# NumPy and h5py are loaded by the first use, so that `pipeline --help` answers at once.
_MODULES = {
    "Classifier": "pipeline.serving.classifier",
    "FeatureExtractor": "pipeline.extract.transformer",
    "audit_store": "pipeline.notebook",
    "batches": "pipeline.dataset.batches",
    "compare_runs": "pipeline.notebook",
    "evaluate_run": "pipeline.notebook",
    "export_features": "pipeline.notebook",
    "export_model": "pipeline.notebook",
    "extract_features": "pipeline.notebook",
    "fine_tune": "pipeline.notebook",
    "import_features": "pipeline.notebook",
    "load": "pipeline.dataset.examples",
    "report_run": "pipeline.notebook",
    "suggest_images": "pipeline.notebook",
    "sweep_heads": "pipeline.notebook",
    "train_heads": "pipeline.notebook",
}

__all__ = [
    "Classifier",
    "FeatureExtractor",
    "__version__",
    "audit_store",
    "batches",
    "compare_runs",
    "evaluate_run",
    "export_features",
    "export_model",
    "extract_features",
    "fine_tune",
    "import_features",
    "load",
    "report_run",
    "suggest_images",
    "sweep_heads",
    "train_heads",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
