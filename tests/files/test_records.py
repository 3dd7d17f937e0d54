"""Records and arrays in files: what is read is what was written, and no more than that."""

import json
import os
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.files import arrays
from pipeline.files.records import DIGEST, MAX_BYTES, digest_of, read_record, write_record
from pipeline.files.regular import UnfitFileError, open_regular, read_regular, sha256_file

SAID = {"name": "käse", "numbers": [1, 2.5, 1e-17], "inner": {"b": None, "a": True}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)  # fmt: skip


def read(path: Path) -> Any:
    return read_record(path, kind="thing", version=2, older=(1,))


@pytest.mark.slow
@given(JSON)
def test_a_record_reads_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    path = tmp_path_factory.mktemp("record") / "record.json"
    write_record(path, {"value": value}, version=2)
    assert read(path) == {"value": value, "schema_version": 2}


def test_every_changed_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(path, SAID, version=2)
    data, said = path.read_bytes(), read(path)
    found = 0
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            try:
                assert read(path) == said
            except StoreError:
                found += 1
    assert found > 6 * len(data)


def test_records_of_the_version_before_are_read_and_new_ones_need_their_digest(
    tmp_path: Path,
) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**SAID, "schema_version": 1}))
    assert read(path) == {**SAID, "schema_version": 1}
    path.write_text(json.dumps({**SAID, "schema_version": 2}))
    with pytest.raises(StoreError, match=f"no {DIGEST}"):
        read(path)
    # One that has a digest is checked, whatever its version says.
    path.write_text(json.dumps({**SAID, "schema_version": 1, DIGEST: digest_of(SAID)}))
    with pytest.raises(StoreError, match="another digest"):
        read(path)
    path.write_text(json.dumps({**SAID, "schema_version": 3}))
    with pytest.raises(StoreError, match="schema version 2"):
        read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"3",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"schema_version": 1' + b"0" * 5000 + b"}",
        b'{"schema_version": NaN}',
        b"\xff\xfe",
        b'{"schema_version": 2, "record_sha256": {}}',
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(StoreError):
        read(path)


def test_a_record_larger_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(StoreError, match="too large"):
        read(path)


@pytest.fixture(params=["fifo", "device", "folder"])
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Something that is no file, under a name that should be one."""
    path = tmp_path / "odd"
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    return path


def test_only_files_are_opened(odd: Path) -> None:
    for call in (
        lambda: open_regular(odd),
        lambda: read_regular(odd, limit=10),
        lambda: sha256_file(odd),
        lambda: arrays.read(odd),
        lambda: arrays.read_all(odd),
    ):
        with pytest.raises((UnfitFileError, IsADirectoryError)):
            call()
    with pytest.raises(StoreError, match=r"not a regular file|directory"):
        read(odd)


def test_a_link_to_a_file_is_as_good_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_regular(tmp_path / "link", limit=7)[0] == b"content"
    with pytest.raises(UnfitFileError, match="too large: 7 bytes"):
        read_regular(tmp_path / "link", limit=6)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "?", "U3"])
def test_arrays_read_as_they_were_written(tmp_path: Path, dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype)
    arrays.write(tmp_path / "a.npy", array)
    np.testing.assert_array_equal(arrays.read(tmp_path / "a.npy"), array)
    arrays.write_all(tmp_path / "a.npz", {"x": array, "y.0": array[:0], "z": array[0, 0]})
    found = arrays.read_all(tmp_path / "a.npz")
    assert list(found) == ["x", "y.0", "z"] and found["z"].shape == ()
    np.testing.assert_array_equal(found["x"], array)


def promise(path: Path, shape: tuple[int, ...]) -> None:
    """Write an array's header with another shape than it has."""
    with path.open("wb") as file:
        about = {"descr": "<f8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, about)
        file.write(bytes(80))


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 20, 1 << 20), (11,), (9,), (-10,), ()])
def test_what_a_header_promises_must_be_there(tmp_path: Path, shape: tuple[int, ...]) -> None:
    promise(tmp_path / "a.npy", shape)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"[Ee]xpected|shape"):
        arrays.read(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(tmp_path / "a.npy", "a.npy")
    with pytest.raises(ValueError, match=r"[Ee]xpected|shape"):
        arrays.read_all(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_archives_that_unpack_to_more_and_objects_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(1000))
    with pytest.raises(ValueError, match="compressed"):
        arrays.read_all(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        arrays.read(tmp_path / "a.npy")
    (tmp_path / "a.npz").write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match="zip"):
        arrays.read_all(tmp_path / "a.npz")
