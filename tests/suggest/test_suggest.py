"""What to label next: properties of the choice, and the whole way round by the command line."""

import csv
import shlex
from pathlib import Path

import numpy as np
import pytest
from fakes import Command, FakeEncoder, edit_record, planted_store, write_photos
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import pipeline
from pipeline.cli.main import main
from pipeline.images.manifest import COLUMNS
from pipeline.runs.run import Run
from pipeline.suggest import choosing, judging
from pipeline.train.retraining import Retraining

CLASSES = {"ant": 40, "bee": 40, "cow": 40}


def unit_rows(count: int, dim: int = 12, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def read(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]], *more: str) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *more), extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def forgotten(store: Path, path: Path, kept: int, *, split: str = "") -> Path:
    """Write the manifest of a store with the labels of the first few images of a class alone."""
    rows = read(store / "manifest.csv")
    for row in rows:
        if int(row["path"].rpartition("/")[2][:4]) % 40 >= kept:
            row |= {"label": "", "split": split}
    return write(path, rows)


def truth(path: str) -> str:
    return path.partition("/")[0]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    planted_store(tmp_path / "store", CLASSES)
    return tmp_path / "store"


# The choice


@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 30), seed=st.integers(0, 99), most=st.sampled_from([3, 500]))
def test_as_many_different_images_as_asked_for(count: int, seed: int, most: int) -> None:
    units = unit_rows(60, seed=seed)
    candidates = np.arange(20, 50)
    uncertainty = np.random.default_rng(seed).random(30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "CANDIDATES", 2)
        patch.setattr(choosing, "MOST_CLUSTERS", most)
        chosen = choosing.choose(units, candidates, uncertainty, count).tolist()
        again = choosing.choose(units, candidates, uncertainty, count).tolist()
    assert again == chosen and len(set(chosen)) == count
    # None is less uncertain than as many others as are looked at.
    assert set(chosen) <= set(candidates[np.argsort(-uncertainty)[: 2 * count]].tolist())


@pytest.mark.parametrize("most", [4, 500])
def test_a_copy_of_a_chosen_image_is_not_chosen_while_there_are_others(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 0 to 23 are different, 24 to 47 their copies, all as uncertain as any."""
    monkeypatch.setattr(choosing, "MOST_CLUSTERS", most)
    units = np.tile(unit_rows(24), (2, 1))
    units[24:] += np.random.default_rng(1).normal(size=(24, 12)).astype(np.float32) * 1e-3
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    chosen = choosing.choose(units, np.arange(48), np.ones(48), 16).tolist()
    assert len({row % 24 for row in chosen}) == 16


def test_what_is_uncertain_and_frequent_comes_first() -> None:
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1, 2], [4, 17, 9])
    units = (np.eye(6)[y] + rng.normal(size=(30, 6)) * 0.05).astype(np.float32)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    assert y[choosing.choose(units, np.arange(30), np.full(30, 0.5), 3)].tolist() == [1, 2, 0]
    # Those of the largest cluster are certain.
    uncertainty = np.where(y == 1, 0.01, 0.9)
    assert y[choosing.choose(units, np.arange(30), uncertainty, 3)].tolist() == [2, 0, 1]


def test_a_margin_is_of_the_two_most_probable_classes() -> None:
    found = choosing.uncertainties(np.array([[0.5, 0.1, 0.4], [0.2, 0.8, 0.0], [1.0, 0.0, 0.0]]))
    assert found == pytest.approx([0.9, 0.4, 0.0])


@pytest.mark.parametrize("sample", [choosing.SAMPLE, 40])
def test_typical_images_are_of_different_clusters_the_largest_first(
    sample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "SAMPLE", sample)
    rng = np.random.default_rng(3)
    y = np.repeat([0, 1, 2], [60, 30, 15])
    rows = np.eye(6)[y] * 4 + rng.normal(size=(105, 6)) * 0.2
    units = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    rows, none = np.arange(105), np.arange(0)
    assert y[choosing.choose_typical(units, rows, none, 3)].tolist() == [0, 1, 2]
    # A labelled image of the first class says what that one is.
    assert set(y[choosing.choose_typical(units, rows[1:], rows[:1], 2)].tolist()) == {1, 2}
    everything = choosing.choose_typical(units, rows[:40], none, 40)
    assert sorted(everything.tolist()) == list(range(40))


def test_equal_images_are_no_reason_to_stop() -> None:
    units = np.repeat(unit_rows(2), 5, axis=0)
    chosen = choosing.choose_typical(units, np.arange(10), np.arange(0), 4)
    assert len(set(chosen.tolist())) == 4
    assert {row // 5 for row in chosen[:2].tolist()} == {0, 1}


# The head


@pytest.mark.parametrize("name", ["centroid", "knn", "linear-svc", "logreg", "majority", "ridge"])
def test_every_head_that_needs_no_keras_can_be_asked(name: str) -> None:
    y = np.arange(60) % 3
    X = (np.eye(3)[y] @ unit_rows(3) * 2 + unit_rows(60, seed=5)).astype(np.float32)
    head, accuracy = judging.fit(X, y, name)
    assert accuracy is not None and 0 <= accuracy <= 1
    assert head.predict_proba(X).sum(axis=1) == pytest.approx(np.ones(60))


@pytest.mark.parametrize("y", [[0, 1], [0, 0, 1], [0, 1, 1, 1, 2]])
def test_few_labels_are_no_reason_to_fail(y: list[int]) -> None:
    head, _ = judging.fit(unit_rows(len(y)), np.array(y), "logreg")
    assert head.predict_proba(unit_rows(7, seed=9)).shape == (7, len(set(y)))


def test_one_fold_is_enough_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    y = np.arange(50) % 2
    monkeypatch.setattr(judging, "_MANY", 40)
    assert len(judging._folds(y)) == 1
    _, accuracy = judging.fit(unit_rows(50), y, "logreg")
    assert accuracy is not None and round(accuracy * 10) == pytest.approx(accuracy * 10)


@settings(max_examples=20, deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=4), most=st.integers(4, 60))
def test_a_part_is_balanced_by_class(counts: list[int], most: int) -> None:
    y = np.repeat(np.arange(len(counts)), counts)
    rows = judging.balanced(y, most)
    taken = np.bincount(y[rows], minlength=len(counts))
    assert rows.tolist() == sorted(set(rows.tolist())) and len(rows) == min(most, len(y))
    # A class that is not taken whole has as many as any other, give or take the last one.
    assert all(
        count == whole or count >= taken.max() - 1
        for count, whole in zip(taken, counts, strict=True)
    )


def test_too_little_memory_to_fit_is_said(
    store: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = forgotten(store, tmp_path / "mine.csv", 4)
    # Enough for the features of 120 images, and not for a head.
    left = iter((10**9, 10**9, 10))
    monkeypatch.setattr("pipeline.system.machine.free_memory", lambda: next(left))
    status, refused = command("suggest", store, "--manifest", manifest)
    assert (status, refused["error"]["type"]) == (2, "ConfigError")
    assert "12 labelled images" in refused["error"]["message"]


# The command


def test_the_printed_command_trains_and_what_was_chosen_stays_in_train(
    store: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way round beyond training: other seeds, and a run that is there already."""
    manifest, table = forgotten(store, tmp_path / "mine.csv", 20), Path("to label.csv")
    Path("runs/store").mkdir(parents=True)
    suggest = ["suggest", str(store), "--n", "9", "--manifest", str(manifest), "--out", str(table)]
    assert main(suggest) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "train-head" in line)
    rows = read(table)
    for row in rows[:9]:
        row["label"] = truth(row["path"])
    write(table, rows)
    printed = shlex.split(line)
    assert printed[0] == "pipeline" and main([*printed[1:], "--head", "majority"]) == 0
    run = Run.open(Path("runs/store-2"))
    chosen = {row["key"].encode() for row in rows[:9]}
    for seed in range(3):
        data = Retraining(run).split(seed)
        assert chosen <= set(data.keys[data.rows["train"]])
    # The next round, into the same run: what differs is said, not its digest.
    bare = next(row for row in rows if not row["label"])
    bare["label"] = truth(bare["path"])
    write(table, rows)
    status, refused = command(*printed[1:], "--head", "majority")
    assert status == 2 and "labels, splits or files" in refused["error"]["message"]


def test_files_without_features_are_in_the_table_as_they_were(
    store: Path, tmp_path: Path, command: Command
) -> None:
    rows = read(forgotten(store, tmp_path / "mine.csv", 4))
    bad = {"path": "bad.png", "label": "ant", "split": "", "key": "", "status": "no image"}
    manifest = write(tmp_path / "bad.csv", [bad, *rows])
    status, found = command("suggest", store, "--n", 5, "--manifest", manifest)
    table = read(found["csv"])
    assert status == 0 and len(table) == 121
    (same,) = (row for row in table if row["path"] == "bad.png")
    assert {name: same[name] for name in bad} == bad
    for place in (manifest, store / "manifest.csv"):
        before = place.read_bytes()
        asked = ("suggest", store, "--manifest", manifest, "--out", place, "--force")
        status, refused = command(*asked)
        assert status == 2 and "another file" in refused["error"]["message"]
        assert place.read_bytes() == before


@pytest.mark.slow
def test_the_way_round(store: Path, tmp_path: Path, command: Command) -> None:
    """Suggest, fill in, train, and suggest again: no image is suggested twice."""
    manifest = forgotten(store, tmp_path / "mine.csv", 4)
    status, found = command("suggest", store, "--n", 15, "--manifest", manifest)
    assert status == 0 and (found["labelled"], found["unlabelled"]) == (12, 108)
    assert found["head"] == "logreg" and found["accuracy"] > 0.5
    unlabelled = {row["path"] for row in read(manifest) if not row["label"]}
    suggested = [item["path"] for item in found["suggestions"]]
    assert len(set(suggested)) == 15 and set(suggested) <= unlabelled
    table = read(found["csv"])
    assert found["csv"] == "suggestions/store/suggest.csv" and len(table) == 120
    assert [row["path"] for row in table[:15]] == suggested
    assert [row["rank"] for row in table[:16]] == [*map(str, range(1, 16)), ""]
    assert {row["split"] for row in table[:15]} == {"train"}
    assert {row["split"] for row in table[15:]} == {""}
    assert not any(row["label"] for row in table[:15]) and all(
        row["proposed"] for row in table[:15]
    )
    # As it is, it trains what the manifest before trained.
    train = ("train-head", "--store", store, "--head", "ridge", "--min-per-class", 1, "--manifest")
    _, before = command(*train, manifest, "--run", "before")
    status, same = command(*train, found["csv"], "--run", "same")
    assert status == 0 and same["split"] == before["split"]
    assert same["dropped"] == {"no label": 108}
    # Filled in, all of it is train.
    for row in table[:15]:
        row["label"] = truth(row["path"])
    filled = write(tmp_path / "filled.csv", table)
    status, after = command(*train, filled, "--run", "after")
    assert status == 0 and after["split"]["train"] == before["split"]["train"] + 15
    assert after["split"]["test"] == before["split"]["test"]
    assert {row["path"] for row in read("after/manifest.csv")} <= {
        row["path"] for row in table if row["label"]
    }
    # Edits are never lost; the next round knows them.
    status, refused = command("suggest", store, "--manifest", filled)
    assert status == 2 and "--force" in refused["error"]["hint"]
    status, again = command("suggest", store, "--n", 15, "--manifest", filled, "--out", "two.csv")
    assert status == 0 and again["labelled"] == 27
    assert not {item["path"] for item in again["suggestions"]} & set(suggested)


def test_the_head_of_a_run_is_asked(store: Path, tmp_path: Path, command: Command) -> None:
    manifest = forgotten(store, tmp_path / "mine.csv", 8)
    train = ("train-head", "--store", store, "--manifest", manifest, "--run", "run")
    assert command(*train, "--head", "ridge", "--head", "logreg")[0] == 0
    asked = ("suggest", store, "--run", "run", "--n", 9, "--force")
    status, found = command(*asked, "--manifest", manifest)
    assert status == 0 and found["run"] == "run" and found["accuracy"] is None
    _, named = command(*asked, "--manifest", manifest, "--head", "ridge")
    assert named["head"] == "ridge"
    rows = {row["path"]: row for row in read(manifest)}
    assert not any(rows[item["path"]]["label"] for item in found["suggestions"])
    # Images that the run was made with are no candidates, whatever the manifest says of them.
    bare = forgotten(store, tmp_path / "bare.csv", 0)
    _, others = command(*asked, "--manifest", bare)
    assert (others["labelled"], others["unlabelled"]) == (0, 96)
    assert others["suggestions"][0]["proposed"] in CLASSES
    status, refused = command(*asked, "--manifest", manifest, "--head", "logit")
    assert status == 2 and "logreg" in refused["error"]["hint"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.runs.backbone.is_finetuned", lambda run, name: True)
        status, refused = command(*asked, "--manifest", manifest)
    assert status == 2 and "whose network was fine-tuned" in refused["error"]["message"]


def test_a_run_of_other_features_is_refused(store: Path, tmp_path: Path, command: Command) -> None:
    train = ("train-head", "--store", store, "--head", "majority", "--run", "run")
    assert command(*train)[0] == 0
    edit_record(Path("run/run.json"), lambda said: said["inputs"]["identity"].update(image_size=64))
    status, refused = command("suggest", store, "--run", "run")
    assert (status, refused["error"]["type"]) == (2, "RunError")


@pytest.mark.parametrize("kept", [0, 5])
def test_without_two_classes_typical_images_are_suggested(
    kept: int, store: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read(forgotten(store, tmp_path / "mine.csv", kept))
    for row in rows:
        row["label"] = row["label"] if row["label"] == "ant" else ""
    manifest = write(tmp_path / "one.csv", rows)
    status, found = command("suggest", store, "--n", 12, "--manifest", manifest)
    assert status == 0 and found["head"] is None and found["labelled"] == kept
    assert ("of one class" if kept else "no image has a label") in found["notes"][0]
    assert found["suggestions"][0]["proposed"] is None
    assert {truth(item["path"]) for item in found["suggestions"]} == set(CLASSES)
    # The first labels of all have to give train, val and test.
    assert read(found["csv"])[0]["split"] == ("train" if kept else "")
    assert main(["suggest", str(store), "--manifest", str(manifest), "--force"]) == 0
    said = capsys.readouterr()
    assert "most typical images" in said.err and "rank  path" in said.out


def test_what_cannot_be_suggested_is_said(store: Path, tmp_path: Path, command: Command) -> None:
    status, refused = command("suggest", store)
    assert (status, refused["error"]["type"]) == (2, "ManifestError")
    assert "none among 120 images" in refused["error"]["message"]
    held_out = forgotten(store, tmp_path / "test.csv", 20, split="test")
    status, refused = command("suggest", store, "--manifest", held_out)
    assert (
        status == 2
        and "60 without a label are declared val or test" in (refused["error"]["message"])
    )
    few = forgotten(store, tmp_path / "few.csv", 38)
    status, found = command("suggest", store, "--manifest", few)
    assert status == 0 and len(found["suggestions"]) == found["unlabelled"] == 6
    assert "50 were asked for; there are 6" in found["notes"][0]
    for arguments, hint in (
        (("--head", "dense"), "--run"),
        (("--head", "logit"), "logreg"),
        (("--n", 0), ""),
        (("--n", 2001), "in rounds"),
    ):
        status, refused = command("suggest", store, "--manifest", few, "--force", *arguments)
        assert status == 2 and hint in refused["error"]["hint"], arguments
    status, refused = command("suggest", tmp_path / "nothing")
    assert (status, refused["error"]["type"]) == (2, "StoreError")


def test_a_copy_is_labelled_with_its_image(store: Path, tmp_path: Path, command: Command) -> None:
    rows = read(forgotten(store, tmp_path / "mine.csv", 4))
    labelled = next(row for row in rows if row["label"])
    bare = next(row for row in rows if not row["label"])
    copies = [{**labelled, "path": "copy.png", "label": ""}, {**bare, "path": "second.png"}]
    manifest = write(tmp_path / "copies.csv", [*rows, *copies])
    status, found = command("suggest", store, "--n", 200, "--manifest", manifest)
    paths = [item["path"] for item in found["suggestions"]]
    assert status == 0 and len(paths) == 108
    assert "copy.png" not in paths and "second.png" not in paths and bare["path"] in paths
    assert len(read(found["csv"])) == 122


def test_groups_stay_and_go_with_the_images_that_are_chosen(
    store: Path, tmp_path: Path, command: Command
) -> None:
    rows = read(forgotten(store, tmp_path / "mine.csv", 20))
    for number, row in enumerate(rows):
        row["group"] = f"plant {number % 20}"
    manifest = write(tmp_path / "groups.csv", rows, "group")
    status, found = command("suggest", store, "--n", 5, "--manifest", manifest)
    table = read(found["csv"])
    assert status == 0 and len({row["group"] for row in table}) == 20
    for row in table[:5]:
        row["label"] = truth(row["path"])
    filled = write(tmp_path / "filled.csv", table, "group")
    train = ("train-head", "--store", store, "--head", "ridge", "--run", "run", "--group", "group")
    status, _ = command(*train, "--manifest", filled)
    group = {row["path"]: row["group"] for row in table}
    splits: dict[str, set[str]] = {}
    for row in read("run/manifest.csv"):
        splits.setdefault(group[row["path"]], set()).add(row["split"])
    assert status == 0 and all(len(names) == 1 for names in splits.values())
    assert all(splits[row["group"]] == {"train"} for row in table[:5])


def test_python_gives_the_same(store: Path, tmp_path: Path, command: Command) -> None:
    manifest = forgotten(store, tmp_path / "mine.csv", 4)
    found = pipeline.suggest_images(store, n=6, manifest=manifest, out="one.csv", quiet=True)
    _, same = command("suggest", store, "--n", 6, "--manifest", manifest, "--out", "two.csv")
    assert found["suggestions"] == [dict(item) for item in same["suggestions"]]
    assert "fill in the labels of its first 6 rows" in str(found)
    assert "uncertainty" in found._repr_html_()


# Unlabelled images, every step of the way


@pytest.mark.slow
def test_unlabelled_images_go_every_way_but_into_training(
    tmp_path: Path, command: Command, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 10)
    (tmp_path / "photos/new").mkdir()
    for name in CLASSES:
        for number in range(5):
            source = tmp_path / f"photos/{name}/{number:03}.png"
            source.rename(tmp_path / f"photos/new/{name}{number}.png")
    extract = ("extract", tmp_path / "photos", "--weights", "random", "--image-size", 32)
    status, made = command(*extract, "--unlabelled", "new", "--views", "flip")
    assert status == 0 and made["encoded"] == 30
    assert "Images in 'new' have no label" in " ".join(made["notes"])
    _, again = command(*extract)
    (note,) = (note for note in again["notes"] if "unlabelled last time" in note)
    assert note.startswith("'new' was") and "--unlabelled new" in note
    _, settled = command(*extract)
    assert "unlabelled last time" not in " ".join(settled["notes"])
    assert command(*extract, "--unlabelled", "new")[0] == 0
    X, _, names = pipeline.load("stores/photos")
    assert len(X) == 15 and names == ["ant", "bee", "cow"]
    train = ("train-head", "--store", "stores/photos", "--run", "run", "--head", "ridge")
    status, trained = command(*train, "--average", "flip")
    assert status == 0 and trained["dropped"] == {"no label": 15}
    status, audited = command("audit", "stores/photos", "--run", "run")
    assert status == 0 and (audited["images"], audited["unlabelled"]) == (30, 15)
    status, found = command("suggest", "stores/photos", "--n", 15, "--run", "run")
    assert status == 0
    assert all(item["path"].startswith("new/") for item in found["suggestions"])
    status, predicted = command("predict", "run", tmp_path / "photos/new")
    assert status == 0 and len(predicted["predictions"]) == 15
    # The head of the run says the same of an image and its view, encoded again or not.
    said = {Path(item["path"]).name: item for item in predicted["predictions"]}
    for item in found["suggestions"]:
        of_image = said[Path(item["path"]).name]
        assert of_image["label"] == item["proposed"]
        assert of_image["probability"] == pytest.approx(item["probability"], abs=1e-5)
    # The same by a table whose labels are empty.
    rows = [f"{path.relative_to(tmp_path).as_posix()}," for path in
            sorted((tmp_path / "photos/new").iterdir())]  # fmt: skip
    rows += [f"photos/{name}/{number:03}.png,{name}" for name in CLASSES for number in range(5, 10)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
    again = ("extract", tmp_path / "table.csv", *extract[2:], "--store", "stores/photos")
    status, made = command(*again)
    assert status == 0 and (made["encoded"], made["reused"]) == (0, 30)
    status, found = command("suggest", "stores/photos", "--n", 4, "--out", "table-suggests.csv")
    assert status == 0 and found["unlabelled"] == 15
