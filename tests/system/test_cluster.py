"""Ray on this machine alone: what would be waited for in vain is refused before."""

import sys
from pathlib import Path

import pytest

from pipeline.cli.main import main
from pipeline.errors import ClusterError, ConfigError
from pipeline.system import cluster


@pytest.mark.slow
def test_python_at_a_path_with_a_blank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(sys, "executable", "/my environments/bin/python")
    with pytest.raises(ClusterError, match="path without blanks"), cluster.joined(None, memory=1):
        pytest.fail("Ray was started")


@pytest.mark.parametrize(
    ("given", "variable", "says"),
    [
        ("ray://head:10001", "", "--address: .*'ray://head:10001'"),
        (None, "ray://head:10001", "RAY_ADDRESS: .*'ray://head:10001'"),
        ("auto", "http://head:8265", "RAY_ADDRESS: .*'http://head:8265'"),
        ("head:6379", "http://head:8265", None),
        ("auto", "", None),
    ],
)
def test_the_address_of_a_client_or_a_dashboard_is_refused(
    given: str | None, variable: str, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_REQUIRED", ())
    monkeypatch.setenv("RAY_ADDRESS", variable)
    if says is None:
        cluster.require_executor("ray", address=given)
        return
    with pytest.raises(ConfigError, match=says):
        cluster.require_executor("ray", address=given)


def test_what_is_not_installed_is_said_before_anything_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "_REQUIRED", ("no_such_ray",))
    store = tmp_path / "store"
    assert (
        main(["extract", str(tmp_path / "none"), "--store", str(store), "--executor", "ray"]) == 2
    )
    assert "no module 'no_such_ray'" in capsys.readouterr().err
    assert not store.exists()
