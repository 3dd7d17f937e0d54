"""Objects at addresses: states, retries, what errors mean, and copies on this machine."""

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from object_store import ObjectStore, Website

from pipeline.errors import ConfigError, StorageError
from pipeline.files import remote
from pipeline.files.location import Remote
from pipeline.files.regular import UnfitFileError
from pipeline.files.remote import copies, known, refusals, retries, systems
from pipeline.files.state import FileState

LIMIT = 1 << 20


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget clients, and what is known of storages."""
    monkeypatch.setattr(systems, "_made", {})
    monkeypatch.setattr(retries, "_known", {})
    monkeypatch.setattr(known, "_known", {})


def anew(place: Remote) -> Path:
    remote.forget()
    return remote.local_copy(place)


@pytest.mark.slow
def test_objects_are_written_listed_read_and_deleted(bucket: str, tmp_path: Path) -> None:
    root = Remote(bucket) / "photos"
    for name in ("b/2.png", "a/1.png", "a//odd.png", "a/what?#[1]*.png"):
        remote.write(Remote(f"{root}/{name}"), name.encode())
    remote.write(Remote(f"{root}s/other.png"), b"beside")
    systems.of(root).pipe_file(f"{root}/a/", b"")  # a folder, as some tools make them
    (tmp_path / "file").write_bytes(b"12345")
    remote.upload(Remote(f"{root}/c.bin"), tmp_path / "file")
    found = remote.listing(root)
    assert list(found) == sorted(found)
    assert set(found) == {"b/2.png", "a/1.png", "a//odd.png", "a/what?#[1]*.png", "c.bin"}
    for name, state in found.items():
        place = Remote(f"{root}/{name}")
        assert remote.state(place) == state
        assert remote.read(place, limit=LIMIT)[1] == state
    assert remote.read_range(Remote(f"{root}/c.bin"), 1, 3) == b"234"
    assert remote.is_folder(root) and not remote.is_folder(Remote(f"{root}/c.bin"))
    remote.delete(Remote(f"{root}/c.bin"))
    remote.delete(Remote(f"{root}/c.bin"))
    assert remote.state(Remote(f"{root}/c.bin")) is None
    assert remote.listing(Remote(bucket) / "nothing") == {}
    with pytest.raises(FileNotFoundError):
        remote.read(Remote(f"{root}/c.bin"), limit=LIMIT)
    with pytest.raises(UnfitFileError, match="too large: 7 bytes"):
        remote.read(root / "a/1.png", limit=6)


def test_a_known_object_is_one_request_and_an_edited_one_is_seen(
    object_store: ObjectStore, bucket: str
) -> None:
    place = Remote(bucket) / "a.png"
    remote.write(place, b"one")
    told = remote.listing(Remote(bucket))["a.png"]
    object_store.requests.clear()
    assert remote.read(place, limit=LIMIT, known=told) == (b"one", told)
    assert [method for method, _ in object_store.requests] == ["GET"]
    remote.write(place, b"two")
    data, state = remote.read(place, limit=LIMIT, known=told)
    assert data == b"two" and state == remote.state(place) != told


def test_an_etag_that_is_no_digest_counts_while_it_stays(
    object_store: ObjectStore, bucket: str
) -> None:
    place = Remote(bucket) / "big"
    system = systems.of(place)
    data = os.urandom(11 << 20)
    system.pipe_file(place.url, data, chunksize=5 << 20)  # in parts
    state = remote.state(place)
    assert state is not None and "-" in state.stamp
    assert remote.read(place, limit=16 << 20, known=state) == (data, state)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503 SlowDown", "500 InternalError", "429 TooMany", "cut"])
def test_what_passes_is_tried_again(fault: str, object_store: ObjectStore, bucket: str) -> None:
    place = Remote(bucket) / "a.png"
    remote.write(place, b"x" * 1000)
    told = remote.state(place)
    seen = Counter[str]()

    def spoil(method: str, path: str) -> str | None:
        seen[path] += 1
        return fault if seen[path] < 4 else None

    object_store.spoil = spoil
    assert remote.read(place, limit=LIMIT, known=told)[0] == b"x" * 1000
    assert object_store.count("GET", "a.png") >= 4


@pytest.mark.parametrize(
    ("fault", "reason", "hint"),
    [
        ("403 AccessDenied", "access is denied (403 AccessDenied)", "credentials"),
        ("403 SignatureDoesNotMatch", "the credentials are not accepted", "credentials"),
        ("400 ExpiredToken", "the credentials are not accepted", "credentials"),
        ("404 NoSuchBucket", "there is no such bucket", "address"),
        ("400 Odd", "the storage refuses (400 Odd)", "address"),
    ],
)
def test_what_is_final_is_said_at_once(
    fault: str, reason: str, hint: str, object_store: ObjectStore, bucket: str
) -> None:
    object_store.spoil = lambda method, path: fault
    with pytest.raises(StorageError) as error:
        remote.listing(Remote(bucket) / "photos")
    assert reason in error.value.message and f"{bucket}/photos" in error.value.message
    assert hint in error.value.hint and error.value.__context__ is None
    assert len(object_store.requests) == 1


@pytest.mark.slow
def test_a_storage_that_stays_silent_is_given_up(object_store: ObjectStore, bucket: str) -> None:
    object_store.spoil = lambda method, path: "503 SlowDown"
    with pytest.raises(StorageError, match=r"busy or fails \(503\)") as error:
        remote.state(Remote(bucket) / "a.png")
    assert not error.value.is_lost and 2 < len(object_store.requests) < 10
    for _ in range(retries.LOST_AFTER - 1):
        with pytest.raises(StorageError) as error:
            remote.state(Remote(bucket) / "a.png")
    assert error.value.is_lost and "16 requests in a row failed" in error.value.message
    # Nobody waits any longer, and an answer makes good for it.
    object_store.requests.clear()
    with pytest.raises(StorageError):
        remote.state(Remote(bucket) / "a.png")
    assert len(object_store.requests) == 1
    object_store.reset()
    assert remote.state(Remote(bucket) / "a.png") is None
    object_store.spoil = lambda method, path: "503 SlowDown"
    with pytest.raises(StorageError) as error:
        remote.state(Remote(bucket) / "a.png")
    assert not error.value.is_lost


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:1/a.png", "connection refused"),
        ("http://no-such-host.invalid/a.png", "the name 'no-such-host.invalid' is not known"),
    ],
)
def test_a_host_that_is_none_is_said_at_once(
    address: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PAUSE", 0)
    with pytest.raises(StorageError, match=reason):
        remote.state(Remote(address))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh", "object_store")
def test_a_reason_outlives_that_another_error_is_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that comes from another thread is raised again, which takes its context."""
    monkeypatch.setattr(retries, "PAUSE", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    try:
        raise KeyError
    except KeyError:
        with pytest.raises(StorageError, match="connection refused"):
            remote.state(Remote("s3://bucket/a.png"))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_a_host_that_does_not_answer_in_time(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systems, "_READ_SECONDS", 0.05)
    monkeypatch.setattr(systems, "_made", {})
    monkeypatch.setattr(retries, "_known", {})
    object_store.spoil = lambda method, path: "hang"
    with pytest.raises(StorageError, match="no answer in time"):
        remote.state(Remote(bucket) / "a.png")


@pytest.mark.usefixtures("fresh")
def test_without_credentials_the_way_to_give_them_is_said(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StorageError, match="no complete credentials") as error:
        remote.listing(Remote("s3://bucket/photos"))
    assert "FSSPEC_S3_ANON" in error.value.hint and not object_store.requests


@pytest.mark.parametrize(
    ("address", "message", "hint"),
    [
        ("gs://bucket/a", "needs gcsfs, which is not installed", "pip install gcsfs"),
        ("abfs://bucket/a", "needs adlfs", "pip install adlfs"),
        ("odd://bucket/a", "scheme 'odd' is not known", "Correct it"),
        ("zip://bucket/a", "Expected an address of a storage", "such as s3://"),
    ],
)
def test_a_scheme_that_nothing_speaks(address: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        remote.state(Remote(address))
    assert hint in error.value.hint and address in error.value.message


@pytest.mark.slow
def test_many_threads_share_a_storage(bucket: str) -> None:
    places = [Remote(bucket) / f"{number}.png" for number in range(32)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda place: remote.write(place, place.name.encode()), places))
        read = list(pool.map(lambda place: remote.read(place, limit=LIMIT)[0], places))
    assert read == [place.name.encode() for place in places]


def test_a_forked_process_reads_on_its_own(bucket: str) -> None:
    place = Remote(bucket) / "a.png"
    remote.write(place, b"one")
    child = os.fork()
    if not child:
        try:
            status = remote.read(place, limit=LIMIT)[0] != b"one"
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert remote.read(place, limit=LIMIT)[0] == b"one"


def test_a_copy_is_fetched_once_for_each_state(object_store: ObjectStore, bucket: str) -> None:
    place = Remote(bucket) / "photos.tar.gz"
    remote.write(place, b"one")
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: remote.local_copy(place), range(16)))
    assert len(paths) == 1 and object_store.count("GET", "photos.tar.gz") == 1
    path = paths.pop()
    assert path.name.endswith(".tar.gz") and path.read_bytes() == b"one"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    remote.write(place, b"three")
    assert remote.local_copy(place) == path  # for a minute
    assert anew(place).read_bytes() == b"three"
    assert len(all_copies()) == 2
    with pytest.raises(FileNotFoundError):
        remote.local_copy(Remote(bucket) / "none.zip")


@pytest.mark.slow
def test_a_copy_that_is_cut_or_changes_meanwhile_does_not_count(
    object_store: ObjectStore, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "_PIECE", 100)
    place = Remote(bucket) / "photos.zip"
    old, new = os.urandom(1000), os.urandom(1000)
    remote.write(place, old)
    seen = Counter[str]()
    edited = threading.Event()

    def spoil(method: str, path: str) -> str | None:
        seen[method] += 1
        if method == "GET" and seen["GET"] == 5 and not edited.is_set():
            edited.set()
            object_store.reset()
            remote.write(place, new)
            object_store.spoil = spoil
        return "cut" if method == "GET" and seen["GET"] % 3 == 1 else None

    object_store.spoil = spoil
    assert remote.local_copy(place).read_bytes() == new
    object_store.spoil = lambda method, path: "403 AccessDenied" if method == "GET" else None
    remote.write(place, old)
    with pytest.raises(StorageError, match="access is denied"):
        anew(place)
    assert [path.read_bytes() for path in all_copies()] == [new]


def all_copies() -> list[Path]:
    return [path for path in copies.folder().rglob("*") if known.is_name(path.name)]


def test_copies_stay_within_the_budget(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(copies.BUDGET, "0.000003")
    places = [Remote(bucket) / f"{number}.zip" for number in range(4)]
    for age, place in enumerate(places):
        remote.write(place, bytes([age]) * 1000)
    used, first, second = map(remote.local_copy, places[:3])
    for age, path in enumerate((used, first, second)):
        os.utime(path, (age + 1, age + 1))
    assert remote.local_copy(places[0]) == used
    remote.local_copy(places[3])
    assert used.exists() and second.exists() and not first.exists()
    remote.write(Remote(bucket) / "large.zip", b"x" * 5000)
    large = remote.local_copy(Remote(bucket) / "large.zip")
    assert list(large.parent.iterdir()) == [large]
    monkeypatch.setenv(copies.BUDGET, "much")
    with pytest.raises(ConfigError, match="PIPELINE_CACHE_GB: expected gigabytes"):
        remote.local_copy(places[0])


def test_what_is_no_copy_is_never_deleted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(copies.BUDGET, "0.000001")
    own = ["thesis.docx", ".tmp-thesis.docx", f"{'0' * 32}.jpg", "copies/thesis.docx"]
    for name in own:
        path = copies.folder() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(5000))
    for name in ("a.zip", "b.zip"):
        remote.write(Remote(bucket) / name, bytes(1000))
        copy = remote.local_copy(Remote(bucket) / name)
    assert all((copies.folder() / name).exists() for name in own)
    assert set(all_copies()) == {copies.folder() / f"{'0' * 32}.jpg", copy}


def test_a_copy_is_as_unchanged_as_its_object_however_often_it_is_used(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "_GRAIN", -1)
    remote.write(Remote(bucket) / "a.tar.gz", b"one")
    copy = remote.local_copy(Remote(bucket) / "a.tar.gz")
    before = FileState.of(copy.stat())
    assert remote.local_copy(Remote(bucket) / "a.tar.gz") == copy
    assert FileState.of(copy.stat()) == before


def test_a_folder_of_copies_that_cannot_be_written(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(copies.FOLDER, str(tmp_path / "file" / "copies"))
    remote.write(Remote(bucket) / "a.zip", b"one")
    with pytest.raises(StorageError, match="cannot be written into") as error:
        remote.local_copy(Remote(bucket) / "a.zip")
    assert error.value.is_lost and copies.FOLDER in error.value.hint


def test_the_web_tells_states_by_etag_by_time_or_not_at_all(
    website: Website, tmp_path: Path
) -> None:
    (tmp_path / "site/a b.png").write_bytes(b"one")
    os.utime(tmp_path / "site/a b.png", (1_600_000_000, 1_600_000_000))
    place = Remote(website.url) / "a b.png"
    by_time = remote.state(place)
    assert by_time is not None and "2020" in by_time.stamp
    assert remote.read(place, limit=LIMIT)[1].stamp == by_time.stamp

    def etag(headers: dict[str, str]) -> None:
        if headers.pop("Last-Modified", None):
            headers["ETag"] = '"abc"'

    website.headers = etag
    assert remote.state(place) == FileState('etag:"abc"', 0, 3)

    def weak(headers: dict[str, str]) -> None:
        if "Last-Modified" in headers:
            headers["ETag"] = 'W/"abc"'

    website.headers = weak
    found = remote.state(place)
    assert found is not None and found.changed_ns > 0 and "2020" in found.stamp
    website.headers = lambda headers: headers.pop("Last-Modified", None) and None
    data, unproven = remote.read(place, limit=LIMIT)
    assert data == b"one" and unproven is not None and not unproven.is_proof
    with pytest.raises(StorageError, match="cannot be listed"):
        remote.listing(Remote(website.url))
    with pytest.raises(UnfitFileError, match="too large"):
        remote.read(place, limit=2)


def test_a_server_without_head_and_without_ranges(website: Website, tmp_path: Path) -> None:
    (tmp_path / "site/photos.zip").write_bytes(b"one")
    website.spoil = lambda method, path: 405 if method == "HEAD" else None
    place = Remote(website.url) / "photos.zip"
    assert remote.state(place) is not None
    assert remote.local_copy(place).read_bytes() == b"one"
    # What proves nothing is fetched again whenever somebody asks anew, and not in between.
    website.headers = lambda headers: headers.pop("Last-Modified", None) and None
    first = anew(place)
    assert remote.local_copy(place) == first
    assert anew(place) != first


def test_what_others_say_is_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SAS_TOKEN", "s3cr3t-value")
    text = "at https://me:pass@host/a?sig=abc with s3cr3t-value"
    assert refusals.redacted(text) == "at https://***@host/a?*** with ***"
