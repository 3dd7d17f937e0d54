"""The page of an audit: what it says of what was found, and that it stays small."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import Command, planted_store
from page_text import data_of, text_of

from pipeline.audit import page, scale
from pipeline.audit.answer import answer
from pipeline.audit.findings import (
    Confounder,
    Findings,
    Group,
    HeadScores,
    Issue,
    LabelError,
    LabelErrors,
    Outlier,
)
from pipeline.audit.listing import read_listing
from pipeline.cli.main import main
from pipeline.copies.duplicates import Threshold
from pipeline.pages import frame
from pipeline.store.store import Store

NOTHING = Findings(
    store="stores/a b",
    run=None,
    images=40,
    distinct=40,
    unlabelled=0,
    classes={"ant": 20, "bee": 20},
    imbalance=1.0,
    threshold=Threshold(
        similarity=0.9, candidates=0.7, median=0.6, spread=0.1, chosen=True,
        compared_by="features and pixels", pixels=0.55, search="exact", recall=None,
    ),
    copies=(),
    near_duplicates=(),
    leaks=(),
    scores={},
    label_errors=LabelErrors(head="logreg", folds=5, accuracy=0.9, estimated=0),
    outliers=(),
    issues=(),
    confounders=(),
    notes={},
)  # fmt: skip


def group(*names: str, labels: str = "", split: str = "train", chain: bool = False) -> Group:
    """Return a group of copies; labels are the first letters of classes."""
    full = {"a": "ant", "b": "bee"}
    return Group(
        paths=names,
        labels=[full[letter] for letter in labels or "a" * len(names)],
        splits=[split] + ["train"] * (len(names) - 1),
        similarity=0.95,
        lowest_similarity=0.5 if chain else 0.95,
        is_chain=chain,
    )


def score(n: int, accuracy: float | None) -> dict[str, Any]:
    return {"n": n, "accuracy": accuracy, "accuracy_ci95": accuracy and [accuracy / 2, accuracy]}


def errors(count: int, *, likely: int) -> LabelErrors:
    found = [
        LabelError(
            path=f"ant/{number:04}.png", split="", given="ant", proposed="bee", score=number / 1000,
            is_likely=number < likely,
        )
        for number in range(count)
    ]  # fmt: skip
    return LabelErrors(errors=found, head="logreg", folds=5, accuracy=0.9, estimated=likely)


SOMETHING = replace(
    NOTHING,
    run="runs/a",
    copies=[group("ant/0003.png", "bee/0020.png", labels="ab")],
    near_duplicates=[
        group("ant/0003.png", "bee/0020.png", labels="ab"),
        group("ant/0001.png", "bee/0022.png", "bee/0023.png", labels="abb", chain=True),
        group("ant/0001.png", "ant/0002.png"),
    ],
    leaks=[group("ant/0001.png", "ant/0002.png", split="test")],
    scores={"ridge": HeadScores(without=score(8, 0.5), everything=score(10, 0.6),
                                leaked=score(2, 1.0))},
    label_errors=errors(3, likely=2),
    outliers=[Outlier(path="bee/0030.png", label="bee", score=4.25)],
    issues=[Issue(path="ant/0005.png", label="ant", issue="dark", value=12.0)],
    confounders=[Confounder(name="file size", n=40, accuracy=0.9, accuracy_ci95=[0.8, 0.95],
                            majority=0.5, tells=True)],
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return planted_store(tmp_path / "store", {"ant": 20, "bee": 20})


def written(store: Store, findings: Findings, **changes: Any) -> str:
    listing = read_listing(store, None, None)
    html, csv = store.path / "audit.html", Path("audits/a/audit.csv")
    audited = page.Audited(findings, listing, store, None, csv, {})
    page.write(html, replace(audited, **changes))
    assert html.stat().st_size < frame.MAX_BYTES
    return html.read_text()


def test_what_was_found_is_said(store: Store) -> None:
    html = written(store, SOMETHING)
    said = text_of(html)
    for expected in ("1 leak between splits, 1 group of copies under several labels, 2 likely",
                     "the class shows in the file size", "1 of test. Each is shown",
                     "--split leak-free pipeline compare runs/a runs/fixed",
                     "Declared splits win", "without leaked 50.0 % 25.0 – 50.0",
                     "0.950 to 0.500 3 images chain", "take bee 0.000 · likely", "4.2 deviations",
                     "Dark: 1", "99 % below level 12 of 255", "file size 90.0 % 80.0 – 95.0",
                     "tells the class", "None: every file of the manifest has features",
                     "copies at similarity 0.9 or above, or 0.7 where pixels agree, chosen"
                    ):  # fmt: skip
        assert expected in said, expected
    # There are no images at all: each says what it would show.
    assert "Made without some pictures" in said and "<img" not in html
    # A chain is not called one picture.
    conflicts, others = (re.findall(rf'id="{name}-cards".*?</ul>', html, re.DOTALL)[0]
                         for name in ("conflict", "copy"))  # fmt: skip
    assert "bee/0020.png" in conflicts and "bee/0022.png" not in conflicts
    assert others.index("ant/0002.png") < others.index("bee/0022.png")


def test_nothing_found_is_said_by_every_section(store: Store) -> None:
    notes = {"leaks": "the manifest declares no splits", "quality": "3 files are gone"}
    said = text_of(written(store, replace(NOTHING, notes=notes)))
    for expected in ("Nothing that needs action was found", "The manifest declares no splits.",
                     "None: copies have the same label", "None: logreg agree with every label",
                     "None: no image is far", "None in the files that could be read",
                     "pipeline train-head --store 'stores/a b'"):  # fmt: skip
        assert expected in said, expected
    unseen = replace(NOTHING, label_errors=LabelErrors(), classes={}, imbalance=None,
                     threshold=replace(NOTHING.threshold, median=None, spread=None, chosen=False,
                                       search="approximate"),
                     notes={"label_errors": "cleanlab is missing."})  # fmt: skip
    said = text_of(written(store, unseen))
    assert "Label errors Not looked for. Cleanlab is missing. Outliers" in said
    assert "as given by --threshold; the search is approximate, what share" in said
    assert "No file has a label" in said


def test_what_there_is_no_room_for_is_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in (("_GROUPS", 2), ("_MEMBERS", 2), ("_ERRORS", 4), ("_CLASSES", 3)):
        monkeypatch.setattr(page, name, most)
    groups = [group("ant/0001.png", "ant/0002.png", "ant/0003.png")] * 5
    classes = {f"class {number}": number + 1 for number in range(9)}
    found = replace(NOTHING, near_duplicates=groups, label_errors=errors(9, likely=9),
                    classes=classes, imbalance=9.0)  # fmt: skip
    said = text_of(written(store, found))
    assert "and 1 more, in audit.csv" in said
    assert "The first 2 of 5; all are in audit.csv" in said
    assert "The first 4 of 9; all are in audit.csv" in said
    assert "3 classes between them are left out" in said


@pytest.mark.slow
def test_the_table_is_handed_out_with_what_was_relabelled(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    relabelled = {"ant/0001.png": "bee"}
    html = written(store, SOMETHING, relabelled=relabelled)
    table = data_of(html)["table"]
    labels = {path: table["labels"][number]
              for path, number in zip(table["path"], table["label"], strict=True)}  # fmt: skip
    assert labels["ant/0001.png"] == "bee" and labels["ant/0000.png"] == "ant"
    assert table["key"][3] == f"{3:064x}" and len(table["split"]) == 40
    assert re.findall(r'data-row="(\d+)" checked', html) == ["1"]
    for name in ("_ROWS", "_ROW_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(page, name, 39)
            html = written(store, SOMETHING)
        assert data_of(html)["table"] is None and 'data-row="' not in html
        assert "There are too many files" in text_of(html)


def test_names_show_as_text_whatever_they_are(store: Store) -> None:
    name = "</script><b>\u05d0\n\udcff"
    one = replace(errors(1, likely=1).errors[0], given=name, proposed=f"{name}2")
    found = replace(SOMETHING, store=name, run=name, classes={name: 3},
                    label_errors=replace(SOMETHING.label_errors, errors=[one]),
                    issues=[replace(SOMETHING.issues[0], label=name)])  # fmt: skip
    html = written(store, found, csv=Path("audits", name[-2:], "audit.csv"))
    assert "</script><b>" not in html and data_of(html)["classes"] == [name, f"{name}2"]
    assert text_of(html).count("</script><b>\u05d0\u240a\ufffd") >= 6


def test_members_of_different_kinds_are_shown_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_MEMBERS", 3)
    names = [f"{number}.png" for number in range(6)]
    assert page.Card.of(group(*names, labels="aaaaab")).members == [0, 1, 5]
    assert page.Card.of(group(*names, labels="aaaaab", split="test")).members == [0, 1, 5]


def test_leaks_say_what_they_change(store: Store) -> None:
    said = answer(SOMETHING, "ridge", "audit.csv")["steps"][0]
    assert said["to"] == "leaks"
    assert "Without them ridge is right about 50.0\u202f% of the test images" in said["text"]
    nothing_left = {"ridge": HeadScores(without=score(0, None), everything=score(2, 1.0),
                                        leaked=score(2, 1.0))}  # fmt: skip
    text = answer(replace(SOMETHING, scores=nothing_left), "ridge", "x.csv")["steps"][0]["text"]
    assert text.startswith("1 held-out image has a copy in an earlier split. Keep copies")


def test_an_unequal_data_set_is_pointed_out() -> None:
    steps = answer(replace(NOTHING, imbalance=30.0), None, "audit.csv")["steps"]
    assert [step["to"] for step in steps] == ["classes"] and "30 times" in steps[0]["text"]


def test_the_scale_has_copies_at_one_end_and_others_at_the_other() -> None:
    groups = [replace(group("a", "b"), similarity=value) for value in (1.0, 0.97, 0.65)]
    drawn = scale.drawn(NOTHING.threshold, groups)
    assert drawn is not None
    lefts = [bar["left"] for bar in drawn["bars"]]
    assert lefts[0] == 0.0 and lefts == sorted(lefts) and sum(
        bar["count"] for bar in drawn["bars"]
    ) == 3  # fmt: skip
    assert 0 < drawn["certain"] < drawn["candidates"] < 1
    top = max(drawn["hill"], key=lambda point: point[1])[0]
    assert drawn["candidates"] < top < 1
    ticks = [tick["left"] for tick in drawn["ticks"]]
    assert all(0 <= left < 1 for left in ticks) and ticks == sorted(ticks)
    assert scale.drawn(replace(NOTHING.threshold, median=None), groups) is None


@pytest.fixture
def one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    planted_store(tmp_path / "one", {"cat": 8})
    yield tmp_path / "one"


@pytest.mark.slow  # label errors import cleanlab
def test_without_the_extra_the_rest_is_written(
    one_class: Path, command: Command, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    status, found = command("audit", one_class)
    assert (status, found["html"]) == (0, "audits/one/audit.html")
    assert Path(found["html"]).exists() and "html" not in found["notes"]
    monkeypatch.setattr(frame, "missing", lambda: "jinja2")
    status, found = command("audit", one_class, "--force")
    assert (status, found["html"]) == (0, None)
    assert "pip install 'embedding-pipeline[report]'" in found["notes"]["html"]
    # The page of an earlier audit would say something else than the table.
    assert [file.name for file in Path("audits/one").iterdir()] == ["audit.csv"]
    assert main(["audit", str(one_class), "--force"]) == 0
    assert "Audit.html needs jinja2, which is not installed" in capsys.readouterr().out


@pytest.mark.slow  # label errors import cleanlab
def test_a_page_is_replaced_with_force_alone(one_class: Path, command: Command) -> None:
    Path("audits/one").mkdir(parents=True)
    Path("audits/one/audit.html").write_text("mine")
    status, refused = command("audit", one_class)
    assert status == 2 and "audit.html" in refused["error"]["message"]
    assert not Path("audits/one/audit.csv").exists()
    assert command("audit", one_class, "--force")[0] == 0
    assert "Audit of" in Path("audits/one/audit.html").read_text()
