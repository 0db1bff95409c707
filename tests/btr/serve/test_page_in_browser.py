"""The page in a real browser: ask, read the answer, compare, find it again."""

from pathlib import Path
from typing import Any

import pytest

from btr.reader.answer import Span


def test_key_is_not_asked_for_where_none_is_needed(page: Any) -> None:
    assert not page.find("#key").is_displayed() and not page.find("#result").is_displayed()


def test_question_is_answered_with_marked_evidence(page: Any, kit: Any) -> None:
    page.ask("Who built it?")
    assert page.find("#answer").text == "Ada Berg"
    assert [mark.text for mark in page.all("#passages li:first-child mark")] == ["Ada\n Berg", "ADA-BERG"]
    assert "960" in page.find("#facts").text  # bits: 3 passages of 5 tokens of 64
    assert "4 passages in the store, reader: double" in page.find("#about").text


def test_words_are_seen_as_they_come(page: Any, reader: Any) -> None:
    reader.gate.clear()
    reader.end.clear()
    reader.pieces = ("<b>ada", " Be")
    page.find("#question").send_keys("Who?\n")
    page.wait(lambda: page.find("#clock").text.startswith("Reading 3 passages"))
    reader.gate.set()
    page.wait(lambda: page.find("#written").text == "<b>ada Be" and page.find("#clock").text.startswith("Writing"))
    reader.end.set()
    page.wait(lambda: page.find("#answer").text == "Ada Berg" and not page.find("#written").text)


def test_answer_that_broke_off_is_said(page: Any, reader: Any) -> None:
    def fail() -> None:
        raise RuntimeError("the reader fell over")

    reader.during = fail
    page.find("#question").send_keys("Who?\n")
    page.wait(lambda: page.find("#fault").text)
    assert not page.find("#progress").is_displayed() and not page.find("#result").is_displayed()


def test_script_in_a_passage_stays_text(page: Any) -> None:
    page.ask("<img src=x onerror=alert(1)>")
    assert "<script>alert(1)</script>" in page.find("#passages li").text
    assert page.all("main script, main img") == []
    assert "<img" in page.find("#past li").get_attribute("textContent")
    assert [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_same_question_in_full_stands_beside(page: Any, reader: Any) -> None:
    page.ask("Who?")
    page.find("#compare").click()
    page.wait(lambda: len(page.all(".run")) == 2)
    assert [run.text.split()[0] for run in page.all(".run")] == ["binary", "full"]
    assert "times as long" in page.find("#runs").text
    assert [asked[2] for asked in reader.asked] == ["binary", "full"]


def test_earlier_question_comes_back_by_key_and_by_list(page: Any) -> None:
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


def test_refusal_is_said(page: Any) -> None:
    page.find("#question").send_keys("x" * 300 + "\n")
    page.wait(lambda: "the question has 300 characters" in page.find("#fault").text.lower())
    assert page.find("#fault").get_attribute("role") == "alert"


def test_key_is_taken_where_one_is_needed(browser: Any, kit: Any, reader: Any, tmp_path: Path) -> None:
    from btr.serve.keys import Keys

    (tmp_path / "keys").write_text("k" * 20, encoding="utf-8")
    with kit.serving(kit.make_desk(reader, keys=Keys.read(tmp_path / "keys"))) as port:
        page = kit.Page(browser, port)
        page.find("#question").send_keys("Who?\n")
        page.wait(lambda: "key" in page.find("#fault").text)
        assert page.focused() == "key"
        page.find("#key").send_keys("k" * 20)
        page.ask("Who?")
        assert page.find("#answer").text == "Ada Berg"


def test_passage_quoted_stands_first_and_the_others_are_folded(page: Any, reader: Any, kit: Any) -> None:
    reader.span = Span(2, 2, 9)  # of the last of the three: not the one with the most evidence
    page.ask("Who?")
    assert [one.text for one in page.all("#passages .title b")] == ["Harbours"]
    assert [one.text for one in page.all("#passages mark.cited")] == ["harbour"]
    assert page.find("#rest summary").text == "2 other passages read" and not page.find("#more").is_displayed()
    page.find("#rest summary").click()
    assert [one.text for one in page.all("#more .title b")] == ["Lighthouses", "Winds"]
    assert page.find("#more li:last-child .evidence").text == "20 % of the evidence"


def test_evidence_comes_before_times(page: Any) -> None:
    page.ask("Who?")
    tops = [page.find(name).location["y"] for name in ("#answer", "#sure", "#passages", "#rest", "#facts", "#runs")]
    assert tops == sorted(tops)
    assert page.find("#facts").text.split()[:2] == ["mode", "binary"]


@pytest.mark.parametrize(
    ("doubt", "score", "said"),
    [
        (0.004, -1.0, "Very sure: over 99 % that a passage answers this"),
        (0.15, -1.0, "Sure: 85 % that a passage answers this"),
        (0.4, -1.0, "Fairly sure: 60 % that a passage answers this"),
        (0.997, -1.0, "Unsure: under 1 % that a passage answers this"),
        (None, -0.25, "Fairly sure: 78 % a token, on average"),
    ],
)
def test_how_sure_the_reader_is(page: Any, kit: Any, port: int, doubt: float | None, score: float, said: str) -> None:
    page.answer_with(kit.ask(port) | {"no_answer": doubt, "score": score})
    page.ask("Who?")
    assert page.find("#sure").text == said


def test_no_answer_looks_like_none(page: Any, kit: Any, port: int) -> None:
    page.ask("Who?")
    large = page.find("#answer").value_of_css_property("font-size")
    assert page.find("#kind").text == "Answer"
    page.answer_with(kit.ask(port) | {"answer": "", "best_guess": "<b>Ada</b>", "no_answer": 0.93})
    page.ask("Who else?")
    assert (page.find("#kind").text, page.find("#answer").text) == ("No answer", "No passage answers this.")
    assert page.find("#sure").text == "Best guess: <b>Ada</b> (93 % sure that no passage answers)"
    assert float(page.find("#answer").value_of_css_property("font-size")[:-2]) < float(large[:-2])
    assert page.all("#passages li") == [] and page.find("#rest summary").text == "3 passages read"
    assert page.text("#past li").endswith(" no answer")


def test_nothing_found_is_said(page: Any) -> None:
    page.ask("xyzzy")
    assert (page.find("#kind").text, page.find("#answer").text) == ("No answer", "No passage answers this.")
    assert page.find("#sure").text == "No passage shares a word with the question."
    assert not page.find("#evidence").is_displayed() and not page.find("#details").is_displayed()


def test_reader_that_cannot_say_that_there_is_none_wrote_nothing(page: Any, kit: Any, port: int) -> None:
    page.answer_with(kit.ask(port) | {"answer": ""})
    page.ask("Who?")
    assert (page.find("#answer").text, page.find("#sure").text) == ("The reader wrote nothing.", "")


def test_cut_question_is_said(page: Any, reader: Any) -> None:
    page.ask("Who?")
    assert not page.find("#cut").is_displayed()
    reader.longest = 3
    page.ask("one two three four")
    assert page.find("#cut").is_displayed()


@pytest.mark.parametrize("by", ["Escape", "Stop"])
def test_question_is_called_off(page: Any, reader: Any, by: str) -> None:
    from selenium.webdriver.common.keys import Keys

    reader.gate.clear()
    page.find("#question").send_keys("Who?\n")
    page.wait(lambda: page.find("#stop").is_displayed())
    place = page.find("#stop").rect
    page.run("document.getElementById('clock').textContent += ' and what else there is to say'")
    assert page.find("#stop").rect == place  # it does not move from under the pointer
    if by == "Escape":
        page.find("#question").send_keys(Keys.ESCAPE)
    else:
        page.find("#stop").click()
    page.wait(lambda: not page.find("#progress").is_displayed())
    assert page.text("#status") == "Stopped." and page.focused() == "question"
    assert not page.find("#result").is_displayed() and not page.find("#fault").text
    reader.gate.set()
    page.ask("Who else?")
    assert page.find("#answer").text == "Ada Berg" and len(page.all("#past li")) == 1


def test_newer_question_takes_the_place_of_one_under_way(page: Any, reader: Any) -> None:
    page.run(  # an old reply comes all the same
        "const own = fetch; window.signals = [];"
        "window.fetch = (path, {signal, ...more}) => { signals.push(signal); return own(path, more); }"
    )
    reader.gate.clear()
    page.find("#question").send_keys("First?\n")
    page.wait(lambda: reader.batches == [["First?"]])
    page.find("#question").clear()
    page.find("#question").send_keys("Second?\n")
    reader.gate.set()
    page.wait(lambda: page.find("#answer").text == "Ada Berg")
    assert [item.get_attribute("textContent") for item in page.all("#past li")] == ["Second? Ada Berg"]
    assert page.run("return signals.map((signal) => signal.aborted)") == [True, False]


def test_answer_has_an_address_and_back_leads_to_the_one_before(page: Any) -> None:
    page.ask("Who & what?")
    address = page.browser.current_url
    assert "q=Who+%26+what" in address and page.browser.title == "Who & what? · btr"
    page.ask("Second?")
    page.browser.back()
    page.wait(lambda: page.find("#question").get_attribute("value") == "Who & what?")
    page.wait(lambda: page.browser.title == "Who & what? · btr" and page.find("#answer").text)
    page.browser.get(address)
    page.wait(lambda: page.find("#answer").text == "Ada Berg")
    assert page.find("#question").get_attribute("value") == "Who & what?"


def test_question_half_typed_is_not_lost(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    page.ask("First?")
    page.find("#question").clear()
    page.find("#question").send_keys("Half", Keys.ARROW_UP)
    assert page.find("#question").get_attribute("value") == "First?"
    page.find("#question").send_keys(Keys.ARROW_DOWN)
    assert page.find("#question").get_attribute("value") == "Half"
    page.find("fieldset label:last-child").click()
    assert page.find("#question").get_attribute("value") == "Half" and not page.find("#progress").is_displayed()


@pytest.mark.parametrize("kept", ["{}", "null", "[null, 1, {}]", "{"])
def test_what_another_program_kept_in_this_place_is_passed_over(page: Any, kept: str) -> None:
    page.run("localStorage.setItem('asked', arguments[0])", kept)
    page.browser.refresh()
    page.ask("Who?")
    assert not page.find("#fault").text
    assert [item.get_attribute("textContent") for item in page.all("#past li")] == ["Who? Ada Berg"]
