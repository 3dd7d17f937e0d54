"""The one door to image bytes: what it gives, and that every stage goes through it."""

import errno
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from fakes import Command, FakeEncoder, write_classes, write_image

from pipeline.errors import DecodeError, RunError, StaleFeaturesError, UnreadableImageError
from pipeline.finetune.photos import Photos
from pipeline.images import place, reading
from pipeline.images.manifest import listing_of
from pipeline.images.reading import Content
from pipeline.runs import stitch
from pipeline.runs.run import Run
from pipeline.serving.inputs import listed
from pipeline.store import scan_cache
from pipeline.store.store import Store

FLAGS = ("--weights", "random", "--image-size", 32, "--store", "store")


def test_a_row_is_found_and_read_under_one_name(tmp_path: Path) -> None:
    data = write_image(tmp_path / "a/b.png", 1)
    listing = listing_of(tmp_path, [("a/b.png", "a", ""), ("a/c.png", "a", "")])
    content, found = reading.read(listing, 0), reading.find(listing, 0)
    assert found is not None and content.state is not None
    assert (content.data, content.key) == (data, hashlib.sha256(data).hexdigest())
    assert found.name == reading.name_of(listing, 0) == str(listing.file(0))
    assert found.state == content.state
    assert [reading.is_there(listing, row) for row in (0, 1)] == [True, False]
    assert reading.find(listing, 1) is None
    with pytest.raises(UnreadableImageError, match=r"^cannot be read: No such file or directory$"):
        reading.read(listing, 1)


def test_a_file_that_changes_under_the_reader_has_no_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original = tmp_path / "a.png", place.read_regular
    write_image(path, 1)

    def changed(where: Path, *, limit: int) -> tuple[bytes, os.stat_result]:
        found = original(where, limit=limit)
        write_image(path, 2, size=20)
        return found

    monkeypatch.setattr(place, "read_regular", changed)
    assert reading.Reference(path)().state is None


def test_what_is_wanted_is_decoded_and_a_bad_image_says_why() -> None:
    file = reading.decoded(lambda: Content(b"no image"), lambda key: [""], 8, "squash")
    assert file.key == hashlib.sha256(b"no image").hexdigest()
    assert file.reason and not file.pixels
    file = reading.decoded(lambda: Content(b"no image"), lambda key: [], 8, "squash")
    assert not file.reason, "nothing of it was wanted"

    def gone() -> Content:
        raise DecodeError("gone")

    assert reading.decoded(gone, lambda key: [""], 8, "squash") == reading.ReadFile(reason="gone")


@pytest.mark.parametrize("data", ["photos", ".", "./photos", "photos/"])
def test_an_unchanged_file_is_known_however_its_folder_was_named(
    command: Command, tmp_path: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch,
    data: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scan_cache, "RACY_NS", 0)
    write_classes(tmp_path / "photos", {"cat": 2, "dog": 2})
    if data == ".":
        monkeypatch.chdir(tmp_path / "photos")
    flags = (*FLAGS[:-1], tmp_path / "store")
    assert command("extract", data, *flags)[0] == 0
    monkeypatch.setattr(place, "read_regular", lambda *_, **__: pytest.fail("it is known"))
    assert command("extract", data, *flags)[1]["reused"] == 4


def test_every_stage_reads_images_here(
    command: Command, tmp_path: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.engines.resolve", lambda name, form: ("fake", ""))
    write_classes(tmp_path / "photos", {"cat": 10, "dog": 10})
    assert command("extract", "photos", *FLAGS)[0] == 0
    assert command("train-head", "--store", "store", "--run", "run", "--head", "ridge")[0] == 0

    def unreachable(path: Path, *, limit: int) -> tuple[bytes, os.stat_result]:
        raise OSError(errno.ENETDOWN, "Network is down", str(path))

    monkeypatch.setattr(place, "read_regular", unreachable)
    reason = "cannot be read: Network is down"
    run, store = Run.open(Path("run")), Store.open(Path("store"))
    status, result = command("extract", "photos", "--rehash", *FLAGS)
    assert status == 2 and reason in result["error"]["message"]
    with (
        Photos(run.manifest(), 32, "squash", augment_seed=None) as images,
        pytest.raises(StaleFeaturesError, match=reason),
    ):
        images.batch(np.arange(1), None)
    with pytest.raises(RunError, match="not one can be read"):
        stitch.sample(run, store)
    (image,) = listed("photos/cat/000.png")
    with pytest.raises(UnreadableImageError, match=f"^{reason}$"):
        image.read()
    assert command("verify", "store", "--reencode", 5)[1]["unavailable"] == 5
