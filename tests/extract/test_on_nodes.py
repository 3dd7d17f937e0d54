"""Nodes in trouble, without a cluster: what costs a part, what ends the run, and who is named."""

import errno
import io
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import IDENTITY, FakeEncoder, Notes, planted_store, write_image

from pipeline.engines import probing
from pipeline.errors import (
    ClusterError,
    DecodeError,
    EngineUnavailableError,
    StaleFeaturesError,
    StorageError,
    StoreError,
)
from pipeline.extract import node, on_ray
from pipeline.extract.books import Books
from pipeline.extract.ledger import Ledger
from pipeline.extract.messages import (
    Answer,
    Decoded,
    Job,
    Making,
    Part,
    Reading,
    Refusal,
    packed,
    unpacked,
)
from pipeline.extract.on_ray import Pool
from pipeline.images import reading, sources
from pipeline.images.manifest import listing_of
from pipeline.images.reading import ReadFile
from pipeline.runs import backbone as run_backbone
from pipeline.store.scan_cache import ScanCache
from pipeline.system import nodes
from pipeline.system.nodes import Node


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, "No space left on device", "shard.h5")


@contextmanager
def books(
    folder: Path, patch: pytest.MonkeyPatch, alive: tuple[str, ...]
) -> Iterator[tuple[Books, Notes]]:
    """Books of three images of a store, and what is said; nodes have two processors each."""
    store = planted_store(folder / "store", {"ant": 2, "bee": 1})
    notes, ledger = (
        Notes(),
        Ledger(store.read_manifest(store.manifest_path), store, ScanCache(None)),
    )
    patch.setattr(nodes, "patience", lambda ray: None)
    patch.setattr(nodes, "alive", lambda ray: [Node(name, name, 2, 0) for name in alive])
    with store.scan_cache() as cache:
        yield Books(None, {"num_cpus": 1}, ledger, cache, store.storage, {}, notes, notes), notes  # type: ignore[arg-type]


def answer(index: int, name: str, shard: str = "") -> Answer:
    """What a node answers that read and stored an image."""
    return Answer(
        files=[(index, ReadFile(f"{index:064x}", None, {}, ""))],
        shards=[("", shard)] if shard else [],
        reading=Reading(name, 1, 0, 1, 0.5),
        making=Making(name, 1, 1, 0, 1, 0.5, 0.1, "keras", "CPU"),
    )


def test_trouble_of_one_node_costs_the_part_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with books(tmp_path, monkeypatch, ("a", "b")) as (found, notes):
        for _ in range(8):
            found.enter(Answer(refusal=Refusal.of(FULL, "a")))
        found.enter(answer(0, "b"))
        assert found.ledger.pending == [1, 2]
        trouble = "The node a: No space left on device (shard.h5)."
        assert notes.lines == [f"Note: {trouble} Its images are tried again later."]
        assert (found.trouble, found.work["b"].cpus) == (trouble, 2)


def test_trouble_of_every_node_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with books(tmp_path, monkeypatch, ("a", "b")) as (found, _):
        for name in "ababa":
            found.enter(Answer(refusal=Refusal.of(FULL, name)))
        found.enter(answer(0, "b"))
        for _ in range(2):
            found.enter(Answer(refusal=Refusal.of(FULL, "b")))
        with pytest.raises(ClusterError, match="The node b: No space left"):
            found.enter(Answer(refusal=Refusal.of(FULL, "b")))


def test_a_node_that_is_not_what_is_asked_for_ends_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        books(tmp_path, monkeypatch, ("a", "b")) as (found, _),
        pytest.raises(StaleFeaturesError, match="The node a: Other features"),
    ):
        found.enter(Answer(refusal=Refusal.of(StaleFeaturesError("Other features."), "a")))


def test_a_shard_that_is_not_to_be_seen_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with books(tmp_path, monkeypatch, ("a",)) as (found, _):
        found.enter(answer(0, "a", shard="ab" * 32))
        assert found.ledger.pending == [1, 2]


def test_rounds_that_do_nothing_end_a_run_and_the_first_images_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of them where nodes are in trouble that may pass, one where Ray gave up."""
    for said, expected in (("", 3), ("OOM.", 1)):
        with books(tmp_path / str(expected), monkeypatch, ("a", "b")) as (found, notes):
            rounds: list[int] = []

            def fail(*_: object, made: list[int] = rounds, text: str = said) -> str:
                made.append(1)
                return text

            monkeypatch.setattr(on_ray, "_round", fail)
            monkeypatch.setattr(on_ray, "_told", lambda *_: None)
            found.trouble = "Full."
            with pytest.raises(
                ClusterError, match=r"3 images: 'ant/0000.png', 'ant/0001"
            ) as caught:
                on_ray._all_rounds(Pool(1, 2), 8, 2, found, None, lambda: None)  # type: ignore[arg-type]
            assert (said or "Full.").rstrip(".") in str(caught.value)
            assert len(rounds) == expected and "take it out" in caught.value.hint
            assert all("done again" in line for line in notes.lines)


def test_trouble_that_nothing_comes_after_ends_the_run_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node that could go on answers nothing, since something else holds it."""
    with books(tmp_path, monkeypatch, ("a", "b")) as (found, _):
        monkeypatch.setattr(nodes, "patience", lambda ray: 60.0)
        for _ in range(8):
            found.enter(Answer(refusal=Refusal.of(FULL, "a")))
        monkeypatch.setattr(nodes, "patience", lambda ray: 0.0)
        with pytest.raises(ClusterError, match="The node a: No space left"):
            found.enter(Answer(refusal=Refusal.of(FULL, "a")))


@pytest.mark.parametrize("changed", [False, True])
def test_a_packed_file_is_the_same_to_nodes_that_call_it_by_another_inode(
    changed: bool, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name in ("cat/1.png", "dog/2.png"):
            (tmp_path / "one.png").write_bytes(name.encode())
            file.add(tmp_path / "one.png", name)
    listing = sources.scan(tmp_path / "a.tar")
    sent = on_ray._sent(listing, [0, 1])
    times = (tmp_path / "a.tar").stat()
    shutil.copy(tmp_path / "a.tar", tmp_path / "b.tar")
    (tmp_path / "b.tar").replace(tmp_path / "a.tar")
    os.utime(tmp_path / "a.tar", ns=(times.st_atime_ns, times.st_mtime_ns + changed))
    found = reading.reference(sent, 0)
    if changed:
        with pytest.raises(DecodeError, match="changed since it was listed"):
            found()
    else:
        assert found().data == b"cat/1.png"


def test_images_are_not_bad_where_a_file_system_went_away(
    tmp_path: Path, alone: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    write_image(tmp_path / "photos/1.png", 1)
    (tmp_path / "photos/2.png").touch()
    listing = listing_of(tmp_path / "photos", [(f"{n}.png", "cat", "") for n in (1, 2)])
    part = packed(Part(listing, [0, 1]))
    known = replace(job(tmp_path / "none"), sight=listing)
    monkeypatch.setattr(node, "_stored", lambda _: {"": np.zeros(0, "S64")})
    monkeypatch.setattr(node.time, "time", lambda: 0.0, raising=False)
    monkeypatch.setattr(node.time, "monotonic", lambda: 0.0, raising=False)

    def decoded() -> Decoded:
        table = node.decode({node.PART: [SimpleNamespace(as_py=lambda: part)]}, job=known)
        found: Decoded = unpacked(table[node.PART][0].as_py())
        return found

    monkeypatch.setattr(node.Store, "exists", lambda _: True)
    monkeypatch.setattr(node.Store, "unchecked", lambda _: SimpleNamespace(identity=IDENTITY))
    assert decoded().refusal is None
    shutil.rmtree(tmp_path / "photos")
    refusal = decoded().refusal
    assert refusal is not None and not refusal.is_final and "1.png" in refusal.message


def job(store: Path, **more: Any) -> Job:
    return Job(
        number="1", store=store, identity=IDENTITY, views=("",), engine="auto", batch_size=1,
        threads=1, cores=1, probe=None, sight=None, **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let this process be a node; return the pauses that it makes."""
    pauses: list[float] = []
    monkeypatch.setattr(nodes, "here", lambda: "a")
    monkeypatch.setattr(node, "time", SimpleNamespace(sleep=pauses.append))
    return pauses


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), False),
        (MemoryError("none left"), False),
        (StorageError("The storage is out of reach."), False),
        (ClusterError("Expected the store."), True),
        (caused(StoreError("store.json cannot be read."), OSError(errno.EIO, "")), False),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_a_node_may_get_over_is_told_from_what_it_may_not(
    error: Exception, is_final: bool, alone: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(node, "_stored", failing(error))
    table = node.decode({node.PART: []}, job=job(Path("none")))
    refusal = unpacked(table[node.PART][0].as_py()).refusal
    assert (refusal.is_final, refusal.node) == (is_final, "a")
    assert alone == ([] if is_final else [node._PAUSE])


@pytest.mark.parametrize("is_final", [False, True])
def test_an_actor_that_was_in_trouble_tries_again(
    is_final: bool, tmp_path: Path, alone: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    planted_store(tmp_path / "store", {"ant": 2})
    monkeypatch.setattr(probing, "check", lambda *_: ())
    monkeypatch.setattr(node, "require_sight", failing(ClusterError("None.") if is_final else FULL))
    monkeypatch.setattr(node, "encoder_of", lambda _: FakeEncoder())
    actor = node.EncodingActor(job(tmp_path / "store"))
    monkeypatch.setattr(node, "require_sight", lambda _: None)
    monkeypatch.setattr(actor, "_answer", lambda *_: Answer())
    pixels = np.zeros(0, np.uint8).tobytes()
    made = actor(pa.table({node.PART: [packed(Decoded())], node._PIXELS: [pixels]}))
    refusal = unpacked(made[node.ANSWER][0].as_py()).refusal
    assert (refusal is not None) == is_final


def test_an_actor_that_holds_a_gpu_and_does_not_use_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_store(tmp_path / "store", {"ant": 2})
    why = "the fastest on a processor; Keras does not see the GPU that is there"
    monkeypatch.setattr(run_backbone, "of_store", lambda *_: None)
    monkeypatch.setattr(node.engines, "resolve", lambda *_: ("openvino", why))
    monkeypatch.setattr(node.engines, "create", lambda *_, **__: FakeEncoder())
    with pytest.raises(EngineUnavailableError, match=f"{why}.*on CPU"):
        node.encoder_of(replace(job(tmp_path / "store"), cores=None))


def test_files_that_every_process_reads_from_the_start_are_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as file:
        for number in range(2):
            image = write_image(tmp_path / "one.png", number)
            member = tarfile.TarInfo(f"cat/{number}.png")
            member.size = len(image)
            file.addfile(member, io.BytesIO(image))
    notes = Notes()
    on_ray._note_packed(listing_of(tmp_path, [("one.png", "cat", "")]), notes)
    assert notes.lines == []
    on_ray._note_packed(listing_of(tmp_path, [("a.tar.gz/cat/0.png", "cat", "")]), notes)
    (line,) = notes.lines
    assert line.endswith(f"at the front of these, 1: {str(tmp_path / 'a.tar.gz')!r}")


def test_nodes_are_asked_for_an_image_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with books(tmp_path, monkeypatch, ("a",)) as (found, _):
        write_image(tmp_path / "store/ant/0001.png", 0)
        assert on_ray._seen(found.ledger) == 1
