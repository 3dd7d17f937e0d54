"""Values of options: paths and the home folder, empty texts, how a file spells values."""

import pwd
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.commands import records
from pipeline.config.extracting import ExtractOptions
from pipeline.config.fields import expanded, spelled
from pipeline.config.options import CommonOptions, TrainHeadOptions, build, options_of
from pipeline.config.serving import ExportOptions, PredictOptions
from pipeline.dataset import examples
from pipeline.errors import ConfigError, RunError, StoreError
from pipeline.serving.classifier import Classifier

PLACES = {"DATA", "DIR", "FILE", "OUT", "PATH", "RUN", "STORE"}
NOBODY = "~no-such-user-here"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("text", "inside"), [("~", ""), ("~/", ""), ("~/a", "a"), ("~/a b/ü", "a b/ü"), ("~//a", "a")]
)
def test_home_is_home(home: Path, text: str, inside: str) -> None:
    assert Path(expanded(text)) == home / inside
    assert Path(expanded(Path(text))) == home / inside


def test_the_home_of_another_user(home: Path) -> None:
    user = pwd.getpwuid(0)
    assert expanded(f"~{user.pw_name}/x") == f"{user.pw_dir}/x"


@pytest.mark.parametrize("text", ["./~", "./~/a", "a/~", "a~", "a/~/b", "", ".", "imagenet", "/~"])
def test_what_does_not_begin_with_it_stays(home: Path, text: str) -> None:
    assert expanded(text) == text


def test_a_user_who_is_none(home: Path) -> None:
    for text in (NOBODY, f"{NOBODY}/store"):
        with pytest.raises(ConfigError, match=NOBODY) as caught:
            expanded(text)
        assert f"./{NOBODY}" in caught.value.hint
    # Shells hand such names on as they are, and editors leave files of such names.
    Path("~$draft.png").touch()
    assert expanded("~$draft.png") == "~$draft.png"


def test_every_option_that_is_a_place_knows_home(home: Path) -> None:
    found = 0
    for record in (*records().values(), CommonOptions):
        for name, option in options_of(record).items():
            if PLACES.intersection(option.metavar.split("|")):
                assert option.kind in ("path", "paths"), (record.__name__, name)
                value = getattr(build(record, {name: "~/x"}), name)
                assert value in (f"{home}/x", (f"{home}/x",))
                found += 1
    assert found > 25


def test_a_file_and_a_flag_are_taken_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli.main import main

    Path("c.toml").write_text('[info]\npath = "~/a"\n[verify]\nstore = "./~"\n')
    for arguments, place in (
        (["info", "--config", "c.toml"], f"{home}/a"),
        (["info", "~/b"], f"{home}/b"),
        (["info", "--config=~/c.toml"], f"{home}/c.toml"),
        (["verify", "--config", "c.toml"], "'~'"),
        (["train-head", "--store=~/s"], f"{home}/s"),
        (["predict", "~/r", "c.toml", "~/x.png"], f"{home}/x.png"),
    ):
        assert main(arguments) == 2
        assert place in capsys.readouterr().err
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["c.toml", "home"]


def test_python_knows_home(home: Path) -> None:
    for store in ("~/s", Path("~/s")):
        with pytest.raises(StoreError, match=f"{home}/s"):
            examples.load(store)
        with pytest.raises(RunError, match=f"{home}/s"):
            Classifier.load(store)


def test_the_transformer_knows_home(home: Path, fake_network: Any) -> None:
    from fakes import write_image

    from pipeline.extract.transformer import FeatureExtractor

    write_image(home.parent / "a.png", 1)
    made = FeatureExtractor("~/s", weights="random", image_size=32)
    assert made.transform(["a.png"]).shape == (1, 16)
    assert list(home.glob("s/**/store.json")) and made.store == "~/s"
    assert not Path("~").exists()


@pytest.mark.parametrize(
    ("record", "name", "value", "expected"),
    [
        (ExtractOptions, "store", "", "--store: expected a path. Received: ''"),
        (ExtractOptions, "store", "a\0b", "--store: expected a path"),
        (ExtractOptions, "weights", b"x", "--weights: expected a path"),
        (TrainHeadOptions, "split", "", "--split: expected a text that is not empty"),
        (PredictOptions, "head", "", "--head: expected a text that is not empty"),
        (PredictOptions, "paths", ["a", ""], r"PATH: expected a path. Received: \['a', ''\]"),
        (PredictOptions, "paths", [3], "PATH: expected a list of paths"),
        (ExportOptions, "out", 3, "OUT: expected a path. Received: 3"),
    ],
)
def test_no_path_and_no_text(record: Any, name: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build(record, {name: value})


def test_python_may_give_pathlib_paths() -> None:
    assert build(ExtractOptions, {"store": Path("a/b")}).store == "a/b"
    assert build(PredictOptions, {"paths": [Path("a"), "b"]}).paths == ("a", "b")


def test_values_are_spelled_as_a_file_spells_them() -> None:
    assert [spelled(value) for value in (True, (256,), "ü", 0.5, {"a": 1})] == [
        "true", "[256]", '"ü"', "0.5", '{"a": 1}',
    ]  # fmt: skip
