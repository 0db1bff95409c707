"""A span reader over text: what it quotes, from where, and that the way passages are held changes nothing."""

import itertools
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from btr.corpus import Passage
from btr.model.config import MODES, Mode
from btr.reader import Reader, extractive
from btr.reader.extractive import best_span
from btr.storage import Settings, Store, StoreWriter

QUESTIONS = ["Who built the lighthouse?", "What do herons eat in hard winters?", "salt"]


@torch.no_grad()
def logits_of(reader: Reader, question: str, passages: list[Passage]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the start and end logits of each passage's text, after those of its row's first token: row by row."""
    found, asked = [], reader.question_ids(question)
    for passage in passages:
        title = reader.tokenizer.encode(passage.title, add_special_tokens=False).ids
        text = reader.tokenizer.encode(passage.text, add_special_tokens=False).ids
        row = [*asked, *title, reader.tokenizer.token_to_id("[SEP]"), *text, reader.tokenizer.token_to_id("[SEP]")]
        lengths = torch.tensor([len(row)])
        memory = reader.model.full(torch.tensor([row]), lengths, torch.tensor([len(asked)]))[0]
        begin = len(row) - 1 - len(text)
        places = [0, *range(begin, begin + len(text))]
        found.append(tuple(values[places].double().numpy() for values in reader.model.point(memory)))  # type: ignore[operator,union-attr]
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("question", QUESTIONS)
def test_answer_is_the_likeliest_span_of_all(span_reader: Reader, tiny_passages: list[Passage], question: str) -> None:
    logits = logits_of(span_reader, question, tiny_passages)
    total = [np.logaddexp.reduce(np.concatenate([pair[i] for pair in logits])) for i in (0, 1)]
    spans = {
        (n, a, b): start[1 + a] - total[0] + end[1 + b] - total[1]
        for n, (start, end) in enumerate(logits)
        for a, b in itertools.product(range(len(start) - 1), repeat=2)
        if a <= b < a + 6
    }
    n, a, b = max(spans, key=spans.__getitem__)
    answer = span_reader.answer(question, tiny_passages, "full", max_new_tokens=6)
    offsets = span_reader.tokenizer.encode(tiny_passages[n].text, add_special_tokens=False).offsets
    assert answer.span is not None and answer.span.passage == n
    assert (answer.span.start, answer.span.end) == (offsets[a][0], offsets[b][1])
    assert answer.text == tiny_passages[n].text[answer.span.start : answer.span.end] != ""
    assert answer.score == pytest.approx(spans[n, a, b], abs=1e-4)
    nothing = sum(np.exp(start[0] - total[0]) for start, _ in logits)
    assert answer.no_answer == pytest.approx(nothing, abs=1e-5) and 0 < nothing < 1


@pytest.mark.parametrize("mode", MODES)
def test_answer_says_where_it_looked(span_reader: Reader, tiny_passages: list[Passage], mode: Mode) -> None:
    answer = span_reader.answer(QUESTIONS[0], tiny_passages, mode)
    ids, _ = span_reader.passage_ids([(p.title, p.text) for p in tiny_passages])
    assert [len(part) for part in answer.token_evidence] == [len(row) for row in ids]
    assert answer.evidence.sum() == pytest.approx(1, abs=1e-6)
    assert [part.sum() for part in answer.token_evidence] == pytest.approx(
        list(answer.evidence * (1 - (answer.no_answer or 0))), abs=1e-1
    )
    for row, looked in zip(ids, answer.token_evidence, strict=True):
        title_end = row.index(span_reader.tokenizer.token_to_id("[SEP]"))
        assert not looked[: title_end + 1].any() and looked[-1] == 0  # titles are read, not quoted
    assert answer.mode == mode and answer.timings["decode"] > 0 and len(answer.tokens) <= 32


def test_store_gives_back_what_memory_has(span_reader: Reader, tiny_passages: list[Passage], tmp_path: Path) -> None:
    encoded = span_reader.encode_passages(tiny_passages)
    settings = Settings(
        fingerprint=span_reader.fingerprint, tokenizer_hash=span_reader.tokenizer_hash, k=2, D=span_reader.D,
        vocab_size=span_reader.model.vocab_size, max_passage_tokens=320, corpus_hash="",
    )  # fmt: skip
    with StoreWriter.create_or_resume(tmp_path / "s.btr", settings) as writer:
        writer.append(encoded, len(tiny_passages))
        writer.finish()
    with Store.open(tmp_path / "s.btr", span_reader.fingerprint) as store:
        for question in QUESTIONS:
            kept, direct = (
                span_reader.answer(question, given, "binary") for given in (store.get(encoded.ids), encoded)
            )
            assert (kept.text, kept.score, kept.span) == (direct.text, direct.score, direct.span)
            fresh = span_reader.answer(question, tiny_passages, "binary")
            assert (fresh.text, fresh.score, fresh.span) == (direct.text, direct.score, direct.span)


@pytest.mark.parametrize("mode", MODES)
def test_order_and_company_of_questions_change_nothing(
    span_reader: Reader, tiny_passages: list[Passage], mode: Mode
) -> None:
    alone = [span_reader.answer(question, tiny_passages, mode) for question in QUESTIONS]
    turned = [span_reader.answer(question, tiny_passages[::-1], mode) for question in QUESTIONS]
    together = span_reader.answer_batch(QUESTIONS, [tiny_passages] * 3, mode)
    for one, other, third in zip(alone, turned, together, strict=True):
        assert one.text == other.text == third.text and one.span is not None and other.span is not None
        assert other.span == replace(one.span, passage=len(tiny_passages) - 1 - one.span.passage)
        assert one.score == pytest.approx(other.score, abs=1e-4) == pytest.approx(third.score, abs=1e-4)
        assert one.evidence == pytest.approx(other.evidence[::-1], abs=1e-4)


def test_words_that_look_like_marks_are_text(span_reader: Reader) -> None:
    passage = Passage("p", "a [SEP] b", "the harbour [SEP] of [CLS] Vellin was dug")
    ids, _ = span_reader.passage_ids([(passage.title, passage.text)])
    assert ids[0].count(span_reader.tokenizer.token_to_id("[SEP]")) == 2
    assert span_reader.question_ids("[SEP] [CLS]").count(span_reader.tokenizer.token_to_id("[CLS]")) == 1
    for mode in MODES:
        answer = span_reader.answer("[SEP]?", [passage], mode)
        assert answer.text in passage.text


def test_letters_of_more_than_one_byte_are_quoted_whole(span_reader: Reader) -> None:
    passage = Passage("p", "", "Ælfrēd 🏰 naïve café — 日本 mule Straße")
    answer = span_reader.answer("mule", [passage], "full", max_new_tokens=64)
    assert answer.span is not None and answer.text == passage.text[answer.span.start : answer.span.end]


@pytest.mark.parametrize("text", ["mule\u0301", "mule\u0301\u0323 kilo", "Mule\u0301-salt"])
def test_letters_are_quoted_with_their_marks(span_reader: Reader, text: str) -> None:
    for most in (1, 2, 64):
        answer = span_reader.answer("mule", [Passage("p", "", text)], "full", max_new_tokens=most)
        assert answer.span is not None and answer.text == text[answer.span.start : answer.span.end]
        assert not unicodedata.combining(text[answer.span.end : answer.span.end + 1] or " ")


def test_text_of_nothing_but_marks_has_no_answer(span_reader: Reader) -> None:
    empty = Passage("p", "title", "\u200b\u0301")  # not blank to Python, no token to the tokenizer
    answer = span_reader.answer("mule", [empty], "binary")
    assert (answer.text, answer.tokens, answer.span) == ("", (), None) and answer.no_answer == pytest.approx(1)
    real = Passage("q", "", "a mule takes forty kilos")
    assert span_reader.answer("mule", [empty, real], "binary").span is not None


def test_score_of_no_token_is_finite(span_reader: Reader) -> None:
    answer = span_reader.answer("salt", [Passage("", "", "\u200b")], "full")
    assert (answer.text, answer.span, answer.score) == ("", None, extractive.LEAST)
    assert np.isfinite(answer.evidence).all()


def test_texts_not_kept_are_decoded(span_reader: Reader, tiny_passages: list[Passage]) -> None:
    encoded = span_reader.encode_passages(tiny_passages)
    bare = replace(encoded, texts=tuple("" for _ in tiny_passages))
    kept, lost = (span_reader.answer(QUESTIONS[0], given, "binary") for given in (encoded, bare))
    assert lost.span is None and lost.tokens == kept.tokens and lost.score == kept.score
    assert lost.text.replace(" ", "").lower() == kept.text.replace(" ", "").lower()


def test_what_is_decoded_begins_with_a_word(
    span_reader: Reader, tiny_passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = span_reader.tokenizer.encode(tiny_passages[0].text, add_special_tokens=False).tokens
    within = next(i + 1 for i in range(len(pieces)) if all(piece.startswith("##") for piece in pieces[i : i + 2]))
    monkeypatch.setattr(extractive, "best_span", lambda *_: (within, within, 0.0))
    bare = replace(span_reader.encode_passages(tiny_passages), texts=("",) * len(tiny_passages))
    answer = span_reader.answer("salt", bare, "binary")
    first = max(i for i in range(within) if not pieces[i].startswith("##"))
    assert answer.text == "".join(piece.removeprefix("##") for piece in pieces[first : within + 1])
    assert (
        tiny_passages[0].text.lower().split()[0] != answer.text and f" {answer.text}" in tiny_passages[0].text.lower()
    )
    assert [span_reader.tokenizer.id_to_token(token) for token in answer.tokens] == pieces[first : within + 1]


def test_long_passages_are_cut_and_titles_leave_room(span_reader: Reader) -> None:
    ids, cut = span_reader.passage_ids([("mule " * 500, "salt " * 500), ("", "salt")])
    sep = span_reader.tokenizer.token_to_id("[SEP]")
    assert cut == 1 and len(ids[0]) == 320 and ids[0][80] == sep == ids[0][-1] and ids[0].count(sep) == 2
    assert ids[1][0] == sep


def test_bfloat16_reader_has_the_same_fingerprint(span_reader: Reader, tmp_path: Path) -> None:
    span_reader.save_pretrained(tmp_path)
    half = Reader.from_pretrained(tmp_path, dtype="bfloat16")
    assert half.fingerprint == span_reader.fingerprint and half.family == "extractive"
    assert half.answer("mule", [Passage("p", "", "a mule takes forty kilos")]).text


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.integers(0, 2)), max_size=12), st.integers(1, 14))
def test_best_span_is_the_best(tokens: list[tuple[int, int, int]], most: int) -> None:
    tokens = sorted(tokens, key=lambda token: token[2])
    start, end, passage = (np.array([token[i] for token in tokens], float) for i in range(3))
    all_spans = [
        (start[a] + end[b], a - b, -a)
        for a, b in itertools.product(range(len(tokens)), repeat=2)
        if a <= b < a + most and passage[a] == passage[b]
    ]
    a, b, score = best_span(start, end, passage, most)
    if not tokens:
        assert a > b
    else:
        assert (score, a - b, -a) == max(all_spans)
