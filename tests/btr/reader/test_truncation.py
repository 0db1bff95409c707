"""A long question: its last words are kept, as many as fit."""

import pytest

from btr.errors import InputError
from btr.reader import Reader
from btr.reader.truncation import shorten


def test_what_fits_stays(tiny_reader: Reader) -> None:
    assert shorten("Who built the lighthouse?", tiny_reader) == "Who built the lighthouse?"


@pytest.mark.parametrize("before", ["Thank you very much. " * 40, "a\n b" * 200])
def test_last_words_are_kept_as_many_as_fit(tiny_reader: Reader, before: str) -> None:
    question = before + " Who built the lighthouse?"
    kept = shorten(question, tiny_reader)
    assert question.endswith(kept) and kept.endswith("Who built the lighthouse?")
    tiny_reader.question_ids(kept)
    longer = question[: -len(kept)].split()[-1] + " " + kept
    with pytest.raises(InputError, match="this reader reads"):
        tiny_reader.question_ids(longer)


def test_of_one_word_letters_are_kept(tiny_reader: Reader) -> None:
    kept = shorten("\u6771" * 500, tiny_reader)
    assert kept and set(kept) == {"\u6771"}
    tiny_reader.question_ids(kept)
