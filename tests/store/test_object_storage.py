"""A store at an address: what a folder promises, and what an object storage cannot."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Command, FakeEncoder, write_classes, write_image
from object_store import KEY_ID, SECRET, ObjectStore

import pipeline
from pipeline.cli.main import main
from pipeline.errors import CorruptShardError, StoreError
from pipeline.files import remote
from pipeline.files.location import Remote, locate
from pipeline.files.remote import objects, retries, systems
from pipeline.store import scan_cache, working_copy
from pipeline.store.store import Store
from pipeline.store.working_copy import Room, folder_of

EXTRACT = ("--weights", "random", "--image-size", 32)
# What differs from run to run, or by where a store is.
PASSING = re.compile(
    "bottleneck|fix|images_per_second|manifest|path|provenance|root|run|store|.*seconds"
)
DIGEST = re.compile("[0-9a-f]{64}")
WRITES = ("DELETE", "POST", "PUT")


@pytest.fixture(autouse=True)
def trust_young_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cache, "RACY_NS", 0)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "photos", {"cat": 2, "dog": 2})
    return tmp_path / "photos"


@pytest.fixture
def store(bucket: str) -> str:
    return f"{bucket}/a/features"


def extract(command: Command, data: Path, store: str, *more: object) -> dict[str, Any]:
    status, result = command("extract", data, *EXTRACT, "--store", store, *more)
    assert status == 0, result
    return result


def counts(result: dict[str, Any]) -> tuple[int, int]:
    return result["encoded"], result["reused"]


def names(store: str) -> set[str]:
    """Return what a store keeps in a folder and at an address alike."""
    place = locate(store)
    if isinstance(place, Remote):
        return set(remote.listing(place))
    files = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    return files - {".lock", "features.h5", "scan.sqlite"}


def place_of(store: str, name: str) -> Remote:
    place = locate(store) / name
    assert isinstance(place, Remote)
    return place


def overwrite(store: str, name: str, content: bytes) -> None:
    place = locate(store) / name
    if isinstance(place, Remote):
        remote.write(place, content)
    else:
        place.write_bytes(content)


def shard_of(store: str) -> str:
    """Return the largest shard."""
    shards = Store.open(locate(store)).plain.index.shards
    return f"shards/{shards[0].path.name}"


def plain(result: Any) -> Any:
    """Return a result without what differs from run to run, or by where a store is."""
    if isinstance(result, dict):
        return {key: plain(value) for key, value in result.items() if not PASSING.fullmatch(key)}
    if isinstance(result, list):
        return [plain(item) for item in result if "features.h5" not in str(item)]
    return result


@pytest.fixture
def another_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Go on with other working copies, as on a machine of that name."""

    def switch(name: str) -> None:
        monkeypatch.setenv("PIPELINE_CACHE_DIR", str(tmp_path / name))

    return switch


def life_of(command: Command, data: Path, store: str) -> list[str]:
    """Do with a store what people do; return what came of it, without its name."""
    told = []

    def run(*arguments: object) -> None:
        status, result = command(*arguments)
        text = json.dumps([status, plain(result), sorted(names(store))])
        # A shard says when it was written, so that its digest is another each time.
        told.append(DIGEST.sub("DIGEST", text.replace(store, "STORE")))

    write_classes(data, {"cat": 4, "dog": 4})
    made = ("extract", data, *EXTRACT, "--store", store)
    larger = ("extract", data, *EXTRACT[:2], "--image-size", 64, "--store", store)
    run(*made, "--dry-run")
    run(*made)
    run(*made)  # nothing is new
    run("info", store)
    run(*larger)  # refused
    run(*larger, "--force")
    run(*made, "--force")
    write_image(data / "cat/new.png", 99)
    (data / "dog/000.png").rename(data / "cat/moved.png")
    run(*made, "--views", "flip")
    train = ("train-head", "--store", store, "--head", "logreg", "--min-per-class", 1)
    run(*train, "--run", data.with_name(f"run-{data.name}"))
    overwrite(store, "manifest.csv", b"edited")
    run(*made)  # refused
    run("verify", store, "--repair")
    run(*made)
    overwrite(store, shard_of(store), b"no shard")
    run("verify", store)
    run("verify", store, "--repair")
    run(*made)
    (data / "cat/new.png").unlink()
    run(*made)
    run("prune", store)
    run("verify", store)
    return told


@pytest.mark.slow
def test_a_store_at_an_address_lives_as_one_in_a_folder(
    command: Command, tmp_path: Path, fake_network: FakeEncoder, store: str
) -> None:
    folder = life_of(command, tmp_path / "one", str(tmp_path / "features"))
    address = life_of(command, tmp_path / "two", store)
    for one, other in zip(folder, address, strict=True):
        assert one == other
    assert "[2, " in folder[4] and '[2, {"ok": false' in folder[12]


@pytest.mark.slow
def test_another_machine_encodes_nothing_and_reads_the_same(
    command: Command,
    data: Path,
    fake_network: FakeEncoder,
    store: str,
    another_machine: Callable[[str], None],
) -> None:
    result = extract(command, data, store)
    assert result["store"] == store and result["manifest"] == f"{store}/manifest.csv"
    before, labels, classes = pipeline.load(store)
    kept = names(store)
    assert {name.partition("/")[0] for name in kept} == {
        "encoder", "manifest.csv", "probe.json", "shards", "store.json",
    }  # fmt: skip
    another_machine("other")
    encoded = fake_network.images
    assert counts(extract(command, data, store)) == (0, 4)
    assert fake_network.images == encoded and names(store) == kept
    again = pipeline.load(store)
    np.testing.assert_array_equal(again[0], before)
    assert again[1].tolist() == labels.tolist() and again[2] == classes == ["cat", "dog"]
    copies = [path for path in Path("other").rglob("*") if path.is_file()]
    assert any(path.suffix == ".h5" and path.parent.name == "shards" for path in copies)


@pytest.mark.slow
def test_shards_are_read_in_place_where_no_room_is_for_them(
    command: Command,
    data: Path,
    fake_network: FakeEncoder,
    store: str,
    object_store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIPELINE_CACHE_GB", "0")
    extract(command, data, store)
    write_image(data / "cat/new.png", 99)
    assert counts(extract(command, data, store)) == (1, 4)
    opened = Store.open(locate(store))
    assert not list(opened.path.glob("shards/*.h5"))
    there = opened.read(opened.index.keys)
    assert command("verify", store)[1]["ok"]
    monkeypatch.delenv("PIPELINE_CACHE_GB")
    np.testing.assert_array_equal(Store.open(locate(store)).read(opened.index.keys), there)
    assert len(list(opened.path.glob("shards/*.h5"))) == 2
    # Shards are not fetched again, and not hashed again, by whoever reads them next.
    object_store.requests.clear()
    Store.open(locate(store)).read(opened.index.keys)
    assert object_store.count("GET", ".h5") == 0


def test_shards_of_other_stores_make_room_and_their_own_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PIPELINE_CACHE_GB", "1e-7")  # 100 bytes
    monkeypatch.setattr(working_copy, "_STAYS_FREE", 0.0)
    one, two = (folder_of(Remote(f"s3://bucket/{name}")) for name in ("one", "two"))
    users = one.with_name("one")  # in a folder of stores, which the cache may be
    for folder, name, age in [(one, "shards/a", 2), (one, "views/flip/b", 1), (two, "shards/c", 3),
                              (users, "shards/d", 0)]:  # fmt: skip
        path = folder / f"{name}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(30))
        os.utime(path, (age, age))
    room = Room.of(two)
    assert room.bytes == 70 and not room.take(71)
    assert room.take(20) and room.bytes == 50 and not (one / "views/flip/b.h5").exists()
    assert (one / "shards/a.h5").exists() and room.take(50) and not room.take(1)
    assert sorted(path.name for path in tmp_path.rglob("*.h5")) == ["c.h5", "d.h5"]


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"short", None])
def test_an_object_that_others_changed_is_found_and_made_again(
    command: Command,
    data: Path,
    fake_network: FakeEncoder,
    store: str,
    content: bytes | None,
    another_machine: Callable[[str], None],
) -> None:
    extract(command, data, store)
    name = shard_of(store)
    if content is None:  # a flipped bit of a feature
        whole = bytearray(remote.read(place_of(store, name), limit=1 << 20)[0])
        row = Store.open(locate(store)).read(Store.open(locate(store)).index.keys[:1]).tobytes()
        whole[whole.index(row)] ^= 1
        content = bytes(whole)
    overwrite(store, name, content)
    another_machine("other")
    with pytest.raises(CorruptShardError, match=re.escape(f"{store}/{name}")) as caught:
        pipeline.load(store)
    assert f"pipeline verify {store} --repair" in caught.value.hint
    result = command("verify", store)[1]
    assert not result["ok"] and result["problems"][0]["shard"] == Path(name).stem
    assert f"removed {store}/{name}" in command("verify", store, "--repair")[1]["repaired"]
    assert counts(extract(command, data, store)) == (4, 0)
    assert command("verify", store)[1]["ok"]


@pytest.mark.slow
def test_the_working_copy_is_never_trusted(
    command: Command,
    data: Path,
    fake_network: FakeEncoder,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
    another_machine: Callable[[str], None],
) -> None:
    extract(command, data, store)
    expected = pipeline.load(store)[0]
    copy = Store.open(locate(store)).path
    for path in [path for path in copy.rglob("*") if path.is_file()]:
        path.write_bytes(b"anything")
        if path.suffix == ".h5":
            path.unlink()  # a damaged copy is said to be damaged, as a shard in a folder
        np.testing.assert_array_equal(pipeline.load(store)[0], expected)
    another_machine("other")
    write_image(data / "cat/new.png", 99)
    extract(command, data, store)
    another_machine("copies")
    # A storage that says of every object that it is unchanged.
    state = objects._state
    monkeypatch.setattr(
        objects, "_state", lambda info: state(info)._replace(stamp=f"etag:{'0' * 32}:1")
    )
    assert len(pipeline.load(store)[0]) == 5


@pytest.mark.slow
def test_credentials_that_may_only_read(
    command: Command,
    data: Path,
    fake_network: FakeEncoder,
    store: str,
    object_store: ObjectStore,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_classes(data, {"cat": 6, "dog": 6})
    extract(command, data, store)
    encoded = fake_network.images
    object_store.spoil = lambda method, path: "403 AccessDenied" if method in WRITES else None
    write_image(data / "cat/new.png", 99)
    status, result = command("extract", data, *EXTRACT, "--store", store)
    assert status == 2 and "access is denied" in result["error"]["message"]
    assert fake_network.images == encoded
    assert command("extract", data, *EXTRACT, "--store", store, "--dry-run")[1]["new"] == 1
    for arguments in [
        ("info", store),
        ("verify", store),
        ("train-head", "--store", store, "--head", "logreg", "--run", "runs/a"),
        ("compare", "runs/a"),
    ]:
        assert command(*arguments)[0] == 0
    assert command("prune", store)[0] == command("verify", store, "--repair")[0] == 2
    capsys.readouterr()
    leak_free = ("--split", "leak-free", "--run", "runs/b")
    assert main(["train-head", "--store", store, "--head", "majority", *leak_free]) == 0
    assert f"near duplicates are not kept in {store!r}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("wanted", ["bucket", "credentials", "storage", "store"])
def test_what_cannot_be_used_is_one_line(
    command: Command,
    data: Path,
    fake_network: FakeEncoder,
    store: str,
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(systems, "_made", {})
    monkeypatch.setattr(retries, "_known", {})
    if wanted == "bucket":
        store = "s3://no-such-bucket/store"
    elif wanted == "storage":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    elif wanted == "credentials":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    reasons = {
        "bucket": "there is no such bucket",
        "credentials": "no complete credentials",
        "storage": "connection refused",
    }
    status, result = command("train-head", "--store", store, "--run", "runs/a")
    assert status == 2 and store in result["error"]["message"]
    if wanted == "store":
        assert result["error"]["message"] == f"There is no feature store at {store!r}."
        return
    status, result = command("extract", data, *EXTRACT, "--store", store)
    assert status == 2 and reasons[wanted] in result["error"]["message"].lower()
    assert fake_network.images == 0 and not names_of_copies()


def names_of_copies() -> list[str]:
    return [path.name for path in Path("copies").rglob("*") if path.is_file()]


def test_a_place_that_shows_half_of_an_object_holds_no_store(command: Command, data: Path) -> None:
    status, result = command("extract", data, *EXTRACT, "--store", "sftp://host/store")
    assert status == 2 and "takes objects whole" in result["error"]["message"]


@pytest.mark.slow
def test_what_lies_at_an_address_is_not_taken_for_a_store(
    command: Command, data: Path, fake_network: FakeEncoder, store: str
) -> None:
    overwrite(store, "letters/one.txt", b"dear")
    status, result = command("extract", data, *EXTRACT, "--store", store)
    assert status == 2 and "'letters'" in result["error"]["message"]
    remote.delete(place_of(store, "letters/one.txt"))
    extract(command, data, store)
    overwrite(store, "letters/one.txt", b"dear")
    other = ("--weights", "random", "--image-size", 64, "--store", store, "--force")
    status, result = command("extract", data, *other)
    assert status == 2 and "'letters'" in result["error"]["message"]
    assert len(pipeline.load(store)[0]) == 4


@pytest.mark.slow
def test_a_storage_that_fails_now_and_then_is_asked_again(
    command: Command, data: Path, fake_network: FakeEncoder, store: str, object_store: ObjectStore
) -> None:
    faults = ["503 SlowDown", None, None, "cut", None, None, None]

    def spoil(method: str, path: str) -> str | None:
        return faults[len(object_store.requests) % len(faults)]

    object_store.spoil = spoil
    extract(command, data, store)
    assert command("verify", store)[1]["ok"] and len(pipeline.load(store)[0]) == 4


@pytest.mark.slow
def test_nothing_is_lost_where_a_storage_stops_to_answer(
    command: Command, data: Path, fake_network: FakeEncoder, store: str, object_store: ObjectStore
) -> None:
    broken = False

    def spoil(method: str, path: str) -> str | None:
        nonlocal broken
        broken = broken or (method == "PUT" and path.endswith("manifest.csv"))
        return "503 SlowDown" if broken else None

    object_store.spoil = spoil
    status, result = command("extract", data, *EXTRACT, "--store", store)
    assert status == 2 and "503 SlowDown" in result["error"]["message"]
    object_store.reset()
    assert counts(extract(command, data, store)) == (0, 4)
    assert command("verify", store)[1]["ok"]


@pytest.mark.slow
def test_a_listing_that_is_behind_costs_work_and_no_row(
    command: Command,
    data: Path,
    fake_network: FakeEncoder,
    store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extract(command, data, store)
    expected = pipeline.load(store)[0]
    listing = remote.listing

    def behind(place: Remote) -> dict[str, Any]:
        return {name: state for name, state in listing(place).items() if place.name != "shards"}

    with monkeypatch.context() as late:
        late.setattr(remote, "listing", behind)
        with pytest.raises(StoreError, match="no features for 4 of 4 images"):
            pipeline.load(store)
    # The shard of the second extract is all that the third sees: a shard more, and the same rows.
    extract(command, data, store)
    np.testing.assert_array_equal(pipeline.load(store)[0], expected)


def fork(work: Callable[[], object]) -> int:
    """Run something in another process; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            status = work()
            os._exit(status if isinstance(status, int) else 0)
        finally:
            os._exit(99)
    return child


@pytest.mark.slow
def test_an_upload_may_end_before_any_write(
    command: Command,
    data: Path,
    fake_network: FakeEncoder,
    store: str,
    object_store: ObjectStore,
    another_machine: Callable[[str], None],
) -> None:
    extract(command, data, f"{store}-0")
    expected, kept = pipeline.load(f"{store}-0")[0], len(names(f"{store}-0"))
    number, status = 0, 2
    while status:
        number, writes = number + 1, 0

        def spoil(method: str, path: str, last: int = number) -> str | None:
            nonlocal writes
            writes += method in WRITES
            return "403 AccessDenied" if method in WRITES and writes >= last else None

        object_store.spoil = spoil
        status, _ = command("extract", data, *EXTRACT, "--store", f"{store}-{number}")
        object_store.reset()
        if number % 2:
            another_machine(f"other-{number}")
        extract(command, data, f"{store}-{number}")
        np.testing.assert_array_equal(pipeline.load(f"{store}-{number}")[0], expected)
        # The mark of a writer that was cut off stays until the next one has ended.
        assert len(names(f"{store}-{number}")) == kept
    assert number > 8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_killed_while_it_writes_loses_nothing(
    command: Command, data: Path, fake_network: FakeEncoder, store: str, object_store: ObjectStore
) -> None:
    child = 0

    def spoil(method: str, path: str) -> str | None:
        if method == "PUT" and path.endswith("manifest.csv") and child:
            os.kill(child, signal.SIGKILL)
            return "503 Killed"
        return None

    object_store.spoil = spoil
    child = fork(lambda: main(["extract", str(data), *map(str, EXTRACT), "--store", store]))
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    child = 0
    assert "manifest.csv" not in names(store) and ".writing" in names(store)
    assert counts(extract(command, data, store)) == (0, 4)
    assert len(pipeline.load(store)[0]) == 4 and ".writing" not in names(store)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_of_two_writers_the_second_to_save_is_told_and_goes_on(
    command: Command,
    data: Path,
    fake_network: FakeEncoder,
    store: str,
    object_store: ObjectStore,
    another_machine: Callable[[str], None],
    tmp_path: Path,
) -> None:
    extract(command, data, store)
    for name, seed in (("one", 50), ("two", 60)):
        shutil.copytree(data, tmp_path / name)
        write_image(tmp_path / name / "cat/new.png", seed)

    def slow() -> int:
        """Extract elsewhere; what it says is kept."""
        another_machine("other")
        with Path("said").open("w") as said, redirect_stderr(said):
            return main(["extract", "one", *map(str, EXTRACT), "--store", store])

    done: list[int] = []

    def spoil(method: str, path: str) -> str | None:
        # The first shard of the slow one waits until this process has done all of its work.
        if method == "PUT" and path.endswith(".h5") and "/shards/" in path and not done:
            done.append(0)
            assert main(["extract", "two", *map(str, EXTRACT), "--store", store, "--quiet"]) == 0
        return None

    object_store.spoil = spoil
    child = fork(slow)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    said = Path("said").read_text()
    assert "Another process wrote into the store" in said and "Traceback" not in said
    assert counts(extract(command, tmp_path / "one", store)) == (0, 5)
    assert command("verify", store)[1] | {"shards": 3} == command("verify", store)[1]
    assert len(Store.open(locate(store))) == 6


@pytest.mark.slow
def test_runs_find_their_store_and_its_network(
    command: Command, data: Path, tiny: None, store: str, another_machine: Callable[[str], None]
) -> None:
    extract(command, data, store)
    train = ("train-head", "--store", store, "--head", "linear", "--min-per-class", 1)
    assert command(*train, "--run", "runs/a")[0] == 0
    for machine, arguments in [
        ("one", ("predict", "runs/a", data / "cat/000.png")),
        ("two", ("finetune", "runs/a", "--epochs", 1)),
    ]:
        another_machine(machine)
        status, result = command(*arguments)
        assert status == 0, result
    assert {name.partition("/")[0] for name in names(store)} == {
        "encoder", "manifest.csv", "probe.json", "shards", "store.json",
    }  # fmt: skip


@pytest.mark.slow
def test_who_writes_meanwhile_is_named(
    command: Command, data: Path, fake_network: FakeEncoder, store: str
) -> None:
    extract(command, data, store)
    one, two = (Store.open(locate(store)) for _ in range(2))
    overwrite(store, ".writing", json.dumps({"host": "alpha", "process": 7}).encode())
    one.add_view("flip", "scheme")
    with pytest.raises(StoreError, match="process 7 on alpha") as caught:
        two.add_view("other", "scheme")
    assert "Run the same command again" in caught.value.hint
    assert Store.unchecked(locate(store)).record.views == {"flip": "scheme"}


@pytest.mark.slow
def test_credentials_are_nowhere(
    command: Command,
    data: Path,
    fake_network: FakeEncoder,
    store: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_classes(data, {"cat": 6, "dog": 6})
    extract(command, data, store)
    assert main(["train-head", "--store", store, "--head", "majority", "--run", "runs/a"]) == 0
    assert json.loads(Path("runs/a/run.json").read_text())["inputs"]["store"] == store
    said = [*capsys.readouterr()]
    said += [path.read_bytes().decode("latin1") for path in tmp_path.rglob("*") if path.is_file()]
    said += [
        remote.read(place_of(store, name), limit=1 << 24)[0].decode("latin1")
        for name in names(store)
    ]
    assert not any(secret in text for text in said for secret in (KEY_ID, SECRET))
