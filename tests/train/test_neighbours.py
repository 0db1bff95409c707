"""Neighbours of questions: what is gold, what is a fair distractor, and the file that comes of it."""

import json
from pathlib import Path
from typing import Any

import pytest

from btr.corpus import Passage, Question, read_questions
from btr.errors import InputError
from btr.train.data import from_questions
from btr.train.neighbours import own_passages, with_neighbours, write_neighbours

GOLD = Passage("g", "Nile", "The Nile ends in Egypt.")
OWN = Passage("o", "Amazon", "The Amazon ends in Brazil.")
QUESTION = Question("1", "Where does the Nile end?", ("Egypt",), (OWN, GOLD), (False, True))
NEAR = [
    Passage("n1", "Danube", "The Danube ends in Romania."),
    Passage("n2", "Suez", "The canal is in EGYPT."),
    Passage("n3", "copy", GOLD.text),
    Passage("n4", "Volga", "The Volga ends in Russia."),
]


def marks(record: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(passage["id"], passage["is_gold"]) for passage in record["ctxs"]]


def test_gold_is_kept_and_no_distractor_holds_an_answer() -> None:
    record = with_neighbours(QUESTION, NEAR)
    assert marks(record) == [("g:0", True), ("n1", False), ("n4", False), ("o:0", False)]
    assert {key: record[key] for key in ("id", "question", "answers")} == {
        "id": "1",
        "question": QUESTION.question,
        "answers": ["Egypt"],
    }


def test_own_passage_with_the_answer_is_no_distractor() -> None:
    own = Passage("e", "Cairo", "Cairo is in Egypt.")
    question = Question("1", "Where?", ("Egypt",), (GOLD, own, OWN), (True, False, False))
    assert marks(with_neighbours(question, [])) == [("g:0", True), ("o:0", False)]


@pytest.mark.parametrize("gold", [(), (False, False)])
def test_without_gold_passages_that_hold_an_answer_are(gold: tuple[bool, ...]) -> None:
    question = Question("1", QUESTION.question, ("Egypt",), (OWN, GOLD), gold)
    expected = [("n2", True), ("g:0", True), ("n1", False), ("n4", False), ("o:0", False)]
    assert marks(with_neighbours(question, NEAR)) == expected
    assert marks(with_neighbours(Question("1", "Where?", ("Peru",)), NEAR[:2])) == [("n1", False), ("n2", False)]


def test_pieces_of_a_long_gold_passage_are_gold_where_they_hold_the_answer() -> None:
    words = ["word"] * 250
    words[130] = "Egypt"
    long = Passage("g", "Nile", " ".join(words))
    pieces = list(own_passages(Question("1", "Where?", ("egypt",), (long,), (True,))))
    assert [(passage.id, passage.title, good) for passage, good in pieces] == [
        ("g:0", "Nile", False),
        ("g:1", "Nile", True),
        ("g:2", "Nile", False),
    ]
    assert " ".join(passage.text for passage, _ in pieces) == long.text
    short = Question("1", "Is it?", ("yes",), (GOLD,), (True,))
    assert [good for _, good in own_passages(short)] == [True]  # whole passages need not hold the answer


def test_passages_that_an_unanswerable_question_was_asked_of_are_gold_in_all_their_pieces() -> None:
    long = Passage("l", "Nile", " ".join(["word"] * 150))
    question = Question("1", "Where does the Nile begin?", (), (GOLD, long), (False, False))
    expected = [("g:0", True), ("l:0", True), ("l:1", True), ("n1", False), ("n2", False), ("n4", False)]
    assert marks(with_neighbours(question, NEAR)) == expected
    assert marks(with_neighbours(Question("1", "Where?", ()), NEAR[:1])) == [("n1", False)]


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


def test_file_can_be_trained_on(tmp_path: Path) -> None:
    rivers = ["Nile Egypt", "Danube Romania", "Volga Russia", "Amazon Brazil"]
    texts = [f"The {river.split()[0]} is a river that ends in {river.split()[1]}." for river in rivers]
    text = write(tmp_path / "text.jsonl", [{"id": str(n), "title": "river", "text": t} for n, t in enumerate(texts)])
    own = [{"title": "Rhine", "text": "The Rhine is a river that ends in Holland.", "is_gold": True}]
    paths = [
        write(tmp_path / "a.jsonl", [{"question": "Where does the river Nile end?", "answers": ["Egypt"]}]),
        write(
            tmp_path / "b.jsonl", [{"question": "Where does the river Rhine end?", "answers": ["Holland"], "ctxs": own}]
        ),
    ]
    said: list[str] = []
    out = tmp_path / "new" / "out.jsonl"
    write_neighbours(paths, text, None, 3, out, said.append)
    assert said == ["5 passages to find neighbours in", "2 questions"]
    nile, rhine = from_questions(read_questions(out))
    assert [text for _, text in nile.gold] == texts[:1]
    assert [text for _, text in rhine.gold] == [own[0]["text"]]
    assert 0 < len(rhine.others) <= 3 and not any("Holland" in text for _, text in rhine.others)
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]  # neither index nor temporary file


def test_missing_questions_are_found_before_the_text_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl"):
        write_neighbours([str(tmp_path / "none.jsonl")], str(tmp_path / "text.jsonl"), None, 3, tmp_path / "o", print)
