"""The report: what it says of runs of every kind, and that it stays small."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Command, FakeEncoder, edit_record, planted_store, write_classes
from page_text import data_of, text_of
from processes import run_python

from pipeline.cli.main import main
from pipeline.pages.frame import MAX_BYTES
from pipeline.report import embedding
from pipeline.report.answer import answer
from pipeline.report.scored import mistakes, scored_head, uncertain
from pipeline.report.tables import MATRIX_CLASSES, confusion, leaderboard_of
from pipeline.runs import metrics
from pipeline.runs.run import Run

pytestmark = pytest.mark.slow  # Bokeh and scikit-learn take seconds to import


def trained(work: Path, counts: dict[str, int], *more: object, **planted: object) -> Path:
    planted_store(work / "store", counts, **planted)  # type: ignore[arg-type]
    heads = [] if "--head" in more else ["--head", "ridge", "--head", "majority"]
    arguments = ["train-head", "--store", work / "store", "--run", work / "run", *heads, *more]
    assert main([*map(str, arguments), "--quiet"]) == 0
    return work / "run"


def said_by(run: Path) -> str:
    """Return what a reader sees of the report of a run."""
    return text_of((run / "report.html").read_text())


def test_every_section_is_there_and_agrees_with_the_run(tmp_path: Path, command: Command) -> None:
    run = trained(tmp_path, {"ant": 60, "bee": 60, "cow": 60}, separation=0.6)
    status, result = command("report", run)
    assert status == 0 and result["report"] == str(run / "report.html")
    assert result["bytes"] == (run / "report.html").stat().st_size < MAX_BYTES
    said, record = said_by(run), Run.open(run).record
    best = record.heads[str(record.best)].test
    assert best.accuracy_ci95 is not None and best.accuracy is not None
    share, low, high = (f"{100 * value:.1f}" for value in (best.accuracy, *best.accuracy_ci95))
    assert f"ridge is right about {share}" in said
    assert re.search(rf"expect between {low}.%?.*{high}", said)
    assert re.search(r"majority is [\d.]+ points worse than ridge", said)
    for section in ("What to do next", "Heads", "Learning", "Confusion", "Classes",
                    "Confidently wrong", "Least certain", "Calibration", "Coverage", "Map",
                    "Skipped files", "Rate of stage 1", "Reproduce"):  # fmt: skip
        assert section in said, section
    # A head that computes scores says so.
    assert "ridge computes scores and no probabilities" in said
    # There are no images at all.
    assert result["pictures"] == 0 and "Made without some pictures" in said
    assert result["points"] == 180


def test_it_is_part_of_the_run(tmp_path: Path) -> None:
    run = trained(tmp_path, {"ant": 40, "bee": 40})
    assert main(["report", str(run), "--quiet"]) == 0
    assert main(["verify", str(run), "--quiet"]) == 0
    again = ["train-head", "--store", str(tmp_path / "store"), "--run", str(run), "--head",
             "majority", "--force", "--quiet"]  # fmt: skip
    assert main(again) == 0
    assert not (run / "report.html").exists()


def test_names_show_as_text(
    tmp_path: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"<script>alert(1)": 20, "a\nb": 20, 'it\'s "so"': 20, "\u202e\u05d0\u05d1": 20}
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "photos", names)
    for arguments in (["extract", "photos", "--store", "s", "--weights", "random"],
                      ["train-head", "--store", "s", "--run", "r", "--head", "ridge"],
                      ["report", "r"]):  # fmt: skip
        assert main([*arguments, "--quiet"]) == 0
    page = (tmp_path / "r/report.html").read_text()
    assert "<script>alert" not in page
    said = said_by(tmp_path / "r")
    for shown in ("<script>alert(1)", "a\u240ab", 'it\'s "so"', "\u202e\u05d0\u05d1"):
        assert shown in said
    assert page.count("data:image/webp") == 80


def without_test(run: Path) -> None:
    """Take the test images out of a run."""
    lines = (run / "manifest.csv").read_text().splitlines(keepends=True)
    (run / "manifest.csv").write_text("".join(line for line in lines if ",test," not in line))

    def change(record: dict[str, Any]) -> None:
        record.pop("files")
        val = record["split"]["val"]
        record["split"]["test"] = 0
        for name, head in record["heads"].items():
            head.pop("files")
            head["test"] = metrics.score(np.zeros(0, int), np.zeros((0, 2)))
            head["reject"]["curve"]["test"] = []
            path = run / "heads" / name / "probabilities.npy"
            np.save(path, np.load(path)[:val])

    edit_record(run / "run.json", change)


def test_a_run_without_test_is_shown_on_val(tmp_path: Path, command: Command) -> None:
    run = trained(tmp_path, {"ant": 40, "bee": 40})
    without_test(run)
    status, result = command("report", run)
    assert (status, result["split"]) == (0, "val")
    said = said_by(run)
    assert "There are no test images: these are val's" in said
    assert "nothing to test differences on" in said


def test_one_class_in_test(tmp_path: Path) -> None:
    splits = ["train"] * 20 + ["val"] * 5 + ["test"] * 5 + ["train"] * 25 + ["val"] * 5
    run = trained(tmp_path, {"ant": 30, "bee": 30}, separation=4.0, splits=splits)
    assert main(["report", str(run), "--quiet"]) == 0
    said = said_by(run)
    assert "Every test image is classified correctly" in said and "No mistake on test" in said


def test_without_its_store_the_rest_is_there(tmp_path: Path, command: Command) -> None:
    run = trained(tmp_path, {"ant": 40, "bee": 40})
    shutil.rmtree(tmp_path / "store")
    status, result = command("report", run)
    assert (status, result["points"]) == (0, 0)
    said = said_by(run)
    assert "There is no map: There is no feature store at" in said
    assert "Which files were skipped is in the store, and that cannot be read" in said


def test_bad_requests_are_refused(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path, {"ant": 40, "bee": 40})
    status, said = command("report", run, "--head", "rigde")
    assert status == 2 and "'ridge'" in said["error"]["message"]
    assert command("report", tmp_path)[0] == 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, said = command("report", run, "--map", "umap")
    assert status == 2 and "embedding-pipeline[umap]" in said["error"]["hint"]
    assert not (run / "report.html").exists()


def test_a_thousand_classes(tmp_path: Path, command: Command) -> None:
    names = {f"class {number:04} {'x' * 40}": 3 for number in range(1000)}
    splits = ["train", "val", "test"] * 1000
    run = trained(tmp_path, names, "--head", "centroid", separation=1.0, splits=splits)
    status, result = command("report", run)
    assert status == 0 and result["bytes"] < MAX_BYTES
    assert result["points"] == embedding.POINTS
    assert f"The {MATRIX_CLASSES} most confused of 1,000 classes" in said_by(run)


def test_what_is_looked_at_is_what_is_wrong_or_uncertain(tmp_path: Path) -> None:
    run = Run.open(trained(tmp_path, {"ant": 90, "bee": 90, "cow": 90}, separation=0.4))
    head = scored_head(run, "ridge")
    wrong = mistakes(head)
    assert wrong and all(head.predicted[place] != head.y[place] for place in wrong)
    sure = head.confidence[wrong]
    assert (np.diff(sure) <= 0).all()
    doubted = head.confidence[uncertain(head)]
    assert doubted.tolist() == sorted(head.confidence.tolist())[: len(doubted)]
    found = confusion(head)
    assert found["mistakes"] == (head.predicted != head.y).sum() >= len(wrong)
    first = found["pairs"][0]
    counted = ((head.y == first["true"]) & (head.predicted == first["predicted"])).sum()
    assert first["count"] == counted > 0
    steps = [step["text"] for step in answer(head, leaderboard_of(run, "test"), found)["steps"]]
    assert any("points wide" in step for step in steps)


def test_the_map_shows_mistakes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "POINTS", 60)
    monkeypatch.setattr(embedding, "_MISTAKES", 20)
    run = Run.open(trained(tmp_path, {"ant": 90, "bee": 90, "cow": 90}, separation=0.4))
    head = scored_head(run, "ridge")
    rows = embedding.sample(head)
    wrong = set(head.rows[head.predicted != head.y].tolist())
    assert len(rows) == 60 and len(wrong & set(rows.tolist())) >= min(20, len(wrong))
    assert rows.tolist() == embedding.sample(head).tolist() == sorted(set(rows.tolist()))


WITH_UMAP = """
import json
from pathlib import Path
from pipeline.cli.main import main
from pipeline.report import embedding
from pipeline.store.store import Store
assert main(["report", "run", "--map", "umap", "--quiet", "--json"]) == 0
store = Store.open(Path("store"))
print(json.dumps(embedding.embed(store, store.read_manifest().keys, "umap").places.tolist()))
"""


def test_umap_parts_clouds(tmp_path: Path) -> None:
    run = trained(tmp_path, {"ant": 12, "bee": 12}, separation=8.0)
    # A few points take less time in plain Python than Numba to compile.
    done = run_python("-c", WITH_UMAP, cwd=tmp_path, environment={"NUMBA_DISABLE_JIT": "1"})
    assert done.returncode == 0, done.stderr
    assert "UMAP (of up to 50 dimensions of PCA)" in said_by(run)
    found, labels = np.array(json.loads(done.stdout.splitlines()[-1])), np.arange(24) < 12
    assert found.shape == (24, 2) and np.isfinite(found).all()
    nearest = [np.argsort(((found - place) ** 2).sum(axis=1))[1] for place in found]
    assert (labels[nearest] == labels).all()


def test_what_bounded_stage_one_is_shown(tmp_path: Path) -> None:
    run = trained(tmp_path, {"ant": 40, "bee": 40})
    found = {"bound": "encode", "busy": {"decode": 0.1, "encode": 0.9}, "advice": "a GPU"}
    edit_record(
        tmp_path / "store/store.json",
        lambda record: record.update(provenance={"engine": "keras", "bottleneck": found}),
    )
    assert main(["report", str(run), "--quiet"]) == 0
    assert "bound by encode; it would be faster with a GPU" in said_by(run)


def test_points_can_be_given_back_as_a_manifest(tmp_path: Path, command: Command) -> None:
    run = trained(tmp_path, {"ant": 60, "bee": 60})
    assert main(["report", str(run), "--quiet"]) == 0
    page = (run / "report.html").read_text()
    points = data_of(page)["points"]
    names = ["ant", "bee"]
    rows = zip(points["path"], points["true"], points["declared"], points["key"], strict=True)
    lines = [f"{path},{names[true]},{split},{key}" for path, true, split, key in rows]
    (tmp_path / "mine.csv").write_text("\n".join(["path,label,split,key", *lines, ""]))
    status, again = command("train-head", "--store", tmp_path / "store", "--run", tmp_path / "b",
                            "--head", "ridge", "--manifest", tmp_path / "mine.csv")  # fmt: skip
    assert status == 0
    assert again["split"] == Run.open(run).record.split.as_json()
