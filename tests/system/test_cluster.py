"""Ray on this machine alone: what would be waited for in vain is refused before."""

import sys

import pytest

from pipeline.errors import ClusterError
from pipeline.system import cluster


@pytest.mark.slow
def test_python_at_a_path_with_a_blank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sys, "executable", "/my environments/bin/python")
    with pytest.raises(ClusterError, match="path without blanks"), cluster.joined(None, memory=1):
        pytest.fail("Ray was started")
