"""A real Chromium without a window, for the tests of the report; they are skipped where it is not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--window-size=1500,1000",
    "--hide-scrollbars",
)
WAIT = 60  # seconds that anything may take on a busy machine before it counts as not happening


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start Chromium with its driver, through selenium."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed: pip install -e '.[browser]'"
    )
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture
def run(browser: Any) -> Callable[..., Any]:
    """Run a line of JavaScript in the page, with ``viewer`` the first slice's; returns its value."""

    def call(script: str, *given: Any) -> Any:
        return browser.execute_script(
            f"const viewer = document.querySelector('section.slice').viewer;\n{script}", *given
        )

    return call


@pytest.fixture
def until(browser: Any) -> Callable[..., Any]:
    """Wait until a condition holds, and return what it gave."""
    from selenium.webdriver.support.ui import WebDriverWait

    return lambda condition: WebDriverWait(browser, WAIT, 0.05).until(lambda _: condition())


@pytest.fixture
def show(browser: Any, until: Callable[..., Any]) -> Callable[[Path], None]:
    """Open a report and wait until its first slice is drawn."""

    def open_page(path: Path) -> None:
        browser.get_log("browser")  # what an earlier page said
        browser.get(path.as_uri())
        until(
            lambda: browser.execute_script(
                "const found = document.getElementById('found'); return !found || found.dataset.ready === 'yes'"
            )
        )
        browser.execute_script("document.querySelector('section.slice').scrollIntoView()")
        until(
            lambda: browser.execute_script(
                "return document.querySelector('section.slice').dataset.ready === 'yes'"
            )
        )
        # a frame was painted since
        browser.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        )

    return open_page


@pytest.fixture
def photograph(browser: Any) -> Callable[[str], None]:
    """Keep a screenshot under build/screenshots."""

    def keep(name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))

    return keep
