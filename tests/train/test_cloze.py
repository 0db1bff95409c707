"""Cloze questions: which spans they ask for, and that neither question nor distractor gives the answer away."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from btr.corpus import Passage
from btr.errors import InputError
from btr.train.cloze import ClozeSource, ask, blank, cloze, spans
from btr.train.data import SENTENCE, window

TITLE = "Otto Lund"
TEXT = (
    "The engineer Otto Lund built a wooden bridge in 1874. It crossed the river Vell near Harrow with 12 arches. "
    "On 3 May 1901 a flood took the eastern half. The town council paid for a tower of grey stone."
)


def found(sentence: str) -> list[tuple[str, str]]:
    words = sentence.split()
    return [(" ".join(words[start:stop]), kind) for start, stop, kind in spans(words)]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("it was built in 1874, they say", [("1874,", "year")]),
        ("it weighs 3,000 tons or 12.5 more", [("3,000", "number"), ("12.5", "number")]),
        ("on 3 May 1901 it fell", [("3 May 1901", "date")]),
        ("on May 3, 1901 it fell", [("May 3, 1901", "date")]),
        ("in May 1901. Then it fell", [("May 1901.", "date"), ("Then", "name")][:1]),
        ("he met Ada King Lovelace Byron Smith there", [("Ada King Lovelace Byron", "name"), ("Smith", "name")]),
        ("he met Ada, Otto and Eva", [("Ada,", "name"), ("Otto", "name"), ("Eva", "name")]),
        ("Bridges fall", []),
        ("Stone Bridges fall", [("Stone Bridges", "name")]),
        ("The Vell is wide", [("Vell", "name")]),
        ("it has a tower of grey stone, and", [("tower", "phrase"), ("grey stone,", "phrase")]),
        ("made of the which and of it", []),
        ("", []),
    ],
)
def test_spans_are_names_numbers_dates_and_phrases(sentence: str, expected: list[tuple[str, str]]) -> None:
    assert found(sentence) == expected


def test_spans_do_not_overlap(passages: list[Passage]) -> None:
    for passage in passages:
        bounds = [(start, stop) for start, stop, _ in spans(passage.text.split())]
        assert bounds and all(start < stop for start, stop in bounds)
        assert all(stop <= start for (_, stop), (start, _) in pairwise(bounds))


def test_question_word_fits_the_answer(rng: random.Random) -> None:
    for kind, before, fits in (
        ("year", "in", "when|year|date"),
        ("date", "on", "when|date|day"),
        ("number", "with", "how|number|what"),
        ("phrase", "the", "what|which"),
        ("name", "near", "where|what|which|place"),
        ("name", "engineer", "who|what|which"),
    ):
        words = {ask(kind, before, rng) for _ in range(100)}
        assert len(words) > 1
        assert all(any(part in word for part in fits.split("|")) for word in words)


def test_cloze_asks_for_what_the_sentence_holds_and_the_question_does_not(passages: list[Passage]) -> None:
    rng, made = random.Random(0), 0
    for passage in passages:
        for sentence in SENTENCE.split(passage.text):
            pair = cloze(sentence, rng)
            if pair is None:
                continue
            question, answer = pair
            made += 1
            assert answer and answer in " ".join(sentence.split())
            assert answer.lower() not in question.lower()
            told = {word.strip('.,;:()"') for word in sentence.split()}
            assert sum(word.rstrip("?") in told for word in question.split()) >= 3
    assert made > 200


def test_cloze_asks_for_every_kind() -> None:
    rng = random.Random(1)
    answers = Counter(pair[1] for s in SENTENCE.split(TEXT) for _ in range(100) if (pair := cloze(s, rng)))
    assert {"Otto Lund", "1874", "12", "3 May 1901", "wooden bridge", "grey stone"} <= set(answers)


@pytest.mark.parametrize(
    "sentence", ["Otto built it.", " ".join(["Otto", *["built"] * 45]), "they all went home and slept"]
)
def test_cloze_has_no_question_for_some_sentences(sentence: str, rng: random.Random) -> None:
    assert all(cloze(sentence, rng) is None for _ in range(20))


def test_cloze_does_not_give_the_answer_away(rng: random.Random) -> None:
    sentence = "He met Otto and otto met him at home"
    questions = [pair[0] for _ in range(200) if (pair := cloze(sentence, rng))]
    assert 0 < len(questions) < 100  # only where the other otto has been dropped
    assert not any("otto" in question.lower() for question in questions)


def test_blank_leaves_words_of_the_sentence_in_order(passages: list[Passage]) -> None:
    rng, left, of = random.Random(0), 0, 0
    for passage in passages:
        for sentence in SENTENCE.split(passage.text):
            pair = blank(sentence, rng)
            if pair is None:
                continue
            question, answer = pair
            assert answer == sentence
            assert "what what" not in question
            words = iter(sentence.split())
            assert all(word in words for word in question.split() if word != "what")  # in order: `in` consumes
            left, of = left + len(question.split()), of + len(sentence.split())
    assert of > 500 and 0.3 < left / of < 0.9


@pytest.mark.parametrize("sentence", ["five words are too few.", "word " * 23])
def test_blank_has_no_question_for_short_and_long_sentences(sentence: str, rng: random.Random) -> None:
    assert all(blank(sentence, rng) is None for _ in range(20))


@pytest.mark.parametrize("words", [1, 15, 30, 200])
def test_window_holds_the_sentence_among_its_neighbours(words: int, rng: random.Random) -> None:
    sentences = SENTENCE.split(TEXT)
    assert len(sentences) == 4
    for number, sentence in enumerate(sentences):
        for _ in range(10):
            cut = window(TEXT, number, words, rng)
            assert sentence in cut and cut in TEXT
            assert len(cut.split()) <= max(1.15 * words, len(sentence.split()))
    assert window(TEXT, 1, 200, rng) == TEXT


def test_distractors_are_near_and_do_not_hold_the_answer() -> None:
    texts = [
        "The red fox ate two birds in Harrow.",
        "The old fox saw Otto in 1874 there.",
        "Nothing was near Vell that day.",
    ]
    corpus = [Passage(f"{n}-{m}", f"{n}", text) for n in range(30) for m, text in enumerate(texts)]
    source, rng = ClozeSource(corpus, passages_per_question=3, words=50), random.Random(0)
    for _ in range(200):
        example = source.draw(rng)
        (_, gold), *others = example.passages
        assert len(others) == 2 and example.answer in gold and example.task == "question"
        assert all(example.answer.lower() not in text.lower() for _, text in others)
        near = [abs(int(title) - int(example.passages[0][0])) for title, _ in others]
        assert all(min(far, 30 - far) <= 2 for far in near)


def test_blanks_are_drawn_in_their_share(passages: list[Passage]) -> None:
    source, rng = ClozeSource(passages, blanks=0.3), random.Random(0)
    tasks = Counter(source.draw(rng).task for _ in range(400))
    assert set(tasks) == {"sentence", "question"} and 0.1 < tasks["sentence"] / 400 < 0.4


def test_one_passage_is_enough_and_none_usable_is_an_error(rng: random.Random) -> None:
    example = ClozeSource([Passage("1", TITLE, TEXT)], passages_per_question=3).draw(rng)
    assert [title for title, _ in example.passages] == [TITLE] * 3
    with pytest.raises(InputError, match="no cloze question in 10,000 sentences of 1 passages"):
        ClozeSource([Passage("1", "", "too short")]).draw(rng)
