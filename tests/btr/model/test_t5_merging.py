"""Merging inside T5: where the tokens merged are equal, nothing but their number may change."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from btr.model.bias import mask_bias
from btr.model.checkpoint import load_t5
from btr.model.config import T5Config
from btr.model.decoding import greedy
from btr.model.merge import Schedule, Tokens, concatenate, merge, shrink
from btr.model.t5 import T5, Attention

QUESTIONS, PAIRS = [4, 7, 2], [9, 5, 1]
LENGTHS = torch.tensor([40, 9, 23])
MASK = torch.arange(40)[None] < LENGTHS[:, None]
IDS = torch.randint(2, 250, (3, 40), generator=torch.Generator().manual_seed(0))
NOTHING = Schedule((0.0,) * 4, (0.0,) * 3)


def tolerance(reference: Tensor) -> float:
    """Return what float32 sums in another order may come to, as test_t5.py derives it: up to 6000 additions."""
    return math.sqrt(6000) * 2**-24 * float(reference.abs().max())


def assert_close(one: Tensor, other: Tensor) -> None:
    assert float((one - other).abs().max()) <= tolerance(other)


@pytest.fixture(scope="module")
def t5(shape: str, tiny_folders: dict[str, Path]) -> T5:
    return load_t5(tiny_folders[shape], torch.float32)


@pytest.mark.parametrize("copies", [2, 3, 7])
@torch.no_grad()
def test_equal_tokens_merged_get_the_attention_they_had(copies: int) -> None:
    """k equal keys weigh as much as one with log k added to its score."""
    torch.manual_seed(0)
    attention = Attention(T5Config(d_model=8, d_kv=4, num_heads=2, dropout_rate=0.0)).double().eval()
    six, asking, error = torch.randn(1, 6, 8).double(), torch.randn(1, 4, 8).double(), 1000 * 2**-53
    merged = tokens = Tokens.of(six.repeat_interleave(copies, 1), torch.tensor([6 * copies]), 0)
    while merged.sizes.shape[1] > 6:
        merged = merge(merged, 1 / merged.sizes.shape[1])  # one pair; equal neighbours are in different sets
    assert merged.sizes.tolist() == [[copies] * 6]

    def attend(seen: Tokens, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        bias = mask_bias(seen.mask, torch.float64, sizes)
        return attention.attend_weights(asking, *attention.keys_values(seen.hidden), bias)

    plain, weights = attend(tokens, None)
    found, shares = attend(merged, merged.sizes)
    assert float((found - plain).abs().max()) <= error  # values about 1, some hundred roundings
    assert float((merged.spread(shares[:, 1, 2]) - weights[:, 1, 2]).abs().max()) <= error
    assert float((attend(merged, None)[0] - plain).abs().max()) <= error  # all are as large: it makes no difference
    uneven = replace(merged, sizes=merged.sizes * torch.tensor([[1, 1, 1, 5, 1, 1]]))
    assert float((attend(uneven, uneven.sizes)[0] - plain).abs().max()) > 1e6 * error


def make_doubled(t5: T5) -> Tokens:
    """Rows of a question and of pairs of equal tokens at equal positions."""
    rows, places = [], []
    for question, pairs in zip(QUESTIONS, PAIRS, strict=True):
        place = torch.cat([torch.arange(question), question + 3 * torch.arange(pairs).repeat_interleave(2)])
        rows.append(IDS[len(rows)][place])
        places.append(place)
    ids, positions = (torch.nn.utils.rnn.pad_sequence(values, batch_first=True) for values in (rows, places))
    lengths = torch.tensor([len(row) for row in rows])
    return replace(Tokens.of(t5.embed(ids), lengths, torch.tensor(QUESTIONS)), positions=positions)


@pytest.mark.parametrize("ratios", [(0.5, 0, 0, 0), (0, 0, 0.5, 0), (0.25, 0.1, 0.1, 0.1)], ids=str)
@torch.no_grad()
def test_merging_equal_tokens_changes_no_memory(t5: T5, ratios: tuple[float, ...]) -> None:
    tokens = make_doubled(t5)
    plain = t5.encoder.merging(tokens, 0, NOTHING)
    found = t5.encoder.merging(tokens, 0, Schedule(ratios, ()))
    assert (found.lengths < plain.lengths)[:2].all() and found.sizes.max() == 2
    spread = found.hidden.gather(1, found.owner.clamp(min=0)[..., None].expand_as(plain.hidden))
    assert_close(spread[plain.mask], plain.hidden[plain.mask])
    other = t5.encoder.merging(tokens, 0, Schedule(ratios, (), proportional=False))
    assert float((other.hidden[0, 0] - found.hidden[0, 0]).abs().max()) > 100 * tolerance(found.hidden)


@torch.no_grad()
def test_merging_nothing_is_the_plain_encoder_and_decoder(t5: T5) -> None:
    k, schedule = 1, Schedule.preset("none", 3, 3)
    bias = t5.encoder.bias(torch.arange(40)[None], MASK)
    lower = t5.encoder(t5.embed(IDS), bias, 0, k)
    normed = 2 * t5.encoder.layers[k].attention_norm(lower)
    plain = t5.encoder.finish(t5.encoder(lower, bias, k, None, normed))
    found = t5.encoder.merging(Tokens.of(lower, LENGTHS, 5), k, schedule, normed)
    assert torch.equal(found.hidden, plain) and not found.merged
    levels = shrink(concatenate([found], [[0, 1, 2]], [1, 1, 1]), schedule.decoder)
    expected = greedy(t5, [Tokens.of(plain, LENGTHS, 5)] * 3, 16)
    for proportional in (True, False):
        same = greedy(t5, levels, 16, proportional)
        for name in ("tokens", "log_probability", "attention"):
            assert torch.equal(getattr(same, name), getattr(expected, name)), name


@torch.no_grad()
def test_layers_merge_between_attention_and_feed_forward(t5: T5) -> None:
    """By what the feed-forward reads; positions and sizes are those of the merged tokens from the next layer on."""
    tokens, ratios = Tokens.of(t5.embed(IDS), LENGTHS, 5), (0.3, 0.0, 0.4, 0.2)
    found = t5.encoder.merging(tokens, 0, Schedule(ratios, ()))
    for layer, ratio in zip(t5.encoder.layers, ratios, strict=True):
        bias = t5.encoder.position_bias(tokens.positions, tokens.positions)
        bias = bias + mask_bias(tokens.mask, torch.float32, tokens.sizes)
        tokens = replace(tokens, hidden=layer.attend(tokens.hidden, bias))
        tokens = merge(tokens, ratio, layer.ffn_norm.weight)
        tokens = replace(tokens, hidden=layer.feed(tokens.hidden))
    assert torch.equal(found.owner, tokens.owner) and torch.equal(found.positions, tokens.positions)
    assert_close(found.hidden[found.mask], t5.encoder.finish(tokens.hidden)[tokens.mask])


@torch.no_grad()
def test_bits_enter_the_first_layer_alone(t5: T5) -> None:
    """What replaces the first norm is of the unmerged row, and later layers take their own."""
    tokens, schedule = make_doubled(t5), Schedule((0.4, 0.2, 0.0, 0.3), ())
    normed = t5.encoder.layers[0].attention_norm(tokens.hidden)
    plain, same, other = (t5.encoder.merging(tokens, 0, schedule, given) for given in (None, normed, 2 * normed))
    assert torch.equal(plain.hidden, same.hidden)
    assert not torch.equal(other.hidden[0, 0], plain.hidden[0, 0])


@torch.no_grad()
def test_merged_rows_are_read_as_if_alone(t5: T5) -> None:
    hidden, schedule = t5.embed(IDS), Schedule((0.3, 0.2, 0.0, 0.4), ())
    together = t5.encoder.merging(Tokens.of(hidden, LENGTHS, 5), 0, schedule)
    for r, T in enumerate(LENGTHS.tolist()):
        alone = t5.encoder.merging(Tokens.of(hidden[r : r + 1, :T], LENGTHS[r : r + 1], 5), 0, schedule)
        assert torch.equal(together.owner[r, :T], alone.owner[0])
        assert_close(together.hidden[r, : int(alone.lengths[0])], alone.hidden[0])


@torch.no_grad()
def test_answers_from_merged_equal_memory_are_those_from_all_of_it(t5: T5) -> None:
    """Two questions, of two rows and of one; the decoder's layers look at less and less."""
    rows = t5.encoder.merging(make_doubled(t5), 0, NOTHING)
    memory = concatenate([rows], [[0, 1, 2]], [2, 1])
    plain = greedy(t5, [memory] * 3, 12)
    levels = shrink(memory, (0.2, 0.0, 0.3))
    assert levels[0] is levels[1] and levels[2].lengths[0] < levels[0].lengths[0] < memory.lengths[0]
    found, other = (greedy(t5, levels, 12, logs) for logs in (True, False))
    assert torch.equal(found.tokens, plain.tokens)
    scores = t5.answer_logits(plain.tokens, memory.hidden, memory.mask)
    assert float((found.log_probability - plain.log_probability).abs().max()) <= 2 * tolerance(scores)
    assert found.attention.shape == memory.owner.shape and found.attention[memory.owner < 0].eq(0).all()
    assert float((found.attention.sum(1) - 1).abs().max()) < 1e-5
    assert float((found.attention - plain.attention).abs().max()) <= tolerance(scores)
    assert float((other.attention - plain.attention).abs().max()) > 100 * tolerance(scores)
