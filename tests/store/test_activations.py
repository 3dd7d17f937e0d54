"""Frozen activations in a store: what verify, prune and info make of them."""

import dataclasses
import hashlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fakes import Command, FakeEncoder, Notes, planted_store, write_classes

from pipeline.cli.commands import find
from pipeline.errors import CorruptShardError
from pipeline.store import activations
from pipeline.store.store import Store
from pipeline.system.progress import Silence
from pipeline.verify.store import verify

KEY_DTYPE = "S64"


def how(store: Store, cut: str = "conv4", **changes: Any) -> dict[str, Any]:
    return {activations.FEATURES: {**store.identity.as_json(), **changes}, "boundary": cut}


def add(store: Store, identity: dict[str, Any], keys: list[bytes]) -> Path:
    """Write a shard of activations of some images; return where it is."""
    folder = activations.folder_of(store.boundary_folder, identity)
    before = set(activations.paths(folder))
    values = np.full((len(keys), 2, 2, 3), len(before), "<f4")
    activations.write(folder, identity, np.array(keys, KEY_DTYPE), values)
    (path,) = set(activations.paths(folder)) - before
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = planted_store(tmp_path / "store", {"a": 4, "b": 4})
    made.refresh_view()
    return made


def key(number: int) -> bytes:
    return f"{number:064x}".encode()


def checked_keys(path: Path) -> Any:
    return activations.checked_keys(path, is_checked=lambda path: False)


def break_(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_shard_says_how_it_was_made_and_is_named_by_its_bytes(store: Store) -> None:
    path = add(store, how(store), [key(1), key(2)])
    assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()
    assert checked_keys(path).tolist() == [key(1), key(2)]
    assert add(store, how(store, "conv3"), [key(1)]).parent != path.parent


def test_verify_hashes_activations_and_says_what_to_delete(store: Store) -> None:
    good, bad = add(store, how(store), [key(1)]), add(store, how(store), [key(2)])
    clean = verify(store.path)
    assert (clean["ok"], clean["boundary_shards"], clean["shards"]) == (True, 2, 1)
    assert (
        "2 good shards of frozen activations: every byte is right" in find("verify").text(clean)[0]
    )
    break_(bad)
    found = verify(store.path)
    (problem,) = found["problems"]
    assert not found["ok"] and found["boundary_shards"] == 1
    assert problem["shard"] == bad.stem and str(bad) in problem["problem"]
    assert "Delete that file; finetune" in problem["fix"]
    assert problem["problem"] in " ".join(find("verify").text(found))
    bad.unlink()
    assert verify(store.path)["ok"] and good.exists()


def test_a_shard_in_another_folder_is_a_problem(store: Store) -> None:
    path = add(store, how(store), [key(1)])
    other = add(store, how(store, "conv3"), [key(1)])
    shutil.copy(path, other.parent)
    (problem,) = verify(store.path)["problems"]
    assert "another cut or backbone" in problem["problem"]


def test_a_store_without_activations_has_none_to_tell_of(store: Store, command: Command) -> None:
    result = verify(store.path)
    assert result["ok"] and result["boundary_shards"] == 0
    assert "activations" not in find("verify").text(result)[0]
    status, pruned = command("prune", store.path)
    assert (status, pruned["boundary_dropped"], pruned["boundary_shards"]) == (0, 0, 0)
    assert "activations" not in find("prune").text(pruned)[0]
    assert not store.boundary_folder.exists(), "a look makes nothing"
    status, result = command("info", store.path)
    assert (result["boundary_shards"], result["boundary_bytes"]) == (0, 0)
    assert "activations" not in "\n".join(find("info").text(result))


def test_info_shows_how_large_they_are(store: Store, command: Command) -> None:
    paths = [add(store, how(store), [key(1)]), add(store, how(store, "conv3"), [key(1)])]
    status, result = command("info", store.path)
    assert status == 0 and result["boundary_shards"] == 2
    assert result["boundary_bytes"] == sum(path.stat().st_size for path in paths)
    assert result["bytes"] == sum(path.stat().st_size for path in store.shard_paths())
    assert "boundary/ (safe to delete)" in "\n".join(find("info").text(result))


def test_prune_drops_what_no_image_needs(store: Store, command: Command) -> None:
    kept = add(store, how(store), [key(1), key(99)])
    gone = [add(store, how(store), [key(98), key(99)]), add(store, how(store, "x"), [key(97)])]
    leftover = kept.with_name(".tmp-killed.h5")
    leftover.touch()
    freed = sum(path.stat().st_size for path in gone)
    status, result = command("prune", store.path)
    assert (status, result["dropped"]) == (0, 0)
    assert (result["boundary_dropped"], result["boundary_shards"]) == (2, 1)
    assert result["freed_bytes"] == freed
    assert kept.exists() and not leftover.exists()
    assert not any(path.exists() for path in gone)
    assert not gone[1].parent.exists(), "a folder of nothing"
    assert "2 shards of frozen activations dropped, 1 kept" in find("prune").text(result)[0]
    assert verify(store.path)["ok"]


def test_prune_drops_images_that_left_the_manifest(store: Store, command: Command) -> None:
    early, late = add(store, how(store), [key(0)]), add(store, how(store), [key(7)])
    rows = store.read_manifest()
    store.save_manifest(store.manifest_path, dataclasses.replace(
        rows, paths=rows.paths[:6], labels=rows.labels[:6], splits=rows.splits[:6],
        keys=rows.keys[:6], statuses=rows.statuses[:6],
    ))  # fmt: skip
    _, result = command("prune", store.path)
    assert (result["dropped"], result["boundary_dropped"]) == (2, 1)
    assert early.exists() and not late.exists()


@pytest.mark.parametrize("identity", ["other weights", "a digest", "no object"])
def test_prune_drops_what_is_not_of_this_store(
    store: Store, command: Command, identity: str
) -> None:
    path = add(store, how(store, weights_sha256="1" * 64), [key(1)])
    if identity != "other weights":
        with h5py.File(path, "r+") as file:
            file.attrs["identity"] = "0" * 64 if identity == "a digest" else "[1]"
    _, result = command("prune", store.path)
    assert result["boundary_dropped"] == 1 and not path.exists()


def test_prune_names_a_shard_that_cannot_be_read(store: Store, command: Command) -> None:
    path = add(store, how(store), [key(99)])
    path.write_bytes(path.read_bytes()[:100])
    status, result = command("prune", store.path)
    assert status == 2 and path.exists()
    assert str(path) in result["error"]["message"] and "Delete" in result["error"]["hint"]
    with pytest.raises(CorruptShardError):
        checked_keys(path)


def test_prune_does_not_disturb_a_finetune(store: Store, command: Command) -> None:
    path, folder, silence = add(store, how(store), [key(99)]), store.boundary_folder, Silence()
    with activations.in_use(folder, silence), activations.in_use(folder, silence):
        with activations.filling(folder, silence):
            assert command("prune", store.path)[0] == 2
        status, result = command("prune", store.path)
    assert status == 2 and "finetune" in result["error"]["message"] and path.exists()
    with activations.pruning(folder):
        assert command("prune", store.path)[0] == 2
    assert command("prune", store.path)[0] == 0 and not path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("held", ["filling", "pruning"])
def test_who_waits_for_another_says_so_and_then_goes_on(store: Store, held: str) -> None:
    folder, notes = store.boundary_folder, Notes()
    lock = activations.filling if held == "filling" else activations.in_use
    with lock(folder, notes):
        assert not notes.lines, "nothing to wait for"
    other = {
        "filling": lambda: activations.filling(folder, Silence()),
        "pruning": lambda: activations.pruning(folder),
    }[held]()

    def enter() -> None:
        with lock(folder, notes):
            pass

    with other:
        waiting = threading.Thread(target=enter, daemon=True)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive() and len(notes.lines) == 1
    waiting.join(10)
    assert not waiting.is_alive()
    assert str(folder) in notes.lines[0] and "Waiting for it to end." in notes.lines[0]


def test_a_store_that_is_replaced_loses_its_activations(
    tmp_path: Path, command: Callable[..., Any], fake_network: FakeEncoder
) -> None:
    write_classes(tmp_path / "photos", {"a": 3, "b": 3})
    arguments = ("extract", tmp_path / "photos", "--store", tmp_path / "store", "--weights",
                 "random", "--image-size", 32)  # fmt: skip
    assert command(*arguments)[0] == 0
    store = Store.open(tmp_path / "store")
    path = add(store, how(store), [store.index.keys[0]])
    status, result = command(*arguments, "--seed", 1, "--force")
    assert status == 0, result
    assert not path.exists() and len(Store.open(tmp_path / "store")) == 6
