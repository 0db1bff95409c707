"""The page tells what was searched for, where an answer took several hops."""

from typing import Any

STEP = {
    "query": "Who? <b>", "ids": ["p3", "p2"], "answer": "Ada", "no_answer": 0.9, "title": "Tides",
    "sentence": "It rose.",
}  # fmt: skip


def test_steps_are_listed_as_text_and_folded(page: Any, kit: Any, port: int) -> None:
    reply = kit.ask(port)
    last = STEP | {"query": "Who? Tides It rose.", "title": "", "sentence": ""}
    page.answer_with(reply | {"trace": [STEP, last, last | {"answer": "", "best_guess": "Berg"}]})
    page.ask("Who?")
    assert page.find("#trace").is_displayed() and page.text("#trace summary") == "Searched 3 times"
    assert not page.find("#trace li").is_displayed()
    page.find("#trace summary").click()
    told = [[part.text for part in step.find_elements("css selector", "p")] for step in page.all("#trace li")]
    assert told == [
        ["Who? <b>", "p3, p2", "Tides: It rose."],
        ["Who? Tides It rose.", "p3, p2", "Ada"],
        ["Who? Tides It rose.", "p3, p2", "Best guess: Berg"],
    ]
    page.answer_with(reply)
    page.ask("Another?")
    assert not page.find("#trace").is_displayed()
