"""What people see of an answer, and what a terminal is spared."""

import dataclasses

import pytest

from btr.ask.show import Read, Told, clean, describe, mark
from btr.hops import Step
from btr.retrieve import HINT

OWL = Read("d.md:1", "d.md > Owls", "Owls hunt\nat night.", 0.9, 2.5, [(13, 18)])
TOLD = Told("When?", "night", "night", 0.1, -0.5, "binary", 0.2, (OWL,))


def test_answer_is_shown_with_its_passage() -> None:
    shown = "night  (sure: 90%)\n\n  d.md > Owls - d.md:1:\n    Owls hunt\n    at [night]."
    assert describe(TOLD, terminal=False) == shown
    torn = dataclasses.replace(TOLD, answer="at\n  night")
    assert describe(torn, terminal=False).startswith("at night  (sure: 90%)\n")
    bold = describe(TOLD, terminal=True)
    assert bold.count("\x1b[1mnight\x1b[0m") == 2
    assert bold.replace("\x1b[1m", "").replace("\x1b[0m", "") == shown.replace("[", "").replace("]", "")


@pytest.mark.parametrize(
    ("no_answer", "said"),
    [(0.0, "very sure: 100%"), (0.06, "sure: 94%"), (0.3, "fairly sure: 70%"), (0.6, "not sure: 40%")],
)
def test_how_sure_is_said_in_words_and_a_number(no_answer: float, said: str) -> None:
    assert f"({said})" in describe(dataclasses.replace(TOLD, no_answer=no_answer), terminal=False)


def test_reader_that_writes_is_as_sure_as_of_its_words() -> None:
    told = dataclasses.replace(TOLD, no_answer=None, score=-0.5)
    assert told.sure == pytest.approx(0.60653, abs=1e-5)
    assert "(fairly sure: 61%)" in describe(told, terminal=False)


def test_no_answer_names_the_best_guess() -> None:
    told = dataclasses.replace(TOLD, answer="", no_answer=0.75)
    first, *_, last = describe(told, terminal=False).splitlines()
    assert first == "No passage answers this. Best guess: night  (25% sure that one does)"
    assert last == "    at [night]."
    nothing = dataclasses.replace(TOLD, answer="", best_guess="", no_answer=1.0, passages=())
    said = "No passage answers this: none shares a word with the question."
    assert describe(nothing, terminal=False) == f"{said}\n{HINT}"


def test_store_without_texts_and_question_that_was_cut_are_named() -> None:
    bare = dataclasses.replace(OWL, text="", highlights=[])
    told = dataclasses.replace(TOLD, passages=(bare,), cut=True)
    assert describe(told, terminal=False).splitlines()[1:] == [
        "(the question is too long; its last words were read)",
        "",
        "  d.md > Owls - d.md:1:",
        "    (the store keeps no texts)",
    ]


def test_steps_are_told_with_a_best_guess_apart() -> None:
    steps = (
        Step("When?", ("d.md:1", "d.md:2"), "", 0.75, "Owls", "Owls hunt\nat night.", "night"),
        Step("When? Owls Owls hunt", ("d.md:2",), "at\x1b dawn", 0.1),
        Step("When? Dawn", ("d.md:3",), "", 0.9, best_guess=""),
    )
    shown = describe(dataclasses.replace(TOLD, trace=steps), terminal=False)
    assert shown.split("\n\n")[-1].splitlines() == [
        "Searched 3 times:",
        "  1. When?",
        "     d.md:1, d.md:2",
        "     no answer (best guess: night)",
        "     Owls: Owls hunt at night.",
        "  2. When? Owls Owls hunt",
        "     d.md:2",
        "     at dawn",
        "  3. When? Dawn",
        "     d.md:3",
        "     no answer",
    ]
    assert "\n\nSearched once:\n" in describe(dataclasses.replace(TOLD, trace=steps[:1]), terminal=False)


def test_document_cannot_move_the_cursor() -> None:
    text = "a\x1b[2Jb\r\x9bc\u2028d\te\nf"
    assert clean(text) == "a [2Jb  c d\te\nf"
    assert len(clean(text)) == len(text)
    told = dataclasses.replace(TOLD, answer="x\x1b[2J", passages=(dataclasses.replace(OWL, id="\x1b]0;t\x07"),))
    assert "\x1b" not in describe(told, terminal=False)


def test_marks_stand_about_every_span() -> None:
    assert mark("one two one", [(0, 3), (8, 11)], ("<", ">")) == "<one> two <one>"


def test_program_is_told_all() -> None:
    told = TOLD.to_json()
    assert told["answer"] == "night" and told["sure"] == pytest.approx(0.9)
    assert told["passages"] == [
        {
            "id": "d.md:1",
            "title": "d.md > Owls",
            "text": OWL.text,
            "evidence": 0.9,
            "retrieval_score": 2.5,
            "highlights": [(13, 18)],
        }
    ]
