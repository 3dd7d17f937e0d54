"""Any scikit-learn classifier as a head, by dotted name: ``sklearn.svm.SVC``.

``create_external`` makes one from a configuration table. ``save_external`` and ``load_external``
keep a fitted one with ``skops``, an optional package, without pickle.
"""

import hashlib
import importlib
import inspect
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from pipeline.errors import ConfigError, EngineUnavailableError, RunError, unknown_name
from pipeline.files.atomic import write_atomically
from pipeline.files.records import read_record, write_record
from pipeline.files.regular import read_regular
from pipeline.heads.head import Head
from pipeline.heads.rows import Validation
from pipeline.heads.saved import SavedHead
from pipeline.heads.scaler import FeatureScaler

EXAMPLE: Final = "sklearn.ensemble.RandomForestClassifier"
PIP_LINE: Final = "pip install 'embedding-pipeline[skops]'"
# The number that heads of the table have too.
SCHEMA_VERSION: Final = 3
# Without a digest.
_OLDER: Final = (1,)
# The lowest probability that is told from zero: its logarithm is finite.
FLOOR: Final = 1e-6

_RECORD: Final = "head.json"
_ESTIMATOR: Final = "estimator.skops"
# Of an estimator that is read.
_MAX_BYTES: Final = 8 << 30
_MAX_GROWTH: Final = 100
# What is kept beside the estimator.
_ARRAYS: Final = ("classes_", "mean_", "scale_")


class ExternalHead(Head):
    """A scikit-learn classifier on standardized features (``FeatureScaler``).

    The scores are the logarithms of ``predict_proba``, of ``FLOOR`` at least. Where there is none
    they are ``decision_function``; for two classes that is one column, and the scores are its
    negative and itself. Labels are the classes of the highest score, which for a few classifiers
    (``SVC`` with ``probability``) may differ from their own ``predict``. Warnings of the fit are
    notes.

    Args:
        target: Dotted name of the class, such as ``sklearn.ensemble.RandomForestClassifier``.
        params: What its constructor is given.

    Attributes:
        estimator_: The fitted classifier; its classes are class numbers.
        mean_: float64 ``(dim,)``, of the scaler, as ``scale_``.
        converged_: False where the fit warned that it did not converge, None elsewhere.
    """

    fitted: ClassVar[tuple[str, ...]] = (*_ARRAYS, "estimator_", "n_features_in_")

    def __init__(self, target: str, params: Mapping[str, object] | None = None) -> None:
        self.target = target
        self.params = params

    @property
    def name(self) -> str:  # type: ignore[override]
        """The dotted name."""
        return self.target

    @property
    def has_probabilities(self) -> bool:  # type: ignore[override]
        """Whether the fitted classifier has ``predict_proba``."""
        check_is_fitted(self)
        return hasattr(self.estimator_, "predict_proba")

    @property
    def prior(self) -> str:
        """What class frequencies its probabilities are for."""
        return "balanced" if (self.params or {}).get("class_weight") == "balanced" else "train"

    def fit(
        self,
        X: object,
        y: object,
        sample_weight: object = None,
        *,
        validation: Validation | None = None,
    ) -> Self:
        """Fit on X ``(n, dim)`` and y ``(n,)``; ``validation`` is not looked at.

        Raises:
            ConfigError: The name, a parameter or its value cannot be used, or there are weights
                and the classifier takes none.
        """
        estimator = _estimator(self.target, self.params or {})
        if sample_weight is not None and not has_fit_parameter(estimator, "sample_weight"):
            raise ConfigError(
                f"Expected a classifier that takes sample weights. Received: {self.target}.",
                hint="Choose another head, or fit without weights.",
            )
        X, numbers, weights = self._begin(X, y, sample_weight)
        scaler = FeatureScaler().fit(X, sample_weight=weights)
        self.mean_, self.scale_ = scaler.mean_, scaler.scale_
        given = {} if weights is None else {"sample_weight": weights}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                self.estimator_ = estimator.fit(self._scaled(X), numbers, **given)
            except InvalidParameterError as error:
                raise ConfigError(f"{_table(self.target)}: {error}") from error
            except (NotImplementedError, ValueError) as error:
                said = " ".join(str(error).split())
                raise ConfigError(
                    f"{_table(self.target)}: expected a classifier that can be fitted on "
                    f"{len(X):,} images of {len(self.classes_):,} classes. Received: {said}",
                    hint="Choose other parameters, or another --head.",
                ) from error
        stopped = any(issubclass(item.category, ConvergenceWarning) for item in caught)
        self.converged_ = False if stopped else None
        self.notes_ = tuple(dict.fromkeys(f"{self.target}: {item.message}" for item in caught))
        return self

    def _scores(self, X: NDArray[np.floating]) -> NDArray[np.float64]:
        if self.has_probabilities:
            found = self.estimator_.predict_proba(self._scaled(X)).astype(np.float64)
            logarithms: NDArray[np.float64] = np.log(np.maximum(found, FLOOR))
            return logarithms
        values = self.estimator_.decision_function(self._scaled(X)).astype(np.float64)
        return np.stack([-values, values], axis=1) if values.ndim == 1 else values

    def _scaled(self, X: NDArray[np.floating]) -> NDArray[np.floating]:
        mean, scale = self.mean_.astype(X.dtype), self.scale_.astype(X.dtype)
        scaled: NDArray[np.floating] = (X - mean) / scale
        return scaled


def create_external(name: str, params: Mapping[str, object], *, seed: int) -> ExternalHead:
    """Make an unfitted head of a scikit-learn classifier.

    Args:
        name: Dotted name of its class. The class may be of any package, if it keeps
            scikit-learn's contract; its module is imported.
        params: What its constructor is given.
        seed: Its ``random_state``, if it has one and ``params`` do not say it.

    Raises:
        ConfigError: The name is not of a classifier, or a parameter is unknown; suggests the
            nearest name.

    Example:
        >>> create_external("sklearn.svm.SVC", {"C": 2.0}, seed=0).params
        {'random_state': 0, 'C': 2.0}
    """
    known = _estimator(name, {}).get_params(deep=False)
    seeded = {"random_state": seed} if "random_state" in known else {}
    head = ExternalHead(name, {**seeded, **params})
    _estimator(name, head.params or {})
    return head


def save_external(head: ExternalHead, folder: Path) -> None:
    """Write ``head.json`` and ``estimator.skops``; nothing where the head cannot be saved.

    Raises:
        RunError: The classifier holds a type that would not be loaded again; names it.
        EngineUnavailableError: skops is not installed.
    """
    skops = _skops(f"{head.target} was not saved")
    state = {name: getattr(head, name) for name in _ARRAYS} | {"estimator": head.estimator_}
    try:
        data: bytes = skops.dumps(state)
        refused = _refused(skops.get_untrusted_types(data=data))
    except Exception as error:  # whatever the objects within say when asked for their state
        raise RunError(f"{head.target} was not saved, because {error}.") from error
    if refused:
        raise RunError(
            f"{head.target} was not saved, because it holds {', '.join(refused)}. "
            "Expected classes of scikit-learn, and arrays, alone.",
            hint="Its scores are valid; fit it again to predict with it.",
        )
    write_atomically(folder / _ESTIMATOR, lambda temporary: _fill(temporary, data))
    record = {
        "head": head.target,
        "params": dict(head.params or {}),
        "estimator_sha256": hashlib.sha256(data).hexdigest(),
        "temperature": head.temperature_,
        "converged": head.converged_,
        "notes": list(head.notes_),
    }
    write_record(folder / _RECORD, record, version=SCHEMA_VERSION)


def load_external(folder: Path) -> ExternalHead:
    """Read a head that ``save_external`` wrote; no code is taken from the files.

    Types are checked, contents are not: scikit-learn's trees follow the row numbers in them
    unchecked, so that a forged tree can crash the process. Predict with trees you trust.

    Raises:
        RunError: A file is missing or damaged, or holds a type that is not trusted.
        EngineUnavailableError: skops is not installed.
    """
    skops = _skops(f"The head in {str(folder)!r} cannot be read")
    try:
        said = read_record(folder / _RECORD, kind="head", version=SCHEMA_VERSION, older=_OLDER)
        if said is None:
            raise ValueError(f"there is no {_RECORD}")
        record = SavedHead.of(said)
        data, _ = read_regular(folder / _ESTIMATOR, limit=_MAX_BYTES)
        if record.estimator_sha256 != hashlib.sha256(data).hexdigest():
            raise ValueError(f"{_ESTIMATOR} is not the one that {_RECORD} was written with")
        types = skops.get_untrusted_types(data=data)
        refused = _refused(types)
        if refused:
            raise ValueError(f"it holds {', '.join(refused)}, which is not trusted")
        _require_as_large(data)
        return _restored(record, skops.loads(data, trusted=types))
    except Exception as error:  # zipfile, json, NumPy and skops each have errors of their own
        raise RunError(
            f"The head in {str(folder)!r} cannot be read: {error}.",
            hint="Train it again with --force.",
        ) from error


def _require_as_large(data: bytes) -> None:
    """Refuse an archive that unpacks to far more than it is; skops packs nothing.

    Raises:
        ValueError: It does.
    """
    with zipfile.ZipFile(BytesIO(data)) as archive:
        total = sum(item.file_size for item in archive.infolist())
    if total > _MAX_GROWTH * len(data):
        raise ValueError(f"its {len(data):,} bytes unpack to {total:,}")


def _restored(record: SavedHead, state: Mapping[str, object]) -> ExternalHead:
    head = ExternalHead(record.head, record.params)
    head.estimator_ = state["estimator"]
    kind = type(head.estimator_)
    if not kind.__module__.startswith("sklearn.") or kind.__name__ != head.target.split(".")[-1]:
        raise ValueError(f"it holds a {kind.__name__} instead of a {head.target}")
    for name in _ARRAYS:
        setattr(head, name, state[name])
    head.n_features_in_ = len(head.mean_)
    record.restore(head)
    return head


def _refused(types: Iterable[str]) -> list[str]:
    """Return the types that are not trusted, of those that skops does not trust by itself.

    skops trusts plain Python values, NumPy arrays, SciPy matrices and scikit-learn's public
    estimators. What those hold besides are classes of scikit-learn. No other name is let through,
    not of ``builtins``, NumPy or SciPy either: a file can have a class called with arguments of
    its choice, and ``builtins.exec`` or ``numpy.memmap``, which overwrites files, are among them.
    """
    return [name for name in types if not _is_class_of_scikit_learn(name)]


def _is_class_of_scikit_learn(name: str) -> bool:
    """Tell whether a dotted name is a class that a module of scikit-learn defines itself."""
    module, _, attribute = name.rpartition(".")
    if module.partition(".")[0] != "sklearn":
        return False
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return False
    return isinstance(found, type) and found.__module__ == module


def _estimator(target: str, params: Mapping[str, object]) -> Any:
    """Make an unfitted classifier.

    Raises:
        ConfigError: The name, the class or a parameter cannot be used.
    """
    try:
        estimator = _class(target)()
    except TypeError as error:
        raise ConfigError(
            f"Expected a classifier whose parameters have defaults. Received: {target}: {error}.",
            hint="A classifier that is made of others cannot be given by name.",
        ) from error
    known = estimator.get_params(deep=False)
    for param in params:
        if param not in known:
            raise unknown_name("parameter", param, known, where=_table(target))
    estimator.set_params(**params)
    if not hasattr(estimator, "predict_proba") and not hasattr(estimator, "decision_function"):
        raise ConfigError(
            "Expected a classifier with predict_proba or decision_function. "
            f"Received: {target}, which has neither with these parameters."
        )
    if getattr(estimator, "decision_function_shape", "ovr") != "ovr":
        raise ConfigError(
            f"{_table(target)} decision_function_shape: expected 'ovr', one score per class. "
            f"Received: {estimator.decision_function_shape!r}."
        )
    return estimator


def _class(target: str) -> Any:
    """Return the class of a dotted name."""
    module_name, _, attribute = target.rpartition(".")
    if not all(part.isidentifier() for part in target.split(".")) or not module_name:
        raise _no_classifier(target, "no dotted name")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise _no_classifier(target, str(error)) from error
    classifiers = {name: value for name, value in vars(module).items() if _is_classifier(value)}
    if attribute in classifiers:
        return classifiers[attribute]
    if hasattr(module, attribute) or not classifiers:
        raise _no_classifier(target, f"{module_name} has no such classifier")
    raise unknown_name("classifier", attribute, classifiers, where=module_name)


def _is_classifier(value: object) -> bool:
    bases = (ClassifierMixin, BaseEstimator)
    is_class = isinstance(value, type) and all(issubclass(value, base) for base in bases)
    return is_class and not inspect.isabstract(value)


def _no_classifier(target: str, reason: str) -> ConfigError:
    return ConfigError(
        f"Expected the dotted name of a scikit-learn classifier, such as {EXAMPLE!r}. "
        f"Received: {target!r}: {reason}."
    )


def _table(target: str) -> str:
    """Return the table of the configuration file; a dotted name needs quotes there."""
    return f'[heads."{target}"]'


def _skops(consequence: str) -> Any:
    try:
        return importlib.import_module("skops.io")
    except ImportError as error:
        raise EngineUnavailableError(
            f"{consequence}, because skops is not installed.", hint=f"Install it: {PIP_LINE}."
        ) from error


def _fill(path: Path, data: bytes) -> None:
    path.write_bytes(data)
