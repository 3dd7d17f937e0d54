"""What a terminal shows: tables that fit, names as text, colour where a person looks."""

import io
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Command, planted_store

from pipeline.cli import colour
from pipeline.cli.class_tables import all_classes, worst_of
from pipeline.cli.commands import find
from pipeline.cli.main import main
from pipeline.cli.text import WIDTH, Table, as_lines, shortened, terminal_width
from pipeline.runs.per_class import per_class

LONG = tuple(f"{kind} of the long-tailed {'very ' * 12}rare weaver, {kind}" for kind in "abcd")
WIDE = ("茶色の小鳥が枝に止まって歌っている写真", "e\u0301tude", "tab\tand\nline")


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("ridge", 5, "ridge"),
        ("logreg", 5, "lo…eg"),
        ("logreg", 4, "lo…g"),
        ("茶色の小鳥", 6, "茶…鳥"),
        ("e\u0301tude", 5, "e\u0301tude"),
        ("logreg", 1, "…"),
    ],
)
def test_of_a_long_name_the_middle_is_left_out(text: str, room: int, expected: str) -> None:
    assert shortened(text, room) == expected


def test_a_wide_table_goes_without_columns_to_spare_before_names_are_cut() -> None:
    rows = [("head", "accuracy", "spare", "loss"), ("x" * 50, "0.9", "1" * 20, "0.1")]
    assert list(as_lines([Table(rows, spare=("spare", "loss"))], width=WIDTH)) == [
        f"{'head':50}  accuracy  loss",
        f"{'x' * 50}       0.9   0.1",
    ]
    rows = [("head", "accuracy", "loss"), ("x" * 90, "0.9", "0.1")]
    head, line = as_lines([Table(rows, spare=("loss",))], width=WIDTH)
    assert (head.split(), len(line)) == (["head", "accuracy"], WIDTH)
    assert line.startswith("x" * 35 + "…" + "x" * 34)


def test_cells_are_shortened_for_a_terminal_alone_and_paths_to_open_never() -> None:
    rows = [("head", "path"), ("x" * 90, f"new/{'y' * 60}.png"), ("ridge", "new/0.png")]
    assert list(as_lines([Table(rows)]))[1] == "  ".join(rows[1])
    wide, narrow = (list(as_lines([Table(rows, whole=("path",))], width=it)) for it in (160, 80))
    assert wide[1] == "  ".join(rows[1]) and narrow[1] == f"xxxxx…xxxx  {rows[1][1]}"


def test_a_terminal_is_as_wide_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns, width in (("132", 132), ("40", WIDTH)):
        monkeypatch.setenv("COLUMNS", columns)
        assert (terminal_width(Terminal()), terminal_width(io.StringIO())) == (width, None)


def test_names_are_aligned_and_break_no_line() -> None:
    lines = list(as_lines([Table([("class", "images"), *((name, "1") for name in WIDE)])]))
    assert lines == [
        "class                                   images",
        f"{WIDE[0]}       1",
        f"{WIDE[1]}{'':33}       1",
        f"tab\u2409and\u240aline{'':26}       1",
    ]


def tables(result: Any, command: str) -> Iterator[Table]:
    yield from (block for block in find(command).text(result) if isinstance(block, Table))


def check(found: list[Table]) -> None:
    assert found
    for table in found:
        lines = list(as_lines([table], width=WIDTH))
        assert len(lines) == len(table.rows)
        assert max(len(unicodedata.normalize("NFC", line)) for line in lines) <= WIDTH, lines


# An audit imports cleanlab, which takes seconds.
AUDIT = pytest.param("audit", marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train-head", "sweep", "info", "compare", AUDIT])
def test_tables_of_runs_fit_whatever_names_are(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    planted_store(tmp_path / "store", dict.fromkeys(LONG, 12), separation=0.3)
    runs = [f"runs/{'of a long name ' * 4}{number}" for number in (1, 2)]
    train = "sweep" if name == "sweep" else "train-head"
    for number, run in enumerate(runs if name == "compare" else runs[:1]):
        flags = ("--store", "store", "--run", run, "--head", "ridge", "--head", "majority")
        status, result = command(train, *flags, "--seed", number)
        assert status == 0, result
    if name == "compare":
        result = command("compare", *runs, "--seeds", "2", "--curve")[1]
    if name == "info":
        result = command("info", runs[0], "--per-class")[1]
    if name == "audit":
        result = command("audit", "store", "--run", runs[0], "--out", "found")[1]
    check(list(tables(result, name)))


def test_tables_of_classes_fit() -> None:
    y = np.arange(40) % 4
    scores = per_class(y, np.roll(y, 1) % 3, 4)
    shown = {**scores, "head": "sklearn.ensemble.RandomForestClassifier", "split": "test"}
    for names in (LONG, WIDE + LONG[:1]):
        text = [*all_classes(shown, names), *worst_of(scores, names, title="")]
        check([block for block in text if isinstance(block, Table)])
    assert "Mistakes on test, sklearn.ensemble.RandomForestClassifier, all of them:" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_is_for_terminals_and_can_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert colour.red("error", Terminal()) == "\x1b[31merror\x1b[0m"
    assert colour.bold("best", io.StringIO()) == "best"
    for name, value in (("TERM", "dumb"), ("NO_COLOR", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert colour.red("error", Terminal()) == "error"


def test_on_a_terminal_the_best_head_is_bold_and_errors_are_red(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    planted_store(tmp_path / "store", {"ant": 20, "bee": 20})
    flags = ["--store", "store", "--head", "ridge", "--head", "majority", "--quiet"]
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(f"sys.{stream}", Terminal())
    assert main(["train-head", *flags]) == 0
    printed = sys.stdout.getvalue()
    assert [line for line in printed.splitlines() if "\x1b" in line] == [
        line for line in printed.splitlines() if line.startswith("\x1b[1mridge *")
    ]
    assert printed.count("\x1b[1m") == 1
    assert main(["train-head", "--store", "nowhere"]) == 2
    assert sys.stderr.getvalue().startswith("\x1b[31mpipeline: error:\x1b[0m ")


def test_train_head_shows_the_three_worst_classes_and_where_the_report_is(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    planted_store(tmp_path / "store", dict.fromkeys("abcdef", 30), separation=0.2)
    flags = ["--store", "store", "--run", "my run", "--head", "ridge", "--quiet"]
    assert main(["train-head", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = lines.index("Lowest recall on test, ridge:")
    assert lines[place + 1].split() == ["class", "recall", "images", "mistaken", "for"]
    worst = [line.split() for line in lines[place + 2 : place + 5]]
    assert [float(row[1]) for row in worst] == sorted(float(row[1]) for row in worst)
    assert lines[place + 5].startswith("and ")
    assert lines[-1] == "A report with pictures: pipeline report 'my run'"
    result = command("train-head", *flags)[1]
    logged = {"report": "my run/report.html", "mlflow": {"uri": "sqlite:///my store/mlflow.db"}}
    assert list(as_lines(find("train-head").text({**result, **logged})))[-2:] == [
        "Logged into MLflow: mlflow ui --backend-store-uri 'sqlite:///my store/mlflow.db'",
        "Report: my run/report.html",
    ]
