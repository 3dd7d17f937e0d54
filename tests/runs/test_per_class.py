"""Scores of each class and the confusion matrix: against scikit-learn, by hand, in old runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from fakes import Command, edit_record, planted_store
from sklearn.metrics import balanced_accuracy_score, f1_score

from pipeline.cli.main import main
from pipeline.runs.per_class import DENSE_CLASSES, cells, per_class
from pipeline.runs.run import Run


def test_by_hand() -> None:
    y = np.array([0, 0, 0, 1, 1, 3])
    predicted = np.array([0, 0, 1, 1, 1, 2])
    found = per_class(y, predicted, 5)
    assert found["per_class"] == {
        # Of the last class there is nothing; the third is predicted and not there.
        "precision": [1.0, pytest.approx(2 / 3), 0.0, None, None],
        "recall": [pytest.approx(2 / 3), 1.0, None, 0.0, None],
        "f1": [pytest.approx(0.8), pytest.approx(0.8), 0.0, 0.0, None],
        "support": [3, 2, 0, 1, 0],
    }
    assert found["confusion_matrix"] == [
        [2, 1, 0, 0, 0],
        [0, 2, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("classes", [3, DENSE_CLASSES, DENSE_CLASSES + 1, 400])
def test_both_forms_of_the_matrix_say_the_same(classes: int) -> None:
    rng = np.random.default_rng(classes)
    y, predicted = rng.integers(0, classes, (2, 3000))
    found = per_class(y, predicted, classes)
    assert isinstance(found["confusion_matrix"], dict) == (classes > DENSE_CLASSES)
    wanted = np.zeros((classes, classes), int)
    np.add.at(wanted, (y, predicted), 1)
    received = np.zeros_like(wanted)
    for true, taken, count in cells(found["confusion_matrix"]):
        received[true, taken] = count
    np.testing.assert_array_equal(received, wanted)
    assert np.mean(found["per_class"]["recall"]) == pytest.approx(
        balanced_accuracy_score(y, predicted)
    )
    assert np.mean(found["per_class"]["f1"]) == pytest.approx(
        f1_score(y, predicted, average="macro")
    )


@pytest.mark.parametrize("classes", [3, 400])
def test_of_nothing_all_is_undefined(classes: int) -> None:
    none = np.array([], np.int64)
    found = per_class(none, none, classes)
    assert found["per_class"]["recall"] == [None] * classes
    assert found["per_class"]["support"] == [0] * classes
    assert cells(found["confusion_matrix"]) == []


def train(command: Command, folder: Path) -> Run:
    planted_store(folder / "store", {"ant": 80, "bee": 60, "cow": 60}, separation=0.4)
    status, result = command(
        "train-head", "--store", folder / "store", "--run", folder / "run",
        "--head", "logreg", "--head", "majority",
    )  # fmt: skip
    assert status == 0, result
    return Run.open(folder / "run")


def test_every_run_records_them_for_val_and_test(command: Command, tmp_path: Path) -> None:
    run = train(command, tmp_path)
    for head in run.record.heads.values():
        assert head.train.per_class is None
        for scores in (head.val, head.test):
            assert sum(scores.per_class["support"]) == scores.n
            matrix = np.array(scores.confusion_matrix)
            assert matrix.trace() / scores.n == pytest.approx(scores.accuracy)
            assert np.mean(scores.per_class["recall"]) == pytest.approx(scores.balanced_accuracy)


def test_info_shows_all_classes_of_a_head(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(command, tmp_path)
    status, result = command("info", run.path, "--per-class", "--head", "majority")
    assert status == 0
    shown = result["shown"]
    assert (shown["head"], shown["split"]) == ("majority", "test")
    test = run.record.heads["majority"].test
    assert shown["per_class"] == test.per_class
    assert main(["info", str(run.path), "--per-class", "--head", "majority"]) == 0
    said = capsys.readouterr().out.splitlines()
    place = next(n for n, line in enumerate(said) if line.startswith("Confusion matrix on test"))
    assert said[place + 1].split() == ["true", "ant", "bee", "cow"]
    for row, name in enumerate(run.record.classes):
        assert said[place + 2 + row].split() == [name, *map(str, test.confusion_matrix[row])]
    assert any(line.split() == ["class", "precision", "recall", "F1", "images"] for line in said)


def test_runs_of_older_releases_are_read(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(command, tmp_path)
    known = run.record.heads["logreg"]

    def without(record: dict[str, object]) -> None:
        for head in record["heads"].values():
            for split in ("val", "test"):
                del head[split]["per_class"], head[split]["confusion_matrix"]

    edit_record(run.path / "run.json", without)
    assert main(["info", str(run.path)]) == 0
    assert "Lowest recall" not in capsys.readouterr().out
    status, result = command("info", run.path, "--per-class", "--head", "logreg")
    assert status == 0
    for key in ("per_class", "confusion_matrix"):
        assert result["shown"][key] == getattr(known.test, key), "scored from the probabilities"
    again = ("train-head", "--store", tmp_path / "store", "--run", run.path, "--head", "logreg")
    status, result = command(*again)
    assert status == 0 and "per_class" not in result["heads"]["logreg"]["test"], "kept as it is"


def test_train_head_shows_the_worst_classes_of_the_best_head(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(command, tmp_path)
    again = ["train-head", "--store", str(tmp_path / "store"), "--run", str(run.path)]
    assert main([*again, "--head", "logreg"]) == 0
    trained = capsys.readouterr().out
    assert "Lowest recall on test, logreg:" in trained
    assert main(["info", str(run.path)]) == 0
    table = trained[trained.index("Lowest recall") : trained.index("Wrote")]
    assert table in capsys.readouterr().out + "\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--per-class", "--head", "logerg"], "logreg"),
        (["run", "--head", "logreg"], "--per-class"),
        (["store", "--per-class"], "expected a run"),
    ],
)
def test_what_has_no_such_scores_is_refused(
    command: Command, tmp_path: Path, arguments: list[str], said: str
) -> None:
    train(command, tmp_path)
    status, result = command("info", tmp_path / arguments[0], *arguments[1:])
    assert status == 2
    assert said in result["error"]["message"] + result["error"]["hint"]
