"""``--split leak-free`` and ``--group``: what belongs together is never both trained and scored."""

import csv
import shutil
from collections import defaultdict
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Command, FakeEncoder, edit_record, planted_store
from photos import natural
from PIL import Image, ImageEnhance

from pipeline import heads
from pipeline.audit.leaks import find_leaks
from pipeline.audit.listing import read_listing
from pipeline.audit.stage import taken
from pipeline.cli.commands import audit
from pipeline.cli.main import main
from pipeline.config.options import SweepOptions
from pipeline.copies import approximate, duplicates
from pipeline.copies import kept as kept_searches
from pipeline.copies.photos import read_photos
from pipeline.copies.search import search
from pipeline.dataset.features import SplitFeatures
from pipeline.dataset.splits import SPLITS
from pipeline.pages import frame
from pipeline.runs.run import Run
from pipeline.store import scan_cache
from pipeline.store.store import Store
from pipeline.system.progress import Silence
from pipeline.train.prepare import prepare_data
from pipeline.train.retraining import Retraining
from pipeline.train.search import _by_folds

TRAIN = ("train-head", "--store", "store", "--head", "majority")
# Originals, and those of them that have changed copies.
NUMBER, COPIED = 36, 4


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scan_cache, "RACY_NS", 0)


@cache
def picture(number: int) -> Image.Image:
    return Image.fromarray(natural(64, 64, number))


def write_copies(folder: Path) -> dict[str, int]:
    """Write pictures of two classes, and changed copies of some; return the original of each."""
    original = {}
    for number in range(NUMBER):
        image = picture(number)
        variants = {"": image}
        if number < COPIED:
            variants["-cut"] = image.crop((4, 4, 59, 59))
            variants["-dark"] = ImageEnhance.Brightness(image).enhance(0.8)
        for name, variant in variants.items():
            path = f"{('cat', 'dog')[number % 2]}/{number:02}{name}.png"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            variant.save(folder / path)
            original[path] = number
    return original


@pytest.fixture
def original(fake_network: FakeEncoder) -> dict[str, int]:
    """Extract pictures with copies of some; the original of each."""
    found = write_copies(Path("photos"))
    extract = ("extract", "photos", "--store", "store", "--weights", "random", "--image-size", "32")
    assert main([*extract, "--quiet"]) == 0
    return found


def splits_of(run: str) -> dict[str, str]:
    rows = Run.open(Path(run)).manifest()
    return dict(zip(rows.paths, rows.splits, strict=True))


def straddling(run: str, original: dict[str, Any]) -> list[Any]:
    """Return what is in more than one split."""
    places = defaultdict(set)
    for path, split in splits_of(run).items():
        places[original[path]].add(split)
    return [name for name, found in places.items() if len(found) > 1]


def separate(training: Retraining, seed: int, original: dict[str, Any]) -> bool:
    """Tell whether another seed leaves what belongs together in one split."""
    rows = training.run.manifest()
    of_key = {key: original[path] for key, path in zip(rows.keys, rows.paths, strict=True)}
    data = training.split(seed)
    places = [{of_key[key] for key in data.keys[data.rows[name]]} for name in SPLITS]
    return sum(map(len, places)) == len(set().union(*places))


def leaks(run: str) -> list[Any]:
    """Return what an audit of a run calls leaks."""
    opened = Run.open(Path(run))
    listing = read_listing(Store.open(Path("store")), None, opened)
    photos = read_photos(listing, Silence())
    return find_leaks(listing, search(listing, photos, Silence(), known=taken(opened)))


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return what a command writes to stderr for a person."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().err


@pytest.mark.slow
def test_near_duplicates_stay_together_and_the_audit_finds_no_leak(
    command: Command, original: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*TRAIN, "--run", "plain")[0] == 0
    assert straddling("plain", original) and leaks("plain")
    shown = said(capsys, *TRAIN, "--run", "run", "--split", "leak-free")
    assert straddling("run", original) == [] and leaks("run") == []
    source = Run.open(Path("run")).record.source
    merged = source.near_duplicates
    assert merged is not None and merged.groups >= COPIED and merged.merged >= 3 * COPIED
    assert merged.images == len(original) and merged.threshold.pixels
    (line,) = [note for note in source.notes if "Near duplicates" in note]
    assert line in shown
    counts = f"{merged.groups} groups of {merged.merged} images (the largest of 3)"
    assert f"{counts}, of 44 images compared by" in line
    assert f"features and pixels, similarity {merged.threshold.similarity:g} or above" in line
    # The same split again: heads are kept, and others refused.
    assert command(*TRAIN, "--run", "run", "--split", "leak-free")[0] == 0
    status, refused = command(*TRAIN, "--run", "run")
    assert status == 2 and "split = 'leak-free'" in refused["error"]["message"]
    status, made = command(*TRAIN, "--run", "other", "--split", "leak-free:50/25/25")
    assert status == 0 and made["split"]["train"] < 30
    assert straddling("other", original) == []
    # Other seeds place the groups that the run found.
    training = Retraining(Run.open(Path("run")))
    for seed in (1, 2):
        assert separate(training, seed, original)


@pytest.mark.slow
def test_what_was_found_is_kept_and_found_again_where_it_does_not_fit(
    command: Command, original: dict[str, int], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    train = (*TRAIN, "--run", "run", "--force", "--split", "leak-free")
    assert "Looking for near duplicates" in said(capsys, *train)
    (kept,) = Path("store/copies").iterdir()
    before = kept.read_bytes()
    assert "Looking for" not in said(capsys, *train)
    assert kept.read_bytes() == before and command("verify", "store")[1]["ok"]
    # A byte changed.
    kept.write_bytes(before.replace(b'"images": 44', b'"images": 45'))
    _, found = command("verify", "store")
    assert [problem["shard"] for problem in found["problems"]] == [kept.name]
    assert "searched again" in said(capsys, *train)
    assert kept.read_bytes() == before
    # Of other images, under this name.
    edit_record(kept, lambda record: record.update(searched="0" * 64))
    assert "Looking for" in said(capsys, *train)
    assert kept.read_bytes() == before
    kept.write_bytes(b"nothing")
    assert "removed" in command("verify", "store", "--repair")[1]["repaired"][0]
    assert not kept.exists()
    assert "Looking for" in said(capsys, *train)
    assert command("prune", "store")[0] == 0
    assert kept.read_bytes() == before
    kept.unlink()
    monkeypatch.setattr(kept_searches, "write_record", no_space)
    assert "are not kept in 'store' (no space" in said(capsys, *train)


def no_space(*_: object, **__: object) -> None:
    raise OSError(28, "no space left on device")


@pytest.mark.slow
def test_without_files_features_say_it_until_the_files_are_back(
    command: Command, original: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    train = (*TRAIN, "--run", "run", "--force", "--split", "leak-free")
    Path("photos").rename("elsewhere")
    shown = said(capsys, *train)
    assert (
        "44 images compared by features (44 files were not at hand, bad or changed since extract: "
        in shown
    )
    assert " and 41 more)" in shown
    assert "Looking for" not in said(capsys, *train)
    Path("elsewhere").rename("photos")
    shown = said(capsys, *train)
    assert "Looking for" in shown and "by features and pixels" in shown
    Path("photos").rename("elsewhere")
    shown = said(capsys, *train)
    assert "Looking for" not in shown and "by features and pixels" in shown


@pytest.mark.slow
def test_a_file_that_cannot_be_used_is_named_and_searched_again_when_it_is_another(
    command: Command, original: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    train = (*TRAIN, "--run", "run", "--force", "--split", "leak-free")
    file = Path("photos/cat/02.png")
    content = file.read_bytes()
    file.write_bytes(b"no image")
    shown = said(capsys, *train)
    assert (
        "by features (1 file was not at hand, bad or changed since extract: 'cat/02.png')" in shown
    )
    assert "Looking for" not in said(capsys, *train)
    # Gone, a search could not help.
    file.unlink()
    assert "Looking for" not in said(capsys, *train)
    file.write_bytes(content)
    shown = said(capsys, *train)
    assert "Looking for" in shown and "by features and pixels, " in shown


@pytest.mark.slow
def test_an_approximate_search_says_so_in_all_results(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(duplicates, "LARGE", 50)
    monkeypatch.setattr(approximate, "KNOWN", 5)
    monkeypatch.setattr(frame, "missing", lambda: "bokeh")
    rows = copied_store(Path("store"))
    train = (*TRAIN, "--run", "run", "--force", "--split", "leak-free")
    shown = said(capsys, *train)
    assert straddling("run", rows) == [] and leaks("run") == []
    merged = Run.open(Path("run")).record.source.near_duplicates
    assert merged is not None and merged.groups == 10 and merged.merged == 20
    assert merged.threshold.search == "approximate" and merged.threshold.recall == 1.0
    finds = "chosen from this data; the search is approximate, it finds about 100.0 % of such pairs"
    assert finds in shown
    status, found = command("audit", "store", "--run", "run")
    assert status == 0 and found["threshold"] == merged.threshold.as_json()
    assert len(found["near_duplicates"]) == 10 and not found["leaks"]
    assert any(finds in line for line in audit.text(found) if isinstance(line, str))
    # Of fewer pairs nothing can be said.
    monkeypatch.setattr(approximate, "KNOWN", 1000)
    shutil.rmtree("store/copies")
    shown = said(capsys, *train)
    assert "approximate, what share of such pairs it finds is not measured" in shown
    merged = Run.open(Path("run")).record.source.near_duplicates
    assert merged is not None and merged.groups == 10
    assert merged.threshold.search == "approximate" and merged.threshold.recall is None


def copied_store(path: Path) -> dict[str, int]:
    """Write a store of 60 images, ten of them nearly another; what belongs to each."""
    store = planted_store(path, {"ant": 30, "bee": 30})
    manifest = store.read_manifest()
    features = store.read(manifest.keys)
    features[10:20] = features[:10] * 1.001 + 0.001
    shutil.rmtree(path)
    store = Store.create(path, identity=store.identity, dim=store.dim, root=path)
    store.plain.add_shard(manifest.keys, features)
    with store.scan_cache() as cache:
        store.reindex(cache)
    store.save_manifest(store.manifest_path, manifest)
    return {name: row - 10 if 10 <= row < 20 else row for row, name in enumerate(manifest.paths)}


def with_patients(path: str, column: str = "patient") -> dict[str, str]:
    """Write a copy of the store's manifest with a column of patients; the patient of each row."""
    with Path("store/manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    patients = {}
    for number, row in enumerate(rows):
        row[column] = f" p{number % 20 // 2} " if number % 20 < 14 else ""
        patients[row["path"]] = row[column].strip() or row["path"]
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return patients


def test_a_column_of_the_manifest_keeps_its_groups_together(command: Command) -> None:
    planted_store(Path("store"), {"ant": 80, "bee": 60})
    patients = with_patients("mine.csv")
    train = (*TRAIN, "--manifest", "mine.csv")
    assert command(*train, "--run", "plain")[0] == 0
    assert straddling("plain", patients)
    assert command(*train, "--run", "run", "--group", "Patient")[0] == 0
    assert straddling("run", patients) == []
    run = Run.open(Path("run"))
    assert run.inputs.group == "Patient" and Run.open(Path("plain")).inputs.group is None
    rows = run.manifest()
    assert all(group in (patients[path], "")
               for path, group in zip(rows.paths, rows.groups, strict=True))  # fmt: skip
    assert set(rows.groups) == {"", *(f"p{number}" for number in range(7))}
    # A run is opened again by the same column alone.
    assert command(*train, "--run", "run", "--group", "Patient")[0] == 0
    status, refused = command(*train, "--run", "run")
    assert status == 2 and "group = 'Patient'" in refused["error"]["message"]
    assert separate(Retraining(run), 3, patients)


@pytest.mark.parametrize("name", ["plant", "label", "key"])
def test_a_column_that_is_none_is_named_with_those_there_are(command: Command, name: str) -> None:
    planted_store(Path("store"), {"ant": 20, "bee": 20})
    with_patients("mine.csv")
    status, refused = command(*TRAIN, "--run", "run", "--manifest", "mine.csv", "--group", name)
    assert status == 2 and f"Received: '{name}'; there is 'patient'" in refused["error"]["message"]
    status, refused = command(*TRAIN, "--run", "run", "--group", "group")
    assert status == 2 and "there is no other one" in refused["error"]["message"]
    assert not Path("run").exists()


@pytest.mark.slow
def test_extract_keeps_the_column_group_and_train_head_says_how_to_use_it(
    command: Command, fake_network: FakeEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    write_copies(Path("photos"))
    scenes = {}
    with Path("photos/data.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "Group"))
        for number, path in enumerate(sorted(Path("photos").rglob("*.png"))):
            name = path.relative_to("photos").as_posix()
            scenes[name] = f"scene {number // 2 % 12}"
            writer.writerow((name, path.parent.name, scenes[name]))
    extract = ("extract", "photos/data.csv", "--store", "store", "--weights", "random",
               "--image-size", 32)  # fmt: skip
    assert command(*extract)[1]["notes"] == []
    text = Path("store/manifest.csv").read_text()
    assert text.startswith("path,label,split,key,status,group\n")
    assert command(*extract)[1]["encoded"] == 0
    assert Path("store/manifest.csv").read_text() == text
    shown = said(capsys, *TRAIN, "--run", "plain")
    assert "has a column 'group', which is not used: --group group keeps" in shown
    assert straddling("plain", scenes)
    shown = said(capsys, *TRAIN, "--run", "run", "--group", "group")
    assert "not used" not in shown and straddling("run", scenes) == []
    assert "Groups of the manifest stay in one split: 12 groups of 44 images, of 44" in shown
    # Both: what they connect is one group.
    assert command(*TRAIN, "--run", "both", "--group", "group", "--split", "leak-free")[0] == 0
    assert straddling("both", scenes) == [] and leaks("both") == []


def test_folds_keep_groups_on_one_side(command: Command) -> None:
    planted_store(Path("store"), {"ant": 80, "bee": 60})
    patients = with_patients("mine.csv")
    options = SweepOptions(
        store="store", manifest="mine.csv", group="patient", split="85/0/15", head=("ridge",)
    )
    prepared = prepare_data(options, {})
    names = np.array([patients[path] for path in prepared.examples.paths])
    seen: list[set[str]] = []

    class Recording(SplitFeatures):
        """Remembers the names of the rows of each fold."""

        def of_rows(self, rows: Any) -> Any:
            seen.append(set(names[rows].tolist()))
            return super().of_rows(rows)

    data = prepared.data
    recording = Recording(**{item.name: getattr(data, item.name) for item in fields(data)})
    base = heads.create("ridge", {}, seed=0)
    list(_by_folds(base, [{}], recording, 4))
    train = set(names[data.rows["train"]].tolist())
    assert len(seen) == 4
    held_out = [train - fitted for fitted in seen]
    # Every group is held out once as a whole.
    assert sorted(name for part in held_out for name in part) == sorted(train)
    manifest = Path("mine.csv").read_text().splitlines()
    few = [f"{line.rpartition(',')[0]},p{number % 4}" for number, line in enumerate(manifest[1:])]
    Path("few.csv").write_text("\n".join([manifest[0], *few]) + "\n")
    status, refused = command(
        "sweep", "--store", "store", "--run", "run", "--manifest", "few.csv", "--group", "patient",
        "--split", "85/0/15", "--head", "ridge", "--folds", 5,
    )  # fmt: skip
    assert status == 2 and "the different groups of the largest class" in str(refused["error"])
