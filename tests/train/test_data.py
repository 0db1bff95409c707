"""Examples from files of questions, and batches as tensors."""

import random
from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models

from btr.corpus import Passage, Question
from btr.errors import InputError
from btr.train.data import Example, FileSource, TrainingQuestion, collate, from_questions

NILE, AMAZON = Passage("n", "Nile", "The Nile ends in Egypt."), Passage("a", "Amazon", "The Amazon ends in Brazil.")
QUESTION = Question("1", "Where does the Nile end?", ("Egypt", "egypt ", " "), (AMAZON, NILE))


def titles(pairs: tuple[tuple[str, str], ...]) -> list[str]:
    return [title for title, _ in pairs]


def test_marked_passages_are_gold() -> None:
    (asked,) = from_questions([replace(QUESTION, gold=(True, False))])
    assert (titles(asked.gold), titles(asked.others)) == (["Amazon"], ["Nile"])
    assert asked.answers == ("Egypt", "egypt ")


@pytest.mark.parametrize("gold", [(), (False, False)])
def test_without_marks_passages_that_hold_an_answer_are_gold(gold: tuple[bool, ...]) -> None:
    (asked,) = from_questions([replace(QUESTION, gold=gold)])
    assert (titles(asked.gold), titles(asked.others)) == (["Nile"], ["Amazon"])


def test_questions_without_gold_or_answer_are_left_out() -> None:
    none = [
        replace(QUESTION, answers=("Peru",)),
        replace(QUESTION, answers=()),
        replace(QUESTION, answers=(" ",), gold=(True, False)),
        replace(QUESTION, passages=()),
    ]
    assert from_questions(none) == []


def test_questions_without_answers_keep_the_passage_they_were_asked_of() -> None:
    asked = [
        replace(QUESTION, answers=("Peru",)),  # has an answer, which stands in none of its passages
        replace(QUESTION, answers=(), gold=(True, False)),
        replace(QUESTION, answers=()),  # may have one
        replace(QUESTION, answers=(), passages=()),
        QUESTION,
    ]
    unanswerable, answered = from_questions(asked, answerable=False)
    assert (unanswerable.answers, titles(unanswerable.gold), titles(unanswerable.others)) == ((), ["Amazon"], ["Nile"])
    assert [answered] == from_questions(asked)


def test_answer_is_one_that_the_gold_passage_holds(rng: random.Random) -> None:
    gold = (("one", "It ends in Egypt."), ("two", "It ends at Alexandria."), ("three", "It ends."))
    asked = TrainingQuestion("Where?", ("Egypt", "alexandria"), gold, ())
    drawn = {(e.passages[0][0], e.answer) for e in (FileSource([asked], 1).draw(rng) for _ in range(200))}
    assert drawn == {("one", "Egypt"), ("two", "alexandria"), ("three", "Egypt"), ("three", "alexandria")}


def test_others_are_among_the_nearest(rng: random.Random) -> None:
    asked = TrainingQuestion("Where?", ("Egypt",), (("gold", "Egypt"),), tuple((str(n), "text") for n in range(20)))
    seen = set()
    for _ in range(200):
        first, *others = titles(FileSource([asked], 3).draw(rng).passages)
        assert first == "gold" and len(set(others)) == 2
        seen |= set(others)
    assert seen == set("012345")
    few = replace(asked, others=asked.others[:1])
    assert titles(FileSource([few], 3).draw(rng).passages) == ["gold", "0"]


def test_long_passages_are_cropped_around_the_answer(rng: random.Random) -> None:
    text = " ".join(f"Sentence number {n} has just eight words." for n in range(40)) + " It ends in Egypt with the sea."
    asked = TrainingQuestion("Where?", ("Egypt",), (("gold", text),), (("other", text), ("short", "A short one.")))
    for _ in range(20):
        example = FileSource([asked], 3, words=30).draw(rng)
        by_title = dict(example.passages)
        assert "Egypt" in by_title["gold"] and by_title["short"] == "A short one."
        for title in ("gold", "other"):
            assert by_title[title] in text and 20 <= len(by_title[title].split()) <= 1.15 * 30
    assert dict(FileSource([asked], 1, words=400).draw(rng).passages)["gold"] == text


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_rows_are_question_passage_and_end(tokenizer: Tokenizer, rng: random.Random) -> None:
    examples = [
        Example("where does it end?", "egypt", (("nile", "it ends in egypt."), ("amazon", "it ends in brazil."))),
        Example("the nile what", "the nile ends.", (("nile", "the nile ends."),), "sentence"),
    ]
    batch = collate(examples, tokenizer, 2, 80, 40, 12, rng)
    assert batch.ids.shape == (4, 80) and batch.labels.shape == (2, 12)
    question = ids_of(tokenizer, "question: where does it end?")
    told = [ids_of(tokenizer, f"title: {title} context: {text}") for title, text in examples[0].passages]
    rows = [row[:length].tolist() for row, length in zip(batch.ids, batch.lengths, strict=True)]
    assert sorted(rows[:2]) == sorted([*question, *passage, 1] for passage in told)
    second = ids_of(tokenizer, "sentence: the nile what")
    assert rows[2:] in (
        [[*second, *ids_of(tokenizer, "title: nile context: the nile ends."), 1], [*second, 1]],
        [[*second, 1], [*second, *ids_of(tokenizer, "title: nile context: the nile ends."), 1]],
    )
    assert batch.question_lengths.tolist() == [len(question)] * 2 + [len(second)] * 2
    assert batch.tensors() == (batch.ids, batch.lengths, batch.question_lengths, batch.labels)
    assert all((row[length:] == 0).all() for row, length in zip(batch.ids, batch.lengths, strict=True))
    assert [[i for i in row.tolist() if i != -100] for row in batch.labels] == [
        [*ids_of(tokenizer, "egypt"), 1],
        [*ids_of(tokenizer, "the nile ends."), 1],
    ]


def test_rows_and_answers_are_cut_and_still_end(tokenizer: Tokenizer, rng: random.Random) -> None:
    long = "one two three four five six seven eight nine ten"
    batch = collate([Example(long, long, ((long, long),))], tokenizer, 1, 12, 7, 5, rng)
    assert batch.lengths.tolist() == [12] and batch.question_lengths.tolist() == [7]
    passage = ids_of(tokenizer, f"title: {long} context: {long}")
    assert batch.ids[0].tolist() == [*ids_of(tokenizer, f"question: {long}")[:7], *passage[:4], 1]
    assert batch.labels[0].tolist() == [*ids_of(tokenizer, long)[:4], 1]


def test_passages_of_a_question_are_shuffled(tokenizer: Tokenizer, rng: random.Random) -> None:
    example = Example("q", "a", (("gold", "a"), ("b", "b"), ("c", "c")))
    gold = [*ids_of(tokenizer, "question: q"), *ids_of(tokenizer, "title: gold context: a"), 1]
    places = [
        [row[:length].tolist() for row, length in zip(batch.ids, batch.lengths, strict=True)].index(gold)
        for batch in (collate([example], tokenizer, 3, 32, 8, 4, rng) for _ in range(60))
    ]
    assert all(10 <= places.count(place) <= 30 for place in range(3))


def test_tokenizer_without_an_end_is_refused(rng: random.Random) -> None:
    bare = Tokenizer(models.BPE())
    with pytest.raises(InputError, match="no </s> to end a sequence with"):
        collate([Example("q", "a", ())], bare, 1, 8, 4, 4, rng)
