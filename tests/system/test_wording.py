"""Counts with their nouns."""

import pytest

from pipeline.cli.commands import find
from pipeline.system.wording import counted


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1000, "1,000 images")],
)
def test_counts(count: int, expected: str) -> None:
    assert counted(count, "image") == expected


def test_other_plurals() -> None:
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]


def test_results_of_one_are_in_the_singular() -> None:
    store = {"kind": "store", "path": "s", "rows": 1, "dim": 4, "shards": 1, "bytes": 1,
             "images": 1,
             "boundary_shards": 0, "root": "d", "statuses": {}, "classes": {}, "identity": {},
             "provenance": {}}  # fmt: skip
    checked = {"ok": False, "shards": 1, "rows": 1, "boundary_shards": 1, "repaired": [],
               "problems": [{"problem": "p", "fix": "f"}]}  # fmt: skip
    pruned = {"dropped": 1, "rows": 1, "shards": 1, "boundary_dropped": 1, "boundary_shards": 1,
              "freed_bytes": 0}  # fmt: skip
    lines = [*find("info").text(store), *find("verify").text(checked), *find("prune").text(pruned)]
    for noun in ("images", "shards", "rows", "problems", "features dropped"):
        assert not any(f"1 {noun}" in line or f"1 good {noun}" in line for line in lines), lines
