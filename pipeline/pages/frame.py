"""The frame of a page: its templates, styles and script, put together into one file.

A page is a template that extends ``frame.html`` and uses the parts of ``parts.html``. Whatever
comes from data is escaped: by Jinja2 in text, by its ``tojson`` in what the script reads.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import EngineUnavailableError
from pipeline.files.atomic import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

PIP_LINE: Final = "pip install 'embedding-pipeline[report]'"
# No page is larger, whatever the data are.
MAX_BYTES: Final = 15_000_000

# Unicode has a picture of each control character.
_CONTROLS: Final = {**{code: 0x2400 + code for code in range(0x20)}, 0x7F: 0x2421}
_TEMPLATES: Final = Path(__file__).parent / "templates"


def missing() -> str:
    """Return the name of a library that pages need and that is not installed; empty if none is."""
    for name in ("bokeh", "jinja2"):
        try:
            importlib.import_module(name)
        except ImportError:
            return name
    return ""


def require_installed() -> None:
    """Refuse to begin a page that could not be made.

    Raises:
        EngineUnavailableError: Bokeh or Jinja2 is not installed.
    """
    name = missing()
    if name:
        raise EngineUnavailableError(
            f"Expected the library {name!r}, which pages are made with. Received: none.",
            hint=f"Install it: {PIP_LINE}",
        )


def render(folder: Path, template: str, context: Mapping[str, Any]) -> str:
    """Return a page.

    Args:
        folder: Where its template is.
        template: The file's name.
        context: What the template shows; ``data`` is what its script reads, as JSON, and
            ``charts`` what ``charts.embed`` returns.
    """
    return _environment(folder).get_template(template).render(context)


def write(path: Path, page: str) -> int:
    """Write a page in place of an earlier one; return its bytes."""
    write_text(path, page)
    return len(page.encode())


def shown(text: str) -> str:
    """Return text as a page shows it.

    A control character, such as the line feed in a file's name, becomes its picture; what is no
    UTF-8 in a name is replaced.
    """
    whole = text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="replace")
    return whole.translate(_CONTROLS)


def _environment(folder: Path) -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    environment.filters["percent"] = percent
    environment.filters["thousands"] = lambda count: f"{count:,}"
    environment.policies["json.dumps_function"] = _dumps
    # Bokeh refers to what it has read before, so the order of keys counts.
    environment.policies["json.dumps_kwargs"] = {}
    return environment


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as people read it; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.{digits}f}\u202f%"  # which no line parts


def _dumps(value: object, **options: Any) -> str:
    """Return JSON in ASCII, without blanks: any name of a file survives as it is."""
    return json.dumps(value, **{**options, "separators": (",", ":"), "ensure_ascii": True})
