"""Runtime merging through the reader: what it may not change, and that it shortens what is read."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from btr.corpus import Passage
from btr.errors import InputError
from btr.model.config import Mode
from btr.model.decoding import Generation, greedy
from btr.model.merge import Schedule, Tokens
from btr.model.t5 import T5
from btr.reader import Reader

QUESTIONS = ["Who built the lighthouse?", "What do herons eat in hard winters, and where do they nest?", "salt"]
MODES: tuple[Mode, ...] = ("float", "binary")


@pytest.fixture(scope="module")
def reader(shape: str, tiny_readers: dict[str, Reader]) -> Reader:
    return tiny_readers[shape]


def seen_by(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Note how many tokens each decoder layer gets to look at, question after question."""
    seen: list[list[int]] = []

    def spy(t5: T5, memory: Sequence[Tokens], *more: Any) -> Generation:
        seen.append([level.hidden.shape[1] for level in memory])
        return greedy(t5, memory, *more)

    monkeypatch.setattr("btr.reader.generative.greedy", spy)
    return seen


@pytest.mark.parametrize("mode", MODES)
def test_merging_nothing_is_not_merging(reader: Reader, tiny_passages: list[Passage], mode: Mode) -> None:
    for question in QUESTIONS:
        plain = reader.answer(question, tiny_passages, mode)
        for schedule in (reader.schedule("none"), reader.schedule("every", 0.0)):
            same = reader.answer(question, tiny_passages, mode, merge=schedule)
            assert (same.text, same.score, same.tokens) == (plain.text, plain.score, plain.tokens)


@pytest.mark.parametrize("mode", MODES)
def test_ratios_too_small_to_merge_change_nothing(reader: Reader, tiny_passages: list[Passage], mode: Mode) -> None:
    """The merging path with nothing to merge is the plain one."""
    tiny = Schedule((1e-6,) * 2, (1e-6,) * 3, 1e-6 if mode == "binary" else 0.0)
    for question in QUESTIONS:
        plain, same = (reader.answer(question, tiny_passages, mode, 12, merge) for merge in (None, tiny))
        assert same.tokens == plain.tokens and same.score == pytest.approx(plain.score, abs=1e-5)
        assert same.evidence == pytest.approx(plain.evidence, abs=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_memory_shrinks_as_the_schedule_says(
    reader: Reader, tiny_passages: list[Passage], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_by(reader, monkeypatch)
    reader.answer(QUESTIONS[0], tiny_passages, mode, 1)
    reader.answer(QUESTIONS[0], tiny_passages, mode, 1, Schedule((0.2, 0.5), (0.0, 0.5, 0.5)))
    asked = len(reader.question_ids(QUESTIONS[0])) * len(tiny_passages)
    read = [len(ids) for ids in reader.passage_ids([(p.title, p.text) for p in tiny_passages])[0]]
    for ratio in (0.2, 0.5):
        read = [count - int(ratio * count + 1e-9) for count in read]
    total = sum(read)
    expected = [asked + total]
    for ratio in (0.5, 0.5):
        total -= int(ratio * total + 1e-9)
        expected.append(asked + total)
    assert seen[1] == expected and seen[0][0] > expected[0]


@pytest.mark.parametrize("mode", MODES)
def test_evidence_is_of_the_tokens_that_were_there(reader: Reader, tiny_passages: list[Passage], mode: Mode) -> None:
    answer = reader.answer(QUESTIONS[1], tiny_passages, mode, merge=reader.schedule("algorithm", 0.4))
    ids, _ = reader.passage_ids([(p.title, p.text) for p in tiny_passages])
    assert [len(part) for part in answer.token_evidence] == [len(row) for row in ids]
    assert answer.evidence.sum() == pytest.approx(1, abs=1e-5)
    assert min(part.min() for part in answer.token_evidence) >= 0


def test_order_and_company_change_nothing(reader: Reader, tiny_passages: list[Passage]) -> None:
    merge = replace(reader.schedule("algorithm", 0.3), bits=0.2)
    alone = [reader.answer(question, tiny_passages, "binary", 8, merge) for question in QUESTIONS]
    turned = [reader.answer(question, tiny_passages[::-1], "binary", 8, merge) for question in QUESTIONS]
    together = reader.answer_batch(QUESTIONS, [tiny_passages] * 3, "binary", 8, merge)
    for one, other, third in zip(alone, turned, together, strict=True):
        assert one.tokens == other.tokens == third.tokens
        assert one.score == pytest.approx(other.score, abs=1e-4) == pytest.approx(third.score, abs=1e-4)
        assert one.evidence == pytest.approx(other.evidence[::-1], abs=1e-4)


def test_schedules_that_cannot_be_followed(
    tiny_reader: Reader, span_reader: Reader, tiny_passages: list[Passage]
) -> None:
    merge = tiny_reader.schedule("algorithm")
    for mode, schedule, message in (
        ("full", merge, "mode 'full' cannot merge by this schedule"),
        ("float", replace(merge, bits=0.1), "needs mode 'binary'"),
        ("binary", Schedule((0.1,), (0.1,) * 3), "the schedule is for 1 encoder layers, this reader has 2"),
        ("binary", Schedule((0.1,) * 2, (0.1,)), "the schedule is for 1 decoder layers, this reader has 3"),
    ):
        with pytest.raises(InputError, match=message):
            tiny_reader.answer("salt", tiny_passages, mode, merge=schedule)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a span reader merges no tokens"):
        span_reader.schedule("every")
    with pytest.raises(InputError, match="a span reader merges no tokens"):
        span_reader.answer("salt", tiny_passages, "binary", merge=merge)
