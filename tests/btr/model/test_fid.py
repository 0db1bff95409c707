"""The three ways to hold a passage, against the layers of transformers put together by hand."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from btr.model.binarize import Binarizer, safe_weight
from btr.model.config import MODES, Mode, ReaderConfig
from btr.model.fid import FiD
from btr.reader import Reader

LENGTHS, QUESTION_LENGTHS = [40, 23, 150], [9, 4, 20]  # tokens of the rows, and of the questions they begin with
ROW_LENGTHS, ASKED_LENGTHS = torch.tensor(LENGTHS), torch.tensor(QUESTION_LENGTHS)
IDS = torch.randint(2, 250, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(0))


def tolerance(reference: Tensor) -> float:
    """Return what float32 sums in another order may come to, as test_t5.py derives it: up to 6000 additions."""
    return math.sqrt(6000) * 2**-24 * float(reference.abs().max())


PLACE = torch.arange(IDS.shape[1])
REAL, PASSAGE = PLACE[None] < ROW_LENGTHS[:, None], PLACE[None] >= ASKED_LENGTHS[:, None]


@pytest.fixture(scope="module")
def reader(shape: str, tiny_readers: dict[str, Reader]) -> Reader:
    return tiny_readers[shape]


Split = Callable[..., FiD]


@pytest.fixture(scope="module")
def split_after(reader: Reader, calibrate_clear: Callable[[Binarizer, Tensor], None]) -> Split:
    """Split the reader's T5 after layer k, calibrated on the rows of these tests."""

    def split(k: int, calibration: Any = "channel") -> FiD:
        model = FiD(reader.model.t5, replace(reader.config, k=k, calibration=calibration)).eval()
        with torch.no_grad():
            apart = model.rows(IDS, ROW_LENGTHS, ASKED_LENGTHS, "float").apart[REAL & PASSAGE]
            calibrate_clear(model.binarizer, model.join_norm(apart))
        return model

    return split


def rows(model: FiD, mode: Mode) -> Tensor:
    """Return the memory of all tokens that are not padding."""
    with torch.no_grad():
        return model.rows(IDS, ROW_LENGTHS, ASKED_LENGTHS, mode).memory[REAL]


def additive(mask: Tensor) -> Tensor:
    """Return a boolean mask (R, T, T) as transformers wants it, (R, 1, T, T)."""
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[:, None]


@torch.no_grad()
def by_hand(oracle: T5ForConditionalGeneration, model: FiD, mode: Mode) -> Tensor:
    """Encode the rows with the blocks of transformers, masked and binarized from outside."""
    stack, binarizer = oracle.encoder, model.binarizer
    whole = REAL[:, None, :].expand(-1, len(PLACE), -1)
    apart = whole & (PASSAGE[:, None, :] == PASSAGE[:, :, None])
    bias = stack.block[0].layer[0].SelfAttention.compute_bias(len(PLACE), len(PLACE))
    hidden = oracle.shared(IDS)
    for number, block in enumerate(stack.block):
        mask = additive(apart if number < model.config.k and mode != "full" else whole)
        if mode != "binary" or number != model.config.k:
            hidden = block(hidden, attention_mask=mask, position_bias=bias)[0]
            continue
        first, second = block.layer
        normed, scale = first.layer_norm(hidden), (hidden.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        u_hat = binarizer.mean + binarizer.magnitude * torch.where(normed > binarizer.mean, 1.0, -1.0)
        normed = torch.where(PASSAGE[..., None], u_hat, normed)
        hidden = torch.where(PASSAGE[..., None], u_hat * scale / safe_weight(first.layer_norm.weight), hidden)
        hidden = second(hidden + first.SelfAttention(normed, mask=mask, position_bias=bias)[0])
    return stack.final_layer_norm(hidden)[REAL]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_rows_are_what_transformers_makes_of_them(
    split_after: Split, oracle: T5ForConditionalGeneration, mode: Mode, k: int
) -> None:
    model = split_after(k)
    expected = by_hand(oracle, model, mode)
    assert float((rows(model, mode) - expected).abs().max()) <= tolerance(expected)


def test_rows_of_the_papers_variant_are_what_transformers_makes_of_them(
    split_after: Split, oracle: T5ForConditionalGeneration
) -> None:
    model = split_after(2, "paper")
    expected = by_hand(oracle, model, "binary")
    assert float((rows(model, "binary") - expected).abs().max()) <= tolerance(expected)
    assert float((rows(split_after(2), "binary") - expected).abs().max()) > 1000 * tolerance(expected)


def test_modes_and_splits_differ(split_after: Split) -> None:
    found = [rows(split_after(k), mode) for mode in MODES for k in (1, 2, 3)]
    found = found[2:]  # full is the same at every k
    for i, one in enumerate(found):
        assert all(float((one - other).abs().max()) > 1000 * tolerance(one) for other in found[:i])


def test_full_mode_is_the_plain_encoder_at_every_split(reader: Reader, split_after: Split) -> None:
    with torch.no_grad():
        plain = reader.model.t5.encode(IDS, REAL)[REAL]
    for k in range(4):
        assert torch.equal(rows(split_after(k), "full"), plain)
    assert torch.equal(rows(split_after(0), "float"), plain)  # nothing is apart


def in_halves(model: FiD, mode: Mode) -> Tensor:
    """Encode the rows as the reader does: questions and passages alone, then joined."""
    answered = []
    for ids, length, asked in zip(IDS, LENGTHS, QUESTION_LENGTHS, strict=True):
        question = model.lower(ids[None, :asked], torch.tensor([asked]))[0]
        passage = model.lower(ids[None, asked:length], torch.tensor([length - asked]))[0]
        normed = None
        if mode == "binary":
            passage, u_hat, _ = model.binarized(passage)
            normed = torch.cat([model.join_norm(question), u_hat])[None]
        answered.append(model.join(torch.cat([question, passage])[None], torch.tensor([length]), normed)[0])
    return torch.cat(answered)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("mode", ["float", "binary"])
@torch.no_grad()
def test_two_halves_are_one_row(split_after: Split, mode: Mode, k: int) -> None:
    model = split_after(k)
    expected = rows(model, mode)
    assert float((in_halves(model, mode) - expected).abs().max()) <= tolerance(expected)


@torch.no_grad()
def test_join_reads_rows_of_different_lengths_together(split_after: Split) -> None:
    model = split_after(2)
    seen = model.rows(IDS, ROW_LENGTHS, ASKED_LENGTHS, "float")
    padded = seen.joined.masked_fill(~REAL[..., None], 99.0)
    expected = seen.memory[REAL]
    assert float((model.join(padded, ROW_LENGTHS, None)[REAL] - expected).abs().max()) <= tolerance(expected)


@torch.no_grad()
def test_passage_knows_nothing_of_the_question_below_the_split(split_after: Split) -> None:
    model, other = split_after(2), IDS.clone()
    asked = REAL & ~PASSAGE
    other[asked] = (other[asked] + 7) % 250
    for mode in ("float", "binary"):
        one, two = (model.rows(ids, ROW_LENGTHS, ASKED_LENGTHS, mode) for ids in (IDS, other))
        held = REAL & PASSAGE
        assert torch.equal(one.apart[held], two.apart[held]) and torch.equal(one.joined[held], two.joined[held])
        assert not torch.equal(one.apart[asked], two.apart[asked])
        assert not torch.equal(one.memory[held], two.memory[held])
    one, two = (model.rows(ids, ROW_LENGTHS, ASKED_LENGTHS, "full") for ids in (IDS, other))
    assert not torch.equal(one.apart[held], two.apart[held])


@torch.no_grad()
def test_rows_tell_what_they_saw(split_after: Split) -> None:
    model = split_after(2)
    plain, bits = (model.rows(IDS, ROW_LENGTHS, ASKED_LENGTHS, mode) for mode in ("float", "binary"))
    assert plain.signs is None and torch.equal(plain.joined, plain.apart) and torch.equal(bits.apart, plain.apart)
    h_hat, _, signs = model.binarized(plain.apart)
    assert torch.equal(bits.joined, torch.where(PASSAGE[..., None], h_hat, plain.apart))
    assert bits.signs is not None and torch.equal(bits.signs, signs) and signs.abs().eq(1).all()


def test_gradient_reaches_below_the_signs(split_after: Split) -> None:
    for calibration in ("channel", "paper"):
        model = copy.deepcopy(split_after(2, calibration))
        memory = model.rows(IDS, ROW_LENGTHS, ASKED_LENGTHS, "binary").memory
        memory[REAL & PASSAGE].square().sum().backward()
        for name, parameter in model.t5.encoder.named_parameters():
            assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name
            assert torch.isfinite(parameter.grad).all(), name
        for parameter in model.binarizer.parameters():
            assert (parameter.grad is not None) == (calibration == "channel")


@torch.no_grad()
def test_answers_are_scored_as_transformers_scores_them(split_after: Split, oracle: T5ForConditionalGeneration) -> None:
    model, labels = split_after(2), torch.tensor([[5, 6, 7, 1], [8, 1, -100, -100]])
    memory = torch.randn(6, 11, 64, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([11, 3, 7, 2, 11, 5])
    found = model.answer_logits(memory, lengths, labels)
    mask = torch.arange(11)[None] < lengths[:, None]
    states = BaseModelOutput(last_hidden_state=memory.reshape(2, 33, 64))
    expected = oracle(encoder_outputs=states, attention_mask=mask.reshape(2, 33).long(), labels=labels).logits
    assert float((found - expected).abs().max()) <= tolerance(expected)


@pytest.mark.parametrize("k", [4, 5, 100])
def test_split_outside_the_encoder_is_refused(reader: Reader, k: int) -> None:
    with pytest.raises(ValueError, match=rf"k is {k}, the encoder has 4 layers; choose 1 <= k <= 3"):
        FiD(reader.model.t5, ReaderConfig(k=k))
