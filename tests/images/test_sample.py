"""The embedded sample: same bytes always, repaired when cut short, never over foreign files."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.errors import ConfigError
from pipeline.images.decoder import decode
from pipeline.images.sample import write_sample

# SHA-256 over every path and its bytes. If it changes, so do the splits of the sample and every
# score that the documentation prints for it.
DIGEST = "cce37c3d9f3281e008200f6f27f82bd6701264cce789ff414948ea1338934cbe"
FIRST = Path("0/digit_0000.png")


def state(out: Path) -> dict[str, tuple[bytes, int]]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {
        path.relative_to(out).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in files
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_sample(tmp_path / "sample")
    return tmp_path / "sample"


def test_the_bytes_are_those_of_every_other_run(out: Path) -> None:
    digest = hashlib.sha256()
    for name, (data, _) in state(out).items():
        digest.update(name.encode() + b"\0" + data)
    assert digest.hexdigest() == DIGEST


def test_the_result_counts_what_was_written(tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "sample"
    expected = {"images": 1797, "classes": 10, "written": 1797, "out": str(out)}
    assert write_sample(out) == expected
    assert write_sample(out) == {**expected, "written": 0}
    json.dumps(expected)


@pytest.mark.slow
def test_every_image_is_its_digit(out: Path) -> None:
    digits = load_digits()
    for index, (label, ink) in enumerate(zip(digits.target, digits.images, strict=True)):
        pixels = decode((out / f"{label}/digit_{index:04d}.png").read_bytes(), 8)
        assert np.abs(pixels[..., 0] - ink * 255 / 16).max() <= 0.5
        assert (pixels == pixels[..., :1]).all()


def test_another_run_touches_nothing(out: Path) -> None:
    before = state(out)
    write_sample(out)
    assert state(out) == before


def test_a_killed_run_is_repaired(out: Path) -> None:
    before = state(out)
    (out / FIRST).unlink()
    for number, keep in ((1, 0), (2, 70), (3, 139)):
        path = next(out.glob(f"*/digit_{number:04d}.png"))
        path.write_bytes(path.read_bytes()[:keep])
    assert write_sample(out)["written"] == 4
    assert {name: data for name, (data, _) in state(out).items()} == {
        name: data for name, (data, _) in before.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["notes.txt", "0/mine.png", "3/digit_0000.png", "photos/a/b.jpg"])
def test_foreign_files_are_refused_and_kept(tmp_path: Path, name: str) -> None:
    foreign = tmp_path / name
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("mine")
    with pytest.raises(ConfigError, match=name) as caught:
        write_sample(tmp_path)
    assert "--force" in caught.value.hint
    assert list(state(tmp_path)) == [name]
    assert write_sample(tmp_path, force=True)["written"] == 1797
    assert foreign.read_text() == "mine"


def test_a_changed_file_is_replaced_only_by_force(out: Path) -> None:
    original = (out / FIRST).read_bytes()
    (out / FIRST).write_bytes(original[:60] + b"drawn over")
    with pytest.raises(ConfigError, match="digit_0000"):
        write_sample(out)
    assert (out / FIRST).read_bytes().endswith(b"drawn over")
    assert write_sample(out, force=True)["written"] == 1
    assert (out / FIRST).read_bytes() == original


def test_hidden_files_are_no_obstacle(out: Path) -> None:
    (out / ".DS_Store").write_text("")
    (out / ".cache").mkdir()
    (out / ".cache" / "thumbnail").write_text("")
    assert write_sample(out)["written"] == 0


def test_a_place_that_cannot_hold_a_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_sample(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_sample(tmp_path / "file" / "sample")
    (tmp_path / "0").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_sample(tmp_path, force=True)


def test_importing_the_module_loads_no_scikit_learn() -> None:
    program = "import sys, pipeline.images.sample; sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
