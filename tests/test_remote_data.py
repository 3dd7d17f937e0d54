"""Whole commands on images in a bucket: storages that fail, credentials, and what is refused."""

import re
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import Command, FakeEncoder, write_classes, write_image
from object_store import KEY_ID, SECRET, ObjectStore, Website

import pipeline
from pipeline.cli.main import main
from pipeline.errors import PipelineError, StorageError
from pipeline.files import remote
from pipeline.files.location import Remote
from pipeline.files.remote import retries, systems
from pipeline.images import reading, sources
from pipeline.images.manifest import OK
from pipeline.images.sources.below import walk
from pipeline.runs.run import Run
from pipeline.store.store import Store

NUM_IMAGES = 24
FLAGS = ("--weights", "random", "--image-size", "32")


def upload(folder: Path, address: str) -> str:
    for path in sorted(folder.rglob("*.*")):
        remote.upload(Remote(f"{address}/{path.relative_to(folder)}"), path)
    return address


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_classes(tmp_path / "photos", {"cat": NUM_IMAGES // 2, "dog": NUM_IMAGES // 2})
    return tmp_path / "photos"


@pytest.fixture
def data(photos: Path, bucket: str, object_store: ObjectStore, fake_network: FakeEncoder) -> str:
    """The address of photos in a bucket."""
    upload(photos, f"{bucket}/photos")
    object_store.requests.clear()
    return f"{bucket}/photos"


def no_secrets(text: str | bytes) -> bool:
    data = text.encode() if isinstance(text, str) else text
    return not any(word.encode() in data for word in (SECRET, KEY_ID))


def failing(object_store: ObjectStore, fault: str, times: int = 1) -> Callable[[str, str], str]:
    """Let every object fail some times in one way before it is had."""
    seen = Counter[tuple[str, str]]()
    lock = threading.Lock()

    def spoil(method: str, path: str) -> str | None:
        with lock:
            seen[method, path] += 1
            return fault if seen[method, path] <= times else None

    object_store.spoil = spoil
    return spoil


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503 SlowDown", "cut", "hang"])
def test_extraction_from_a_store_that_fails_ends_right(
    fault: str, data: str, photos: Path, tmp_path: Path, command: Command,
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(systems, "_made", {})
    monkeypatch.setattr(systems, "_READ_SECONDS", 0.5 if fault == "hang" else 30)
    failing(object_store, fault)
    there, here = tmp_path / "there", tmp_path / "here"
    status = main(["extract", data, "--store", str(there), *FLAGS, "--debug"])
    said = "".join(capsys.readouterr())
    assert status == 0 and no_secrets(said)
    assert command("extract", photos, "--store", here, *FLAGS)[0] == 0
    rows, expected = (Store.open(path).read_manifest() for path in (there, here))
    assert list(rows.paths) == list(expected.paths) and set(rows.statuses) == {OK}
    assert (rows.keys == expected.keys).all()
    features = [Store.open(path).read(rows.keys) for path in (there, here)]
    np.testing.assert_array_equal(*features)
    assert all(no_secrets(path.read_bytes()) for path in there.rglob("*") if path.is_file())


@pytest.mark.slow
def test_an_unchanged_rerun_is_one_listing_and_an_edited_image_is_seen(
    data: str, tmp_path: Path, command: Command, object_store: ObjectStore,
    fake_network: FakeEncoder,
) -> None:  # fmt: skip
    arguments = ("extract", data, "--store", tmp_path / "store", *FLAGS)
    assert command(*arguments)[0] == 0
    assert Counter(method for method, _ in object_store.requests) == {"GET": NUM_IMAGES + 1}
    object_store.requests.clear()
    status, result = command(*arguments)
    assert status == 0 and result["reused"] == NUM_IMAGES and result["encoded"] == 0
    assert len(object_store.requests) == 1
    write_image(tmp_path / "edited.png", 99)
    remote.upload(Remote(f"{data}/cat/000.png"), tmp_path / "edited.png")
    status, result = command(*arguments)
    assert status == 0 and result["reused"] == NUM_IMAGES - 1 and result["encoded"] == 1


@pytest.mark.slow
def test_an_outage_stops_the_run_and_makes_no_bad_images(
    data: str, tmp_path: Path, command: Command, object_store: ObjectStore
) -> None:
    arguments = ("extract", data, "--store", tmp_path / "store", *FLAGS)
    object_store.spoil = lambda method, path: "503 SlowDown" if path.endswith(".png") else None
    status, result = command(*arguments)
    assert status == 2 and result["error"]["type"] == "StorageError"
    assert "16 requests in a row failed" in result["error"]["message"]
    assert not (tmp_path / "store/manifest.csv").exists()
    object_store.reset()
    status, result = command(*arguments)
    assert status == 0 and result["encoded"] == NUM_IMAGES and not result["errors"]


@pytest.mark.slow
def test_some_that_cannot_be_had_are_bad_images_until_the_next_run(
    data: str, tmp_path: Path, command: Command, object_store: ObjectStore
) -> None:
    arguments = ("extract", data, "--store", tmp_path / "store", *FLAGS)
    faults = {"cat/001.png": "503 SlowDown", "dog/002.png": "403 AccessDenied"}
    object_store.spoil = lambda method, path: faults.get(path.partition("photos/")[2])
    status, result = command(*arguments)
    reasons = {item["path"]: item["reason"] for item in result["errors"]}
    assert status == 0 and result["encoded"] == NUM_IMAGES - 2
    assert "busy or fails (503 SlowDown)" in reasons["cat/001.png"]
    assert "access is denied (403 AccessDenied)" in reasons["dog/002.png"]
    object_store.reset()
    status, result = command(*arguments)
    assert status == 0 and result["encoded"] == 2 and not result["errors"]


@pytest.fixture
def run(photos: Path, tmp_path: Path, data: str) -> Path:
    """A run on the photos of this machine."""
    for arguments in (
        ["extract", str(photos), "--store", str(tmp_path / "store"), *FLAGS],
        ["train-head", "--store", str(tmp_path / "store"), "--run", str(tmp_path / "run"),
         "--head", "centroid"],
    ):  # fmt: skip
        assert main([*arguments, "--quiet"]) == 0
    return tmp_path / "run"


@pytest.mark.slow
def test_predict_and_evaluate_take_addresses(
    run: Path, data: str, photos: Path, tmp_path: Path, command: Command, object_store: ObjectStore
) -> None:
    status, here = command("predict", run, photos)
    assert status == 0
    status, there = command("predict", run, f"{data}/cat/000.png", data)
    assert status == 0 and len(there["predictions"]) == NUM_IMAGES
    assert sorted((item["label"], item["path"].partition("photos/")[2]) for item in there[
        "predictions"]) == sorted((item["label"], item["path"].partition("photos/")[2])
                                  for item in here["predictions"])  # fmt: skip
    lines = [
        f"photos/{path.relative_to(photos)},{path.parent.name}" for path in photos.rglob("*.png")
    ]
    remote.write(Remote(data).parent / "t.csv", "\n".join(["path,label", *lines]).encode())
    results = [command("evaluate", run, given) for given in (photos, data, f"{data[:-7]}/t.csv")]
    assert [status for status, _ in results] == [0, 0, 0]
    assert len({result["scores"]["accuracy"] for _, result in results}) == 1
    classifier = pipeline.Classifier.load(run)
    found = classifier.predict([f"{data}/cat/000.png", Path("none.png"), f"{data}/none.png"])
    assert len(found.predictions) == 1 and "no such object" in found.errors[1]["reason"]
    status, result = command("predict", run, f"{data}/none")
    assert status == 2 and "does not exist" in result["error"]["message"]


def test_images_of_a_run_are_found_where_data_says(run: Path, data: str, bucket: str) -> None:
    rows = Run.open(run).at(data=data).manifest()
    assert reading.read(rows, 0).key.encode() == rows.keys[0]
    with pytest.raises(PipelineError, match="--data: expected the folder"):
        Run.open(run).at(data=f"{bucket}/none")


@pytest.mark.slow
def test_a_feature_extractor_takes_addresses(data: str, photos: Path, tmp_path: Path) -> None:
    extractor = pipeline.FeatureExtractor(str(tmp_path / "s"), weights="random", image_size=32)
    names = [f"{data}/cat/000.png", f"{data}/dog/001.png"]
    there = extractor.fit_transform(names)
    here = extractor.fit_transform([photos / "cat/000.png", photos / "dog/001.png"])
    np.testing.assert_array_equal(there, here)
    write_image(tmp_path / "other.png", 99)
    remote.upload(Remote(names[0]), tmp_path / "other.png")
    assert (extractor.fit_transform(names)[0] != there[0]).any()


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[[str], str]:
    """Run extract on data that is refused; return the one line that is said."""

    def run(data: str) -> str:
        arguments = ["extract", data, "--store", str(tmp_path / "store"), *FLAGS]
        capsys.readouterr()
        assert main(arguments) == 2
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert len(lines) == 1 and not said.out
        with pytest.raises(PipelineError) as error:
            main([*arguments, "--debug"])
        assert no_secrets("".join(traceback.format_exception(error.value)) + lines[0])
        assert not (tmp_path / "store").exists()
        return lines[0]

    return run


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_known", {})


@pytest.mark.slow
@pytest.mark.usefixtures("fake_network", "unknown")
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("s3://no-such-bucket/photos", "'s3://no-such-bucket/photos' cannot be listed: there is no "
                                       "such bucket"),
        ("{bucket}/none", "There is no data at '{bucket}/none'"),
        ("{bucket}/none.csv", "There is no data at '{bucket}/none.csv'"),
        ("{bucket}/none.zip", "There is no data at '{bucket}/none.zip'"),
        ("gs://bucket/photos", "needs gcsfs, which is not installed. pip install gcsfs"),
        ("odd://bucket/photos", "scheme 'odd' is not known"),
        ("http://host.invalid/photos.csv", "the name 'host.invalid' is not known"),
        ("s3://AKIAQ7WJ3ZV2NBXLK5PD:x@bucket/photos", "an address without credentials"),
    ],
)  # fmt: skip
def test_what_is_refused_is_one_line(
    data: str, said: str, bucket: str, refuse: Callable[[str], str]
) -> None:
    assert said.format(bucket=bucket) in refuse(data.format(bucket=bucket))


@pytest.mark.usefixtures("fake_network")
@pytest.mark.parametrize(
    "fault", ["403 InvalidAccessKeyId", "403 AccessDenied", "400 ExpiredToken"]
)
def test_credentials_that_do_not_fit_are_refused_at_once(
    fault: str, bucket: str, object_store: ObjectStore, refuse: Callable[[str], str]
) -> None:
    object_store.spoil = lambda method, path: fault
    said = refuse(f"{bucket}/photos")
    assert fault in said and "Check the credentials in the environment" in said
    assert len(object_store.requests) == 2  # one a command


@pytest.mark.usefixtures("fake_network", "website")
def test_a_folder_of_the_web_is_refused_with_the_way_out(
    website: Website, refuse: Callable[[str], str], tmp_path: Path
) -> None:
    write_image(tmp_path / "site/photos/cat/1.png", 1)
    said = refuse(f"{website.url}/photos")
    assert "a folder of the web, which cannot be listed. Give a .csv with the addresses" in said


@pytest.mark.usefixtures("fake_network")
def test_a_table_with_an_address_with_credentials(
    tmp_path: Path, refuse: Callable[[str], str]
) -> None:
    address = f"https://host/a.png?X-Amz-Credential={KEY_ID}&X-Amz-Signature=abc"
    (tmp_path / "a.csv").write_text(f"path,label\n{address},cat\n")
    said = refuse(str(tmp_path / "a.csv"))
    assert "a.csv: Expected an address without credentials" in said


def test_a_table_at_an_address_is_named_by_it(bucket: str) -> None:
    place = Remote(bucket) / "photos.csv"
    remote.write(place, b"path;label;extra\nmissing.png;cat;1\na b.png ;dog;2\n")
    remote.write(Remote(bucket) / "a b.png", b"no image")
    listing = sources.scan(place)
    assert any(note.startswith(f"{place}: columns are separated") for note in listing.notes)
    assert any("another spelling" in note for note in listing.notes)
    assert any("1 of 2 files do not exist" in note for note in listing.notes)
    assert [state is None for state in listing.states] == [False, True]
    remote.write(place, b"path,name\n")
    with pytest.raises(PipelineError, match=re.escape(f"{place}: expected the columns")):
        sources.scan(place)


def test_a_damaged_zip_at_an_address_is_named_by_it(bucket: str) -> None:
    place = Remote(bucket) / "photos.zip"
    remote.write(place, b"no zip")
    with pytest.raises(PipelineError, match=re.escape(f"a zip file at '{place}'")):
        sources.scan(place)


def test_hosts_that_are_dead_leave_the_others_alone(
    website: Website, tmp_path: Path, command: Command, fake_network: FakeEncoder
) -> None:
    write_image(tmp_path / "site/1.png", 1)
    lines = ["path,label", f"{website.url}/1.png,cat", f"{website.url}/2.png,dog",
             "http://127.0.0.1:1/3.png,dog"]  # fmt: skip
    (tmp_path / "a.csv").write_text("\n".join(lines))
    status, result = command("extract", tmp_path / "a.csv", "--store", tmp_path / "s", *FLAGS)
    reasons = {item["path"]: item["reason"] for item in result["errors"]}
    assert status == 0 and result["encoded"] == 1
    assert "connection refused" in reasons["http://127.0.0.1:1/3.png"]
    assert "no such object" in reasons[f"{website.url}/2.png"]


def test_what_proves_nothing_is_read_again(
    website: Website, tmp_path: Path, command: Command, fake_network: FakeEncoder
) -> None:
    write_image(tmp_path / "site/1.png", 1)
    website.headers = lambda headers: headers.pop("Last-Modified", None) and None
    (tmp_path / "a.csv").write_text(f"path,label\n{website.url}/1.png,cat\n")
    arguments = ("extract", tmp_path / "a.csv", "--store", tmp_path / "s", *FLAGS)
    for encoded in (1, 0):
        website.requests.clear()
        assert command(*arguments)[1]["encoded"] == encoded
        assert ("GET", "/1.png") in website.requests
    write_image(tmp_path / "site/1.png", 2)
    assert command(*arguments)[1]["encoded"] == 1


def test_names_that_are_no_paths_are_left_out_and_said(bucket: str, photos: Path) -> None:
    upload(photos, f"{bucket}/photos")
    system = systems.of(Remote(bucket))
    odd = ["cat//odd.png", "cat/../up.png", "/cat/a.png", "../b.png", "s3://bucket/a.png", "."]
    for name in odd:
        system.pipe_file(f"{bucket}/photos/{name}", b"x")
    listing = sources.scan(Remote(bucket) / "photos")
    assert len(listing) == NUM_IMAGES
    assert any("'cat//odd.png' (no path)" in note for note in listing.notes)
    found = walk(Remote(bucket) / "photos")
    assert found.paths == list(listing.paths)
    assert len(found.notes) == 1 and "'/cat/a.png'" in found.notes[0]


def test_a_storage_that_is_lost_is_no_empty_folder(bucket: str, object_store: ObjectStore) -> None:
    object_store.spoil = lambda method, path: "500 InternalError"
    with pytest.raises(StorageError, match="cannot be listed"):
        sources.scan(Remote(bucket) / "photos")


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    remote.forget()
    yield
