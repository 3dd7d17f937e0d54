"""Ctrl-C and its like on the real network: every stored row is that of its own image.

A few at random moments here; 200 with ``PIPELINE_FAULTS=all`` (``make faults``), on every engine,
or as many as it says. Each interrupted store is compared row by row with that of a run which
nobody disturbed.
"""

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from fakes import write_classes
from processes import WarmPython, start_server

from pipeline.engines import ENGINES

pytestmark = pytest.mark.slow

CHOSEN = os.environ.get("PIPELINE_FAULTS", "")
TRIES = 200 if CHOSEN == "all" else int(CHOSEN or 2)
# The others take a minute each to begin with; an interrupt at every line of theirs is tried in
# ``test_interrupts``.
TRIED = list(ENGINES) if CHOSEN else ["openvino"]
# Large enough that requests of OpenVINO's are under way when a signal comes.
FLAGS = ("--weights", "random", "--image-size", "128", "--quiet")
IMAGES = 120 if CHOSEN else 60
SIGNALS = (signal.SIGINT, signal.SIGINT, signal.SIGTERM)
ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    start_server()  # so that runs that are timed do not wait for it
    folder = tmp_path_factory.mktemp("signals")
    write_classes(folder / "photos", {"cat": IMAGES // 2, "dog": IMAGES // 2})
    return folder


def started(folder: Path, store: str, engine: str) -> WarmPython:
    command = ("-m", "pipeline", "extract", "photos", "--store", store, "--engine", engine)
    return WarmPython(*command, *FLAGS, cwd=folder)


def stored(store: Path) -> dict[bytes, np.ndarray]:
    rows: dict[bytes, np.ndarray] = {}
    for path in store.glob("shards/*.h5"):
        with h5py.File(path) as file:
            rows |= zip(file["keys"][:].tolist(), file["features"][:], strict=True)
    return rows


def wrong(found: dict[bytes, np.ndarray], expected: dict[bytes, np.ndarray]) -> list[bytes]:
    scale = {key: 1e-3 * float(np.abs(row).max()) for key, row in expected.items()}
    return [key for key, row in found.items() if np.abs(row - expected[key]).max() > scale[key]]


@pytest.mark.parametrize("engine", TRIED)
def test_every_row_that_an_interrupted_run_stored_is_that_of_its_image(
    photos: Path, engine: str
) -> None:
    began = time.monotonic()
    assert started(photos, f"whole-{engine}", engine).wait(300) == 0
    seconds = time.monotonic() - began
    expected = stored(photos / f"whole-{engine}")
    assert len(expected) == IMAGES
    rng = np.random.default_rng(5)
    ends: Counter[int] = Counter()
    rows = 0
    for number in range(TRIES if engine == "openvino" else min(TRIES, 20)):
        cut = photos / f"cut-{engine}"
        shutil.rmtree(cut, ignore_errors=True)
        process = started(photos, cut.name, engine)
        sent = SIGNALS[number % len(SIGNALS)]
        try:
            status = process.wait(seconds * (0.4 + 0.6 * rng.random()))
        except subprocess.TimeoutExpired:
            process.send_signal(sent)
            status = process.wait(60)
        found = stored(cut)
        # Before the command begins and after it is over, a signal ends Python as it ends any.
        if status == -sent and len(found) in (0, IMAGES):
            status = ENDS[sent]
        assert status in (ENDS[sent], 0)
        ends[status] += 1
        rows += len(found)
        assert not wrong(found, expected), f"{len(found)} rows, {sent.name}"
    assert started(photos, cut.name, engine).wait(300) == 0
    assert stored(cut).keys() == expected.keys() and not wrong(stored(cut), expected)
    print(f"\n{engine}: ends {dict(ends)}, {rows:,} rows stored, none wrong")
    assert set(ends) <= {0, *ENDS.values()}
    if TRIES >= 20:
        assert rows
