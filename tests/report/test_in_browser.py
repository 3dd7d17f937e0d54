"""The report in a real browser: it opens from disk, asks for nothing, and does what it offers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import DESKTOP, HOSTILE, PHONE, Browser, check_that_it_stands_alone, opened
from fakes import replace_network, write_photos
from PIL import Image

from pipeline.cli.main import main
from pipeline.images import manifest as manifests
from pipeline.runs.run import Run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on photos of four classes, one of a hostile name, with its report."""
    work = tmp_path_factory.mktemp("report")
    write_photos(work / "photos", 40)
    (work / "photos" / HOSTILE).mkdir()
    for number in range(40):
        colour = (110 + number % 30, 100, 100 + number)
        place = work / "photos" / HOSTILE / f"{number}, 'x'.png"
        Image.new("RGB", (40 + number, 48), colour).save(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        replace_network(patch)
        for arguments in (["extract", "photos", "--store", "s", "--weights", "random"],
                          ["train-head", "--store", "s", "--run", "r", "--head", "ridge",
                           "--head", "majority"],
                          ["report", "r"]):  # fmt: skip
            assert main([*arguments, "--quiet"]) == 0
        yield work


@pytest.fixture(scope="module")
def page(work: Path) -> Path:
    return work / "r/report.html"


@pytest.fixture(scope="module")
def browser(work: Path) -> Iterator[Browser]:
    with opened(work) as found:
        yield found


def place_of_point(browser: Browser, number: int) -> Any:
    """Return where a point of the map is on the screen."""
    return browser.run(
        """
        const at = arguments[0];
        const root = document.getElementById("map");
        root.scrollIntoView({block: "center", behavior: "instant"});
        const view = page.views.get("map");
        const source = view.model.document.get_model_by_name("points");
        const frame = view.frame ?? view.frame_view;
        const box = view.el.getBoundingClientRect();
        const x = frame.x_scale.compute(source.data.x[at]);
        const y = frame.y_scale.compute(source.data.y[at]);
        return [box.x + x, box.y + y, source.data.x.length];
        """,
        number,
    )


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_opens_from_disk_and_asks_for_nothing(
    browser: Browser, page: Path, size: tuple[int, int]
) -> None:
    check_that_it_stands_alone(browser, page, size)
    assert browser.run("return document.querySelectorAll('.gallery img').length") > 0


def test_names_show_as_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    classes = [cell.text for cell in browser.find_all("#class-table th[scope=row]")]
    assert HOSTILE.replace("\n", "\u240a") in classes
    assert browser.run("return document.querySelectorAll('img[src=x]').length") == 0
    options = browser.run("return [...document.querySelectorAll('option')].map((o) => o.text)")
    assert not {"<img src=x onerror=alert(1)>"} & set(options)


def test_charts_follow_the_theme(browser: Browser, page: Path) -> None:
    def ground() -> str:
        return str(browser.run("return page.views.get('map').model.border_fill_color"))

    browser.open(page, theme="light")
    light = ground()
    browser.set_theme("dark")
    browser.wait(lambda: ground() != light)
    assert browser.messages() == []


def test_a_cell_of_the_matrix_leads_to_its_pictures(browser: Browser, page: Path) -> None:
    browser.open(page)
    cell = browser.find(".matrix button")
    true, predicted, count = (
        cell.get_attribute("data-true"), cell.get_attribute("data-predicted"), int(cell.text)
    )  # fmt: skip
    every = len(browser.find_all("#wrong-images li"))
    browser.click(cell)
    shown = browser.wait(lambda: browser.find_all("#wrong-images li"))
    assert 0 < len(shown) <= count
    for item in shown:
        assert item.get_attribute("data-true") == true
        assert item.get_attribute("data-predicted") == predicted
    browser.click(browser.find("[data-clear=wrong-images]"))
    assert len(browser.find_all("#wrong-images li")) == every


def test_filters_narrow_the_pictures(browser: Browser, page: Path) -> None:
    browser.open(page)
    choice = browser.find("select[data-by=true]")
    option = choice.find_elements("css selector", "option")[1]
    browser.click(option)
    shown = browser.find_all("#wrong-images li")
    assert {item.get_attribute("data-true") for item in shown} == {option.get_attribute("value")}


def test_tables_are_sorted_by_the_column_that_is_pressed(browser: Browser, page: Path) -> None:
    browser.open(page)
    head = browser.find_all("#class-table thead button")[2]
    for reverse in (False, True):
        browser.click(head)
        column = (
            "return [...document.querySelectorAll('#class-table tbody tr')]"
            ".map((row) => Number(row.cells[4].dataset.value))"
        )
        values = browser.run(column)
        assert values == sorted(values, reverse=reverse)


def test_a_point_shows_its_picture(browser: Browser, page: Path) -> None:
    browser.open(page)
    x, y, _ = place_of_point(browser, 3)
    browser.pointer("mouseMoved", x - 2, y - 2)
    browser.pointer("mouseMoved", x, y)
    browser.wait(lambda: browser.find_all("#map-card img"))
    shown = browser.find("#map-card .path").text
    paths = browser.run("return page.data.points.path.map(page.visible)")
    assert shown in paths and "labelled" in browser.find("#map-card").text


def test_colours_and_the_legend(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click(browser.find("#map-by option[value=error]"))
    names = [item.text.split("\n")[0] for item in browser.find_all("#map-legend button")]
    assert names[0].startswith("wrong") and len(names) == 3
    browser.click(browser.find_all("#map-legend button")[2])
    browser.click(browser.find("#map-all"))
    scored = browser.run("return page.data.points.predicted.filter((n) => n >= 0).length")
    assert browser.find("#map-count").text == f"{scored} images selected"


def test_a_lasso_gives_a_manifest(browser: Browser, page: Path, work: Path) -> None:
    browser.open(page)
    browser.click(browser.find("#map-lasso"))
    place_of_point(browser, 0)  # which scrolls there
    box = browser.run(
        "const box = document.getElementById('map').getBoundingClientRect();"
        "return [box.x, box.y, box.width, box.height]"
    )
    left, top, width, height = box
    corners = [(0.03, 0.03), (0.97, 0.03), (0.97, 0.97), (0.03, 0.97), (0.03, 0.05)]
    points = [(left + width * x, top + height * y) for x, y in corners]
    browser.pointer("mouseMoved", *points[0])
    browser.pointer("mousePressed", *points[0], buttons=1)
    for point in points[1:]:
        browser.pointer("mouseMoved", *point, buttons=1)
    browser.pointer("mouseReleased", *points[-1])
    text = browser.wait(lambda: browser.find("#map-count").text)
    assert int(text.split()[0]) > 100
    browser.click(browser.find("#map-download"))
    written = work / "selection.csv"
    browser.wait(lambda: written.exists() and written.stat().st_size > 0)
    rows = manifests.read(written, root=work / "photos")
    assert len(rows) == int(text.split()[0])
    assert HOSTILE in rows.labels
    known = Run.open(work / "r").manifest()
    labels = dict(zip(known.paths, known.labels, strict=True))
    assert all(labels[path] == label for path, label in zip(rows.paths, rows.labels, strict=True))
    again = ["train-head", "--store", "s", "--run", "again", "--head", "majority", "--manifest",
             str(written), "--quiet"]  # fmt: skip
    assert main(again) == 0


def test_it_prints_with_everything_that_is_hidden(browser: Browser, page: Path) -> None:
    browser.open(page, theme="dark")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    listed = browser.run("return document.querySelectorAll('#uncertain-images li').length")
    assert len(browser.find_all("#uncertain-images li")) == listed
    assert len(browser.command("Page.printToPDF")["data"]) > 10_000
    assert browser.messages() == []
