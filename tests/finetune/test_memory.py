"""Fine-tuning takes no more memory from epoch to epoch.

Run as a script, this file fine-tunes a run and prints the resident memory after every epoch.
"""

import ctypes
import gc
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_resnet
from fakes import write_classes
from processes import run_python

from pipeline.cli.main import main
from pipeline.config.options import CommonOptions, FinetuneOptions
from pipeline.finetune.stage import finetune
from pipeline.system.progress import Silence

SIZE = 32
# Its kernels of 3 x 3 are as large as ResNet50's.
DIM = 512
EPOCHS = 5
# After this epoch every buffer exists: the best weights, the optimizer's, those of checkpoints.
SETTLED = 3
# TensorFlow keeps a buffer of a kernel's size (9.4 MB) more or less. One copy of what is trained,
# conv5 (DIM) with its optimizer's moments, would be 100 MB in every epoch; of its weights, 35 MB.
MARGIN_BYTES = 30e6
# How many buffers there are at a time depends on how many threads happen to run side by side.
ONE_THREAD = {"TF_NUM_INTEROP_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1"}

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="Linux tells a process how much it holds"
)


class Watch(Silence):
    """A reporter that notes how much memory is held whenever an epoch is over."""

    def __init__(self) -> None:
        self.resident: list[int] = []

    def say(self, text: str) -> None:
        if text.startswith("epoch "):
            self.resident.append(resident())


def resident() -> int:
    """Return the bytes that this process holds, without what its allocator could give back."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # of glibc
        libc.malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def watched(source: str, target: str, mode: str) -> list[int]:
    """Fine-tune here; return the memory after each epoch."""
    watch = Watch()
    options = FinetuneOptions(
        source=source, run=target, augment=mode == "augmented", epochs=EPOCHS, patience=EPOCHS,
        batch_size=8, learning_rate=1e-5,
    )  # fmt: skip
    with tiny_resnet.in_place_of_resnet50(DIM):
        finetune(options, CommonOptions(), watch)
    return watch.resident


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, their store, and a run of stage 2."""
    folder = tmp_path_factory.mktemp("memory")
    write_classes(folder / "photos", {"a": 20, "b": 20})
    with tiny_resnet.in_place_of_resnet50(DIM):
        for arguments in (
            ("extract", folder / "photos", "--store", folder / "store", "--weights", "random",
             "--image-size", SIZE, "--engine", "keras"),
            ("train-head", "--store", folder / "store", "--run", folder / "run", "--head",
             "logreg"),
        ):  # fmt: skip
            assert main([str(argument) for argument in (*arguments, "--quiet")]) == 0
    return folder


@pytest.mark.slow
def test_memory_that_is_held_counts_and_memory_that_is_freed_does_not() -> None:
    before = resident()
    held = [np.ones(1 << 17) for _ in range(64)]  # small enough for the allocator to keep
    assert resident() - before > 60e6
    del held
    assert abs(resident() - before) < 10e6


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cached", "augmented"])
def test_an_epoch_leaves_no_memory_behind(trained: Path, mode: str) -> None:
    done = run_python(__file__, trained / "run", trained / mode, mode, environment=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    held = json.loads(done.stdout)
    assert len(held) == EPOCHS
    assert held[-1] - held[SETTLED - 1] < MARGIN_BYTES, held


if __name__ == "__main__":
    print(json.dumps(watched(*sys.argv[1:])))
