"""What a page says, for tests."""

import json
import re
from html import unescape
from typing import Any


def text_of(page: str) -> str:
    """Return what a reader sees, as one line, without scripts and styles."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


def data_of(page: str) -> dict[str, Any]:
    """Return what its script reads."""
    found: dict[str, Any] = json.loads(re.findall(r'id="data">(.*?)</script>', page)[0])
    return found
