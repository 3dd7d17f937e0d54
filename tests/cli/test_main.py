"""The command line: help, errors, exit statuses, and what it leaves unimported."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import Command, FakeEncoder, write_classes, write_image

from pipeline.cli.commands import COMMANDS, records
from pipeline.cli.main import main, parser
from pipeline.config import options


def python(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["extract", "--help"]])
def test_help_and_version_are_quick_and_light(arguments: list[str]) -> None:
    code = (
        "import sys, contextlib\n"
        "from pipeline.cli.main import main\n"
        "with contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'numpy', 'h5py'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    done = python(code, *arguments)
    assert done.returncode == 0, done.stderr
    assert "pipeline" in done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import pipeline, sys; sys.exit('numpy' in sys.modules or 'keras' in sys.modules)"
    assert python(code).returncode == 0


@pytest.mark.slow
def test_start_up_leaves_time_to_spare() -> None:
    # Not a benchmark: the promise is half a second, and this only catches a heavy import.
    times = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipeline", "--version"], check=True,
                       capture_output=True)  # fmt: skip
        times.append(time.perf_counter() - began)
    assert min(times) < 5


def test_no_command_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "train-head" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "a.jpg", "b.jpg", "--csv", "p.csv"],
        ["run", "--csv", "p.csv", "a.jpg", "b.jpg"],
        ["run", "a.jpg", "--csv", "p.csv", "b.jpg"],
        ["--csv", "p.csv", "run", "--quiet", "a.jpg", "b.jpg"],
    ],
)
def test_flags_may_stand_between_other_arguments(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(
        "pipeline.cli.main.perform",
        lambda command, flags, call: given.update(flags) or {"ok": False},
    )
    monkeypatch.setattr("pipeline.cli.main._show", lambda *shown, as_json: None)
    assert main(["predict", *arguments]) == 2
    assert given == {"run": "run", "paths": ["a.jpg", "b.jpg"], "csv": "p.csv"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["extrat"], "'extract'"),
        (["extract", "d", "--image-sise", "3"], "'--image-size'"),
        (["extract", "d", "--image-size", "many"], "an integer of 32 or more"),
        (["extract", "d", "--image-size", "16"], "an integer of 32 or more"),
        (["extract", "d", "--pooling", "mean"], "avg, max"),
        (["extract", "d", "--backbone", "resnet51"], "'resnet50'"),
        (["extract", "d", "--engine", "kears"], "'keras'"),
        (["extract", "missing"], "There is no data"),
        (["extract"], "expected DATA. For example: pipeline extract photos"),
        (["sample"], "expected OUT"),
        (["sweep"], "sweep: expected --store"),
        (["finetune"], "finetune: expected RUN"),
        (["predict"], "predict: expected RUN"),
        (["predict", "r"], "predict: expected PATH"),
        (["export"], "export: expected RUN"),
        (["export", "r"], "export: expected OUT"),
        (["report"], "report: expected RUN"),
        (["info"], "expected STORE|RUN"),
        (["verify"], "expected STORE|RUN"),
        (["prune"], "expected STORE"),
        (["extract", "d", "e", "f"], "Unexpected argument"),
        (["extract", "d", "--image-size", "32", "e"], "Unexpected argument 'e'"),
        (["export", "r", "--format", "keras", "o.keras"], "There is no run at 'r'"),
        (["predict", "--csv", "p.csv", "r", "--quiet", "d"], "There is no run at 'r'"),
        (["predict", "r", "--cvs", "p.csv", "d"], "'--csv'"),
        (["train-head"], "--store"),
        (["train-head", "--store", "nowhere"], "no feature store"),
        (["train-head", "--store", "s", "--head", "densse"], "'dense'"),
        (["verify", "nowhere"], "no feature store"),
        (["info", "nowhere"], "neither"),
        (["compare"], "expected RUN"),
        (["compare", "nowhere"], "no run"),
        (["compare", "d/a/000.png"], "no run"),
        (["verify", "d/a/000.png"], "no "),
        (["train-head", "--store", "d/a/000.png"], "no feature store"),
        (["predict", "d/a/000.png", "d"], "no run"),
        (["predict", "r", ""], "PATH: expected a path"),
        (["extract", "d", "--config", "none.toml"], "cannot be read"),
    ],
)
def test_wrong_input_is_one_clear_line(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "d", {"a": 1, "b": 1})
    assert main(arguments) == 2
    captured = capsys.readouterr()
    line = captured.err.strip().splitlines()[-1]
    assert line.startswith("pipeline: error: ") and expected in line
    assert "Traceback" not in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]
    assert main([*arguments, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert set(error) == {"type", "message", "hint"}


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no feature store"):
        main(["verify", str(tmp_path), "--debug"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[extract]\nimage_sise = 3", "'image_size'"),
        ("[extrakt]\nimage_size = 64", "'extract'"),
        ("[extract]\nimage_size = 'big'", "an integer"),
        ("[extract", "not valid TOML"),
        ("extract = 3", "expected a table"),
        ("[heads]\ndense = 3", "expected a table [heads.dense]"),
    ],
)
def test_wrong_configuration(command: Command, tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    status, result = command("extract", tmp_path, "--config", tmp_path / "c.toml")
    assert status == 2 and expected in result["error"]["message"]


def test_flag_beats_file_beats_default(
    command: Command, tmp_path: Path, fake_network: FakeEncoder
) -> None:
    write_classes(tmp_path / "d", {"a": 2, "b": 2})
    (tmp_path / "c.toml").write_text('[extract]\nweights = "random"\nimage-size = 48\nseed = 5\n')
    store = tmp_path / "s"
    arguments = ("extract", tmp_path / "d", "--config", tmp_path / "c.toml", "--store", store)
    assert command(*arguments, "--image-size", 40)[0] == 0
    _, info = command("info", store)
    assert info["identity"]["image_size"] == 40
    assert info["identity"]["pooling"] == "avg"
    assert info["provenance"]["seed"] == 5


def test_every_command_and_every_flag_has_help() -> None:
    overview = " ".join(parser().format_help().split())
    for name, record in records().items():
        assert all(option.help for option in options.options_of(record).values())
        assert COMMANDS[name].summary and COMMANDS[name].summary in overview


def test_help_imports_no_command() -> None:
    script = (
        "import sys; from pipeline.cli.main import main; main(['--help'])\n"
        "sys.exit(' '.join(m for m in sys.modules if m.startswith('pipeline.cli.commands.')) or 0)"
    )
    done = python(script)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_no_flag_of_a_command_is_not_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suggest", "--store", "s"]) == 2
    assert "--store is no flag of this command: STORE goes without one" in capsys.readouterr().err
    assert main(["suggest", "--stor", "s"]) == 2
    assert "--store" not in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--quiet", "--store=s", "--nonsense"])
def test_an_option_before_the_command(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag, "extract", "d"]) == 2
    assert f"pipeline extract {flag}" in capsys.readouterr().err


def test_quiet_leaves_stderr_empty(
    tmp_path: Path, fake_network: FakeEncoder, capfd: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "d", {"a": 2, "b": 2})
    arguments = ["extract", str(tmp_path / "d"), "--weights", "random"]
    assert main([*arguments, "--store", str(tmp_path / "s"), "--json", "--quiet"]) == 0
    captured = capfd.readouterr()
    assert captured.err == "" and json.loads(captured.out)["encoded"] == 4


def test_read_only_folder_is_a_clear_error(command: Command, tmp_path: Path) -> None:
    write_image(tmp_path / "d/a/0.png", 0)
    (tmp_path / "file").write_text("")
    status, result = command("extract", tmp_path / "d", "--weights", "random",
                             "--store", tmp_path / "file/store")  # fmt: skip
    assert status == 2 and result["error"]["message"]


def test_module_and_script_are_the_same() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline", "--version"], capture_output=True,
                          text=True, check=True, env={**os.environ})  # fmt: skip
    assert done.stdout.startswith("pipeline 0.")
