"""Kills, full disks and signals: whatever happens at a write, the next run makes it right.

A few, chosen by a seed, in the suite; all of them by ``make faults`` (``PIPELINE_FAULTS=all``, or
a number of faults a scene and kind), which prints the table of ``docs/reliability.md``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).parent / "driver.py"
WANTED = os.environ.get("PIPELINE_FAULTS", "")
SIGNALS = ("SIGKILL", "SIGINT", "SIGTERM", "SIGHUP")
QUICK = ("extract", "prune", "train-head", "export-force")


def tried(*arguments: str) -> list[dict[str, Any]]:
    """Run the driver; return what came of each scene."""
    done = subprocess.run(
        [sys.executable, str(DRIVER), *arguments], capture_output=True, text=True, check=False
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert found, done.stderr
    return found


@pytest.mark.slow
def test_a_few_faults_of_each_command_leave_nothing_wrong() -> None:
    found = tried(*QUICK, "--kinds", "kill", "full", "--sample", "2", "--seed", "12")
    assert [item["failures"] for item in found] == [[]] * len(QUICK)
    assert all(sum(item["counts"].values()) == 4 for item in found)


@pytest.mark.slow
def test_the_harness_sees_what_falls_short() -> None:
    """Left to themselves, temporary files of killed processes would stay."""
    found = tried("train-head", "--sample", "2", "--seed", "2", "--blind", "remove_leftovers")
    assert "left behind" in json.dumps(found[0]["failures"])


@pytest.fixture(scope="module")
def table() -> Iterator[list[dict[str, Any]]]:
    """Collect what was tried; print it as a table at the end."""
    rows: list[dict[str, Any]] = []
    yield rows
    print("\n\n| command | writes | kills | full disk | file limit | signals | fell short | s |")
    print("|--|--|--|--|--|--|--|--|")
    for row in rows:
        counts = row["counts"]
        signals = sum(counts.get(name, 0) for name in SIGNALS)
        shown = (counts.get("kill", 0), counts.get("full", 0), counts.get("limit", 0), signals)
        print(f"| {row['scene']} | {row['points']} | " + " | ".join(f"{n:,}" for n in shown)
              + f" | {len(row['failures'])} | {row['seconds']:.0f} |")  # fmt: skip


def scenes() -> list[str]:
    if not WANTED:
        return []
    listed = subprocess.run([sys.executable, str(DRIVER), "--list"], capture_output=True, text=True,
                            check=True)  # fmt: skip
    return listed.stdout.split()


@pytest.mark.skipif(not WANTED, reason="hours: make faults")
@pytest.mark.parametrize("scene", scenes())
def test_every_fault(scene: str, table: list[dict[str, Any]]) -> None:
    signals = SIGNALS if scene in ("extract", "extract-more", "extract-real") else ()
    arguments = [scene, "--kinds", "kill", "full", "limit", *signals]
    found = tried(*arguments, *([] if WANTED == "all" else ["--sample", WANTED]))
    table += found
    assert found[0]["failures"] == []
