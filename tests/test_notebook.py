"""The functions for Python: what the command line does, as records that notebooks show."""

import inspect
import json
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import Command, FakeEncoder, write_classes

import pipeline
from pipeline.cli.commands import find
from pipeline.cli.text import Table, as_html, as_lines
from pipeline.config.options import default_of, options_of
from pipeline.errors import ConfigError, StoreError

FUNCTIONS = {
    "extract_features": "extract",
    "train_heads": "train-head",
    "sweep_heads": "sweep",
    "compare_runs": "compare",
    "fine_tune": "finetune",
    "export_model": "export",
    "evaluate_run": "evaluate",
    "report_run": "report",
    "audit_store": "audit",
    "suggest_images": "suggest",
    "import_features": "import-features",
    "export_features": "export-features",
}
# Options that a function calls by another name.
NAMED = {
    ("train-head", "head"): "heads",
    ("sweep", "head"): "heads",
    ("finetune", "source"): "start",
}


@pytest.fixture
def photos(tmp_path: Path, fake_network: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "photos", {"<b>cat</b>": 20, "dog": 20})
    return tmp_path / "photos"


def timeless(result: object) -> object:
    """Leave out what two runs of the same differ in."""
    if isinstance(result, dict):
        return {k: timeless(v) for k, v in result.items() if "second" not in k and k != "run"}
    return [timeless(item) for item in result] if isinstance(result, list) else result


def test_the_way_from_photos_to_a_leaderboard(
    photos: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    made = pipeline.extract_features(photos, weights="random", image_size=32, quiet=True)
    assert (made["encoded"], made["store"]) == (40, "stores/photos")
    trained = pipeline.train_heads(
        made["store"], heads=["ridge", "majority"], parameters={"ridge": {"grid": [1.0]}},
        quiet=True,
    )  # fmt: skip
    assert list(trained["heads"]) == ["ridge", "majority"] and trained["run"] == "runs/photos"
    swept = pipeline.sweep_heads(
        made["store"], heads=["ridge"], grids={"ridge": {"class_weight": ["balanced"]}}, quiet=True
    )
    assert swept["heads"]["ridge"]["selected"]["class_weight"] == "balanced"
    compared = pipeline.compare_runs(trained["run"], swept["run"], quiet=True)
    assert len(compared["groups"]) == 1
    assert capsys.readouterr() == ("", "")
    status, same = command("compare", trained["run"], swept["run"])
    assert (status, timeless(same)) == (0, timeless(json.loads(json.dumps(compared))))


def test_a_notebook_shows_a_table_with_everything_escaped(photos: Path) -> None:
    made = pipeline.extract_features(photos, weights="random", image_size=32, quiet=True)
    trained = pipeline.train_heads(made["store"], heads=["majority"], quiet=True)
    shown = trained._repr_html_()
    assert shown.startswith("<table><thead><tr><th>head</th>") and "<td>majority *</td>" in shown
    assert str(trained).splitlines()[0].split()[:2] == ["head", "test"]
    assert as_html(["<b>", Table([("a", "b"), ("<i>", "&")])]) == (
        "<div>&lt;b&gt;</div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td>&lt;i&gt;</td><td>&amp;</td></tr></tbody></table>"
    )
    assert list(as_lines(["x", Table([("a", "b"), ("cc", "1.5")])])) == ["x", "a     b", "cc  1.5"]


def test_errors_are_those_of_the_command_line(photos: Path) -> None:
    with pytest.raises(ConfigError, match=r"image_sise.*image_size"):
        pipeline.extract_features(photos, image_sise=32)
    with pytest.raises(StoreError, match="no feature store"):
        pipeline.train_heads("nowhere")
    with pytest.raises(ConfigError, match="expected RUN"):
        pipeline.compare_runs()


@pytest.mark.parametrize(("function", "command_name"), FUNCTIONS.items())
def test_help_lists_every_option_with_its_default(function: str, command_name: str) -> None:
    found = getattr(pipeline, function)
    parameters = inspect.signature(found).parameters
    record = find(command_name).options
    for name, option in options_of(record).items():
        shown = parameters[NAMED.get((command_name, name), name)]
        if shown.default is not shown.empty and shown.default is not None:
            assert shown.default == default_of(record, name)
        assert option.help
    text = pydoc.render_doc(pipeline, renderer=pydoc.plaintext)
    assert f"{function}(" in text and "Raises:" in (inspect.getdoc(found) or "")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, pipeline; pipeline.train_heads;"
        "sys.exit(sorted({'numpy', 'h5py', 'keras', 'sklearn'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
