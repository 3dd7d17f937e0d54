"""The frame of a page: what it escapes, what it carries, and what it does without its libraries."""

import json
import re
import sys
from pathlib import Path

import pytest

from pipeline.errors import EngineUnavailableError
from pipeline.pages import charts, frame

HOSTILE = "</script><script>alert(1)</script> \"'&\n\u202eabc\u05d0\udcff"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "page.html").write_text(
        '{% extends "frame.html" %}{% block title %}{{ name }}{% endblock %}'
        '{% block body %}<p title="{{ name }}">{{ name }}</p>{% endblock %}'
    )
    return tmp_path


def page_of(folder: Path, name: str) -> str:
    context = {"name": name, "data": {"classes": [name]}, "charts": charts.embed({})}
    return frame.render(folder, "page.html", context)


def test_text_from_data_is_text(folder: Path) -> None:
    page = page_of(folder, HOSTILE)
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert "\n" not in re.findall(r"<p title=(.*?)</p>", page, flags=re.DOTALL)[0]
    assert "\u240a\u202eabc\u05d0\ufffd" in page
    page.encode()  # all of it is UTF-8


def test_the_script_reads_names_as_they_are(folder: Path) -> None:
    page = page_of(folder, HOSTILE)
    said = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert json.loads(said[0]) == {"classes": [HOSTILE]}


def test_a_page_may_load_nothing(folder: Path) -> None:
    page = page_of(folder, "a")
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="?(?:https?:)?//', page)


def test_without_the_extra_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(EngineUnavailableError, match=r"'bokeh'.*embedding-pipeline\[report\]"):
        frame.require_installed()


def test_shares_are_read_as_percentages() -> None:
    assert frame.percent(0.98765) == "98.8\u202f%"
    assert (frame.percent(None), frame.percent(1.0, 0)) == ("–", "100\u202f%")
