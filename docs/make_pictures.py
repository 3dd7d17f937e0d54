"""The pictures of the README: the report of the sample, in light and in dark.

Usage: python docs/make_pictures.py    # needs chromium and chromedriver, as the tests of pages do

Extracts features of the sample, trains heads, and photographs two parts of the page, side by side.
"""

import sys
import tempfile
from contextlib import chdir
from io import BytesIO
from pathlib import Path

from PIL import Image

from pipeline.cli.main import main as pipeline

ROOT = Path(__file__).parent.parent
# Of one part.
SIZE = WIDTH, HEIGHT = 640, 900
PARTS = ("answer", "map-section")
# The first part begins at the top of the page; above the others there is its menu.
SHOW = """
document.documentElement.style.scrollbarWidth = "none";
const part = document.getElementById(arguments[0]);
const top = part.previousElementSibling ? part.getBoundingClientRect().top + scrollY - 40 : 0;
scrollTo({top, behavior: "instant"});
"""
# A README is opened on a phone, too.
LIMIT = 300_000


def photograph(page: Path, folder: Path) -> None:
    """Write a picture of a page in each theme."""
    sys.path.insert(0, str(ROOT / "tests"))
    from browser import opened

    with opened(page.parent) as browser:
        for theme, name in (("light", "report.png"), ("dark", "report-dark.png")):
            browser.open(page, size=SIZE, theme=theme)
            picture = Image.new("RGB", (WIDTH * len(PARTS), HEIGHT))
            for place, part in enumerate(PARTS):
                browser.run(SHOW, part)
                with Image.open(BytesIO(browser.driver.get_screenshot_as_png())) as taken:
                    picture.paste(taken, (WIDTH * place, 0))
            # Few colours are in a page, and a palette of them takes a third of the bytes.
            picture.quantize(256).save(folder / name, optimize=True)
            size = (folder / name).stat().st_size
            if size > LIMIT:
                raise SystemExit(f"{name}: {size:,} bytes, more than {LIMIT:,}")


def main() -> None:
    """Make the report of the sample in a temporary folder, and write the pictures."""
    folder = ROOT / "docs/pictures"
    folder.mkdir(exist_ok=True)
    config = ("--config", str(ROOT / "data/sample.toml"))
    with tempfile.TemporaryDirectory() as work, chdir(work):
        for command in (
            ["sample", "data/sample"],
            ["extract", "data/sample", *config],
            ["train-head", "--store", "stores/sample", "--report"],
        ):
            if pipeline(command):
                raise SystemExit(f"pipeline {' '.join(command)} failed")
        photograph(Path("runs/sample/report.html").absolute(), folder)


if __name__ == "__main__":
    main()
