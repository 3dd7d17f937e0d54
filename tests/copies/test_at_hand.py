"""Image files that are not asked for: those nobody saw, and those of a storage that is lost."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import Command, Notes, planted_store, write_image

from pipeline.copies.distinct import distinct_images
from pipeline.copies.kept import near_duplicates
from pipeline.copies.photos import read_photos
from pipeline.errors import ConfigError, PipelineError, StorageError
from pipeline.images import place
from pipeline.pages.thumbnails import pictures
from pipeline.store.path_keys import key_of_path
from pipeline.store.store import Store

COUNTS = {"ant": 300, "bee": 300}
HOST = "https://photos.invalid"
LOST = StorageError("photos.invalid: 16 requests in a row failed.", is_lost=True)
ABSENT = ConfigError("Reading from 'https' needs fsspec, which is not installed.")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store whose images are at an address, but for one."""
    store = planted_store(tmp_path / "store", COUNTS)
    rows = store.read_manifest()
    write_image(tmp_path / "store" / rows.paths[0], 1)
    paths = [rows.paths[0], *(f"{HOST}/{path}" for path in rows.paths[1:])]
    store.save_manifest(store.manifest_path, replace(rows, paths=paths))
    return store


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[PipelineError], list[str]]:
    """Let every question to an address fail in one way; return the list of what was asked."""

    def fail_with(error: PipelineError) -> list[str]:
        names: list[str] = []

        def refuse(name: str, *_: object, **__: object) -> None:
            names.append(str(name))
            raise error

        monkeypatch.setattr(place, "_read_remote", refuse)
        monkeypatch.setattr(place.remote, "look_up", lambda places: list(map(refuse, places)))
        monkeypatch.setattr(place.remote, "state_of", refuse)
        return names

    return fail_with


@pytest.mark.parametrize("error", [LOST, ABSENT])
def test_a_storage_that_is_lost_is_asked_no_more_and_its_images_are_missing(
    store: Store, asked: Callable[[PipelineError], list[str]], error: PipelineError
) -> None:
    names = asked(error)
    rows = store.read_manifest()
    photos = read_photos(distinct_images(store, rows), Notes())
    assert (photos.missing, photos.unseen, photos.lost) == (600, 0, error.message)
    assert len(names) < 200  # those that threads were at, of 599
    names.clear()
    made = pictures(rows, range(600), side=32, budget=60_000)
    assert made.missing[error.message] == 599 and len(names) < 200
    names.clear()
    reporter = Notes()
    found = near_duplicates(store, rows, reporter)
    assert found.threshold.compared_by == "features" and len(names) == 1
    (note,) = [line for line in reporter.lines if line.startswith("Note: ")]
    assert note.endswith(f"not at hand: {error.message}")


def test_one_image_that_a_storage_refuses_is_missing_alone(
    store: Store, asked: Callable[[PipelineError], list[str]]
) -> None:
    names = asked(StorageError("'x' cannot be read.", reason="access is denied"))
    photos = read_photos(distinct_images(store, store.read_manifest()), Notes())
    assert (photos.missing, photos.lost, len(names)) == (600, "", 599)


@pytest.mark.parametrize("is_remote", [True, False])
def test_images_that_nobody_saw_are_not_asked_for(
    tmp_path: Path,
    command: Command,
    asked: Callable[[PipelineError], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    is_remote: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    names = asked(LOST)
    np.save("x.npy", np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32))
    base = f"{HOST}/" if is_remote else ""
    lines = ["path,label", *(f"{base}{row}.png,{'ab'[row % 2]}" for row in range(60))]
    Path("x.csv").write_text("\n".join(lines) + "\n")
    assert command("import-features", "x.npy")[0] == 0
    store = Store.open(tmp_path / "stores/x")
    rows = store.read_manifest()
    assert rows.keys[0].decode() == key_of_path(f"{base}0.png")
    write_image(tmp_path / "1.png", 1)  # came later, and is another image to the store
    train = ("train-head", "--store", "stores/x", "--head", "majority", "--run", "run")
    assert command(*train, "--split", "leak-free")[0] == 0
    status, result = command("audit", "stores/x", "--run", "run")
    assert (status, names) == (0, [])
    assert "60 image files of 60 are not at" in result["notes"]["quality"]
    assert "not at hand when features were imported: 60" in result["notes"]["quality"]
    assert near_duplicates(store, rows, Notes()).absent == 60
