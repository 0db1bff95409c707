"""A reader that abstains: where no passage seems to answer it gives its best guess, and no answer."""

import copy
import dataclasses
import math
from pathlib import Path

import pytest

from btr.corpus import Passage
from btr.errors import InputError
from btr.model.config import ConfigError, ReaderConfig
from btr.reader import Reader
from btr.reader.answer import Answer

QUESTION = "Who built the lighthouse?"


def with_threshold(reader: Reader, above: float | None) -> Reader:
    """Return a copy of a reader that abstains above `above`."""
    other = copy.deepcopy(reader)
    other.model.config = dataclasses.replace(reader.config, no_answer_above=above)
    return other


def told(answer: Answer) -> tuple[str, str | None]:
    return answer.text, answer.best_guess


def test_threshold_decides_what_is_said_and_nothing_else(span_reader: Reader, tiny_passages: list[Passage]) -> None:
    plain = span_reader.answer(QUESTION, tiny_passages, "binary")
    assert plain.text and plain.best_guess is None and plain.no_answer is not None and 0 < plain.no_answer < 1
    at, below = plain.no_answer, math.nextafter(plain.no_answer, 0)
    for above, says in ((0.0, ""), (below, ""), (at, plain.text), (1.0, plain.text)):
        found = span_reader.answer(QUESTION, tiny_passages, "binary", no_answer_above=above)
        assert told(found) == (says, None if says else plain.text)
        assert (found.span, found.score, found.tokens) == (plain.span, plain.score, plain.tokens)


def test_reader_has_a_threshold_of_its_own_that_is_overridden(
    span_reader: Reader, tiny_passages: list[Passage], tmp_path: Path
) -> None:
    plain = span_reader.answer(QUESTION, tiny_passages, "binary").text
    assert span_reader.no_answer_above is None
    with_threshold(span_reader, 0.0).save_pretrained(tmp_path / "shy")
    shy = Reader.from_pretrained(tmp_path / "shy")
    assert shy.no_answer_above == 0.0 and shy.fingerprint == span_reader.fingerprint
    assert told(shy.answer(QUESTION, tiny_passages, "binary")) == ("", plain)
    assert told(shy.answer(QUESTION, tiny_passages, "binary", no_answer_above=1.0)) == (plain, None)
    together = shy.answer_batch([QUESTION] * 2, [tiny_passages] * 2, "binary")
    assert [told(answer) for answer in together] == [("", plain)] * 2


def test_reader_that_writes_answers_always(tiny_reader: Reader, tiny_passages: list[Passage]) -> None:
    found = with_threshold(tiny_reader, 0.0).answer(QUESTION, tiny_passages, "binary", 4)
    assert told(found) == (tiny_reader.answer(QUESTION, tiny_passages, "binary", 4).text, None)


@pytest.mark.parametrize("above", [-0.1, 1.1, math.nan])
def test_what_is_no_probability_is_refused(span_reader: Reader, tiny_passages: list[Passage], above: float) -> None:
    with pytest.raises(InputError, match=r"no_answer_above is .*; use a probability from 0 to 1"):
        span_reader.answer(QUESTION, tiny_passages, no_answer_above=above)
    with pytest.raises(ConfigError, match=r"no_answer_above is .*; use a probability from 0 to 1"):
        ReaderConfig(no_answer_above=above)


@pytest.mark.parametrize("above", [True, "0.5", [0.5]])
def test_config_takes_numbers_alone(above: object) -> None:
    with pytest.raises(ConfigError, match="no_answer_above is"):
        ReaderConfig.from_dict({"no_answer_above": above})
