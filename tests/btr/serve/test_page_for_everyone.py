"""The page on a phone, by keyboard, through a screen reader, in the dark, from right to left."""

from typing import Any

import pytest

REFUSE = """
const message = arguments[0];
window.fetch = async () => new Response(JSON.stringify({error: {message}}), {status: 400});
"""


@pytest.mark.parametrize("width", [390, 320])
def test_narrow_screen_needs_no_scrolling_sideways(page: Any, port: int, kit: Any, width: int) -> None:
    long = "Donaudampfschifffahrt" * 9
    reply = kit.ask(port)
    reply["passages"][0] |= {"title": long, "text": long, "id": long, "highlights": []}
    with page.on_phone(width):
        for answer, guess in ((long, None), ("", long)):
            page.answer_with(reply | {"answer": answer, "best_guess": guess})
            page.ask(f"{long} {answer}")
            assert page.run("return document.documentElement.scrollWidth") <= width
        page.run(REFUSE, long)
        page.ask("Who?")
        assert page.text("#fault") == long
        assert page.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [320, 1280])
def test_share_of_the_evidence_has_room(page: Any, kit: Any, port: int, width: int) -> None:
    reply = kit.ask(port)
    reply["passages"][0]["evidence"] = 0.001
    page.answer_with(reply)
    with page.on_phone(width):
        page.ask("Who?")
        assert page.find("#passages .evidence span").text == "under 1 % of the evidence"
        wide, space = page.run(
            "const e = document.querySelector('.evidence span'); return [e.scrollWidth, e.clientWidth]"
        )
    assert wide <= space


def test_everything_is_large_enough_for_a_finger(page: Any) -> None:
    with page.on_phone(390):
        page.ask("Who built it?")
        page.find("#past summary").click()
        targets = [one for one in page.all("button, summary, a, .ask input, fieldset label") if one.is_displayed()]
        assert len(targets) > 6
        assert [one.get_attribute("outerHTML") for one in targets if min(one.size.values()) < 44] == []


def test_modes_are_told_in_words(page: Any) -> None:
    assert [label.text.split()[0] for label in page.all("fieldset label")] == ["binary", "full"]
    assert all(len(label.text.split()) > 5 and not label.get_attribute("title") for label in page.all("fieldset label"))


@pytest.mark.parametrize("blank", ["", "   "])
def test_blank_question_is_said_and_the_field_has_the_focus(page: Any, blank: str) -> None:
    page.find("#question").send_keys(blank)
    page.find("#ask").click()
    assert page.find("#fault").text == "Type a question first." and page.focused() == "question"
    assert page.find("#question").get_attribute("aria-invalid") == "true"
    page.find("#question").send_keys("W")
    assert page.find("#fault").text == "" and page.find("#question").get_attribute("aria-invalid") is None


def test_screen_reader_hears_start_and_end_alone(page: Any, reader: Any) -> None:
    reader.gate.clear()
    page.run(
        "window.heard = []; new MutationObserver(() => heard.push(document.querySelector('[role=status]').textContent))"
        ".observe(document.querySelector('[role=status]'), {childList: true, characterData: true, subtree: true})"
    )
    page.find("#question").send_keys("Who?\n")
    seen = page.find("#clock").text
    page.wait(lambda: page.find("#clock").text != seen)  # it runs
    reader.gate.set()
    page.wait(lambda: page.find("#answer").text)
    assert page.run("return heard") == ["Reading…", "Answer: Ada Berg Fairly sure: 78 % a token, on average"]
    assert page.all("[aria-live]") == [] and page.find("#clock").get_attribute("aria-hidden") == "true"


def test_words_from_right_to_left_run_so(page: Any, kit: Any, port: int) -> None:
    reply = kit.ask(port)
    reply["passages"][0] |= {"title": "מגדלור", "text": "עדה ברג בנתה אותו.", "highlights": [[0, 7]]}
    page.answer_with(reply | {"answer": "עדה ברג"})
    page.ask("מי בנה?")
    for selector in ("#question", "#answer", "#passages p", "#passages b", "#past bdi"):
        assert page.find(selector).value_of_css_property("direction") == "rtl", selector
    assert page.find("#sure").value_of_css_property("direction") == "ltr"


def test_tab_leads_from_the_question_to_the_evidence(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    page.ask("Who?")
    path = []
    for _ in range(6):
        page.browser.switch_to.active_element.send_keys(Keys.TAB)
        path.append(page.run("const e = document.activeElement; return e.id || e.value || e.parentElement.id"))
    assert path == ["ask", "binary", "rest", "compare", "past", ""]


def test_focus_is_kept_where_a_button_goes(page: Any) -> None:
    page.ask("Who?")
    page.find("#compare").click()
    page.wait(lambda: page.focused() == "details")
    page.find("#past summary").click()
    page.find("#past li button").click()
    page.wait(lambda: page.focused() == "reply")
    page.find("#forget").click()
    assert page.focused() == "question"


# Of every text that is seen: its colour against what lies behind it.
CONTRASTS = """
const parts = (color) => color.match(/[\\d.]+/g).map(Number);
const light = (color) => parts(color).slice(0, 3).map((c) => c / 255)
  .map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const behind = (e) => {
  const ground = getComputedStyle(e).backgroundColor;
  return (parts(ground)[3] ?? 1) ? ground : behind(e.parentElement);
};
const ratio = (a, b) => (Math.max(light(a), light(b)) + .05) / (Math.min(light(a), light(b)) + .05);
const seen = [];
for (const e of document.querySelectorAll("body *")) {
  if (!e.checkVisibility() || getComputedStyle(e).opacity === "0" || e.matches("script, style")) continue;
  const own = [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (own) seen.push([e.tagName + "#" + e.id, ratio(getComputedStyle(e).color, behind(e))]);
  if (e.placeholder) seen.push(["placeholder", ratio(getComputedStyle(e, "::placeholder").color, behind(e))]);
}
return seen;
"""


@pytest.mark.parametrize("name", ["light", "dark"])
def test_every_text_stands_out(page: Any, kit: Any, port: int, name: str) -> None:
    with page.in_colours(name):
        seen = page.run(CONTRASTS)
        assert "placeholder" in dict(seen)
        page.find("#ask").click()  # a fault
        seen += page.run(CONTRASTS)
        page.ask("Who?")
        page.run("for (const one of document.querySelectorAll('details')) one.open = true")
        seen += page.run(CONTRASTS)
        page.answer_with(kit.ask(port) | {"answer": "", "best_guess": "Ada", "no_answer": 0.9})
        page.ask("Who else?")
        seen += page.run(CONTRASTS)
    assert {"P#fault", "P#answer", "BDI#", "MARK#", "CODE#"} <= dict(seen).keys()
    assert [one for one in seen if one[1] < 4.5] == []
