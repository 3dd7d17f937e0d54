"""Documents that must stay true: options, the README's commands, CONTRIBUTING's recipes."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_resnet
from processes import run_python

from pipeline.images.sample import write_sample

ROOT = Path(__file__).parent.parent


def test_options_page_is_what_the_records_say() -> None:
    module = module_of(ROOT / "docs/generate_options.py")
    assert (ROOT / "docs/options.md").read_text() == module.document()


def test_links_in_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        prose = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)\)", prose):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_templates_of_clusters_are_what_ray_and_kuberay_read() -> None:
    yaml, jsonschema = pytest.importorskip("yaml"), pytest.importorskip("jsonschema")
    text = (ROOT / "docs/scale.md").read_text()
    found = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    launched, job = map(yaml.safe_load, found)
    spec = importlib.util.find_spec("ray")
    if spec is not None and spec.submodule_search_locations:
        schema = Path(spec.submodule_search_locations[0]) / "autoscaler/ray-schema.json"
        jsonschema.validate(launched, json.loads(schema.read_text()))
    kinds = launched["available_node_types"]
    assert launched["head_node_type"] in kinds
    assert all(kind["node_config"]["ImageId"] for kind in kinds.values())
    cluster = job["spec"]["rayClusterSpec"]
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    (one,), (other,) = (group["template"]["spec"]["containers"] for group in (head, workers))
    limits = other["resources"].pop("limits")
    assert one["resources"].pop("limits") == one["resources"].pop("requests")
    assert {**other["resources"].pop("requests"), "nvidia.com/gpu": 1} == limits
    # But for what they take, all pods are alike.
    assert (one, head["template"]["spec"]["volumes"]) == (
        other,
        workers["template"]["spec"]["volumes"],
    )
    assert workers["rayStartParams"] == {}


def test_pictures_of_the_readme_are_there_and_small() -> None:
    named = re.findall(r'src(?:set)?="([^"]+)"', (ROOT / "README.md").read_text())
    assert len(named) == 2
    for name in named:
        assert (ROOT / name).stat().st_size < 300_000


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_lines_are_compared_without_numbers_and_processors() -> None:
    console = module_of(ROOT / "docs/console.py")
    (step,) = console.steps("```console\n$ pipeline verify s  # all\n3 rows in 0.1 s\n...\n```")
    assert (step.command, step.shown) == ("pipeline verify s", ("3 rows in 0.1 s", "..."))
    assert console.stale(step, ["14 rows in 2.5 s", "and more"]) == []
    assert console.stale(step, ["14 rows  after 2.5 s"]) == ["3 rows in 0.1 s"]
    shown = "Encoding in float32 on CPU (AMD EPYC, 2 threads)"
    assert console.masked(shown) == console.masked("Encoding in float32 on CPU (Xeon, 16 threads)")


def lines_of(command: str, folder: Path) -> list[str]:
    """Run a command of a document on a tiny network; return what it prints.

    What is shown is the same but for numbers.
    """
    done = run_python("-c", tiny_resnet.PROGRAM, *shlex.split(command), cwd=folder)
    assert done.returncode == 0, (command, done.stderr)
    return [line.rstrip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]


def keep_one_in(share: int, folder: Path) -> None:
    """Remove most digits: the same is said of the others, with other numbers."""
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        if number % share:
            path.unlink()


@pytest.mark.slow
def test_documents_run_as_they_stand_and_show_what_is_printed(tmp_path: Path) -> None:
    """README, tour and Python page one after the other, in one empty folder."""
    console = module_of(ROOT / "docs/console.py")
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data/sample.toml", tmp_path / "data")
    tour, readme = (ROOT / "docs/tour.md").read_text(), (ROOT / "README.md").read_text()
    count = 0
    for step in console.steps(tour):
        if step.is_run:
            printed = lines_of(step.command, tmp_path)
            assert not console.stale(step, printed), step.command
            count += 1
        if step.command.startswith("pipeline sample "):
            keep_one_in(4, tmp_path / "data/sample")
    assert count >= 15
    for document in (readme, (ROOT / "docs/python.md").read_text()):
        blocks = re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL)
        assert blocks
        (tmp_path / "blocks.py").write_text("\n".join(blocks))
        done = run_python("-c", tiny_resnet.PROGRAM, "blocks.py", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    # What README shows is taken from the tour.
    of_tour = {console.masked(line) for step in console.steps(tour) for line in step.shown}
    for step in console.steps(readme):
        shown = {console.masked(line) for line in step.shown} - {console.LEFT_OUT}
        assert shown <= of_tour, step.command


def shown_in(notebook: dict[str, Any]) -> list[tuple[list[str], set[str]]]:
    """Return of each code cell the lines that it shows, and the kinds of what it shows."""
    found = []
    for cell in notebook["cells"]:
        outputs = cell.get("outputs", [])
        text = "".join(line for output in outputs for line in output.get("text", []))
        kinds = {
            kind for output in outputs for kind in (output["output_type"], *output.get("data", ()))
        }
        found.append((text.splitlines(), kinds))
    return found


@pytest.mark.slow
def test_the_notebook_corrects_labels_and_shows_what_it_prints(tmp_path: Path) -> None:
    """Its own last cell refuses a score that is not better."""
    console = module_of(ROOT / "docs/console.py")
    committed = json.loads((ROOT / "docs/corrected_label.ipynb").read_text())
    stripped = json.loads(json.dumps(committed))
    for cell in stripped["cells"]:
        cell.update({"outputs": []} if cell["cell_type"] == "code" else {})
    (tmp_path / "copy.ipynb").write_text(json.dumps(stripped))
    done = run_python("-c", tiny_resnet.PROGRAM.replace("resnet50()", "resnet50(256)"),
                      str(ROOT / "docs/run_notebook.py"), "copy.ipynb", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["copy.ipynb"]
    made = json.loads((tmp_path / "copy.ipynb").read_text())
    assert [cell["source"] for cell in made["cells"]] == [
        cell["source"] for cell in committed["cells"]
    ]
    pairs = list(zip(shown_in(committed), shown_in(made), strict=True))
    for (lines, kinds), (printed, kinds_now) in pairs:
        assert kinds == kinds_now
        assert not console.stale(console.Step("", tuple(filter(None, lines))), printed)
    assert sum(bool(lines) for (lines, _), _ in pairs) >= 7
    assert {"image/png"} <= set().union(*(kinds for (_, kinds), _ in pairs))


@pytest.fixture(scope="module")
def with_recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package to which CONTRIBUTING's recipes were applied."""
    root = tmp_path_factory.mktemp("recipes")
    shutil.copytree(ROOT / "pipeline", root / "pipeline",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    text = (ROOT / "CONTRIBUTING.md").read_text()
    steps = re.findall(r"<!-- (.*?) -->\n```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(steps) == 7
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


# Commands one after the other in one process, each with a line before what it prints.
COMMANDS = """
import shlex, sys
from pipeline.cli.main import main
for command in sys.argv[1:]:
    print("$", command, flush=True)
    assert main(shlex.split(command)) == 0, command
"""


@pytest.mark.slow
def test_recipes_work(with_recipes: Path, tmp_path: Path) -> None:
    write_sample(tmp_path / "digits")
    keep_one_in(12, tmp_path / "digits")
    commands = (
        "extract digits --store s --weights random --image-size 32 --backbone densenet121 "
        "--engine eager --batch-size 64",
        "train-head --store s --run r --head naive-bayes --head majority",
        "compare r",
        "classes s",
        "info s",
    )
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *commands], cwd=tmp_path, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(with_recipes)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, trained, compared, classes, info = done.stdout.split("$ ")
    nines = len(list((tmp_path / "digits/9").iterdir()))
    assert "naive-bayes" in trained and "naive-bayes" in compared
    assert classes.endswith(f"9: {nines}\n")
    assert "densenet121" in info and "eager" in info
