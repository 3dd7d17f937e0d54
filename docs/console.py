"""Console blocks of the documents: they run as they stand, and what they show stays true.

Usage: python docs/console.py FOLDER DOCUMENT...    # run in FOLDER, and write the outputs anew

A block holds commands after ``$`` and what they print; ``...`` stands for lines that are left out.
Of blocks with ``...`` the outputs are kept by hand. Commands on ``photos`` need a download.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
LEFT_OUT = "..."
# Lines that begin so are findings, which may come out otherwise elsewhere.
FINDINGS = ("Bound by", "Fine-tuning", "Lowest recall", "Val error", "In the search")
# Which is best may differ.
HEADS = ("dense", "linear", "logreg", "ridge")


@dataclass(frozen=True)
class Step:
    """A command and the lines that a document shows under it."""

    command: str
    shown: tuple[str, ...]

    @property
    def is_run(self) -> bool:
        """Whether it is one of the program's own, on data that is at hand."""
        return self.command.startswith("pipeline ") and " photos" not in self.command


def steps(text: str) -> Iterator[Step]:
    """Yield the commands of the console blocks of a document, in order."""
    for block in BLOCK.findall(text):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = part.rstrip("\n").split("\n")
            yield Step(command.partition("  #")[0].strip(), tuple(line for line in shown if line))


def run(command: str, folder: Path, environment: Mapping[str, str]) -> list[str]:
    """Run a command of the program; return the lines that a terminal would show."""
    line = re.sub(r"^pipeline", f'"{sys.executable}" -m pipeline', command)
    done = subprocess.run(
        line, shell=True, cwd=folder, env={**os.environ, **environment}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}")
    return [line.rstrip() for line in done.stdout.splitlines() if line.strip()]


def masked(line: str) -> str:
    """Return a line without what differs between runs: numbers, sizes, names of heads, folders."""
    line = re.sub(r"/\S+/(?=(?:data|runs|stores)/)", "", line)
    line = re.sub(rf"\b(?:{'|'.join(HEADS)})\b(?: \*)?", "HEAD", line)
    line = line.replace("shards", "shard")
    line = re.sub(r" on CPU \(.*\)", " on CPU", line)
    line = re.sub(r"[-+]?\d[\d,.]*(?:e[-+]?\d+)?", "#", line)
    return " ".join(re.sub(r"# [KMG]B\b", "# bytes", line).split())


def stale(step: Step, printed: list[str]) -> list[str]:
    """Return the lines that a document shows and the command did not print.

    Findings and rows of tables are not: they may come out otherwise elsewhere.
    """
    known = {masked(line) for line in printed}
    return [
        line
        for line in step.shown
        if line != LEFT_OUT
        and masked(line) not in known
        and " points" not in line
        and " at the edge of " not in line
        and not line.startswith(FINDINGS)
        and not re.match(r"\w+ {2,}\d", line)
    ]


def refreshed(text: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Return a document with its outputs written anew."""
    for block in BLOCK.findall(text):
        made = []
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.rstrip("\n").partition("\n")
            (step,) = steps(f"```console\n$ {part}```")
            if step.is_run:
                printed = run(step.command, folder, environment)
                if step.shown and LEFT_OUT not in step.shown:
                    shown = "\n".join(printed)
            made.append(f"$ {command}" + (f"\n{shown.strip()}" if shown.strip() else ""))
        text = text.replace(block, "\n".join(made) + "\n")
    return text


def main() -> None:
    """Write the outputs of documents anew."""
    folder = Path(sys.argv[1])
    (folder / "data").mkdir(parents=True, exist_ok=True)
    root = Path(__file__).parent.parent
    (folder / "data/sample.toml").write_text((root / "data/sample.toml").read_text())
    for name in sys.argv[2:]:
        document = Path(name)
        document.write_text(refreshed(document.read_text(), folder, {"PYTHONPATH": str(root)}))


if __name__ == "__main__":
    main()
