"""Progress on stderr: a bar in a terminal, few lines in a log, and no chatter of libraries."""

import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakes import write_photos
from processes import run_python

from pipeline.cli import progress
from pipeline.cli.progress import LOG_SECONDS, TerminalReporter

# What TensorFlow, absl, CUDA, oneDNN and the converters are known to say.
CHATTER = re.compile(
    r"absl|onednn|tensorflow|tf2onnx|cuda|xla|keras/|^\s*[IWEF]\d{4} |WARNING|Warning|deprecat"
    r"|Instructions for updating|Saved artifact|Endpoint",
    re.IGNORECASE | re.MULTILINE,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that a test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines_of(clock: list[float], seconds: float, total: int = 100, **shown: object) -> None:
    with TerminalReporter(quiet=False).bar(total, "img") as bar:
        for _ in range(total):
            clock[0] += seconds
            bar.advance(**shown)


def test_a_log_has_a_line_at_most_every_thirty_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    lines_of(clock, 1.0, skipped=2)
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err
    assert err.splitlines() == [
        "30 of 100 img (30 %), 1 img/s, 1 min 10 s left, skipped 2",
        "60 of 100 img (60 %), 1 img/s, 40.0 s left, skipped 2",
        "90 of 100 img (90 %), 1 img/s, 10.0 s left, skipped 2",
    ]
    assert LOG_SECONDS == 30


def test_a_short_loop_has_none(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    lines_of(clock, 0.29)
    lines_of(clock, 1000.0, total=1)
    assert capsys.readouterr().err == ""


def test_a_slow_loop_tells_its_rate(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    lines_of(clock, 45.0, total=3)
    assert capsys.readouterr().err.splitlines() == [
        "1 of 3 img (33 %), 0.022 img/s, 1 min 30 s left",
        "2 of 3 img (67 %), 0.022 img/s, 45.0 s left",
    ]


def test_quiet_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    reporter = TerminalReporter(quiet=True)
    reporter.say("a note")
    with reporter.bar(2, "img") as bar:
        clock[0] += 1000
        bar.advance()
    assert capsys.readouterr().err == ""


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal: what a program writes to, and where that is read."""
    reads, writes = pty.openpty()
    termios.tcsetwinsize(writes, (24, 80))
    yield reads, writes
    os.close(reads)


def test_in_a_terminal_the_bar_stays(terminal: tuple[int, int]) -> None:
    reads, writes = terminal
    code = (
        "from pipeline.cli.progress import TerminalReporter\n"
        "reporter = TerminalReporter(quiet=False)\n"
        "reporter.say('a note')\n"
        "with reporter.bar(3, 'img') as bar:\n"
        "    for _ in range(3): bar.advance(skipped=0)\n"
    )
    subprocess.run([sys.executable, "-c", code], stderr=writes, check=True)
    os.close(writes)
    read = b""
    # Linux ends the reading of a terminal that nobody holds by an error.
    with suppress(OSError):
        while part := os.read(reads, 1 << 16):
            read += part
    shown = read.decode()
    assert shown.startswith("a note") and "0/3" in shown and "\r" in shown.replace("\r\n", "")


def save_network(path: Path) -> None:
    from pipeline.system.keras_setup import import_keras

    keras = import_keras()
    layers = [
        keras.Input((32, 32, 3)),
        keras.layers.Conv2D(8, 5, strides=4, activation="relu", name="block1_conv"),
        keras.layers.Conv2D(8, 3, activation="relu", name="block2_conv"),
        keras.layers.GlobalAveragePooling2D(),
    ]
    keras.Sequential(layers).save(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_no_command_lets_libraries_talk(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 12)
    save_network(tmp_path / "own.keras")
    own = "--backbone own.keras --preprocessing unit --image-size 32"
    for command in (
        f"extract photos {own} --engine openvino",
        f"extract photos --store stores/again {own} --engine onnx",
        "train-head --store stores/photos --head dense --head logreg",
        "predict runs/photos photos --engine onnx --csv found.csv",
        "predict runs/photos photos/ant --engine keras",
        "evaluate runs/photos photos",
        "export runs/photos model.keras",
        "export runs/photos model.onnx",
        "export runs/photos model --format savedmodel",
        "finetune runs/photos --epochs 1",
        "verify stores/photos --reencode 2",
    ):
        done = run_python("-m", "pipeline", *command.split(), cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
        assert "\r" not in done.stderr + done.stdout, command
        assert not CHATTER.search(done.stderr), (command, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "level"),
    [
        # What a parent process that imported Keras, too, hands down.
        ("import_tensorflow()", {"TF_CPP_MIN_LOG_LEVEL": "3"}),
        ("import_converter()", {}),
        ("import_keras()", {}),
    ],
    ids=["tensorflow", "converter", "keras"],
)
def test_importing_is_quiet(call: str, level: dict[str, str]) -> None:
    code = f"from pipeline.system import keras_setup\nkeras_setup.{call}\n"
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **level},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == done.stdout == ""
