"""Tokens that layers k+1..n of a span reader do not see: as if masked, nothing kept of them, quoted all the same."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from btr.corpus import Passage
from btr.errors import InputError
from btr.model.checkpoint import configured
from btr.model.config import ConfigError, Mode, ReaderConfig
from btr.model.pruning import Pruner
from btr.model.span_head import SpanReader
from btr.reader import Reader
from btr.reader.extractive import best_span
from btr.storage import Encoded, Settings, Store, StoreWriter

QUESTIONS = ["Who built the lighthouse?", "What do herons eat in hard winters?", "salt"]
WORDS = (".", ",", "the", "of", "and", "in", "a")


@pytest.fixture(scope="module")
def reader(span_reader: Reader, tiny_passages: list[Passage]) -> Reader:
    """The tiny span reader with 40 predictive bits, which leaves stop words unread, and can prune."""
    unread = tuple(number for word in WORDS if (number := span_reader.tokenizer.token_to_id(word)) is not None)
    assert len(unread) > 3
    config = replace(span_reader.config, calibration="predictive", bits=40, unread=unread)
    made = Reader(configured(span_reader.model, config), span_reader.tokenizer)
    made.calibrate(tiny_passages)
    made.model.pruner = Pruner(made.D)
    made.model.pruner.weight.copy_(torch.randn(made.D + 1, generator=torch.Generator().manual_seed(5)))
    return made


def rows_of(reader: Reader, question: str, passages: list[Passage]) -> tuple[Tensor, Tensor, int]:
    """Lay a question and each passage in rows: ids (R, T), lengths (R,), tokens of the question."""
    asked = reader.question_ids(question)
    rows = [asked + ids for ids in reader.passage_ids([(p.title, p.text) for p in passages])[0]]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for filled, row in zip(ids, rows, strict=True):
        filled[: len(row)] = torch.tensor(row)
    return ids, lengths, len(asked)


def unread_of(reader: Reader, encoded: Encoded) -> np.ndarray:
    """Return which tokens are unread, bool (M,)."""
    found = np.isin(encoded.token_ids, reader.config.unread)
    assert 0 < found.sum() < len(found)
    return found


@torch.no_grad()
@pytest.mark.parametrize("mode", ["float", "binary"])
def test_unread_tokens_are_as_masked_ones(reader: Reader, tiny_passages: list[Passage], mode: Mode) -> None:
    model = reader.model
    assert isinstance(model, SpanReader)
    ids, lengths, asked = rows_of(reader, QUESTIONS[0], tiny_passages)
    found = model.rows(ids, lengths, torch.full_like(lengths, asked), mode)
    index = torch.arange(ids.shape[1])[None]
    real, passage = index < lengths[:, None], index >= asked
    read = real & ~(passage & torch.isin(ids, torch.tensor(reader.config.unread)))
    assert found.read is not None and torch.equal(found.read, read) and bool((real & ~read).any())
    expected = model.bert(found.joined, read[:, None], reader.config.k)
    assert float((found.memory - expected)[read].abs().max()) < 1e-5 * float(expected[read].abs().max())
    assert not found.memory[~read].any()


@torch.no_grad()
@pytest.mark.parametrize("question", QUESTIONS)
def test_answer_is_the_likeliest_span_of_what_is_read(
    reader: Reader, tiny_passages: list[Passage], question: str
) -> None:
    model = reader.model
    assert isinstance(model, SpanReader)
    ids, lengths, asked = rows_of(reader, question, tiny_passages)
    rows = model.rows(ids, lengths, torch.full_like(lengths, asked), "float")
    assert rows.read is not None
    sep = reader.tokenizer.token_to_id("[SEP]")
    index, places = torch.arange(ids.shape[1]), []
    for r, row in enumerate(ids):
        begin = asked + int((row[asked:] == sep).long().argmax()) + 1
        places += [(r, int(i)) for i in index[begin : int(lengths[r]) - 1] if rows.read[r, i]]
    points = [(r, 0) for r in range(len(ids))] + places
    start, end = (
        values[tuple(torch.tensor(points).T)].double().log_softmax(0)[len(ids) :].numpy()
        for values in model.point(rows.memory)
    )
    a, b, score = best_span(start, end, np.array([r for r, _ in places]), 6)
    answer = reader.answer(question, tiny_passages, "float", max_new_tokens=6)
    assert answer.score == pytest.approx(score, abs=1e-4) and answer.span is not None
    n, text = answer.span.passage, tiny_passages[answer.span.passage].text
    assert n == places[a][0] and answer.text == text[answer.span.start : answer.span.end]
    assert answer.tokens == tuple(ids[n, places[a][1] : places[b][1] + 1].tolist())
    assert answer.tokens[0] not in reader.config.unread and answer.tokens[-1] not in reader.config.unread
    offsets = reader.tokenizer.encode(text, add_special_tokens=False).offsets
    assert answer.span.start in [offset[0] for offset in offsets]
    for row, looked in zip(ids, answer.token_evidence, strict=True):
        assert not looked[np.isin(row[asked : asked + len(looked)].numpy(), reader.config.unread)].any()
    assert answer.evidence.sum() == pytest.approx(1, abs=1e-6)


def test_nothing_is_kept_of_them(reader: Reader, tiny_passages: list[Passage]) -> None:
    encoded = reader.encode_passages(tiny_passages)
    unread = unread_of(reader, encoded)
    assert encoded.packed is not None and not encoded.packed[unread].any() and not encoded.scale[unread].any()
    assert encoded.packed[~unread].any(1).all() and encoded.scale[~unread].all()
    packed, scale = encoded.packed.copy(), encoded.scale.copy()
    packed[unread], scale[unread] = 2**40 - 1, 3
    for question in QUESTIONS:
        one, other = (reader.answer(question, e) for e in (encoded, replace(encoded, packed=packed, scale=scale)))
        assert (one.text, one.score, one.span) == (other.text, other.score, other.span)


def test_store_keeps_the_rest_alone(reader: Reader, tiny_passages: list[Passage], tmp_path: Path) -> None:
    encoded = reader.encode_passages(tiny_passages)
    settings = Settings(
        fingerprint=reader.fingerprint, tokenizer_hash=reader.tokenizer_hash, k=2, D=reader.bits,
        vocab_size=reader.model.vocab_size, max_passage_tokens=320, corpus_hash="",
    )  # fmt: skip
    with StoreWriter.create_or_resume(tmp_path / "s.btr", settings) as writer:
        writer.append(encoded, len(encoded))
        writer.finish()
    with Store.open(tmp_path / "s.btr", reader.fingerprint) as store:
        back = store.get(list(encoded.ids))
    for name in ("packed", "scale", "token_ids", "lengths"):
        assert np.array_equal(getattr(back, name), getattr(encoded, name)), name
    parts = json.loads((tmp_path / "s.btr" / "manifest.json").read_text())["shards"][0]["part_bytes"]
    read = int((~unread_of(reader, encoded)).sum())
    assert parts["signs"] == 5 * read + sum(-(-int(n) // 8) for n in encoded.lengths) < 5 * encoded.num_tokens


def test_full_mode_reads_everything(reader: Reader, span_reader: Reader, tiny_passages: list[Passage]) -> None:
    for question in QUESTIONS:
        one, other = (r.answer(question, tiny_passages, "full") for r in (reader, span_reader))
        assert (one.text, one.score, one.span) == (other.text, other.score, other.span)


@pytest.mark.parametrize("mode", ["full", "float", "binary"])
def test_pruned_passages_are_the_only_ones(reader: Reader, tiny_passages: list[Passage], mode: Mode) -> None:
    few = reader.answer(QUESTIONS[0], tiny_passages, mode, prune=2)
    chosen = [n for n, share in enumerate(few.evidence) if share]
    assert few.read == len(chosen) == 2 < len(tiny_passages)
    alone = reader.answer(QUESTIONS[0], [tiny_passages[n] for n in chosen], mode)
    assert few.text == alone.text and few.score == pytest.approx(alone.score, abs=1e-5)
    assert [len(part) for part in few.token_evidence] == list(reader.encode_passages(tiny_passages).lengths)


def test_bits_belong_to_the_list(reader: Reader) -> None:
    shorter = configured(reader.model, replace(reader.config, unread=reader.config.unread[1:]))
    assert Reader(shorter, reader.tokenizer).fingerprint != reader.fingerprint


def test_folder_keeps_the_list(reader: Reader, tiny_passages: list[Passage], tmp_path: Path) -> None:
    reader.save_pretrained(tmp_path / "reader")
    again = Reader.from_pretrained(tmp_path / "reader")
    assert again.config == reader.config and again.fingerprint == reader.fingerprint
    assert again.answer("salt", tiny_passages).score == reader.answer("salt", tiny_passages).score


@pytest.mark.parametrize("unread", [7, [-1], ["the"], [True], [1.0]])
def test_lists_are_of_token_ids(unread: object) -> None:
    with pytest.raises(ConfigError, match="use a list of token ids"):
        ReaderConfig(k=1, unread=unread)  # type: ignore[arg-type]
    assert ReaderConfig(k=1, unread=(3, 1, 3)).unread == (1, 3)


def test_lists_fit_the_reader(reader: Reader, tiny_reader: Reader, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unread token 99999 is none of"):
        configured(reader.model, replace(reader.config, unread=(1, 99999)))
    with pytest.raises(ValueError, match="span readers alone"):
        configured(tiny_reader.model, replace(tiny_reader.config, unread=(5,)))
    reader.save_pretrained(tmp_path / "reader")
    path = tmp_path / "reader" / "btr_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unread": [99999]}))
    with pytest.raises(InputError, match="unread token 99999"):
        Reader.from_pretrained(tmp_path / "reader")
