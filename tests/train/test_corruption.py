"""Span corruption: what was taken out and what is left make up the text, in T5's shares, and T5's pieces."""

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from btr.corpus import Passage
from btr.errors import InputError
from btr.train.corruption import CorruptionSource, corrupt, cut, sentinels
from btr.train.data import collate

MARKS = [f"<extra_id_{n}>" for n in range(100)]
MARK = re.compile(r"<extra_id_(\d+)>")


def filled(left: str, answer: str) -> list[str]:
    """Put what was taken back in its place."""
    parts = MARK.split(answer)
    taken = dict(zip(parts[1::2], parts[2::2], strict=True))
    return MARK.sub(lambda mark: taken[mark[1]], left).split()


@given(count=st.integers(4, 300), seed=st.integers(0, 1000))
def test_left_and_taken_make_up_the_text(count: int, seed: int) -> None:
    words = [f"w{n}" for n in range(count)]
    left, answer = corrupt(words, MARKS, random.Random(seed))
    assert filled(left, answer) == words
    runs = [int(n) for n in MARK.findall(left)]
    assert runs == list(range(len(runs))) and [int(n) for n in MARK.findall(answer)] == [*runs, len(runs)]
    assert answer.endswith(MARKS[len(runs)]) and left.startswith("w0")
    taken = MARK.sub(" ", answer).split()
    assert len(taken) == max(round(0.15 * count), 1)
    assert len(runs) == max(round(len(taken) / 3), 1)
    assert not any(re.search(r"> *<", text) for text in (left, answer))  # no run is empty, nor what is between two


def test_few_sentinels_make_few_runs() -> None:
    words = [f"w{n}" for n in range(400)]
    left, answer = corrupt(words, MARKS[:4], random.Random(0))
    assert filled(left, answer) == words and len(MARK.findall(left)) == 3


def test_cuts_are_positive_and_equally_likely() -> None:
    rng = random.Random(0)
    found = [tuple(cut(5, 3, rng)) for _ in range(600)]
    ways = {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert set(found) == ways and all(60 <= found.count(way) <= 140 for way in ways)  # 100 +- 4 standard deviations
    assert cut(3, 3, rng) == [1, 1, 1] and cut(3, 1, rng) == [3]


def test_source_draws_from_all_passages(passages: list[Passage]) -> None:
    rng, source = random.Random(0), CorruptionSource(passages, MARKS, words=30)
    seen = set()
    for _ in range(300):
        example = source.draw(rng)
        ((title, left),) = example.passages
        text = filled(left, example.answer)
        assert (example.question, example.task) == ("", "fill") and len(text) >= 4
        assert any(" ".join(text) in " ".join(p.text.split()) for p in passages if p.title == title)
        seen.add(title)
    assert len(seen) > len({p.title for p in passages}) / 2


def test_short_passages_are_passed_over_and_nothing_else_is_an_error() -> None:
    short, long = Passage("1", "", "too short"), Passage("2", "long", "but four words do")
    source = CorruptionSource([short, long], MARKS)
    assert all(source.draw(random.Random(n)).passages[0][0] == "long" for n in range(9))
    with pytest.raises(InputError, match="no passage of 4 words or more to learn from; give another --text"):
        CorruptionSource([short], MARKS)


@pytest.fixture
def bare() -> Tokenizer:
    """Words as pieces, ▁ before each, and T5's special tokens but for the sentinels."""
    vocabulary = {word: n for n, word in enumerate(("<pad>", "</s>", "<unk>", *(f"▁w{n}" for n in range(40))))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def test_sentinels_are_those_of_the_tokenizer(bare: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"the tokenizer has 0 sentinels .* and span corruption needs 2"):
        sentinels(bare)
    bare.add_special_tokens(["<extra_id_0>", "<extra_id_1>", "<extra_id_3>"])
    assert sentinels(bare) == MARKS[:2]


def test_pieces_are_those_of_t5(bare: Tokenizer) -> None:
    """A word keeps its ▁ after a sentinel, and no ▁ stands alone before one."""
    bare.add_special_tokens(MARKS)
    words = [f"w{n}" for n in range(40)]
    text = Passage("1", "w1", " ".join(words))
    example = CorruptionSource([text], sentinels(bare)).draw(random.Random(0))
    batch = collate([example], bare, 1, 64, 8, 16, random.Random(0))
    left = [bare.id_to_token(n) for n in batch.ids[0].tolist()]
    answer = [bare.id_to_token(n) for n in batch.labels[0].tolist() if n >= 0]
    found = [piece for piece in left if piece.startswith("▁w")][1:]  # after the title
    taken = [piece for piece in answer if piece.startswith("▁w")]
    assert sorted(found + taken) == sorted(f"▁{word}" for word in words)
    first = left.index("<extra_id_0>")
    assert left[first - 1].startswith("▁w") and answer[0] == "<extra_id_0>" and answer[1].startswith("▁w")
    runs = len(MARK.findall(" ".join(left)))
    assert [piece for piece in answer if MARK.fullmatch(piece)] == MARKS[: runs + 1]
    assert answer[-1] == "</s>" and "▁" not in left + answer
