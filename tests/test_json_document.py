"""``docs/json.md`` against the results of the commands, in both directions."""

import io
import json
import math
import re
import shutil
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fakes import (
    FakeBackbone,
    edit_record,
    planted_store,
    replace_network,
    replace_quantization,
    write_photos,
)
from json_document import PAGE, UNITS, Document, is_known
from onnx_files import Network
from PIL import Image

from pipeline.audit import groups, label_errors, outliers
from pipeline.cli.commands import COMMANDS
from pipeline.cli.main import main
from pipeline.copies import approximate, duplicates
from pipeline.errors import EngineUnavailableError
from pipeline.extract.messages import Making, Reading
from pipeline.extract.node_work import NodeWork
from pipeline.finetune import stage
from pipeline.finetune.training import FineTuning
from pipeline.heads.knn import KnnHead
from pipeline.pages import frame
from pipeline.runs import mlflow, model_folder
from pipeline.runs.per_class import DENSE_CLASSES
from pipeline.runs.run import Run
from pipeline.system import provenance

# Keras reads its variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

INFO_STORE, INFO_RUN = "info-of-a-store", "info-of-a-run"
VERIFY_STORE, VERIFY_RUN = "verify-of-a-store", "verify-of-a-run-or-an-exported-folder"
DRY_RUN, ERROR = "extract---dry-run", "an-error"
FINETUNED = "info-of-a-run-of-finetune"
NEED_TENSORFLOW = {"finetune", "export", FINETUNED, "fine-tuning", "head-room", "verdict"}
SIZE = 32


@pytest.fixture(scope="module")
def document() -> Document:
    return Document(PAGE.read_text())


class Workplace:
    """A folder to run commands in; keeps what they print, by section of the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results: list[tuple[str, dict[str, Any]]] = []

    def run(self, section: str, *arguments: object, status: int = 0) -> dict[str, Any]:
        printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        with redirect_stdout(printed):
            found = main([*map(str, arguments), "--json", "--quiet"])
        printed.seek(0)
        result: dict[str, Any] = json.loads(printed.read())
        assert found == status, result
        self.results.append((section, result))
        return result

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


def test_the_page_is_well_formed(document: Document) -> None:
    rows = [row for section in document.sections.values() for row in section.rows]
    assert len(rows) > 300
    for row in rows:
        assert all(is_known(kind, document) for kind in row.kinds), row
        assert row.unit in UNITS, row
        assert re.match(r"`|[A-Z].*\.$", row.meaning), row
        assert sum(row.path == other.path for other in document.sections[row.section].rows) == 1
    for name, section in document.sections.items():
        assert set(section.included) <= set(document.sections), name
    assert {name.partition("-of-")[0] for name in document.sections} >= set(COMMANDS)


# Without TensorFlow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """What every command prints that needs no TensorFlow."""
    work = Workplace(tmp_path_factory.mktemp("json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "_version", version_without_jax)
        replace_network(patch)
        replace_quantization(patch)
        run_extract(work)
        run_stage_two(work)
        run_readers(work)
        run_audit(work)
        run_suggest(work)
        run_exchange(work)
        run_verify(work)
    work.run("sample", "sample", work / "digits")
    work.run(ERROR, "prune", work / "none", status=2)
    return work


def version_without_jax(name: str) -> str | None:
    """As where JAX is not installed."""
    return None if name == "jax" else metadata.version(name)


def no_numbers_of_three(head: KnnHead, X: Any, scores: Any = KnnHead._scores) -> Any:
    """As the scores of the nearest neighbours, but for three of them."""
    return scores(head, X) * (np.nan if head.k_ == 3 else 1)


def run_extract(work: Workplace) -> None:
    write_photos(work / "photos", 12)
    shutil.copy(work / "photos/ant/000.png", work / "photos/bee/copy.png")
    (work / "photos/cow/bad.png").write_text("no image")
    (work / "photos/empty").mkdir()
    extract = ("extract", work / "photos", "--weights", "random", "--image-size", SIZE, "--store")
    work.run(DRY_RUN, *extract, work / "store", "--dry-run")
    work.run("extract", *extract, work / "store", "--views", "flip")
    work.run(DRY_RUN, *extract, work / "store", "--dry-run")
    # At another precision the engine counts.
    half = (*extract, work / "half", "--engine", "keras", "--precision", "bfloat16")
    work.run("extract", *half)
    work.run(INFO_STORE, "info", work / "half")
    # In int8 the network that was made of the images counts.
    work.run("extract", *extract, work / "int8", "--precision", "int8")
    work.run(INFO_STORE, "info", work / "int8")
    # Of a network in ONNX the output counts.
    network = Network().save(work / "own.onnx")
    own = ("--backbone", network, "--preprocessing", "unit", "--image-size", SIZE)
    work.run("extract", "extract", work / "photos", *own, "--store", work / "by-onnx")
    work.run(INFO_STORE, "info", work / "by-onnx")
    # As an extract leaves it that is killed before it notes where features were made.
    edit_record(work / "half/store.json", lambda record: record.update(provenance={}))
    work.run("extract", *half)
    # Of a cluster, which tests/test_on_ray.py has, each node says what it did.
    alone, late = NodeWork("a (12ab)", cpus=2), NodeWork("b (34cd)")
    for node in (alone, late):
        node.add(Reading(node.name, images=4, began=0, ended=2, busy=1))
    late.add(Making(late.name, 1, 4, 0, 2, 1, 0.5, "keras", "GPU"))
    section, result = work.results[-1]
    work.results.append((section, {**result, "nodes": [alone.as_json(), late.as_json()]}))


def run_stage_two(work: Workplace) -> None:
    train = ("train-head", "--store", work / "store", "--run")
    work.run("train-head", *train, work / "run", "--head", "logreg", "--head", "majority",
             "--reject-below", 0.9, "--report")  # fmt: skip
    shutil.copy(work / "store/manifest.csv", work / "mine.csv")
    work.run("train-head", *train, work / "mine", "--head", "majority", "--manifest",
             work / "mine.csv", "--split", "leak-free")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        # As with MLflow, which is not among the development tools.
        patch.setattr(mlflow, "opened", lambda folder: lambda run, command: "0" * 32)
        patch.setattr(mlflow, "require_installed", lambda: None)
        work.run("train-head", *train, work / "mine", "--head", "majority", "--manifest",
                 work / "mine.csv", "--split", "leak-free", "--mlflow",
                 work / "tracked")  # fmt: skip
    sweep = ("sweep", "--store", work / "store", "--run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KnnHead, "_scores", no_numbers_of_three)
        work.run("sweep", *sweep, work / "one", "--head", "knn")
    work.run("sweep", *sweep, work / "sweep", "--head", "knn", "--head", "ridge")
    work.run("sweep", *sweep, work / "folds", "--head", "ridge", "--split", "80/0/20")
    # More classes than a matrix is for, of which test lacks the last.
    names = [f"{number:03}" for number in range(DENSE_CLASSES + 1)]
    splits = [*(["train", "val", "test"] * DENSE_CLASSES), "train", "val", "val"]
    planted_store(work / "many", dict.fromkeys(names, 3), splits=splits)
    work.run("train-head", "train-head", "--store", work / "many", "--run", work / "many-run",
             "--head", "majority")  # fmt: skip


def run_readers(work: Workplace) -> None:
    """Run what only reads."""
    work.run("compare", "compare", work / "run", work / "sweep", work / "photos")
    work.run("compare", "compare", work / "run", work / "many-run")
    work.run("compare", "compare", work / "mine", "--seeds", 2, "--curve")
    predict = ("predict", work / "run", work / "photos/cow", "--top", 2)
    work.run("predict", *predict)
    work.run("predict", *predict, "--csv", work / "out.csv")
    shutil.copytree(work / "photos", work / "more")
    shutil.copytree(work / "more/ant", work / "more/fly")
    work.run("evaluate", "evaluate", work / "run", work / "more", "--csv", work / "scored.csv")
    write_folder(work, "run", "logreg")
    work.run("evaluate", "evaluate", work / "folder", work / "photos")
    # As a dense head leaves it, which needs TensorFlow.
    edit_record(
        work / "run/run.json", lambda record: record["heads"]["logreg"].update(losses=[0.9, 0.7])
    )
    work.run("report", "report", work / "run")
    work.run("report", "report", work / "many-run")
    work.run(INFO_STORE, "info", work / "store")
    for run in ("one", "sweep", "mine", "many-run"):
        work.run(INFO_RUN, "info", work / run, "--per-class")
    work.run(INFO_RUN, "info", work / "run")


def write_folder(work: Workplace, name: str, head: str) -> None:
    """Export a head as a folder, with what the fake network has of one."""
    run, backbone = Run.open(work / name), FakeBackbone.drawn("resnet50random0")
    record = model_folder.ModelRecord(
        schema_version=model_folder.SCHEMA_VERSION,
        classes=run.record.classes,
        identity=run.inputs.identity,
        dim=backbone.dim,
        head=head,
        average=[],
        reject_below=0.0,
    )
    model_folder.write(work / "folder", cast(Any, backbone), run.load_head(head), record, None)


def run_audit(work: Workplace) -> None:
    """Run what looks for faults of the data, with files and without."""
    Image.new("RGB", (40, 48)).save(work / "photos/ant/dark.png")
    work.run("extract", "extract", work / "photos", "--weights", "random", "--image-size", SIZE,
             "--store", work / "store")  # fmt: skip
    audit = ("audit", work / "store", "--out")
    work.run("audit", *audit, work / "audit", "--run", work / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "_COMPARED", 1)
        patch.setattr(frame, "missing", lambda: "bokeh")
        patch.setattr(label_errors, "require_cleanlab", no_cleanlab)
        patch.setattr(outliers, "FAR_ABOVE", 0.5)
        patch.setattr(duplicates, "LARGE", 1)
        patch.setattr(approximate, "KNOWN", 1)
        patch.setattr(approximate, "_CELLS", 1)
        work.run("audit", *audit, work / "given", "--threshold", 0.5)
    unlabelled = work / "unlabelled.csv"
    rows = (work / "many/manifest.csv").read_text().splitlines()
    unlabelled.write_text(
        "\n".join([rows[0], *(re.sub(r",[^,]*,", ",,", row, count=1) for row in rows[1:])])
    )
    work.run("audit", "audit", work / "many", "--manifest", unlabelled, "--out", work / "bare")


def run_suggest(work: Workplace) -> None:
    """Run what says what to label next, with a head, a run's, and none."""
    header, *rows = (work / "store/manifest.csv").read_text().splitlines()
    later = [re.sub(",[^,]*,", ",,", row, count=1) if "/01" in row else row for row in rows]
    (work / "later.csv").write_text("\n".join([header, *later]))
    (work / "first.csv").write_text("\n".join([header, *(r for r in rows if "/01" not in r)]))
    suggest = ("suggest", work / "store", "--n", 3, "--manifest", work / "later.csv", "--out")
    work.run("suggest", *suggest, work / "by-logreg.csv")
    work.run("train-head", "train-head", "--store", work / "store", "--run", work / "first",
             "--head", "ridge", "--manifest", work / "first.csv")  # fmt: skip
    work.run("suggest", *suggest, work / "by-run.csv", "--run", work / "first")
    work.run("suggest", "suggest", work / "many", "--manifest", work / "unlabelled.csv", "--n", 3,
             "--out", work / "typical.csv")  # fmt: skip


def run_exchange(work: Workplace) -> None:
    """Run what writes features into files and takes them from there."""
    viewed = work / "viewed"
    work.run("extract", "extract", work / "photos", "--weights", "random", "--image-size", SIZE,
             "--store", viewed, "--views", "flip")  # fmt: skip
    work.run("export-features", "export-features", viewed, work / "exported.npy")
    work.run("export-features", "export-features", viewed, work / "exported.h5", "--view", "flip")
    add = ("import-features", "import-features")
    work.run(*add, work / "exported.h5", "--store", work / "imported")
    work.run(INFO_STORE, "info", work / "imported")
    np.save(work / "own.npy", np.array([[1.0], [np.nan], [0.0]]))
    (work / "own.txt").write_text("a\nb\nc\n")
    work.run(*add, work / "own.npy", "--store", work / "imported", "--force")


def no_cleanlab() -> None:
    raise EngineUnavailableError("label errors need cleanlab, which is not installed.")


def run_verify(work: Workplace) -> None:
    """Run what checks, repairs and prunes."""
    work.run(VERIFY_STORE, "verify", work / "store", "--reencode", 2)
    work.run(VERIFY_STORE, "verify", work / "store")
    (work / "store/features.h5").write_bytes(b"")
    work.run(VERIFY_STORE, "verify", work / "store", "--reencode", 2, status=2)
    work.run(VERIFY_STORE, "verify", work / "store", "--repair", status=2)
    work.run("prune", "prune", work / "store")
    work.run(VERIFY_RUN, "verify", work / "folder")
    work.run(VERIFY_RUN, "verify", work / "mine")
    (work / "mine/heads/majority/head.json").write_text("")
    work.run(VERIFY_RUN, "verify", work / "mine", "--repair", status=2)
    work.run(INFO_RUN, "info", work / "mine")


@pytest.mark.slow
def test_results_are_documented_and_documented_keys_are_in_results(
    made: Workplace, document: Document
) -> None:
    misfits = [found for name, result in made.results for found in document.misfits(result, name)]
    assert not misfits
    assert not document.unseen(document.sections.keys() - NEED_TENSORFLOW)


def test_a_key_that_is_missing_from_page_or_result_is_found() -> None:
    table = "# A\n\n| `a` | integer or null | | A. |\n| `b.NAME` | string | | B. |\n"
    page = Document(table.replace("| `b", "| `b` | object or absent | | B. |\n| `b"))
    assert page.misfits({"a": 1, "b": {"any": "x"}}, "a") == []
    assert page.unseen({"a"}) == ["a: a was never null", "a: b was never absent"]
    assert page.misfits({"a": None}, "a") == [] and page.unseen({"a"}) == []
    assert page.misfits({}, "a") == ["a: a is absent"]
    assert page.misfits({"a": 1, "c": 2}, "a") == ["a: c is not documented"]
    assert page.misfits({"a": True}, "a") == ["a: a is True, which is not integer or null"]
    assert page.misfits({"a": 1, "b": {"x": 2}}, "a") == ["a: b.NAME is 2, which is not string"]


# With TensorFlow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """What the commands print that need TensorFlow, with a small network."""
    work = Workplace(tmp_path_factory.mktemp("json"))
    write_photos(work / "photos", 12)
    save_network(work / "small.keras")
    work.run("extract", "extract", work / "photos", "--store", work / "store", "--engine", "keras",
             "--backbone", work / "small.keras", "--preprocessing", "unit",
             "--image-size", SIZE)  # fmt: skip
    work.run("train-head", "train-head", "--store", work / "store", "--run", work / "run",
             "--head", "logreg")  # fmt: skip
    for name in ("model.keras", "folder"):
        work.run("export", "export", work / "run", work / name)
    work.run(VERIFY_RUN, "verify", work / "folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "TUTORIAL_PRESET", {"epochs": 1})
        patch.setattr(stage, "TUTORIAL_FROZEN", 2)
        run_finetune(work)
    return work


def save_network(path: Path) -> None:
    from pipeline.system.keras_setup import import_keras

    keras = import_keras()
    keras.utils.set_random_seed(4)
    layers = keras.layers
    network = [layers.Conv2D(8, 5, strides=4, activation="relu", name="low"),
               layers.Conv2D(16, 3, activation="relu", name="high"),
               layers.GlobalAveragePooling2D()]  # fmt: skip
    keras.Sequential([keras.Input((SIZE, SIZE, 3)), *network]).save(path)


def run_finetune(work: Workplace) -> None:
    finetune = ("finetune", work / "run", "--run")
    once = ("--epochs", 1)
    work.run("finetune", *finetune, work / "high", "--unfreeze-from", "high", *once)
    work.run(FINETUNED, "info", work / "high")
    work.run("finetune", *finetune, work / "all", "--unfreeze-from", "all", *once)
    work.run("finetune", *finetune, work / "preset", "--preset", "seed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuning, "_pass", lambda self, reporter: math.nan)
        work.run("finetune", *finetune, work / "stopped", "--unfreeze-from", "high", *once)
    # Killed after its last epoch, it goes on with none left.
    killed = (*finetune, work / "killed", "--unfreeze-from", "high", *once)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "record_outcome", interrupted)
        assert main([*map(str, killed), "--quiet"]) == 130
    work.run("finetune", *killed)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_results_of_networks_are_documented_too(trained: Workplace, document: Document) -> None:
    misfits = [
        found for name, result in trained.results for found in document.misfits(result, name)
    ]
    assert not misfits
    assert not document.unseen(NEED_TENSORFLOW)
