"""Debian's Chromium, without a window, for tests of pages: one for all of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
MISSING = "needs chromium and chromedriver: apt-get install chromium chromium-driver"
PHONE, DESKTOP = (390, 844), (1280, 900)
# Of a page: machines of tests are slow, and no test waits longer than it must.
PATIENCE = 60

# A name of a class that would be code, were it not text.
HOSTILE = '<img src=x onerror=alert(1)> "\u05d0\u05d1"\nb'

Found = TypeVar("Found")


class Browser:
    """A browser with one page, which is steered as a person would.

    Attributes:
        driver: Selenium's driver.
        downloads: Where files go that the page hands out.
    """

    def __init__(self, driver: Any, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads

    def open(self, page: Path, *, size: tuple[int, int] = DESKTOP, theme: str = "light") -> None:
        """Open a file from disk, and wait until its charts are drawn."""
        self.messages(), self.requests()
        width, height = size
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=size == PHONE,
        )  # fmt: skip
        self.set_theme(theme)
        self.driver.get(page.as_uri())
        self.wait(lambda: self.run("return document.documentElement.dataset.ready === 'true'"))

    def set_theme(self, theme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.command("Emulation.setEmulatedMedia", features=features)

    def command(self, name: str, **parameters: object) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)

    def run(self, script: str, *arguments: object) -> Any:
        """Run JavaScript in the page; return what it returns."""
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list[Any]:
        """Return the elements that can be seen."""
        found = self.driver.find_elements("css selector", selector)
        return [element for element in found if element.is_displayed()]

    def click(self, element: Any) -> None:
        self.run("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def wait(self, condition: Callable[[], Found]) -> Found:
        """Wait until something is so; return it."""
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE).until(lambda _: condition())

    def pointer(self, kind: str, x: float, y: float, buttons: int = 0) -> None:
        button = "left" if buttons or kind == "mouseReleased" else "none"
        self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button,
                     buttons=buttons, clickCount=1)  # fmt: skip

    def messages(self) -> list[str]:
        """Return what the page complained about since the last call."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] != "INFO"]

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for since the last call, its own file too."""
        events = [
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        ]
        asked = [event for event in events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in asked]


def check_that_it_stands_alone(browser: Browser, page: Path, size: tuple[int, int]) -> None:
    """Open a page, light and dark: it asks for nothing, complains of nothing, and fits."""
    for theme in ("light", "dark"):
        browser.open(page, size=size, theme=theme)
        assert browser.messages() == []
        asked = [url for url in browser.requests() if not url.startswith("data:")]
        assert asked == [page.as_uri()]
        # Nothing is wider than the screen.
        assert browser.run("return document.documentElement.scrollWidth") <= size[0]
    broken = (
        "return [...document.images].filter((i) => i.src && i.complete && !i.naturalWidth).length"
    )
    assert browser.run(broken) == 0


@contextmanager
def opened(downloads: Path) -> Iterator[Browser]:
    """Start a browser; in CI there has to be one, elsewhere its test is skipped without."""
    binary = next(filter(None, map(shutil.which, CHROMIUM)), None)
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        if os.environ.get("CI") == "true":
            pytest.fail(f"in CI this {MISSING}")
        pytest.skip(MISSING)
    started = start(binary, driver, downloads)
    try:
        yield Browser(started, downloads)
    finally:
        started.quit()


def start(binary: str, driver: str, downloads: Path) -> Any:
    """Start Chromium; as root, and in a container, it has no sandbox of its own."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_experimental_option(
        "prefs",
        {"download.default_directory": str(downloads), "download.prompt_for_download": False},
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = Chrome(options=options, service=Service(driver))
    found.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)}
    )
    return found
