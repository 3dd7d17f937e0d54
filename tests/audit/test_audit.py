"""The audit of planted data: what was planted is found, and what is missing is said."""

import csv
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Bar, Command, FakeEncoder, Notes, planted_store
from photos import natural
from PIL import Image, ImageEnhance

from pipeline.audit import label_errors, outliers
from pipeline.audit.listing import read_listing
from pipeline.audit.stage import find
from pipeline.cli.main import main
from pipeline.config.auditing import AuditOptions
from pipeline.copies import duplicates, pixels
from pipeline.copies.neighbours import Pairs
from pipeline.errors import EngineUnavailableError
from pipeline.heads.ridge import RidgeHead

# The fake network takes a mirrored image for another; real ones mostly do not.
PLANTED = ("crop", "jpeg", "bright")
COPIES = (*PLANTED, "mirror")
PLANTED_COPIES = 10
EXTRACT = ("--weights", "random", "--image-size", 32, "--quiet")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(natural(96, 96, seed))


def changed(image: Image.Image, how: str) -> Image.Image:
    if how == "crop":
        return image.crop((6, 6, 88, 88))
    if how == "mirror":
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return ImageEnhance.Brightness(image).enhance(0.8) if how == "bright" else image


def write_photos(folder: Path) -> None:
    """Two classes in two splits; test holds changed copies of images of train."""
    for number in range(40):
        name = ("cat", "dog")[number % 2]
        file = folder / "train" / name / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(file)
    for number in range(40, 60):
        name = ("cat", "dog")[number % 2]
        file = folder / "test" / name / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(file)
    for number in range(PLANTED_COPIES):
        copy = changed(picture(number), PLANTED[number % len(PLANTED)])
        copy.save(folder / "test" / ("cat", "dog")[number % 2] / f"copy{number:02}.jpg", quality=70)
    data = (folder / "train/cat/10.png").read_bytes()
    (folder / "train/dog/same.png").write_bytes(data)


@pytest.fixture
def store(tmp_path: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    arguments = ("extract", tmp_path / "photos", "--store", tmp_path / "store", *EXTRACT)
    assert main([str(argument) for argument in arguments]) == 0
    return tmp_path / "store"


@pytest.mark.slow
def test_planted_copies_and_leaks_are_found(store: Path, command: Command) -> None:
    trained, _ = command("train-head", "--store", store, "--run", "run", "--head", "ridge")
    assert trained == 0
    status, found = command("audit", store, "--run", "run")
    assert status == 0
    (same,) = found["copies"]
    assert same["paths"] == ["train/cat/10.png", "train/dog/same.png"]
    assert set(same["labels"]) == {"cat", "dog"}
    leaked = {leak["paths"][0]: leak for leak in found["leaks"]}
    for number in range(PLANTED_COPIES):
        name = ("cat", "dog")[number % 2]
        leak = leaked[f"test/{name}/copy{number:02}.jpg"]
        assert leak["paths"][1] == f"train/{name}/{number:02}.png"
        assert leak["splits"][0] == "test" and leak["splits"][1] in ("train", "val")
    scores = found["scores_without_leaks"]["ridge"]
    assert scores["all"]["n"] == scores["n"] + scores["leaked"]["n"]
    assert scores["leaked"]["n"] == sum(leak["splits"][0] == "test" for leak in found["leaks"])
    low, high = scores["accuracy_ci95"]
    assert 0 <= low <= scores["accuracy"] <= high <= 1
    trained, made = command(
        "train-head",
        "--store",
        store,
        "--run",
        "free",
        "--head",
        "majority",
        "--split",
        "leak-free",
    )
    assert trained == 0 and made["dropped"]["group in two declared splits"] >= len(PLANTED)
    status, found = command("audit", store, "--run", "free", "--out", "free-audit")
    assert (status, found["leaks"]) == (0, [])


@pytest.mark.slow
def test_the_table_is_a_manifest_that_train_head_takes(store: Path, command: Command) -> None:
    assert command("audit", store, "--out", "out")[0] == 0
    with Path("out/audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["found"] and not rows[-1]["found"]
    assert len(rows) == 71
    status, trained = command(
        "train-head", "--store", store, "--run", "again", "--head", "ridge",
        "--manifest", "out/audit.csv",
    )  # fmt: skip
    assert status == 0 and trained["dropped"] == {"conflicting label": 2}
    # Edits are never lost.
    status, refused = command("audit", store, "--out", "out")
    assert status == 2 and "--force" in refused["error"]["hint"]
    assert command("audit", store, "--out", "out", "--force")[0] == 0


@pytest.mark.slow
def test_without_files_each_section_says_so(
    store: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    status, found = command("audit", store)
    assert status == 0
    assert "70 image files of 70 are not at" in found["notes"]["quality"]
    assert found["threshold"]["compared_by"] == "features" and not found["confounders"]
    assert "two classes" in found["notes"]["confounders"]
    assert main(["audit", str(store), "--force", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "70 image files of 70 are not at" in said and "Give a run, by --run" in said


@pytest.mark.slow
def test_what_cannot_be_audited_is_said_in_one_line(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planted_store(tmp_path / "one", {"cat": 20})
    _, found = command("audit", tmp_path / "one")
    assert found["label_errors"] == [] and "two classes" in found["notes"]["label_errors"]
    assert found["imbalance"] == 1
    planted_store(tmp_path / "rare", {"cat": 20, "dog": 20, "emu": 1})
    _, found = command("audit", tmp_path / "rare")
    assert "fewer than 3 images are not judged: 1" in found["notes"]["label_errors"]
    assert found["imbalance"] == 20
    planted_store(tmp_path / "single", {"cat": 1})
    status, found = command("audit", tmp_path / "single")
    assert status == 0 and found["near_duplicates"] == []
    status, refused = command("audit", tmp_path / "nothing")
    assert (status, refused["error"]["type"]) == (2, "StoreError")


@pytest.mark.slow
def test_a_run_of_other_features_or_images_is_refused(
    store: Path, tmp_path: Path, command: Command
) -> None:
    planted_store(tmp_path / "planted", {"cat": 20, "dog": 20})
    train = ("train-head", "--head", "majority", "--store", tmp_path / "planted")
    assert command(*train, "--run", tmp_path / "other")[0] == 0
    status, refused = command("audit", store, "--run", tmp_path / "other")
    assert (status, refused["error"]["type"]) == (2, "RunError")


@pytest.mark.slow
def test_flipped_labels_are_ranked_first_and_relabelled(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planted_store(tmp_path / "store", {"ant": 60, "bee": 60, "cow": 60})
    manifest = tmp_path / "mine.csv"
    lines = (tmp_path / "store/manifest.csv").read_text().splitlines()
    flipped = {f"ant/{number:04}.png" for number in (3, 17, 44)}
    edited = [
        line.replace(",ant,", ",cow,") if line.partition(",")[0] in flipped else line
        for line in lines
    ]
    manifest.write_text("\n".join(edited) + "\n")
    status, found = command("audit", tmp_path / "store", "--manifest", manifest, "--relabel")
    assert status == 0
    first = found["label_errors"][:3]
    assert {error["path"] for error in first} == flipped
    assert all((error["given"], error["proposed"]) == ("cow", "ant") for error in first)
    assert first[0]["is_likely"]
    scores = [error["score"] for error in found["label_errors"]]
    assert scores == sorted(scores)
    with Path(found["csv"]).open() as file:
        labels = {row["path"]: row["label"] for row in csv.DictReader(file)}
    assert labels[first[0]["path"]] == "ant"
    assert found["relabelled"] == found["label_error_head"]["estimated"]


def test_a_wrong_label_that_stands_twice_does_not_speak_for_itself() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2, 24)) * 2
    y = np.arange(80) % 2
    units = (centres[y] + rng.normal(size=(80, 24))).astype(np.float32)
    units[0] = units[2]
    y = y.copy()
    y[[0, 2]] = 1
    groups = np.arange(80)
    groups[2] = 0
    made = label_errors.out_of_fold(units, y, groups, head="logreg")
    assert (made.probabilities[[0, 2], 0] > 0.5).all()


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(EngineUnavailableError, match=r"embedding-pipeline\[audit\]"):
        label_errors.require_cleanlab()


def test_outliers_are_the_rows_that_are_far_from_all() -> None:
    rng = np.random.default_rng(0)
    units = rng.normal(size=(300, 30)) * 0.2 + 1
    units[[5, 99]] = -1 * rng.normal(size=(2, 30))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    scores = outliers.outlier_scores(units.astype(np.float32))
    assert set(np.argsort(-scores)[:2].tolist()) == {5, 99}
    assert (scores[[5, 99]] > outliers.FAR_ABOVE).all()
    assert outliers.outlier_scores(units[:1].astype(np.float32)).tolist() == [0]


def similar(count: int, dim: int, copies: int) -> np.ndarray:
    rng = np.random.default_rng(4)
    units = rng.normal(size=(count, dim)) + 1
    units[-copies:] = units[:copies] + rng.normal(size=(copies, dim)) * 0.02
    return (units / np.linalg.norm(units, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("count", [300, 3000])
def test_the_threshold_lies_between_copies_and_others_at_every_size(count: int) -> None:
    units = similar(count, 40, 20)
    threshold = duplicates.choose(units)
    full = units @ units.T
    np.fill_diagonal(full, -1)
    of_copies = full[np.arange(20), np.arange(count - 20, count)]
    others = full[20:-20].max()
    assert others < threshold.similarity < of_copies.min()


def test_the_median_takes_no_notice_of_copies() -> None:
    few, many = (duplicates.choose(similar(400, 40, copies)) for copies in (2, 60))
    assert abs(few.similarity - many.similarity) < 0.1


@pytest.mark.parametrize("how", COPIES)
def test_pixels_tell_a_changed_copy_from_another_picture(how: str) -> None:
    made = [picture(1), changed(picture(1), how), picture(2)]
    side = pixels.SIDE
    greys = np.stack([np.array(image.convert("L").resize((side, side))) for image in made])
    pairs = Pairs(np.array([0, 0]), np.array([1, 2]), np.zeros(2))
    same, other = pixels.correlations(greys, pairs)
    assert same >= pixels.SAME > other


def test_flat_images_are_no_copies_of_anything() -> None:
    greys = np.full((2, pixels.SIDE, pixels.SIDE), 200, np.uint8)
    pairs = Pairs(np.array([0]), np.array([1]), np.zeros(1))
    assert pixels.correlations(greys, pairs)[0] == 0


@pytest.mark.slow
def test_faults_of_files_and_confounders_are_found(
    tmp_path: Path, fake_network: FakeEncoder, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        name = ("cat", "dog")[number % 2]
        file = tmp_path / "photos" / name / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        size = 96 if name == "cat" else 80
        picture(number).resize((size, size)).save(file)
    faults: dict[str, Any] = {
        "dark": Image.new("RGB", (90, 90), (9, 9, 9)),
        "tiny": picture(70).resize((12, 12)),
        "odd": picture(71).resize((90, 20)),
    }
    for name, image in faults.items():
        image.save(tmp_path / "photos/cat" / f"{name}.png")
    command("extract", tmp_path / "photos", "--store", "store", *EXTRACT[:-1])
    _, found = command("audit", "store")
    issues = {(item["path"], item["issue"]) for item in found["issues"]}
    assert {
        ("cat/dark.png", "dark"),
        ("cat/tiny.png", "tiny"),
        ("cat/odd.png", "odd shape"),
    } <= issues
    tells = {item["name"]: item for item in found["confounders"]}
    assert tells["dimensions"]["tells"]
    low, high = tells["dimensions"]["accuracy_ci95"]
    assert low <= tells["dimensions"]["accuracy"] <= high


def test_components_judge_few_images_as_well_as_their_features_do() -> None:
    """Standardized principal components of few images are mostly noise, lifted to the signal."""
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    units = rng.normal(size=(200, 600)) / np.sqrt(600)
    units[:, 0] += np.where(y, 0.5, -0.5)
    units = (units / np.linalg.norm(units, axis=1, keepdims=True)).astype(np.float32)
    made = label_errors.out_of_fold(
        label_errors._components(units, np.arange(200)), y, np.arange(200), head="ridge"
    )
    assert (made.probabilities.argmax(axis=1) == y).mean() > 0.9


def test_of_very_many_images_ridge_alone_judges(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_store(tmp_path / "store", {"ant": 20, "bee": 20})
    monkeypatch.setattr(label_errors, "LARGE", 30)
    out = ("--out", tmp_path / "out", "--force")
    status, result = command("audit", tmp_path / "store", *out)
    assert (status, result["label_error_head"]["head"]) == (0, "ridge")
    assert "more than 30 images, ridge alone" in result["notes"]["label_errors"]
    monkeypatch.setattr(RidgeHead, "copies", 1e12)
    status, result = command("audit", tmp_path / "store", *out)
    assert (status, result["label_errors"]) == (0, [])
    assert "label errors of 40 images need memory" in result["notes"]["label_errors"]


class Watching(Notes):
    """A reporter that remembers its bars too, each with how many steps it was to take."""

    def __init__(self) -> None:
        super().__init__()
        self.bars: list[tuple[int, str, Bar]] = []

    def bar(self, total: int, unit: str) -> AbstractContextManager[Bar]:
        self.bars.append((total, unit, Bar()))
        return nullcontext(self.bars[-1][2])


@pytest.mark.parametrize(
    ("copies", "said"),
    [
        (None, "Note: of more than 30 images, ridge alone judges"),
        (1e12, "Note: label errors of 40 images need memory: "),
    ],
)
def test_what_will_be_left_out_is_said_before_anything_long_and_bars_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: float | None, said: str
) -> None:
    store = planted_store(tmp_path / "store", {"ant": 20, "bee": 20})
    monkeypatch.setattr(label_errors, "LARGE", 30)
    monkeypatch.setattr(label_errors.machine, "free_memory", lambda: 1 << 34)
    if copies is not None:
        monkeypatch.setattr(RidgeHead, "copies", copies)
    reporter = Watching()
    listing = read_listing(store, None, None, reporter)
    options = AuditOptions(store=str(store.path))
    found = find(listing, options, None, reporter)
    assert reporter.lines[0] == "Reading the features of 40 images"
    assert reporter.lines[1].startswith(said)
    assert found.notes["label_errors"] in reporter.lines[1]
    assert all(bar.steps == total for total, _, bar in reporter.bars)
    fits = [total for total, unit, _ in reporter.bars if unit == "fit"]
    assert fits == ([2 * label_errors.FOLDS] if copies is None else [])
