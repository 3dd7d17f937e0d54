"""Places for results: refused before anything else is done, and left as they were."""

from pathlib import Path

import pytest
from fakes import Command, Notes, planted_store, write_image

from pipeline.errors import ConfigError
from pipeline.files import outputs

LONG = "x" * 300


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("broken").symlink_to("nowhere")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("file", "expected a folder at 'file'. Received: a file"),
        ("broken", "expected a folder at 'broken'. Received: a broken link"),
        ("file/more", "place that can be written to. Received: 'file/more': .*file' is a file"),
        ("file/more/still", "is a file"),
        (LONG, "name too long"),
        (f"new/{LONG}", "name too long"),
        ("/proc/more", "place that can be written to"),
    ],
)
def test_no_place_for_a_folder(place: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=f"--store: {expected}|{expected}") as caught:
        outputs.require_folder("--store", Path(place))
    assert caught.value.message.startswith("--store: ") and caught.value.hint
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["broken", "file", "folder"]


@pytest.mark.parametrize("place", ["folder", "file/more", LONG, "/proc/more.csv"])
def test_no_place_for_a_file(place: str) -> None:
    with pytest.raises(ConfigError, match="--csv: expected a"):
        outputs.require_file("--csv", Path(place), Notes())
    assert list(Path("folder").iterdir()) == []


def test_places_that_will_do() -> None:
    notes = Notes()
    for place in ("new", "new/deep/er", "folder", "folder/new"):
        outputs.require_folder("--run", Path(place))
    for place in ("new.csv", "file", "folder/new.csv"):
        outputs.require_file("--csv", Path(place), notes)
    assert notes.lines == []
    outputs.require_file("--csv", Path("new/deep/out.csv"), notes)
    assert notes.lines == ["--csv: the folder 'new/deep' is to be made"]
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["broken", "file", "folder"]
    assert Path("file").read_text() == "mine" and list(Path("folder").iterdir()) == []


def test_commands_look_at_places_first(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pipeline import heads
    from pipeline.runs.run import Run
    from pipeline.serving import trained_head

    planted_store(tmp_path / "s", {"a": 9, "b": 9})
    write_image(tmp_path / "d/a/0.png", 1)

    def fail(*_: object, **__: object) -> None:
        pytest.fail("it must not come so far")

    monkeypatch.setattr(heads, "create", fail)
    monkeypatch.setattr(trained_head, "load", fail)
    monkeypatch.setattr(Run, "open", fail)
    monkeypatch.setattr("pipeline.extract.stage.LazyEncoder.of", fail)
    for arguments in (
        ("extract", "d", "--store", "file"),
        ("extract", "d", "--store", "file/s"),
        ("extract", "d", "--store", "s", "--manifest", "folder"),
        ("train-head", "--store", "s", "--run", "file"),
        ("sweep", "--store", "s", "--run", "file/r"),
        ("train-head", "--store", "s", "--manifest", "none.csv"),
        ("finetune", "r", "--run", "file"),
        ("predict", "r", "d", "--csv", "folder"),
        ("predict", "r", "d", "--csv", "file/x.csv"),
        ("predict", "r", "d", "--weights", "none.h5"),
        ("predict", "r", "d", "--weights", "file"),
        ("export", "r", "file/x.keras"),
        ("export", "r", "file/x"),
        ("export", "r", "x.keras", "--weights", "none.h5"),
        ("sample", "file"),
        ("sample", "file/x"),
    ):
        status, result = command(*arguments)
        assert status == 2, arguments
        message = result["error"]["message"]
        assert "expected" in message and "Errno" not in message, arguments
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "broken", "d", "file", "folder", "s",
    ]  # fmt: skip
