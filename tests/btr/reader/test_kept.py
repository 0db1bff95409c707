"""Rows that are kept: what is met again is not read again, and what is read anew is read as without them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from btr.corpus import Passage
from btr.model.config import MODES
from btr.reader import Answer, Reader
from btr.reader.kept import KeptRows

QUESTION = "Who built the lighthouse of the harbour?"


@contextmanager
def counting(reader: Reader) -> Iterator[list[int]]:
    """Count the rows that go through the upper layers, or through all."""
    rows: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("join", "full"):
            whole = getattr(reader.model, name)

            def count(streams: torch.Tensor, *more: torch.Tensor, whole=whole) -> torch.Tensor:  # type: ignore[no-untyped-def]
                rows.append(len(streams))
                return whole(streams, *more)

            patch.setattr(reader.model, name, count)
        yield rows


def facts(answer: Answer) -> tuple[object, ...]:
    return answer.text, answer.score, answer.no_answer, [part.tolist() for part in answer.token_evidence]


@pytest.fixture(params=["tiny", "span"])
def reader(request: pytest.FixtureRequest, tiny_reader: Reader) -> Reader:
    """A reader that writes, and one that points."""
    return tiny_reader if request.param == "tiny" else request.getfixturevalue("span_reader")


@pytest.mark.parametrize("mode", MODES)
def test_what_is_met_again_is_not_read_again(reader: Reader, tiny_passages: list[Passage], mode: str) -> None:
    kept = KeptRows()
    plain = reader.answer(QUESTION, tiny_passages[:3], mode)
    with counting(reader) as rows:
        assert facts(reader.answer(QUESTION, tiny_passages[:3], mode, kept=kept)) == facts(plain)
        assert sum(rows) == 3
        assert facts(reader.answer(QUESTION, tiny_passages[:3], mode, kept=kept)) == facts(plain)
        assert sum(rows) == 3
        reader.answer(QUESTION, [tiny_passages[3], *tiny_passages[:3]], mode, kept=kept)
        assert sum(rows) == 4
        reader.answer("Who eats fish?", tiny_passages[:3], mode, kept=kept)
        assert sum(rows) == 7
        reader.answer(QUESTION, tiny_passages[:3], next(other for other in MODES if other != mode), kept=kept)
        assert sum(rows) == 10


def test_pruned_passages_are_not_kept(pruning_reader: Reader, tiny_passages: list[Passage]) -> None:
    kept = KeptRows()
    with counting(pruning_reader) as rows:
        first = pruning_reader.answer(QUESTION, tiny_passages[:4], "binary", prune=2, kept=kept)
        assert sum(rows) == 2
        assert facts(pruning_reader.answer(QUESTION, tiny_passages[:4], "binary", prune=2, kept=kept)) == facts(first)
        assert sum(rows) == 2
        pruning_reader.answer(QUESTION, tiny_passages[:4], "binary", kept=kept)
        assert sum(rows) == 4


def test_rows_stand_in_the_order_asked_for_and_the_oldest_go_first() -> None:
    encoded: list[int] = []

    def take(kept: KeptRows, *names: int) -> list[int]:
        """Return which of them were encoded; a row is its name, as often as it has tokens."""

        def encode(batch: list[int]) -> torch.Tensor:
            encoded.extend(names[i] for i in batch)
            return torch.tensor([[[float(names[i])]] * 4 for i in batch])

        encoded.clear()
        lengths = [name % 3 + 2 for name in names]
        rows = kept.encode("binary", [[name] * 5 for name in names], lengths, encode)
        assert rows.flatten().tolist() == [
            name for name, length in zip(names, lengths, strict=True) for _ in range(length)
        ]
        return sorted(encoded)

    kept = KeptRows(7)
    assert take(kept, 1, 2) == [1, 2]  # 3 and 4 tokens
    twin = kept.copy()
    assert take(kept, 2, 1) == take(kept, 2) == []  # now 1 is the one used longest ago
    assert take(kept, 3) == [3] and take(kept, 2) == [] and take(kept, 1) == [1]
    assert take(twin, 1, 2) == []
    assert take(kept, 5, 1, 4, 2, 3) == [3, 4, 5]  # more than are kept, read all the same
    assert take(KeptRows(0), 1) == take(KeptRows(0), 1) == [1]
