"""Tries faults on a scene, each in a child forked from a process that has imported everything.

Run by the tests and by hand; prints one JSON object a scene:

    python tests/faults/driver.py extract prune --kinds kill full --sample 20 --seed 1
    python tests/faults/driver.py --list
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Set before NumPy is loaded: a forked child must not wait for threads that stayed with its parent.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import scenes  # noqa: E402
from injector import KILLED, Fault, Injector  # noqa: E402
from scenes import Scene  # noqa: E402

SIGNALS = ("SIGKILL", "SIGINT", "SIGTERM", "SIGHUP")
# What a command may end with after a signal that it can catch.
ENDED = {"SIGINT": (130,), "SIGTERM": (143, -15), "SIGHUP": (129, -1), "SIGKILL": (-9,)}
ALLOWED_SECONDS = 120.0


@dataclass
class Done:
    """How a command ended."""

    status: int
    stderr: str


@dataclass
class Tried:
    """What came of a scene.

    Attributes:
        scene: Its name.
        points: How many changes the command makes.
        counts: How many faults were tried, by kind.
        failures: What fell short: which fault, and what.
        seconds: How long it took.
    """

    scene: str
    points: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


class Trial:
    """One scene, ready to be tried."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene = scene
        self.root = folder / "project"
        self.start = folder / "start"
        self.tried = Tried(scene.name)
        self._prepare()

    def _prepare(self) -> None:
        """Make the start, and what the command makes of it when nothing happens."""
        self.root.mkdir(parents=True)
        os.chdir(self.root)
        scenes.write_photos(8)
        if self.scene.is_real:
            self._in_child(scenes.save_small_network)
        for step in self.scene.before:
            if callable(step):
                step()
            else:
                self._expect(self.command(step))
        shutil.copytree(self.root, self.start, symlinks=True)
        before = self.observed()["rows"]
        self.points = self.changes()
        self.expected = self.observed()
        self.tried.points = len(self.points)
        # Rows that must outlive whatever happens.
        self.kept = {key: row for key, row in before.items() if key in self.expected["rows"]}

    def observed(self) -> dict[str, Any]:
        """Return what the project holds."""
        return scenes.observe()

    def changes(self) -> list[str]:
        """Run the command without a fault; return the changes that it makes."""
        place = self.root.with_name("points")
        began = time.monotonic()
        self._expect(self.command(self.scene.command, Fault(), points=place))
        self.seconds = time.monotonic() - began
        found: list[str] = json.loads(place.read_text())
        return found

    def faults(self, kinds: Sequence[str]) -> list[Fault]:
        """Return all faults of some kinds."""
        found = []
        for number, point in enumerate(self.points):
            whens = (
                ["before", "middle", "after"] if point.startswith("write") else ["before", "after"]
            )
            found += [Fault("kill", number, when) for when in whens if "kill" in kinds]
            if "full" in kinds:
                found += [Fault("full", number, when) for when in whens[:-1]]
        return found

    def try_fault(self, fault: Fault) -> None:
        """Make one fault, run the command again, and compare."""
        scenes.reset(self.start, self.root)
        done = self.command(self.scene.command, fault)
        expected = (KILLED,) if fault.kind == "kill" else (0, 2)
        self._judge(f"{fault.kind} {fault.when} {fault.number}: {self.points[fault.number]}"
                    if fault.number < len(self.points) else f"{fault}", done, expected,
                    is_full=fault.kind == "full")  # fmt: skip
        self.tried.counts[fault.kind] += 1

    def try_limit(self, size: int) -> None:
        """Let no file grow beyond a size, as the system does; run again, and compare."""
        scenes.reset(self.start, self.root)
        done = self.command(self.scene.command, limit=size)
        self._judge(f"files of {size} bytes at most", done, (0, 2), is_full=True)
        self.tried.counts["limit"] += 1

    def try_signal(self, name: str, seconds: float) -> None:
        """Send a signal at a moment, run the command again, and compare."""
        scenes.reset(self.start, self.root)
        done = self.command(self.scene.command, after=(getattr(signal, name), seconds))
        self._judge(f"{name} after {seconds:.3f} s", done, (0, *ENDED[name]))
        self.tried.counts[name] += 1

    # -- judging ---------------------------------------------------------------------------

    def _judge(
        self, what: str, done: Done, allowed: Sequence[int], *, is_full: bool = False
    ) -> None:
        problems = []
        if done.status not in allowed:
            problems.append(f"status {done.status}, expected {allowed}: {done.stderr[-1500:]}")
        if "Traceback" in done.stderr or "Exception ignored" in done.stderr:
            problems.append(f"traceback: {done.stderr[-1500:]}")
        if is_full and done.status == 2:
            if len(done.stderr.strip().splitlines()) != 1:
                problems.append(f"expected one line: {done.stderr[-1500:]}")
            if scenes.leftovers():
                problems.append(f"left behind by a full disk: {scenes.leftovers()}")
        problems += self._lost()
        problems += self._rerun()
        if problems:
            self.tried.failures.append({"fault": what, "problems": problems})

    def _lost(self) -> list[str]:
        """Tell whether a row that was there is gone or wrong; one that is replaced may be."""
        if "--force" in self.scene.command and self.scene.command[0] == "extract":
            return []
        try:
            found = scenes.rows()
        except Exception as error:
            return [f"the store cannot be read: {error}"]
        wrong = [key for key, row in found.items() if self.expected["rows"].get(key, row) != row]
        lost = [key for key in self.kept if key not in found]
        return [f"{len(wrong)} rows wrong, {len(lost)} lost"] if wrong or lost else []

    def _rerun(self) -> list[str]:
        problems = []
        again = self.scene.again or self.scene.command
        done = self.command(again)
        if self.scene.again is not None and done.status == 2:
            if "Traceback" in done.stderr or "--force" not in done.stderr:
                problems.append(f"rerun without --force: {done.stderr[-1500:]}")
            done = self.command(self.scene.command)
        if done.status == 2 and "--force" in done.stderr and self.scene.is_once:
            # It was finished, and says so; the command is not for adding to what is there.
            return [*problems, *difference(self.expected, self.observed())]
        if done.status != 0:
            return [*problems, f"rerun: status {done.status}: {done.stderr[-1500:]}"]
        if "Traceback" in done.stderr:
            problems.append(f"rerun: {done.stderr[-1500:]}")
        found = self.observed()
        problems += difference(self.expected, found)
        if scenes.leftovers():
            problems.append(f"left behind: {scenes.leftovers()}")
        return problems

    # -- running ---------------------------------------------------------------------------

    def command(self, arguments: Sequence[str], fault: Fault | None = None, *,
                points: Path | None = None, limit: int | None = None,
                after: tuple[int, float] | None = None) -> Done:  # fmt: skip
        """Run a command in a child, with a fault or without."""

        def run() -> None:
            injector = Injector(self.root, fault) if fault is not None else None
            if injector is not None:
                injector.install()
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            if after is not None:
                slow_down()
            from pipeline.__main__ import main

            sys.argv = ["pipeline", *arguments, "--quiet"]
            try:
                status = main()
            finally:
                if injector is not None and points is not None:
                    os.chdir("/")
                    points.write_text(json.dumps(injector.seen))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

        return self._in_child(run, after)

    def _in_child(self, act: Callable[[], Any], after: tuple[int, float] | None = None) -> Done:
        # A pipe: to a file nothing can be written on a full disk.
        read, write = os.pipe()
        child = os.fork()
        if not child:
            self._become(act, write)
        os.close(write)
        if after is not None:
            time.sleep(after[1])
            os.kill(child, after[0])
        status = _wait(child)
        with os.fdopen(read, errors="replace") as said:
            return Done(status, said.read())

    def _become(self, act: Callable[[], Any], log: int) -> None:
        """Be the child: never return."""
        status = 1
        try:
            os.dup2(log, 2)
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
            act()
            status = 0
        except KeyboardInterrupt as interrupt:  # before the command line saw it
            from pipeline.system.interrupts import status_of

            status = status_of(interrupt)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)

    def _expect(self, done: Done) -> None:
        if done.status != 0:
            raise RuntimeError(f"{self.scene.name}: {done.status}: {done.stderr}")


def slow_down() -> None:
    """Make the fake network take time, so that there is something to interrupt."""
    from fakes import FakeEncoder

    real = FakeEncoder.__call__

    def slow(self: Any, images: Any) -> Any:
        time.sleep(0.02)
        return real(self, images)

    FakeEncoder.__call__ = slow  # type: ignore[method-assign]


def difference(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return what differs, by name, in few words."""
    problems = []
    for name in sorted(expected.keys() | found.keys()):
        one, other = expected.get(name), found.get(name)
        if one != other:
            problems.append(f"{name} differs: {_excerpt(one, other)}")
    return problems


def _excerpt(one: Any, other: Any) -> str:
    if isinstance(one, dict) and isinstance(other, dict):
        names = [name for name in {*one, *other} if one.get(name) != other.get(name)]
        inner = [f"{name}: {_excerpt(one.get(name), other.get(name))}" for name in names[:3]]
        return "; ".join(inner)
    if isinstance(one, list) and isinstance(other, list) and name_lists(one, other):
        return f"missing {sorted(set(one) - set(other))}, new {sorted(set(other) - set(one))}"
    return f"{str(one)[:200]} / {str(other)[:200]}"


def name_lists(*lists: list[Any]) -> bool:
    """Tell whether lists are of texts alone."""
    return all(isinstance(item, str) for some in lists for item in some)


def _wait(child: int) -> int:
    """Wait for a child; return its status, or minus its signal; one that hangs is killed."""
    deadline = time.monotonic() + ALLOWED_SECONDS
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -999


def load_everything(*, is_real: bool) -> None:
    """Import what the commands need, but for Keras."""
    import sklearn.metrics  # noqa: F401

    import pipeline.cli.commands
    import pipeline.extract.stage
    import pipeline.serving.export
    import pipeline.serving.predict
    import pipeline.train.sweep
    import pipeline.train.train_head
    from pipeline import heads

    for name in ("centroid", "ridge", "majority", "linear"):
        heads.create(name, {}, seed=0)
    _warm_up()
    if is_real:
        import pipeline.finetune.stage  # noqa: F401
    else:
        scenes.replace_network()


def _warm_up() -> None:
    """Do what every command would do again: a tenth of a second each."""
    import tqdm  # noqa: F401
    from PIL import Image

    from pipeline.system.provenance import provenance

    Image.init()
    provenance()


def _disable(name: str) -> None:
    """Take a function away from the package, to see that it is missed."""
    for module in list(sys.modules.values()):
        if module.__name__.startswith("pipeline.") and hasattr(module, name):
            setattr(module, name, lambda *_, **__: None)


def attempt(scene: Scene, folder: Path, kinds: Sequence[str], sample: int | None, seed: int,
            seconds: float) -> Tried:  # fmt: skip
    """Try faults of some kinds on a scene: all, or a sample; no longer than some seconds."""
    began = time.monotonic()
    trial = Trial(scene, folder)
    chance = random.Random(f"{seed} {scene.name}")
    todo: list[Callable[[], None]] = []
    for kind in kinds:
        todo += _chosen(trial, kind, sample, chance)
    chance.shuffle(todo)
    for one in todo:
        if time.monotonic() - began > seconds:
            break
        one()
    trial.tried.seconds = round(time.monotonic() - began, 1)
    return trial.tried


def _chosen(trial: Trial, kind: str, sample: int | None, chance: random.Random
            ) -> list[Callable[[], None]]:  # fmt: skip
    """Return what to do for one kind of fault."""
    if kind in ("kill", "full"):
        faults = trial.faults([kind])
        faults = faults if sample is None else chance.sample(faults, min(sample, len(faults)))
        return [lambda fault=fault: trial.try_fault(fault) for fault in faults]
    if kind == "limit":
        sizes = [int(4 ** (number / 4)) for number in range(12, 40)]
        sizes = sizes if sample is None else chance.sample(sizes, min(sample, len(sizes)))
        return [lambda size=size: trial.try_limit(size) for size in sizes]
    moments = [chance.uniform(0.0, 1.5 * trial.seconds) for _ in range(sample or 40)]
    return [lambda moment=moment: trial.try_signal(kind, moment) for moment in moments]


def main() -> int:
    """Run the scenes that are named; one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", nargs="*")
    parser.add_argument("--kinds", nargs="+", default=["kill"])
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="a scene at most")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--blind", help="a function of pipeline.files.atomic that does nothing")
    options = parser.parse_args()
    if options.list:
        print("\n".join(scenes.SCENES))
        return 0
    from pipeline.system.keras_setup import import_keras

    chosen = [scenes.SCENES[name] for name in options.scenes]
    load_everything(is_real=any(scene.is_real for scene in chosen))
    if options.blind:
        _disable(options.blind)
    failed = False
    for scene in chosen:
        if scene.is_real or scene.command[0] == "export":
            # Not before: what is forked after it takes longer.
            import_keras()
        # Not in the way of anything else: the folder has a fixed depth, and is local.
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            tried = attempt(scene, Path(folder), options.kinds, options.sample, options.seed,
                            options.seconds)  # fmt: skip
            os.chdir("/")
        failed = failed or bool(tried.failures)
        print(json.dumps(vars(tried)), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
