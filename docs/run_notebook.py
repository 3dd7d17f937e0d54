"""Notebooks of the documents: they run as they stand, and what they show stays true.

Usage: python docs/run_notebook.py NOTEBOOK...    # in a temporary folder; writes the outputs anew

A code cell is Python, and is run as such, all of them in one namespace; no Jupyter is needed. Its
outputs are what it prints and, where its last line is a value, that value.
"""

import ast
import base64
import io
import json
import re
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

Notebook = dict[str, Any]


def executed(notebook: Notebook) -> Notebook:
    """Run the code cells of a notebook in the current folder; return it with their outputs."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            outputs = run("".join(cell["source"]), namespace, count)
            cell = {**cell, "execution_count": count, "outputs": outputs}
        cells.append(cell)
    return {**notebook, "cells": cells}


def run(source: str, namespace: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Run one cell; return its outputs as a notebook holds them."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    value = None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), "<cell>", "exec"), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), namespace)
    text = printed.getvalue()
    outputs: list[dict[str, Any]] = []
    if text:
        outputs.append(
            {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        )
    if value is not None:
        shown = {"output_type": "execute_result", "execution_count": count, "metadata": {}}
        outputs.append({**shown, "data": data_of(value)})
    return outputs


def data_of(value: Any) -> dict[str, Any]:
    """Return a value as a notebook shows it: as a picture where it has one, and as text."""
    # Without the address in memory, which is another in each run.
    data = {"text/plain": [re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(value))]}
    if hasattr(value, "_repr_png_"):
        data["image/png"] = base64.b64encode(value._repr_png_()).decode()
    return data


def main() -> None:
    """Write the outputs of notebooks anew."""
    for name in sys.argv[1:]:
        place = Path(name).absolute()
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            made = executed(json.loads(place.read_text(encoding="utf-8")))
        text = json.dumps(made, indent=1, ensure_ascii=False)
        place.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
