"""Documents that must stay true: options, the README's commands, CONTRIBUTING's recipes."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(command: str, cwd: Path, pythonpath: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(pythonpath)}
    return subprocess.run(
        command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_options_page_is_what_the_records_say() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate_options.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs/options.md").read_text() == module.document()


def test_links_in_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        prose = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)\)", prose):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def commands_of(document: Path) -> list[str]:
    """Return the `$ pipeline ...` and `$ python ...` lines of console blocks, in order."""
    blocks = re.findall(r"```console\n(.*?)```", document.read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line[2:] for line in lines if re.match(r"\$ (pipeline|python) ", line)]


@pytest.mark.slow
def test_readme_commands_run_as_they_stand(tmp_path: Path) -> None:
    """In order, in an empty folder; commands on the reader's own photos need a download."""
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data/sample.toml", tmp_path / "data")
    commands = [line for line in commands_of(ROOT / "README.md") if "photos" not in line]
    assert len(commands) >= 5
    script = f'"{sys.executable}" -m pipeline'
    for command in commands:
        line = re.sub(r"^pipeline", script, command)
        line = re.sub(r"^python ", f'"{sys.executable}" ', line)
        done = run(line, tmp_path, ROOT)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.slow
def test_readme_python_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data/sample.toml", tmp_path / "data")
    script = f'"{sys.executable}" -m pipeline'
    for command in (
        "sample data/sample",
        "extract data/sample --config data/sample.toml --image-size 32 --store stores/sample",
        "train-head --store stores/sample --run runs/sample --head majority",
    ):
        assert run(f"{script} {command}", tmp_path, ROOT).returncode == 0
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "block.py").write_text(block)
        done = run(f'"{sys.executable}" block.py', tmp_path, ROOT)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def with_recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package to which CONTRIBUTING's recipes were applied."""
    root = tmp_path_factory.mktemp("recipes")
    shutil.copytree(ROOT / "pipeline", root / "pipeline",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    text = (ROOT / "CONTRIBUTING.md").read_text()
    steps = re.findall(r"<!-- (.*?) -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(steps) == 5
    for instruction, code in steps:
        if instruction.startswith("file: "):
            (root / instruction.removeprefix("file: ")).write_text(code)
        else:
            target, table = re.fullmatch(r"insert into: (\S+) after: (\S+)", instruction).groups()
            source = (root / target).read_text()
            place = re.search(rf"^{table}: Final.*?\(\n    \{{\n", source, re.DOTALL | re.MULTILINE)
            assert place, table
            (root / target).write_text(source[: place.end()] + code + source[place.end() :])
    return root


@pytest.mark.slow
def test_recipes_work(with_recipes: Path, tmp_path: Path) -> None:
    script = f'"{sys.executable}" -m pipeline'
    for command in (
        "sample digits",
        "extract digits --store s --weights random --image-size 32 --backbone densenet121 "
        "--engine eager --batch-size 64",
        "train-head --store s --run r --head naive-bayes --head majority",
        "compare r",
    ):
        done = run(f"{script} {command}", tmp_path, with_recipes)
        assert done.returncode == 0, done.stderr
    assert "naive-bayes" in done.stdout
    info = run(f"{script} info s", tmp_path, with_recipes).stdout
    assert "densenet121" in info and "eager" in info
