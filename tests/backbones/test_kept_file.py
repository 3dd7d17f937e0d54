"""The file of a network of one's own, as a store keeps it."""

from pathlib import Path

import pytest

from pipeline.backbones import kept_file
from pipeline.errors import WeightsUnavailableError
from pipeline.files.regular import sha256_file


def test_it_is_kept_once_by_the_digest_of_its_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    assert kept_file.find(folder) is None
    first, second = tmp_path / "a.keras", tmp_path / "b.keras"
    first.write_bytes(b"first")
    second.write_bytes(b"second")
    kept_file.keep(folder, first)
    kept = kept_file.find(folder)
    assert kept == folder / f"{sha256_file(first)}.keras"
    assert kept is not None and kept.read_bytes() == b"first"
    kept_file.require_as_kept(kept)
    kept_file.keep(folder, second)
    assert sorted(folder.iterdir()) == [kept]


def test_other_files_are_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "mine.keras").write_bytes(b"mine")
    (tmp_path / f"{64 * 'a'}.h5").write_bytes(b"weights")
    assert kept_file.find(tmp_path) is None


def test_damage_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.keras"
    file.write_bytes(b"first")
    kept_file.keep(tmp_path / "encoder", file)
    kept = kept_file.find(tmp_path / "encoder")
    assert kept is not None
    kept.write_bytes(b"firsT")
    with pytest.raises(WeightsUnavailableError, match="by the SHA-256 in its name") as caught:
        kept_file.require_as_kept(kept)
    assert "--weights PATH.keras" in caught.value.hint
    kept.unlink()
    with pytest.raises(WeightsUnavailableError, match="nothing: No such file"):
        kept_file.require_as_kept(kept)


def test_a_file_that_changes_while_it_is_copied_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.keras"
    file.write_bytes(b"first")

    def copy(_: Path, target: Path) -> None:
        target.write_bytes(b"half")

    monkeypatch.setattr("shutil.copyfile", copy)
    with pytest.raises(WeightsUnavailableError, match="changed while it was copied"):
        kept_file.keep(tmp_path / "encoder", file)
    assert not list((tmp_path / "encoder").iterdir())
