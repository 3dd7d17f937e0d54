"""HDF5: files are what h5py writes by itself, and a disk that fails is one error, at any write."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.files.hdf5 import opened
from pipeline.files.hdf5_writer import writing

VALUES = np.arange(30_000, dtype="f4").reshape(300, 100)


def write(path: Path, done: Callable[[], None] = lambda: None) -> None:
    with writing(path) as file:
        file.attrs["identity"] = "all of it"
        dataset = file.create_dataset("features", VALUES.shape, dtype="f4")
        for start in range(0, len(VALUES), 50):
            dataset[start : start + 50] = VALUES[start : start + 50]
        file.create_dataset("views/flip/keys", data=np.array([b"a", b"bc"], "S64"))
        done()


def failing(number: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have every write fail from one on, after half of it; return the sizes that were asked."""
    real, sizes = os.pwrite, []

    def pwrite(file: int, data: Any, place: int) -> int:
        sizes.append(len(data))
        if len(sizes) - 1 < number:
            return real(file, data, place)
        if len(sizes) - 1 == number and len(data) > 1:
            return real(file, data[: len(data) // 2], place)
        raise error

    monkeypatch.setattr(os, "pwrite", pwrite)
    return sizes


def test_other_programs_read_what_is_written(tmp_path: Path) -> None:
    write(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["features"][:], VALUES)
        assert file.attrs["identity"] == "all of it"
        assert file["views/flip/keys"][:].tolist() == [b"a", b"bc"]
    with opened(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["features"][:], VALUES)


def test_a_full_disk_at_any_write_is_that_error_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        sizes = failing(10_000, full, patch)
        write(tmp_path / "whole.h5")
        count = len(sizes)
    assert count > 5
    for number in range(count):
        with monkeypatch.context() as patch:
            failing(number, full, patch)
            with pytest.raises(OSError, match="No space left") as caught:
                write(tmp_path / "a.h5")
        assert caught.value is full
    # Nothing is open any more, and HDF5 is well.
    assert not [name for name in os.listdir("/proc/self/fd")
                if "a.h5" in str(Path("/proc/self/fd", name).resolve())]  # fmt: skip
    write(tmp_path / "a.h5")
    assert (tmp_path / "a.h5").stat().st_size == (tmp_path / "whole.h5").stat().st_size


def test_an_interrupt_within_a_write_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(3, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.h5")


def test_errors_of_the_writer_stay_what_they_are(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the writer's own")

    with pytest.raises(RuntimeError, match="the writer's own"):
        write(tmp_path / "a.h5", fail)


def test_bytes_are_written_in_pieces_where_the_system_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: real(file, data[:1000], place))
    write(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["features"][:], VALUES)
