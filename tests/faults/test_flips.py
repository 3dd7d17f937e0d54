"""No flipped byte changes a result unseen: it is found, made good, or without effect.

A seeded selection; all of it with ``PIPELINE_FAULTS=all`` (``make faults``), whose table is in
``docs/reliability.md``.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flips import FLIPS, Target, build, damage, targets

COLUMNS = ("flips", "found", "harmless", "verify found", "silent")
_rows: list[str] = []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of everything, whose files are damaged and put back; the table at the end."""
    yield build(tmp_path_factory.mktemp("flips"))
    out = os.environ.get("PIPELINE_FAULTS_TABLE")
    if out:
        head = ["| file | " + " | ".join(COLUMNS) + " |", "|--" * (len(COLUMNS) + 1) + "|"]
        Path(out).write_text("\n".join([*head, *_rows]) + "\n")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), targets().items(), ids=targets())
def test_no_flipped_byte_changes_a_result_unseen(made: Path, name: str, target: Target) -> None:
    seed = sum(name.encode())
    outcomes = damage(made, target, FLIPS, seed)
    _rows.append("| " + " | ".join([name, *(str(outcomes[key]) for key in COLUMNS)]) + " |")
    crashed = {outcome: count for outcome, count in outcomes.items() if "crashed" in outcome}
    assert not crashed
    assert not outcomes["silent"]
    assert outcomes["found"] + outcomes["harmless"] == FLIPS
    if name != "scan.sqlite":  # which is made anew, whoever opens it
        assert outcomes["verify found"] >= (FLIPS if target.is_named else outcomes["found"])
