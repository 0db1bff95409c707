"""The page in a real browser: ask, read the answer, compare, find it again."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install selenium)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not CHROMIUM or not DRIVER, reason="no chromium and chromedriver on the PATH (apt install chromium chromium-driver)"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    flags = ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking")
    for flag in (*flags, "disable-dev-shm-usage", f"user-data-dir={profile}", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page, and what a person does with it."""

    def __init__(self, browser: Any, port: int) -> None:
        self.browser = browser
        browser.get(f"http://127.0.0.1:{port}/")

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def wait(self, true: Any) -> None:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        gone = [StaleElementReferenceException]  # drawn anew while it was looked at
        WebDriverWait(self.browser, 60, ignored_exceptions=gone).until(lambda _: true())

    def ask(self, question: str) -> None:
        box = self.find("#question")
        box.clear()
        box.send_keys(question + "\n")
        self.wait(lambda: self.find("#ask").is_enabled() and not self.find("#status").text)


@pytest.fixture
def page(browser: Any, port: int) -> Page:
    return Page(browser, port)


def test_key_is_not_asked_for_where_none_is_needed(page: Page) -> None:
    assert not page.find("#key").is_displayed() and not page.find("#result").is_displayed()


def test_question_is_answered_with_marked_evidence(page: Page, kit: Any) -> None:
    page.ask("Who built it?")
    assert page.find("#answer").text == "Ada Berg"
    assert [mark.text for mark in page.all("#passages li:first-child mark")] == ["Ada\n Berg", "ADA-BERG"]
    assert "960" in page.find("#facts").text  # bits: 3 passages of 5 tokens of 64
    assert "4 passages in the store, reader: double" in page.find("#about").text


def test_words_are_seen_as_they_come(page: Page, reader: Any) -> None:
    reader.gate.clear()
    reader.end.clear()
    reader.pieces = ("<b>ada", " Be")
    page.find("#question").send_keys("Who?\n")
    page.wait(lambda: page.find("#status").text.startswith("Reading 3 passages"))
    reader.gate.set()
    page.wait(lambda: page.find("#written").text == "<b>ada Be" and page.find("#status").text.startswith("Writing"))
    reader.end.set()
    page.wait(lambda: page.find("#answer").text == "Ada Berg" and not page.find("#written").text)


def test_answer_that_broke_off_is_said(page: Page, reader: Any) -> None:
    def fail() -> None:
        raise RuntimeError("the reader fell over")

    reader.during = fail
    page.find("#question").send_keys("Who?\n")
    page.wait(lambda: "fault" in page.find("#status").get_attribute("class"))
    assert page.find("#status").text and page.find("#ask").is_enabled() and not page.find("#result").is_displayed()


def test_script_in_a_passage_stays_text(page: Page) -> None:
    page.ask("<img src=x onerror=alert(1)>")
    assert "<script>alert(1)</script>" in page.find("#passages li").text
    assert page.all("main script, main img") == []
    assert "<img" in page.find("#past li").get_attribute("textContent")
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_same_question_in_full_stands_beside(page: Page, reader: Any) -> None:
    page.ask("Who?")
    page.find("#compare").click()
    page.wait(lambda: len(page.all(".run")) == 2)
    assert [run.text.split()[0] for run in page.all(".run")] == ["binary", "full"]
    assert "times as long" in page.find("#runs").text
    assert [asked[2] for asked in reader.asked] == ["binary", "full"]


def test_earlier_question_comes_back_by_key_and_by_list(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.ask("First?")
    page.ask("Second?")
    page.find("#question").send_keys(Keys.ARROW_UP, Keys.ARROW_UP)
    assert page.find("#question").get_attribute("value") == "First?"
    page.find("#past summary").click()
    page.find("#past li:nth-child(2) button").click()
    page.wait(lambda: page.find("#past li button").text.startswith("First?"))
    page.find("#forget").click()
    assert not page.find("#past").is_displayed()


def test_refusal_is_said(page: Page) -> None:
    page.find("#question").send_keys("x" * 300 + "\n")
    page.wait(lambda: "fault" in page.find("#status").get_attribute("class"))
    assert "the question has 300 characters" in page.find("#status").text.lower()


def test_nothing_found_is_said(page: Page) -> None:
    page.ask("xyzzy")
    assert page.find("#answer").text == "No passage shares a word with the question."
    assert page.all("#passages > *") == []


def test_narrow_screen_needs_no_scrolling_sideways(page: Page) -> None:
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    page.ask("Who built it?")
    width = page.browser.execute_script("return document.documentElement.scrollWidth")
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert width <= 390


def test_key_is_taken_where_one_is_needed(browser: Any, kit: Any, reader: Any, tmp_path: Path) -> None:
    from btr.serve.keys import Keys

    (tmp_path / "keys").write_text("k" * 20, encoding="utf-8")
    with kit.serving(kit.make_desk(reader, keys=Keys.read(tmp_path / "keys"))) as port:
        page = Page(browser, port)
        page.find("#question").send_keys("Who?\n")
        page.wait(lambda: "key" in page.find("#status").text)
        page.find("#key").send_keys("k" * 20)
        page.ask("Who?")
        assert page.find("#answer").text == "Ada Berg"
