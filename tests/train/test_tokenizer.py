"""The vocabulary: what it knows, and that its pieces give the text back."""

import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from btr.corpus import Passage
from btr.errors import InputError
from btr.train.tokenizer import ALPHABET, open_tokenizer, train_tokenizer

ORDINARY = "".join(ALPHABET) + "ABCXYZ"


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def test_special_tokens_are_those_of_t5(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in ("<pad>", "</s>", "<unk>")] == [0, 1, 2]
    assert tokenizer.encode("the nile").ids[-1] == 1
    assert 1 not in tokenizer.encode("the nile", add_special_tokens=False).ids
    assert tokenizer.encode("☃", add_special_tokens=False).ids[-1] == 2


def test_passages_come_back(tokenizer: Tokenizer, passages: list[Passage]) -> None:
    for passage in passages:
        assert tokenizer.decode(tokenizer.encode(passage.text).ids) == normalised(passage.text)


@pytest.fixture(scope="module")
def round_trip(tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer


@given(words=st.lists(st.text(ORDINARY, min_size=1, max_size=8), min_size=1, max_size=8))
@settings(max_examples=50)
@example(words=["Hello,", "World", "(again)!", "It's", "3,000", "km:", '"50', '%"'])
def test_ordinary_text_comes_back(round_trip: Tokenizer, words: list[str]) -> None:
    text = " ".join(words)
    assert round_trip.decode(round_trip.encode(text).ids) == normalised(text)


def test_white_space_of_any_kind_parts_words(tokenizer: Tokenizer) -> None:
    expected = tokenizer.encode("the river nile").ids
    for text in ("the river\nnile", "the\triver  nile", "the\u00a0river\r\n\nnile", "The river\u2009NILE"):
        assert tokenizer.encode(text).ids == expected


def test_size_is_kept_and_too_small_a_one_refused(
    tmp_path: Path, passages: list[Passage], tokenizer: Tokenizer
) -> None:
    assert tokenizer.get_vocab_size() == 400
    with pytest.raises(InputError, match=r"size is 40, the characters alone are \d+ pieces"):
        train_tokenizer(passages, 40, tmp_path / "tokenizer.json")
    assert list(tmp_path.iterdir()) == []


def test_vocabulary_does_not_depend_on_the_day(tmp_path: Path, passages: list[Passage]) -> None:
    first = train_tokenizer(passages[:20], 200, tmp_path / "a" / "tokenizer.json")
    again = train_tokenizer(passages[:20], 200, tmp_path / "tokenizer.json")
    assert first.to_str() == again.to_str() == open_tokenizer(tmp_path / "tokenizer.json").to_str()


def test_tokenizer_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="not a tokenizer"):
        open_tokenizer(tmp_path / "tokenizer.json")


def test_pieces_stand_for_words(tokenizer: Tokenizer, passages: list[Passage], rng: random.Random) -> None:
    """Punctuation is apart: a word has the same pieces before a comma, a full stop, or nothing."""
    words = [word for passage in passages for word in passage.text.split() if word.isalpha()]
    for word in rng.sample(words, 50):
        alone = tokenizer.encode(word, add_special_tokens=False).ids
        assert all(tokenizer.encode(word + mark, add_special_tokens=False).ids[:-1] == alone for mark in ",.!")
