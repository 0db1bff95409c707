"""Small shards at the end of a store are joined when they are many; what an index knows does not move."""

from collections.abc import Callable
from pathlib import Path

import pytest

from btr.corpus import Passage
from btr.precompute import __main__ as precompute
from btr.reader import Reader
from btr.storage import Store
from btr.storage.living import edit
from btr.store import updates
from btr.store.updates import put, tidy

Make = Callable[..., list[int]]


@pytest.fixture
def shards(tmp_path: Path, reader_folder: Path, tiny_reader: Reader, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Build a store of shards with so many passages each, tidy it, and return what its shards hold then."""
    monkeypatch.setattr(updates, "SMALL", 2)
    monkeypatch.setattr(updates, "MANY", 3)
    corpus, store, numbers = tmp_path / "corpus.jsonl", tmp_path / "s.btr", iter(range(100))

    def some(count: int) -> list[Passage]:
        return [Passage(f"p{next(numbers)}", "Salt", "Salt was carried over the hills.") for _ in range(count)]

    def make(first: int, *more: int, known: int = 0) -> list[int]:
        corpus.write_text("".join(f'{{"id": "{p.id}", "title": "", "text": "{p.text}"}}\n' for p in some(first)))
        line = [str(corpus), "--reader", str(reader_folder), "--store", str(store), "--no-index"]
        assert precompute.main(line) == 0
        with edit(store) as editor:
            for count in more:
                put(editor, tiny_reader, some(count))
            before = [shard.name for shard in editor.manifest.shards]
            tidy(editor, known)
            kept = [shard.name for shard in editor.manifest.shards]
        with Store.open(store) as opened:
            assert list(opened.ids()) == [f"p{number}" for number in range(first + sum(more))]
            assert list(opened.verify()) == []
            assert (
                kept[: len(kept) - (kept != before)] == before[: len(kept) - (kept != before)]
            )  # but the last, if any
            return [shard.passages for shard in opened.manifest.shards]

    return make


@pytest.mark.parametrize(
    ("made", "known", "left"),
    [
        ((5, 1, 1, 1), 0, [5, 1, 1, 1]),  # no more than MANY
        ((5, 1, 2, 1, 1), 0, [5, 5]),  # those at the end alone: the first is not small
        ((2, 1, 2, 1), 0, [6]),  # a shard of SMALL passages is
        ((5, 1, 3, 1, 1, 1), 0, [5, 1, 3, 1, 1, 1]),  # one that is larger parts them
        ((5, 1, 3, 1, 1, 1, 1), 0, [5, 1, 3, 4]),
        ((5, 1, 1, 1, 1), 6, [5, 1, 1, 1, 1]),  # the index knows one of them
        ((5, 1, 1, 1, 1, 1), 6, [5, 1, 4]),  # what it does not know is joined
        ((5, 2, 1, 1, 1, 1), 6, [5, 2, 4]),  # it knows half of a shard
        ((1, 1, 1, 1), 1, [1, 1, 1, 1]),
    ],
)
def test_small_shards_are_joined_when_they_are_many(
    shards: Make, made: tuple[int, ...], known: int, left: list[int]
) -> None:
    assert shards(*made, known=known) == left
