"""The page of an audit in a real browser: it opens from disk, and hands out what was decided."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import DESKTOP, HOSTILE, PHONE, Browser, check_that_it_stands_alone, opened
from fakes import replace_network, write_photos

from pipeline.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An audit of three classes that overlap, one of a hostile name, with copies across labels."""
    work = tmp_path_factory.mktemp("audit")
    write_photos(work / "photos", 24)
    (work / "photos/cow").rename(work / "photos" / HOSTILE)
    for number in range(3):
        shutil.copy(
            work / f"photos/ant/{number:03}.png", work / "photos" / HOSTILE / f"{number}.png"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        replace_network(patch)
        for arguments in (["extract", "photos", "--store", "s", "--weights", "random"],
                          ["train-head", "--store", "s", "--run", "r", "--head", "ridge"],
                          ["audit", "s", "--run", "r"]):  # fmt: skip
            assert main([*arguments, "--quiet"]) == 0
        yield work


@pytest.fixture(scope="module")
def page(work: Path) -> Path:
    return work / "audits/s/audit.html"


@pytest.fixture(scope="module")
def browser(work: Path) -> Iterator[Browser]:
    with opened(work) as found:
        yield found


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_opens_from_disk_and_asks_for_nothing(
    browser: Browser, page: Path, size: tuple[int, int]
) -> None:
    check_that_it_stands_alone(browser, page, size)
    assert browser.run("return document.querySelectorAll('#conflict-cards img').length") >= 6
    assert browser.run("return document.querySelectorAll('img[src=x]').length") == 0


def test_proposals_are_filtered_taken_and_handed_out(
    browser: Browser, page: Path, work: Path
) -> None:
    browser.open(page)
    names = browser.run("return page.data.classes")
    number = names.index(HOSTILE)
    browser.click(browser.find(f"select[data-by=true] option[value='{number}']"))
    shown = browser.find_all("#error-images li")
    assert shown and {item.get_attribute("data-true") for item in shown} == {str(number)}
    assert HOSTILE.replace("\n", "\u240a") in shown[0].text
    browser.click(browser.find("#take"))
    browser.click(shown[0].find_element("css selector", "input"))
    browser.click(browser.find("[data-clear=error-images]"))
    every = browser.run("return document.querySelectorAll('#error-images li').length")
    assert browser.find("#taken").text == f"{len(shown) - 1} of {every} taken"
    browser.click(browser.find("#download"))
    written = work / "corrected.csv"
    browser.wait(lambda: written.exists() and written.stat().st_size > 0)
    before, after = rows_of(page.with_name("audit.csv")), rows_of(written)
    assert after.keys() == before.keys()
    changed = [path for path, row in after.items() if row["label"] != before[path]["label"]]
    assert len(changed) == len(shown) - 1
    for path in changed:
        assert before[path]["label"] == HOSTILE
        assert after[path]["label"] == before[path]["proposed"]
    again = ["train-head", "--store", "s", "--run", "again", "--head", "majority", "--manifest",
             "corrected.csv", "--quiet"]  # fmt: skip
    assert main(again) == 0


def test_it_prints_with_everything_that_is_hidden(browser: Browser, page: Path) -> None:
    browser.open(page, theme="dark")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    listed = browser.run("return document.querySelectorAll('.gallery > li, .groups > li').length")
    assert len(browser.find_all(".gallery > li, .groups > li")) == listed
    assert browser.messages() == []
