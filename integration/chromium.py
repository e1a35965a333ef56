"""Headless Chromium for the tests of the page: Debian's packages `chromium` and `chromium-driver`, through Selenium.

Nothing is downloaded, and the browser itself asks nobody but the server under test.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
MISSING = (
    "" if BROWSER and DRIVER else "no chromium and chromedriver on the PATH: apt-get install chromium chromium-driver"
)
WAIT_S = 60.0
POLL_S = 0.05

_SIZE = (1280, 900)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Page:
    """One tab, as a test asks it. `address` is of the server, without a slash at its end."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, path: str = "/") -> None:
        """Loads the page anew."""
        self.driver.get(self.address + path)

    def run(self, script: str, *arguments: Any) -> Any:
        """What JavaScript returns."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, what: Callable[[], Any]) -> Any:
        """Waits until it is true, and returns it."""
        wait = WebDriverWait(self.driver, WAIT_S, POLL_S)
        return wait.until(lambda _: what(), f"{self.text('body')}\n{self.console()}")

    def find(self, selector: str) -> Any:
        """The first element there is."""
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """The text content of all of them, whether or not it can be seen."""
        script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent).join('\\n')"
        return str(self.run(script, selector))

    def wait_state(self, state: str) -> None:
        """Waits for the status in the header."""
        self.wait(lambda: self.text("#status").strip() == state)

    def chat(self, text: str) -> None:
        """Types a message and sends it."""
        self.find("#question").send_keys(text)
        self.find("#send").click()

    def wait_idle(self) -> None:
        """Waits for the end of the answer."""
        self.wait(lambda: self.find("#send").is_displayed())

    def set_settings(self, **values: object) -> None:
        """Fills in the form, as if somebody had."""
        for name, value in values.items():
            self.run(
                "const field = document.querySelector(`#settings [name=${arguments[0]}]`);"
                "field.value = arguments[1]; field.dispatchEvent(new Event('change'));",
                name,
                str(value),
            )

    def console(self) -> list[str]:
        """What the browser has complained of since the last time."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def prefer(self, scheme: str) -> None:
        """Has the system prefer "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """The size of what is shown, in CSS pixels, and how many of the picture's pixels one is wide."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def save(self, file: Path) -> None:
        """Writes a picture of what is shown."""
        self.driver.get_screenshot_as_file(str(file))

    @contextmanager
    def new_tab(self, address: str) -> Iterator[Page]:
        """A tab of the same browser, in which nothing of that server is remembered; it ends with the block."""
        before = self.driver.current_window_handle
        self.driver.switch_to.new_window("tab")
        try:
            self.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
            everything = {"origin": address, "storageTypes": "all"}
            self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", everything)
            self.console()
            tab = Page(self.driver, address)
            tab.resize(*_SIZE)
            yield tab
        finally:
            self.driver.close()
            self.driver.switch_to.window(before)


@contextmanager
def open_browser(address: str) -> Iterator[Page]:
    """A browser of its own, with nothing remembered, that ends with the block."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER or ""
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, Service(DRIVER))
        try:
            page = Page(driver, address)
            page.resize(*_SIZE)
            yield page
        finally:
            driver.quit()
