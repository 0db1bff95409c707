"""Claims and multiple-choice questions as a reader sees them, and its words as labels and letters."""

import pytest

from btr.corpus.tasks import (
    FEVER_LABELS,
    LETTERS,
    fever_label,
    fever_question,
    mmlu_letter,
    mmlu_question,
    yes_no_question,
    yes_or_no,
)
from btr.metrics import exact_match

OPTIONS = tuple(zip(LETTERS, ("0", "1 ", "2", "3"), strict=True))


def test_questions_are_put_as_readers_are_trained_on_them() -> None:
    assert fever_question(" The Nile ends in Egypt.\n") == "claim: The Nile ends in Egypt."
    assert mmlu_question("What is 1 + 1? ", OPTIONS) == "What is 1 + 1? options: (A) 0 (B) 1 (C) 2 (D) 3"
    assert yes_no_question(" is it salt ") == "yes or no: is it salt"


@pytest.mark.parametrize(("text", "word"), [("Yes.", "yes"), (" NO", "no"), ("no idea", None), ("", None)])
def test_yes_and_no_are_told_from_anything_else(text: str, word: str | None) -> None:
    assert yes_or_no(text) == word


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *((label, label) for label in FEVER_LABELS),
        *((label.upper(), label) for label in FEVER_LABELS),
        ("NOT_ENOUGH_INFO", "not enough info"),
        (" not  enough\ninfo. ", "not enough info"),
        ("NEI", "not enough info"),
        ("Supported", "supports"),
        ("REFUTED", "refutes"),
        ("DISPUTED", None),
        ("supports it", None),
        ("", None),
    ],
)
def test_labels_are_told_whatever_their_case_and_spacing(text: str, label: str | None) -> None:
    assert fever_label(text) == label


@pytest.mark.parametrize(
    ("text", "letter"),
    [("A", "A"), ("a", "A"), ("(b)", "B"), (" c. ", "C"), ("D:", "D"), ("E", None), ("a b", None), ("", None)],
)
def test_letters_are_told_with_or_without_brackets(text: str, letter: str | None) -> None:
    assert mmlu_letter(text, OPTIONS) == letter


def test_letters_are_not_for_exact_match() -> None:
    """To exact match, A and B together are B, since A is an article; `mmlu_letter` knows better."""
    assert exact_match("A B", ["B"]) == 1
    assert mmlu_letter("A B", OPTIONS) is None
