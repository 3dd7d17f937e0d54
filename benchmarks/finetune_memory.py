"""Memory of ``pipeline finetune``, epoch by epoch: whether it grows, and what an epoch takes.

The command runs in a process of its own, once on the cache of frozen activations and once on
augmented images. Its resident memory is read all the time, and whenever it says that an epoch is
over.

Usage: python benchmarks/finetune_memory.py [--images 256] [--unfreeze-from conv5] [--quick]
"""

import argparse
import os
import re
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from common import command, note, photo_folder, report, started

# What the command says when training begins, and after every epoch.
BEGINNING = re.compile(r"About .* s per epoch")
EPOCH = re.compile(r"epoch (\d+) of \d+: loss")
SECONDS_BETWEEN = 0.01
# Before this epoch is over, memory still settles: the best weights and the optimizer's buffers.
SETTLED = 2
MODES: dict[str, tuple[str, ...]] = {"cached": (), "augmented": ("--augment",)}


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--unfreeze-from", default="conv5")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few small images, three epochs")
    options = parser.parse_args()
    if options.quick:
        options.images, options.image_size, options.batch_size, options.epochs = 24, 32, 8, 3
        options.unfreeze_from = "conv5_block3"
    if options.epochs <= SETTLED:
        parser.error(f"--epochs: expected more than {SETTLED}. Received: {options.epochs}.")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        train(work, options)
        results = {name: watched(work, name, options) for name in MODES}
    report("finetune_memory", vars(options), results)


def train(work: Path, options: argparse.Namespace) -> None:
    """Make the run that fine-tuning starts from."""
    photos = photo_folder(work, options.images, options.seed)
    command("-m", "pipeline", "extract", photos, "--store", work / "store", "--weights", "random",
            "--image-size", options.image_size, "--json", "--quiet")  # fmt: skip
    command("-m", "pipeline", "train-head", "--store", work / "store", "--run", work / "run",
            "--head", "logreg", "--json", "--quiet")  # fmt: skip


def watched(work: Path, mode: str, options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune in a process of its own; return its memory in megabytes.

    Returns:
        ``before_training_peak_mb`` (with the cache filled and the steps compiled), ``epochs`` with
        ``resident_mb`` at the end and ``peak_mb`` within each, ``after_training_peak_mb``,
        ``peak_mb`` of the whole process as the system counted it, and ``growth_mb_per_epoch``
        between the end of the second epoch and that of the last.

    Raises:
        RuntimeError: The command failed, or trained fewer epochs.
    """
    arguments = ["finetune", work / "run", "--run", work / mode, "--unfreeze-from",
                 options.unfreeze_from, "--epochs", options.epochs, "--patience", options.epochs,
                 "--batch-size", options.batch_size, "--seed", options.seed,
                 *MODES[mode]]  # fmt: skip
    process = started("-m", "pipeline", *arguments, stdout=subprocess.DEVNULL,
                      stderr=subprocess.PIPE)  # fmt: skip
    before, epochs, said = 0.0, [], []
    with ResidentMemory(process.pid) as memory:
        for line in process.stderr or ():
            if found := EPOCH.search(line):
                now, peak = memory.now(), memory.peak_since_last()
                epochs.append({"epoch": int(found[1]), "resident_mb": now, "peak_mb": peak})
                note(f"{mode}, epoch {found[1]}: {now:.0f} MB, at most {peak:.0f} MB")
            elif BEGINNING.search(line):
                before = memory.peak_since_last()
            said.append(line)
        after = memory.peak_since_last()
    # Not process.wait: what it used would be lost.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or len(epochs) < options.epochs:
        raise RuntimeError(
            f"Expected {options.epochs} epochs of finetune. Received: {len(epochs)}, and exit "
            f"status {process.returncode}. Its last words: {''.join(said[-3:])}"
        )
    growth = epochs[-1]["resident_mb"] - epochs[SETTLED - 1]["resident_mb"]
    return {
        "before_training_peak_mb": before,
        "epochs": epochs,
        "after_training_peak_mb": after,
        "peak_mb": round(usage.ru_maxrss * 1024 / 1e6, 1),
        "growth_mb_per_epoch": round(growth / (options.epochs - SETTLED), 2),
    }


class ResidentMemory:
    """Resident memory of a process, read every few milliseconds by a thread; needs Linux.

    Example:
        with ResidentMemory(process.pid) as memory:
            memory.now(), memory.peak_since_last()
    """

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}/statm")
        self._peak = self.now()
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory")

    def __enter__(self) -> "ResidentMemory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def now(self) -> float:
        """Return what is resident now, in megabytes; 0 once the process has ended."""
        pages = int(self._path.read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)

    def peak_since_last(self) -> float:
        """Return the most that was resident since this was last asked, in megabytes."""
        with self._lock:
            peak, self._peak = max(self._peak, self.now()), 0.0
        return peak

    def _watch(self) -> None:
        while not self._is_over.wait(SECONDS_BETWEEN):
            with self._lock:
                self._peak = max(self._peak, self.now())


if __name__ == "__main__":
    main()
