"""Claims and multiple choice as examples: the right label, the right letter wherever the option goes."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from btr.corpus import Question, read_questions
from btr.corpus.tasks import FEVER_LABELS
from btr.errors import InputError
from btr.train.tasks import ChoiceSource, ClaimSource, from_choices, from_claims

Read = Callable[..., list[Question]]
LONG = " ".join(f"Sentence number {n} has just eight words." for n in range(40))


def context(title: str, text: str, gold: bool) -> dict[str, object]:
    return {"title": title, "text": text, "is_gold": gold}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def write(*records: dict[str, object]) -> list[Question]:
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return list(read_questions(path))

    return write


def test_claim_is_a_question_and_its_label_the_answer(read: Read, rng: random.Random) -> None:
    labels = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")
    claims = from_claims(read(*({"id": n, "claim": f"Claim {n}.", "label": label} for n, label in enumerate(labels))))
    drawn = {(e.question, e.answer) for e in (ClaimSource(claims, 2).draw(rng) for _ in range(60))}
    assert drawn == {(f"claim: Claim {n}.", label) for n, label in enumerate(FEVER_LABELS)}
    assert ClaimSource(claims, 2).draw(rng).passages == () and ClaimSource(claims, 2).draw(rng).task == "question"


def test_evidence_comes_first(read: Read, rng: random.Random) -> None:
    ctxs = [context(str(n), f"Text {n}.", n in (3, 5)) for n in range(8)]
    claims = from_claims(read({"claim": "It is so.", "label": "SUPPORTS", "ctxs": ctxs}))
    for count, titles in ((1, "3"), (3, "350"), (5, "35012"), (20, "35012467")):
        assert [title for title, _ in ClaimSource(claims, count).draw(rng).passages] == list(titles)


def test_long_passages_are_cropped(read: Read, rng: random.Random) -> None:
    claims = from_claims(read({"claim": "It is so.", "label": "REFUTES", "ctxs": [context("long", LONG, True)]}))
    ((_, text),) = ClaimSource(claims, 1, words=30).draw(rng).passages
    assert text in LONG and 20 <= len(text.split()) <= 1.15 * 30


def test_claims_without_a_label_are_left_out_and_unknown_labels_refused(read: Read) -> None:
    claims = read({"id": "a", "claim": "One."}, {"id": "b", "claim": "Two.", "label": "refuted"})
    assert [claim.id for claim in from_claims(claims)] == ["b"]
    with pytest.raises(InputError, match="no claim with a label; give records of 'claim' and 'label'"):
        from_claims(claims[:1])
    with pytest.raises(InputError, match="claim 'c' has the label 'DISPUTED'; known: supports, refutes"):
        from_claims(read({"id": "c", "claim": "Three.", "label": "DISPUTED"}))


@pytest.mark.parametrize(
    "options",
    [{"A": "w", "B": "x", "C": "right", "D": "z"}, ["w", "x", "right", "z"]],
)
def test_options_change_places_and_the_letter_follows(read: Read, rng: random.Random, options: object) -> None:
    record = {"subject": "logic", "question": "Which?", "options": options, "answer": "C"}
    source = ChoiceSource(from_choices(read(record)), 2)
    orders, letters = set(), Counter()
    for _ in range(400):
        example = source.draw(rng)
        assert example.question.startswith("Which? options: (A) ") and f"({example.answer}) right" in example.question
        assert all(f") {text}" in example.question for text in ("w", "x", "right", "z"))
        orders.add(example.question)
        letters[example.answer] += 1
    assert len(orders) == 24 and all(60 <= letters[letter] <= 140 for letter in "ABCD")  # 100 +- 4 deviations


def test_choices_are_a_function_of_the_random_numbers(read: Read) -> None:
    record = {"question": "Which?", "options": ["a", "b", "c"], "answer": 1, "ctxs": [context("t", "Text.", False)]}
    source = ChoiceSource(from_choices(read(record)), 2)
    one, other = (source.draw(random.Random(5)) for _ in range(2))
    assert one == other and one.passages == (("t", "Text."),)
    assert f"({one.answer}) b" in one.question


def test_questions_without_options_are_no_choices(read: Read) -> None:
    with pytest.raises(InputError, match="no question with options and an answer; give records of"):
        from_choices(read({"question": "Which?", "answers": ["this"]}, {"question": "Which?", "options": ["a"]}))
