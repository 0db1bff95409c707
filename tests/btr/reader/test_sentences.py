"""The sentence with the most evidence, from readers that write and readers that quote."""

from dataclasses import replace

import numpy as np
import pytest

from btr.corpus import Passage
from btr.reader import Reader
from btr.reader.answer import Span
from btr.reader.sentences import best_sentence

TEXT = "Ada Berg built the lighthouse. Its lamp burnt for thirty years. Salt came on mules."
PASSAGES = [Passage("a", "Lighthouse", TEXT), Passage("b", "", "The heron nests in the reeds. It eats fish.")]


@pytest.fixture(params=["tiny_reader", "span_reader", "writing_reader"])
def reader(request: pytest.FixtureRequest) -> Reader:
    """A reader of each family."""
    found: Reader = request.getfixturevalue(request.param)
    return found


def test_every_sentence_is_found_by_its_tokens(reader: Reader) -> None:
    answer = reader.answer("who built it", PASSAGES)
    empty = tuple(np.zeros_like(part) for part in answer.token_evidence)
    assert best_sentence(reader, replace(answer, token_evidence=empty), PASSAGES) is None
    reached = set()
    for n, shares in enumerate(empty):
        for token in range(len(shares)):
            told = [part.copy() for part in empty]
            told[n][token] = 1.0
            span = best_sentence(reader, replace(answer, token_evidence=tuple(told)), PASSAGES)
            if span is not None:  # a token of the title, or a mark between
                assert span.passage == n
                reached.add(PASSAGES[n].text[span.start : span.end])
    assert reached == {
        "Ada Berg built the lighthouse.", "Its lamp burnt for thirty years.", "Salt came on mules.",
        "The heron nests in the reeds.", "It eats fish.",
    }  # fmt: skip


def test_evidence_of_a_sentence_is_the_sum_of_its_tokens(reader: Reader) -> None:
    answer = reader.answer("who built it", PASSAGES)
    flat = [np.ones_like(part) for part in answer.token_evidence]
    flat[1][:] = 0
    sizes = {}
    ids = np.array(reader.passage_ids([("Lighthouse", TEXT)])[0][0])
    for _, end in reader._text.text_places("Lighthouse", TEXT, ids):
        start = next(s for s in (66, 31, 0) if end > s)  # where the sentences begin, from the last
        sizes[start] = sizes.get(start, 0) + 1
    most = max(sorted(sizes), key=lambda start: sizes[start])
    span = best_sentence(reader, replace(answer, token_evidence=tuple(flat)), PASSAGES)
    assert span is not None and (span.passage, TEXT[:most].count(".")) == (0, TEXT[: span.start].count("."))


def test_text_that_was_not_kept_has_no_sentence(span_reader: Reader) -> None:
    answer = span_reader.answer("who built it", PASSAGES)
    assert best_sentence(span_reader, answer, [Passage("a", "Lighthouse", ""), PASSAGES[1]]) != Span(0, 0, 0)
    assert best_sentence(span_reader, answer, [Passage("a", "", ""), Passage("b", "", "")]) is None
