"""The reader against its definition: transformers for `full`, whole rows for `float` and `binary`."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from btr.corpus import Passage
from btr.errors import InputError
from btr.model.binarize import Known
from btr.model.config import MODES, Mode
from btr.model.decoding import Generation, greedy
from btr.model.fid import FiD
from btr.model.layout import PADDING, length_batches
from btr.model.merge import Tokens
from btr.model.t5 import T5, RMSNorm
from btr.reader import Reader
from btr.reader.answer import surface
from btr.storage import Encoded, Settings, Store, StoreWriter

QUESTIONS = ["Who built the lighthouse?", "What do herons eat in hard winters, and where do they nest?", "salt"]
EOS = 1


def tolerance(reference: Tensor) -> float:
    """Return what float32 sums in another order may come to, as test_t5.py derives it: up to 6000 additions."""
    return math.sqrt(6000) * 2**-24 * float(reference.abs().max())


@pytest.fixture(scope="module")
def reader(shape: str, tiny_readers: dict[str, Reader]) -> Reader:
    return tiny_readers[shape]


def configured(reader: Reader, **settings: Any) -> Reader:
    """Return a reader of the same T5 and tokenizer with other settings, not calibrated."""
    return Reader(FiD(reader.model.t5, replace(reader.config, **settings)), reader.tokenizer)


def joint(question: str, passage: Passage) -> str:
    return f"question: {question} title: {passage.title} context: {passage.text}"


def memory_of(reader: Reader, question: str, passages: Sequence[Passage] | Encoded, mode: Mode) -> Tensor:
    """Return what the decoder gets to see (tokens, D)."""
    seen: list[Tensor] = []

    def spy(t5: T5, memory: Sequence[Tokens], *more: Any) -> Generation:
        seen.append(memory[0].hidden.clone())
        return greedy(t5, memory, *more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("btr.reader.generative.greedy", spy)
        reader.answer(question, passages, mode, max_new_tokens=1)
    return seen[0][0]


@torch.no_grad()
def rows_of(reader: Reader, question: str, passages: Sequence[Passage], mode: Mode) -> Tensor:
    """Return the same by its definition: whole rows under a mask."""
    asked, eos = reader.tokenizer.encode(f"question: {question}").ids, [EOS]
    rows = [reader.tokenizer.encode(joint(question, passage)).ids + eos for passage in passages]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    memory = reader.model.rows(ids, lengths, torch.full_like(lengths, len(asked)), mode).memory
    return memory[torch.arange(ids.shape[1])[None] < lengths[:, None]]


@torch.no_grad()
def fid_of_transformers(
    oracle: T5ForConditionalGeneration, reader: Reader, question: str, passages: Sequence[Passage], count: int
) -> tuple[list[int], float, list[np.ndarray]]:
    """Answer with transformers alone, each string encoded by itself and all of them one after the other in memory.

    Returns the ids, their mean log-probability, and the mean attention to each row's tokens.
    """
    eager = copy.deepcopy(oracle)
    eager.set_attn_implementation("eager")
    rows = [torch.tensor([[*reader.tokenizer.encode(joint(question, p)).ids, EOS]]) for p in passages]
    states = torch.cat([eager.encoder(input_ids=row).last_hidden_state for row in rows], 1)
    given = {
        "encoder_outputs": BaseModelOutput(last_hidden_state=states),
        "attention_mask": torch.ones(1, states.shape[1]),
    }
    found = eager.generate(**given, max_new_tokens=count, do_sample=False)[:, 1:]
    out = eager(**given, labels=found, output_attentions=True)
    score = out.logits.log_softmax(-1).gather(2, found[..., None]).mean()
    attention = torch.stack(out.cross_attentions).mean((0, 1, 2, 3))
    return found[0].tolist(), float(score), [part.numpy() for part in attention.split([row.shape[1] for row in rows])]


@pytest.mark.parametrize("question", QUESTIONS)
def test_row_has_the_tokens_of_the_joint_string(
    tiny_reader: Reader, tiny_passages: list[Passage], question: str
) -> None:
    ids, cut = tiny_reader.passage_ids([(p.title, p.text) for p in tiny_passages])
    assert cut == 0 and max(map(len, ids)) > 128
    for passage, row in zip(tiny_passages, ids, strict=True):
        together = tiny_reader.tokenizer.encode(joint(question, passage)).ids
        assert tiny_reader.question_ids(f" {question}\n") + row == [*together, EOS]
        assert 2 not in row and row.count(EOS) == 1  # nothing unknown, one end


@pytest.mark.parametrize("question", QUESTIONS)
def test_full_mode_is_fusion_in_decoder_of_transformers(
    reader: Reader, oracle: T5ForConditionalGeneration, tiny_passages: list[Passage], question: str
) -> None:
    for passages in (tiny_passages, tiny_passages[1:2]):
        answer = reader.answer(question, passages, "full", max_new_tokens=12)
        tokens, score, looked = fid_of_transformers(oracle, reader, question, passages, 12)
        assert list(answer.tokens) == [token for token in tokens if token != EOS]
        assert answer.score == pytest.approx(score, abs=1e-3)
        asked = len(reader.question_ids(question))
        for found, expected in zip(answer.token_evidence, looked, strict=True):
            assert len(found) == len(expected) - asked
            assert np.abs(found / expected[asked:] - 1).max() < 1e-3


@pytest.mark.parametrize("k", [1, 2, 3])
def test_float_mode_is_whole_rows_under_a_mask(reader: Reader, tiny_passages: list[Passage], k: int) -> None:
    other = configured(reader, k=k)
    expected = rows_of(other, QUESTIONS[0], tiny_passages, "float")
    found = memory_of(other, QUESTIONS[0], tiny_passages, "float")
    assert float((found - expected).abs().max()) <= tolerance(expected)
    encoded = other.encode_passages(tiny_passages, "float")
    assert torch.equal(memory_of(other, QUESTIONS[0], encoded, "float"), found)


KINDS = [(1, "channel", 0), (2, "channel", 0), (3, "channel", 0), (2, "paper", 0), (2, "predictive", 0)]


@pytest.mark.parametrize(("k", "calibration", "bits"), [*KINDS, (1, "predictive", 20)])
def test_binary_mode_is_whole_rows_but_for_a_rounded_scale(
    reader: Reader,
    tiny_passages: list[Passage],
    k: int,
    calibration: str,
    bits: int,
    calibrate_clear: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """3 bits of mantissa are off by 2^-4 of themselves at most: with the scale, all of a token's residual stream is."""
    model = configured(reader, k=k, calibration=calibration, bits=bits).model
    other = Reader(model, reader.tokenizer)
    held = other.encode_passages(tiny_passages, "float")
    tokens, offsets = (torch.from_numpy(part.astype(np.int64)) for part in (held.token_ids, held.offsets[:-1]))
    known = Known.of_passages(tokens, offsets, model.embedding)
    calibrate_clear(model.binarizer, model.join_norm(torch.from_numpy(held.states)), known)
    other = Reader(model, reader.tokenizer)
    found = memory_of(other, QUESTIONS[0], tiny_passages, "binary")
    expected = rows_of(other, QUESTIONS[0], tiny_passages, "binary")
    assert float((found - expected).abs().max()) <= 2**-4 * float(expected.abs().max())
    encoded, rms, Q = other.encode_passages(tiny_passages), RMSNorm.rms, len(other.question_ids(QUESTIONS[0]))

    def kept(self: RMSNorm, hidden: Tensor) -> Tensor:
        """Take the scalars that are kept, which are rounded."""
        values = rms(self, hidden)
        for row, (begin, length) in enumerate(zip(encoded.offsets[:-1], encoded.lengths, strict=True)):
            scale = torch.from_numpy(encoded.scale[begin : begin + length]).float()
            assert torch.allclose(values[row, Q : Q + length, 0], scale, rtol=2**-4 + 2**-20, atol=0)
            values[row, Q : Q + length, 0] = scale
        return values

    monkeypatch.setattr(RMSNorm, "rms", kept)
    expected = rows_of(other, QUESTIONS[0], tiny_passages, "binary")
    assert float((found - expected).abs().max()) <= tolerance(expected)


def settings_of(reader: Reader) -> Settings:
    return Settings(
        fingerprint=reader.fingerprint,
        tokenizer_hash=reader.tokenizer_hash,
        k=reader.config.k,
        D=reader.D,
        vocab_size=256,
        max_passage_tokens=reader.config.max_passage_tokens,
        corpus_hash="",
        passages_per_block=2,
    )


def test_store_gives_back_what_memory_has(reader: Reader, tiny_passages: list[Passage], tmp_path: Path) -> None:
    encoded = reader.encode_passages(tiny_passages)
    with StoreWriter.create_or_resume(tmp_path / "s", settings_of(reader)) as writer:
        writer.append(encoded.select([0, 1, 2]), consumed=3)
        writer.append(encoded.select([3, 4]), consumed=5)
        writer.finish()
    with Store.open(tmp_path / "s", reader.fingerprint) as store:
        stored = store.get([p.id for p in tiny_passages])
    for name in ("fingerprint", "D", "ids", "titles", "texts"):
        assert getattr(stored, name) == getattr(encoded, name)
    for name in ("lengths", "token_ids", "scale", "packed"):
        assert np.array_equal(getattr(stored, name), getattr(encoded, name)), name
    for question in QUESTIONS:
        one, two = (reader.answer(question, given, "binary", 12) for given in (encoded, stored))
        assert (one.text, one.tokens, one.score) == (two.text, two.tokens, two.score)
        assert np.array_equal(np.concatenate(one.token_evidence), np.concatenate(two.token_evidence))


def test_encoded_passages_carry_what_was_given(tiny_reader: Reader, tiny_passages: list[Passage]) -> None:
    encoded, plain = (tiny_reader.encode_passages(tiny_passages, mode) for mode in ("binary", "float"))
    ids, _ = tiny_reader.passage_ids([(p.title, p.text) for p in tiny_passages])
    assert encoded.ids == ("p0", "p1", "p2", "p3", "p4") and encoded.fingerprint == tiny_reader.fingerprint
    assert encoded.titles == tuple(p.title for p in tiny_passages)
    assert encoded.texts == tuple(p.text for p in tiny_passages)
    assert encoded.lengths.tolist() == [len(row) for row in ids]
    assert encoded.token_ids.tolist() == [token for row in ids for token in row]
    assert (encoded.D, encoded.scale.dtype, encoded.states, plain.packed) == (64, np.float16, None, None)
    states = torch.from_numpy(plain.states)
    rms = (states.double().pow(2).mean(-1) + 1e-6).sqrt().numpy()
    assert np.abs(encoded.scale / rms - 1).max() <= 2**-4 + 1e-6 and np.array_equal(encoded.scale, plain.scale)
    u, mean = tiny_reader.model.join_norm(states).detach(), tiny_reader.model.binarizer.mean.detach()
    bits = np.unpackbits(encoded.packed.astype("<u8").view(np.uint8), axis=1, bitorder="little").astype(bool)
    sure = (u - mean).abs().numpy() > 1e-5
    assert np.array_equal(bits[sure], (u > mean).numpy()[sure]) and sure.mean() > 0.99


def test_no_passages_are_encoded_as_none(tiny_reader: Reader) -> None:
    encoded = tiny_reader.encode_passages([])
    assert (len(encoded), encoded.num_tokens, encoded.packed.shape) == (0, 0, (0, 1))
    assert tiny_reader.answer_batch([], []) == []


def assert_same(one: Any, two: Any, order: Sequence[int] | None = None) -> None:
    """Two answers are the same but for rounding; `order` says where the passages of `two` stand in `one`."""
    order = range(len(one.evidence)) if order is None else order
    assert (one.tokens, one.text, one.mode) == (two.tokens, two.text, two.mode)
    assert one.score == pytest.approx(two.score, abs=1e-3)
    for n, place in enumerate(order):
        assert np.abs(one.token_evidence[place] / two.token_evidence[n] - 1).max() < 1e-3
        assert one.evidence[place] == pytest.approx(two.evidence[n], rel=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_order_of_the_passages_does_not_matter(reader: Reader, tiny_passages: list[Passage], mode: Mode) -> None:
    order = [3, 0, 4, 2, 1]
    one = reader.answer(QUESTIONS[0], tiny_passages, mode, 12)
    assert_same(one, reader.answer(QUESTIONS[0], [tiny_passages[n] for n in order], mode, 12), order)
    if mode != "full":
        encoded = reader.encode_passages(tiny_passages, mode)
        assert_same(one, reader.answer(QUESTIONS[0], encoded.select(order), mode, 12), order)


@pytest.mark.parametrize("mode", MODES)
def test_batches_do_not_matter(
    reader: Reader, tiny_passages: list[Passage], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [tiny_passages, tiny_passages[:1], tiny_passages[2:]]
    alone = [reader.answer(question, passages, mode, 12) for question, passages in zip(QUESTIONS, given, strict=True)]
    assert len({answer.tokens for answer in alone}) > 1
    for budget in (1, 200, 1_000_000):
        monkeypatch.setattr("btr.model.layout.BATCH_TOKENS", budget)
        for one, two in zip(alone, reader.answer_batch(QUESTIONS, given, mode, 12), strict=True):
            assert_same(one, two)


def test_batches_do_not_change_what_is_stored(
    reader: Reader, tiny_passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = reader.encode_passages(tiny_passages)
    monkeypatch.setattr("btr.model.layout.BATCH_TOKENS", 1)
    two = reader.encode_passages(tiny_passages)
    assert (one.scale != two.scale).sum() <= 1  # a number may lie between two that are kept, to the last digit
    assert np.bitwise_count(one.packed ^ two.packed).sum() <= 1  # or on the mean


@pytest.mark.parametrize("mode", MODES)
def test_answer_says_where_it_looked_and_how_long(reader: Reader, tiny_passages: list[Passage], mode: Mode) -> None:
    answer = reader.answer(QUESTIONS[0], tiny_passages, mode, 5)
    assert answer.mode == mode and answer.score < 0 and len(answer.tokens) <= 5 and EOS not in answer.tokens
    assert float(answer.evidence.sum()) == pytest.approx(1, abs=1e-6) and (answer.evidence > 0).all()
    assert answer.evidence.dtype == np.float32 and len(set(answer.evidence.tolist())) == 5
    assert [len(part) for part in answer.token_evidence] == reader.encode_passages(tiny_passages).lengths.tolist()
    shares = np.array([part.sum() for part in answer.token_evidence])
    assert shares.sum() < 1 and answer.evidence == pytest.approx(shares / shares.sum(), rel=1e-5)
    phases = {"tokenize", "encode", "decode"} | ({"expand"} if mode != "full" else set())
    assert set(answer.timings) == phases and all(seconds > 0 for seconds in answer.timings.values())


def test_mode_is_the_readers_own_unless_said(tiny_reader: Reader, tiny_passages: list[Passage]) -> None:
    other = configured(tiny_reader, default_mode="binary")
    assert (
        other.answer("salt", tiny_passages).mode == "binary"
        and tiny_reader.answer("salt", tiny_passages).mode == "full"
    )


def test_bfloat16_reader_errs_by_its_precision(
    shape: str, reader: Reader, tiny_folders: dict[str, Path], tiny_passages: list[Passage]
) -> None:
    """A bfloat16 is off by 2^-8 of itself at most, and a value passes some 30 of them: √30 · 2^-8, and twice that."""
    other = Reader.from_pretrained(tiny_folders[shape], k=2, dtype="bfloat16")
    other.model.binarizer.load_state_dict(reader.model.binarizer.state_dict())
    encoded = reader.encode_passages(tiny_passages)
    assert other.fingerprint == reader.fingerprint
    for mode, source in (("full", tiny_passages), ("float", tiny_passages), ("binary", encoded)):
        expected, found = (memory_of(r, QUESTIONS[0], source, mode) for r in (reader, other))
        assert found.dtype is torch.bfloat16
        error = float((found.float() - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())
        assert error <= 2 * 30**0.5 * 2**-8
        assert other.answer(QUESTIONS[0], source, mode, 5).tokens


def test_long_passages_are_cut(tiny_reader: Reader, tiny_passages: list[Passage]) -> None:
    other = configured(tiny_reader, max_passage_tokens=30)
    pairs = [(p.title, p.text) for p in tiny_passages]
    whole, (ids, cut) = tiny_reader.passage_ids(pairs)[0], other.passage_ids(pairs)
    assert cut == sum(len(row) > 30 for row in whole) > 0
    assert ids == [row if len(row) <= 30 else [*row[:29], EOS] for row in whole]
    assert other.encode_passages(tiny_passages).lengths.max() == 30


def test_full_mode_reads_encoded_passages_again(tiny_reader: Reader, tiny_passages: list[Passage]) -> None:
    encoded = tiny_reader.encode_passages(tiny_passages)
    one, two = (tiny_reader.answer("salt", given, "full", 5) for given in (tiny_passages, encoded))
    assert one.tokens == two.tokens and one.score == two.score


SALT = Passage("s", "Salt", "Salt came on mules.")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.answer(" \n", [SALT]), r"the question is blank"),
        (lambda r: r.answer("salt " * 100, [SALT]), r"the question has \d+ tokens, this reader reads 64; shorten it"),
        (lambda r: r.answer("salt", []), r"no passages to read; pass at least one"),
        (lambda r: r.answer("salt", r.encode_passages([]), "binary"), r"no passages to read"),
        (lambda r: r.answer("salt", [SALT, replace(SALT, text=" ")]), r"passage 2 of 2 has no text; leave it out"),
        (lambda r: r.encode_passages([replace(SALT, text="")]), r"passage 1 of 1 has no text"),
        (lambda r: r.answer("salt", [SALT], "fast"), r"mode is 'fast'; use one of full, float, binary"),
        (lambda r: r.answer("salt", [SALT], max_new_tokens=0), r"max_new_tokens is 0; use 1 or more"),
        (lambda r: r.answer_batch(["a", "b"], [[SALT]]), r"2 questions and 1 lists of passages"),
        (lambda r: r.encode_passages([SALT], "full"), r"mode 'full' reads passages with the question"),
        (lambda r: r.answer("salt", r.encode_passages([SALT], "float"), "binary"), r"'binary'.*hold float states; enc"),
        (lambda r: r.answer("salt", r.encode_passages([SALT]), "float"), r"'float' .* hold signs; .*mode='float'"),
        (lambda r: r.calibrate([]), r"no passages to calibrate from"),
    ],
)
def test_mistake_is_named(tiny_reader: Reader, ask: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(tiny_reader)


@pytest.mark.parametrize("mode", ["float", "binary"])
def test_reader_without_split_reads_in_full_only(tiny_folders: dict[str, Path], mode: Mode) -> None:
    plain = Reader.from_pretrained(tiny_folders["1.0"])
    for ask in (lambda: plain.answer("salt", [SALT], mode), lambda: plain.encode_passages([SALT], mode)):
        with pytest.raises(
            InputError, match=rf"mode '{mode}' needs a split layer and this reader has none; load it wi"
        ):
            ask()
    with pytest.raises(InputError, match="needs a split layer"):
        plain.calibrate([SALT])
    assert plain.answer("salt", [SALT]).mode == "full"


def test_passages_of_another_reader_are_refused(tiny_readers: dict[str, Reader]) -> None:
    one, two = tiny_readers.values()
    with pytest.raises(
        InputError, match=rf"by reader {one.fingerprint}, this reader is {two.fingerprint}; encode them"
    ):
        two.answer("salt", one.encode_passages([SALT]), "binary")


@pytest.mark.parametrize(
    ("text", "found"),
    [("ada berg", "Ada BERG"), ("berg", "BERG"), ("da", "da"), ("salt", "Salt"), ("a.a", "a.a"), (" ", " "), ("", "")],
)
def test_answer_is_written_as_the_best_passage_writes_it(text: str, found: str) -> None:
    passages = [("Salt", "Ada Berg."), ("", "ADA"), ("BERG", "By Ada BERG (Axa).")]
    assert surface(text, passages, np.array([0.3, 0.1, 0.6], np.float32)) == found


@given(st.lists(st.integers(1, 400), max_size=30), st.integers(1, 2000))
def test_batches_hold_all_and_keep_to_their_budget(lengths: list[int], budget: int) -> None:
    batches = list(length_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
        assert sum(longest - lengths[i] for i in batch) <= PADDING
