"""Targets of span readers: the tokens that a target names are the answer; rows are those of the reader."""

import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from btr.corpus import Passage
from btr.errors import InputError
from btr.metrics import normalise
from btr.model.span_head import SpanReader
from btr.reader import Reader
from btr.reader.extractive import Extractive
from btr.train.data import TrainingQuestion
from btr.train.spans import TARGETS, SpanBatch, SpanExample, SpanSource, collate_spans, find_spans

NILE = ("Nile", "The Nile ends in Egypt. In Egypt it feeds a delta (of 24,000 km).", True)
AMAZON = ("Amazon", "The Amazon ends in Brazil, not in Egypt.", False)
UNTITLED = ("", "Egypt lies on the Nile.", True)


@pytest.fixture(scope="module")
def pieces(passages: list[Passage], make_wordpiece: Callable[[Iterable[str], int], Tokenizer]) -> Tokenizer:
    """A WordPiece tokenizer, lower-cased, of the sample corpus."""
    return make_wordpiece((f"{p.title} {p.text}" for p in passages), 600)


def told(batch: SpanBatch, tokenizer: Tokenizer, question: int) -> Iterator[str]:
    """Yield what the targets of a question say."""
    tokens = batch.ids.view(len(batch.targets), -1)[question]
    for first, last in batch.targets[question].tolist():
        if first >= 0:
            yield tokenizer.decode(tokens[first : last + 1].tolist(), skip_special_tokens=False)


def collate(
    tokenizer: Tokenizer, *examples: SpanExample, passages: int = 2, row: int = 64, asked: int = 16
) -> SpanBatch:
    return collate_spans(examples, tokenizer, passages, row, asked)


def test_answer_that_ends_in_an_accent_is_a_target(pieces: Tokenizer) -> None:
    text = "in the Nile\u0301 delta"
    encoding = pieces.encode(text, add_special_tokens=False)
    ((first, last),) = find_spans(text, encoding, ["Nil\u00e9"], len(encoding.ids))
    assert text[encoding.offsets[first][0] : encoding.offsets[last][1]] == "Nile"


def test_targets_are_all_places_of_the_answers_in_gold_passages(pieces: Tokenizer) -> None:
    example = SpanExample("Where does the Nile end?", ("Egypt", "egypt", "24,000"), (NILE, AMAZON))
    batch = collate(pieces, example)
    assert [text.replace(" ", "") for text in told(batch, pieces, 0)] == ["egypt", "egypt", "24,000"]
    assert (batch.targets[0, :3] < 64).all()  # the other passage says Egypt too, and is not gold
    assert (batch.targets[0, 3:] == -1).all()


def test_target_says_the_answer_wherever_it_stands(pieces: Tokenizer, passages: list[Passage]) -> None:
    """Whatever words of whatever passage are asked for, the tokens say them; special tokens never get in between."""
    rng, checked = random.Random(0), 0
    for passage in passages:
        words = list(re.finditer(r"\d[\d.,]*\w+|\w+", passage.text))
        at = rng.randrange(len(words) - 3)
        answer = passage.text[words[at].start() : words[at + rng.randrange(3)].end()]
        other = (passage.title, passages[0].text, False)
        example = SpanExample("what?", (answer,), (other, (passage.title, passage.text, True)))
        batch = collate(pieces, example, row=400)
        for text in told(batch, pieces, 0):
            plain = pieces.normalizer.normalize_str(answer)  # without accents
            assert normalise(text).replace(" ", "") == normalise(plain).replace(" ", "")
            checked += 1
        assert batch.targets[0, 0, 0] > 400  # the second row
        assert batch.pointable.flatten()[batch.targets[batch.targets >= 0]].all()
    assert checked >= len(passages)


def test_where_no_passage_answers_the_first_tokens_do(pieces: Tokenizer) -> None:
    for passages in ((AMAZON, (*NILE[:2], False)), (AMAZON,), ()):
        batch = collate(pieces, SpanExample("Where?", ("Egypt",), passages))
        assert list(told(batch, pieces, 0)) == ["[CLS]", "[CLS]"]
        assert batch.targets[0, :2].tolist() == [[0, 0], [64, 64]]
    many = collate(pieces, SpanExample("Where?", ("Peru",), (NILE,)), passages=TARGETS + 4)
    assert list(told(many, pieces, 0)) == ["[CLS]"] * (TARGETS + 4)


def test_answer_that_was_cut_off_is_no_target(pieces: Tokenizer) -> None:
    example = SpanExample("Where?", ("24,000",), (NILE,))
    whole, cut = (collate(pieces, example, passages=1, row=row) for row in (64, 20))
    assert [text.replace(" ", "") for text in told(whole, pieces, 0)] == ["24,000"]
    assert list(told(cut, pieces, 0)) == ["[CLS]"]


def test_long_answers_and_more_than_enough_places_are_left_out(pieces: Tokenizer) -> None:
    text = " ".join(["Egypt"] * (TARGETS + 9))
    batch = collate(pieces, SpanExample("Where?", (text, "Egypt"), (("", text, True),)), row=200)
    assert list(told(batch, pieces, 0)) == ["egypt"] * TARGETS


@pytest.mark.parametrize(
    "passage", [NILE, AMAZON, UNTITLED, ("x " * 99, "Egypt", True), ("[SEP]", "[CLS] Egypt", True)]
)
def test_rows_are_those_of_the_reader(pieces: Tokenizer, span_reader: Reader, passage: tuple[str, str, bool]) -> None:
    assert isinstance(span_reader.model, SpanReader)
    reader = Extractive(span_reader.model, pieces)
    question = "Where does the Nile end?"
    asked = reader.question_ids(question)
    (read,), _ = reader.passage_ids([passage[:2]], 64)
    batch = collate(pieces, SpanExample(question, ("Egypt",), (passage,)), passages=2, row=64, asked=64)
    assert batch.question_lengths.tolist() == [len(asked)] * 2
    assert batch.ids[0, : batch.lengths[0]].tolist() == asked + read
    assert batch.ids[1, : batch.lengths[1]].tolist() == asked
    assert all((row[length:] == 0).all() for row, length in zip(batch.ids, batch.lengths, strict=True))
    text = pieces.encode(passage[1], add_special_tokens=False).ids
    assert batch.ids[0][batch.pointable[0]].tolist() == [reader.cls, *text]
    assert batch.pointable[1].nonzero().tolist() == [[0]]


def test_rows_are_cut_to_fit_and_still_end(pieces: Tokenizer) -> None:
    long = "one two three four five six seven eight nine ten " * 9
    batch = collate(pieces, SpanExample(long, ("ten",), ((long, long, True),)), passages=1, row=32, asked=9)
    last = pieces.token_to_id("[SEP]")
    assert batch.lengths.tolist() == [32] and batch.question_lengths.tolist() == [9]
    ends = (batch.ids[0] == last).nonzero().flatten().tolist()
    assert ends == [8, 17, 31]  # a title has a quarter of the row
    assert batch.pointable[0].nonzero().flatten().tolist() == [0, *range(18, 31)]


def test_tensors_are_the_inputs_of_the_objective(pieces: Tokenizer) -> None:
    examples = [SpanExample("Where?", ("Egypt",), (NILE, AMAZON))] * 3
    ids, lengths, asked, targets, pointable = collate(pieces, *examples).tensors()
    assert ids.shape == pointable.shape == (6, 64) and lengths.shape == asked.shape == (6,)
    assert targets.shape == (3, TARGETS, 2) and pointable.dtype == torch.bool


def test_tokenizer_without_special_tokens_is_refused() -> None:
    with pytest.raises(InputError, match=r"the tokenizer has no \[CLS\] and \[SEP\] to build rows with"):
        collate(Tokenizer(models.WordPiece()), SpanExample("q", ("a",), ()))


def test_padding_and_truncation_of_a_tokenizer_do_not_count(pieces: Tokenizer, tmp_path: Path) -> None:
    example = SpanExample("Where does the Nile end?", ("24,000",), (NILE, AMAZON))
    pieces.save(str(tmp_path / "tokenizer.json"))
    other = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    other.enable_padding(length=40)
    other.enable_truncation(8)
    found = zip(collate(other, example).tensors(), collate(pieces, example).tensors(), strict=True)
    assert all(torch.equal(*pair) for pair in found)


ASKED = TrainingQuestion(
    "Where?", ("Egypt",), (("gold", "It ends in Egypt."), ("more", "In Egypt it ends.")),
    tuple((str(n), f"text {n}") for n in range(20)),
)  # fmt: skip


def test_source_draws_gold_among_the_nearest_others(rng: random.Random) -> None:
    seen, first, golds = set(), set(), set()
    for _ in range(300):
        example = SpanSource([ASKED], 4).draw(rng)
        titles = [title for title, _, _ in example.passages]
        assert len(set(titles)) == 4
        assert all(gold == (title in ("gold", "more")) for title, _, gold in example.passages)
        golds.add(sum(gold for _, _, gold in example.passages))
        first.add(titles[0])
        seen |= set(titles)
    assert seen == {"gold", "more", *map(str, range(8))} and golds == {1, 2}
    assert len(first) == 10  # in any order
    assert {sum(p[2] for p in SpanSource([ASKED], 2).draw(rng).passages) for _ in range(50)} == {1}


def test_source_leaves_gold_out_in_its_share_and_what_holds_the_answer_too(rng: random.Random) -> None:
    near = tuple((title, "Egypt again") for title in ("a", "b")) + ASKED.others
    examples = [SpanSource([replace(ASKED, others=near)], 4, 0.3).draw(rng) for _ in range(400)]
    without = [example for example in examples if not any(gold for _, _, gold in example.passages)]
    assert 80 < len(without) < 160
    assert not any("Egypt" in text for example in without for _, text, _ in example.passages)
    few = SpanSource([replace(ASKED, others=near[:3])], 4, 1.0)
    assert any(gold for _, _, gold in few.draw(rng).passages)  # nothing else to show


def test_source_reads_unanswerable_questions_with_what_they_were_asked_of(
    rng: random.Random, pieces: Tokenizer
) -> None:
    asked = replace(ASKED, answers=(), gold=ASKED.gold[:1])
    for _ in range(20):
        example = SpanSource([asked], 3, unanswerable=1.0).draw(rng)
        assert len(example.passages) == 3 and [title for title, _, gold in example.passages if gold] == ["gold"]
        assert list(told(collate(pieces, example, passages=3), pieces, 0)) == ["[CLS]"] * 3


def test_source_crops_around_an_answer(rng: random.Random) -> None:
    text = " ".join(f"Sentence number {n} has just eight words." for n in range(40)) + " It ends in Egypt with the sea."
    asked = TrainingQuestion("Where?", ("Egypt",), (("gold", text),), (("other", text),))
    for _ in range(20):
        shown = {title: shown for title, shown, _ in SpanSource([asked], 2, words=30).draw(rng).passages}
        assert "Egypt" in shown["gold"] and all(text.count(part) == 1 for part in shown.values())
        assert all(20 <= len(part.split()) <= 1.15 * 30 for part in shown.values())
