"""T5 against transformers: the same scores, answers and gradients, for both shapes, and no tensor idle."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

from btr.model.bias import PositionBias, mask_bias
from btr.model.checkpoint import load_t5
from btr.model.config import T5Config
from btr.model.decoding import greedy
from btr.model.merge import Tokens
from btr.model.parameter_names import hf_name
from btr.model.t5 import T5

EOS, PAD = 1, 0
LENGTHS = [150, 3, 77, 260]  # tokens a row; 260 is beyond the farthest distance that has a bucket of its own, 128


@dataclass(frozen=True)
class Batch:
    """Ragged rows (B, T) that end with the end of sequence, their mask, and ragged answers (B, S) padded with -100."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


def make_batch(lengths: list[int], seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def ragged(sizes: list[int], padding: int) -> Tensor:
        rows = torch.randint(2, 250, (len(sizes), max(sizes)), generator=generator)
        for row, size in zip(rows, sizes, strict=True):
            row[size - 1], row[size:] = EOS, padding
        return rows

    ids = ragged(lengths, PAD)
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]
    return Batch(ids, mask, ragged([2 + 3 * n for n in range(len(lengths))], -100))


def tolerance(reference: Tensor) -> float:
    """Return by how much two orders of the same float32 sums may differ, over the tiny T5 of these tests.

    A value passes some 700 additions a layer (64 + 16 + 64 + 64 + 96 in projections, up to 260 in attention), through
    4 encoder and 3 decoder layers with two attentions: about 6000. If each rounds by 2^-24 of the largest value and
    they are independent, they add up to the root of their number (seen: a quarter of that at most).
    """
    return math.sqrt(6000) * 2**-24 * float(reference.abs().max())


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert float((ours - theirs).abs().max()) <= tolerance(theirs)


def scores(model: T5ForConditionalGeneration, batch: Batch) -> Tensor:
    return model(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=batch.labels).logits


@pytest.fixture(scope="module")
def t5(shape: str, tiny_folders: dict[str, Path]) -> T5:
    return load_t5(tiny_folders[shape], torch.float32)


@pytest.mark.parametrize("lengths", [[1], [12, 12], [5, 31, 17, 2], LENGTHS], ids=str)
@torch.no_grad()
def test_scores_are_those_of_transformers(t5: T5, oracle: T5ForConditionalGeneration, lengths: list[int]) -> None:
    batch = make_batch(lengths)
    assert_close(t5(batch.ids, batch.mask, batch.labels), scores(oracle, batch))


@torch.no_grad()
def test_memory_is_that_of_transformers(t5: T5, oracle: T5ForConditionalGeneration) -> None:
    batch = make_batch(LENGTHS)
    theirs = oracle.encoder(input_ids=batch.ids, attention_mask=batch.mask.long()).last_hidden_state
    assert_close(t5.encode(batch.ids, batch.mask)[batch.mask], theirs[batch.mask])


@torch.no_grad()
def test_scores_depend_on_every_tensor(t5: T5) -> None:
    """An error in any one tensor would be seen: without this the tests above could have no teeth."""
    batch = make_batch([40, 20])
    right = t5(batch.ids, batch.mask, batch.labels)
    for name, parameter in t5.named_parameters():
        kept = parameter.clone()
        parameter += 0.1 * parameter.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        wrong = float((t5(batch.ids, batch.mask, batch.labels) - right).abs().max())
        parameter.copy_(kept)
        assert wrong > 10 * tolerance(right), name


SWAPPED = [
    ("encoder.layers.0.attention_norm.weight", "encoder.layers.0.ffn_norm.weight"),
    ("encoder.layers.2.attention_norm.weight", "encoder.layers.3.attention_norm.weight"),
    ("decoder.layers.1.cross_norm.weight", "decoder.layers.1.ffn_norm.weight"),
    ("decoder.layers.1.attention_norm.weight", "decoder.layers.1.cross_norm.weight"),
    ("encoder.norm.weight", "decoder.norm.weight"),
    ("encoder.layers.1.attention.q.weight", "encoder.layers.1.attention.k.weight"),
    ("decoder.layers.0.attention.v.weight", "decoder.layers.0.cross.v.weight"),
    ("encoder.position_bias.table.weight", "decoder.position_bias.table.weight"),
]


@pytest.mark.parametrize(("one", "other"), SWAPPED)
@torch.no_grad()
def test_swapped_names_would_be_seen(t5: T5, one: str, other: str) -> None:
    batch = make_batch([40, 20])
    right = t5(batch.ids, batch.mask, batch.labels)
    swapped = copy.deepcopy(t5)
    tensors = dict(swapped.named_parameters())
    kept = tensors[one].clone()
    tensors[one].copy_(tensors[other])
    tensors[other].copy_(kept)
    assert float((swapped(batch.ids, batch.mask, batch.labels) - right).abs().max()) > 100 * tolerance(right)


def norm64(self: T5LayerNorm, hidden: Tensor) -> Tensor:
    """Do what T5LayerNorm does without its cast to float32."""
    return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_error_is_at_most_twice_that_of_transformers(
    dtype: torch.dtype,
    shape: str,
    oracle: T5ForConditionalGeneration,
    tiny_folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = [make_batch([150, 3, 77], seed) for seed in range(2)]
    theirs = copy.deepcopy(oracle).to(dtype)
    ours = load_t5(tiny_folders[shape], dtype)
    rounded = [scores(theirs, batch).double() for batch in batches]
    with monkeypatch.context() as patched:
        patched.setattr(T5LayerNorm, "forward", norm64)
        exact = copy.deepcopy(oracle).double()
        truth = [scores(exact, batch) for batch in batches]
    error = [(ours(b.ids, b.mask, b.labels).double() - t) for b, t in zip(batches, truth, strict=True)]
    allowed = [r - t for r, t in zip(rounded, truth, strict=True)]
    for size in (lambda x: x.pow(2).mean().sqrt(), lambda x: x.abs().max()):
        assert size(torch.stack(error)) <= 2 * size(torch.stack(allowed))
    assert ours.dtype is dtype and ours(batches[0].ids, batches[0].mask, batches[0].labels).dtype is dtype


def test_gradients_are_those_of_transformers(t5: T5, oracle: T5ForConditionalGeneration) -> None:
    batch, theirs, ours = make_batch([150, 3, 77]), copy.deepcopy(oracle), copy.deepcopy(t5)
    theirs(input_ids=batch.ids, attention_mask=batch.mask.long(), labels=batch.labels).loss.backward()
    logits = ours(batch.ids, batch.mask, batch.labels)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100).backward()
    expected = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    found = {hf_name(name, t5.config.gated): parameter.grad for name, parameter in ours.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():  # forward and backward: twice the roundings, in both the value and its factor
        assert float((gradient - expected[name]).abs().max()) <= 4 * tolerance(expected[name]), name
        assert float(gradient.abs().max()) > 0, name


def generate(model: T5ForConditionalGeneration, batch: Batch, count: int) -> Tensor:
    """Return the ids (B, S) of transformers' greedy search, without the start token."""
    found = model.generate(batch.ids, attention_mask=batch.mask.long(), max_new_tokens=count, do_sample=False)
    return found[:, 1:]


def seen_by_all(t5: T5, memory: Tensor, mask: Tensor) -> list[Tokens]:
    """Let every decoder layer look at the same memory (B, M, D)."""
    return [Tokens.of(memory, mask.sum(1), 0)] * len(t5.decoder.layers)


@pytest.mark.parametrize("count", [1, 16])
def test_greedy_answers_are_those_of_transformers(t5: T5, oracle: T5ForConditionalGeneration, count: int) -> None:
    ended = []
    for seed in range(4):
        batch = make_batch([25, 3, 60, 140, 11, 33], seed)
        memory = t5.encode(batch.ids, batch.mask)
        tokens = greedy(t5, seen_by_all(t5, memory, batch.mask), count).tokens
        assert tokens.tolist() == generate(oracle, batch, count).tolist()
        ended += (tokens == EOS).any(1).tolist()
        assert len({tuple(row) for row in tokens.tolist()}) > 1
    if count > 1:
        assert any(ended) and not all(ended)  # both ways to stop were seen


def test_greedy_stops_when_every_answer_has_ended(t5: T5) -> None:
    eager = copy.deepcopy(t5)
    memory = torch.ones(2, 1, 64)
    with torch.no_grad():
        hidden = eager.decoder(eager.embed(torch.tensor([[PAD]])), memory[:1], torch.ones(1, 1, dtype=torch.bool))[0, 0]
        eager.head.weight = torch.nn.Parameter(eager.head.weight.clone())
        eager.head.weight[EOS] = 10 * hidden
    found = greedy(eager, seen_by_all(eager, memory, torch.ones(2, 1, dtype=torch.bool)), 16)
    assert found.tokens.tolist() == [[EOS], [EOS]]
    assert found.attention.tolist() == [[1.0], [1.0]]


@torch.no_grad()
def test_greedy_tells_probability_and_attention(t5: T5, oracle: T5ForConditionalGeneration) -> None:
    batch, eager = make_batch([25, 3, 60, 140, 11, 33], seed=1), copy.deepcopy(oracle)
    eager.set_attn_implementation("eager")
    found = greedy(t5, seen_by_all(t5, t5.encode(batch.ids, batch.mask), batch.mask), 16)
    kept = (found.tokens == EOS).cumsum(1) - (found.tokens == EOS).long() == 0  # up to the end of sequence and with it
    asked = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "labels": found.tokens}
    out = eager(**asked, output_attentions=True)
    expected = out.logits.log_softmax(-1).gather(2, found.tokens[..., None])[..., 0]
    assert float((found.log_probability - expected)[kept].abs().max()) <= 2 * tolerance(out.logits)
    assert found.log_probability[~kept].eq(0).all() and not kept.all()
    looked = torch.stack(out.cross_attentions).mean((0, 2))  # layers and heads; (B, S, M)
    shares = (looked * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
    assert float((found.attention - shares).abs().max()) <= tolerance(out.logits)  # a softmax errs as its scores do
    assert found.attention[~batch.mask].eq(0).all()
    assert float((found.attention.sum(1) - 1).abs().max()) < 1e-5


@torch.no_grad()
def test_padding_is_never_seen(t5: T5) -> None:
    batch = make_batch([40, 9, 23])
    scores = t5(batch.ids, batch.mask, batch.labels)
    assert torch.equal(t5(batch.ids.masked_fill(~batch.mask, 99), batch.mask, batch.labels), scores)
    alone = t5(batch.ids[1:2, :9], batch.mask[1:2, :9], batch.labels[1:2])
    assert_close(alone, scores[1:2])


@torch.no_grad()
def test_layers_run_in_parts_as_in_one(t5: T5) -> None:
    batch = make_batch([40, 9, 23])
    positions = torch.arange(40)[None]
    hidden, bias = t5.embed(batch.ids), t5.encoder.bias(positions, batch.mask)
    for cut in range(5):
        lower = t5.encoder(hidden, bias, 0, cut)
        assert torch.equal(t5.encoder(lower, bias, cut), t5.encoder(hidden, bias))
        if cut < 4:
            normed = t5.encoder.layers[cut].attention_norm(lower)
            assert torch.equal(t5.encoder(lower, bias, cut, None, normed), t5.encoder(hidden, bias))
            assert not torch.equal(t5.encoder(lower, bias, cut, None, 2 * normed), t5.encoder(hidden, bias))


@torch.no_grad()
def test_positions_count_by_distance_alone(t5: T5) -> None:
    bias = t5.encoder.position_bias
    positions = torch.tensor([[0, 1, 5, 6, 200, 1000]])
    assert torch.equal(bias(positions + 17, positions + 17), bias(positions, positions))
    rows = torch.cat([positions, torch.arange(6)[None]])
    assert torch.equal(bias(rows, rows)[1:], bias(torch.arange(6)[None], torch.arange(6)[None]))
    assert not torch.equal(bias(rows, rows)[:1], bias(rows, rows)[1:])


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (32, 20), (16, 128), (64, 1000)])
@torch.no_grad()
def test_every_distance_finds_its_bucket(bidirectional: bool, buckets: int, farthest: int) -> None:
    """However far it is, and in whatever order the positions come."""
    config = T5Config(relative_attention_num_buckets=buckets, relative_attention_max_distance=farthest)
    bias = PositionBias(config, bidirectional)
    positions = torch.stack([torch.randperm(3000, generator=torch.Generator().manual_seed(r))[:60] for r in range(2)])
    distance = positions[:, None, :] - positions[:, :, None]
    found = bias(positions, positions)
    assert torch.equal(found, bias.table(bias.bucket(distance)).permute(0, 3, 1, 2))
    assert found.is_contiguous()  # attention reads it row by row


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (32, 20), (16, 128), (64, 1000)])
def test_buckets_are_those_of_transformers(bidirectional: bool, buckets: int, farthest: int) -> None:
    config = T5Config(relative_attention_num_buckets=buckets, relative_attention_max_distance=farthest)
    distance = torch.arange(-1500, 1501)
    theirs = T5Attention._relative_position_bucket(distance, bidirectional, buckets, farthest)
    ours = PositionBias(config, bidirectional).bucket(distance)
    assert torch.equal(ours, theirs)
    assert len(ours.unique()) >= 15  # of which most are far from 0


def test_labels_are_shifted_as_transformers_shifts_them(t5: T5, oracle: T5ForConditionalGeneration) -> None:
    labels = torch.tensor([[7, 8, EOS, -100, -100], [7, 8, 9, 10, EOS]])
    assert t5.shift(labels).tolist() == [[0, 7, 8, EOS, PAD], [0, 7, 8, 9, 10]]
    assert torch.equal(t5.shift(labels), oracle._shift_right(labels))


def test_mask_hides_in_both_precisions() -> None:
    mask = torch.tensor([[True, False]])
    for dtype in (torch.float32, torch.bfloat16):
        bias = mask_bias(mask, dtype)
        assert bias.shape == (1, 1, 1, 2) and bias.dtype is dtype
        assert (bias + torch.tensor([-1000.0, 1000.0]).to(dtype)).softmax(-1).tolist() == [[[[1.0, 0.0]]]]
        assert mask_bias(mask[:, None].expand(1, 3, 2), dtype).shape == (1, 1, 3, 2)
        sized = mask_bias(mask, dtype, torch.tensor([[5, 5]]))
        assert sized.dtype is dtype and torch.equal(sized[..., 0], torch.tensor(5.0).log().to(dtype).view(1, 1, 1))
        assert torch.equal(sized[..., 1], bias[..., 1])


def test_dropout_is_for_training_only() -> None:
    config = T5Config(vocab_size=20, d_model=16, d_kv=4, d_ff=8, num_layers=2, num_decoder_layers=2, num_heads=4)
    torch.manual_seed(0)
    model, batch = T5(config), Batch(torch.arange(2, 12)[None], torch.ones(1, 10).bool(), torch.tensor([[3, 4, EOS]]))
    first, second = (model.train()(batch.ids, batch.mask, batch.labels) for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (model.eval()(batch.ids, batch.mask, batch.labels) for _ in range(2))
    assert torch.equal(first, second)


@torch.no_grad()
def test_rows_without_padding_share_a_bias(t5: T5) -> None:
    batch, positions = make_batch([40, 40, 40]), torch.arange(40)[None]
    bias = t5.encoder.bias(positions, batch.mask)
    assert bias.shape[0] == 1
    whole = bias.expand(3, -1, -1, -1) + mask_bias(batch.mask, bias.dtype)
    assert torch.equal(t5.encoder(t5.embed(batch.ids), bias), t5.encoder(t5.embed(batch.ids), whole))
    assert t5.encoder.bias(positions, make_batch([40, 39]).mask).shape[0] == 2
    assert t5.encoder.bias(positions, batch.mask, torch.full((3, 40), 2)).shape[0] == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_working_in_place_changes_no_argument_and_no_weight(t5: T5, dtype: torch.dtype) -> None:
    model, x = copy.deepcopy(t5).to(dtype), torch.randn(2, 5, 64).to(dtype)
    seen = torch.ones(2, 5, dtype=torch.bool)
    bias = model.encoder.bias(torch.arange(5)[None], seen).detach()
    layer, given = model.encoder.layers[0], (x, bias, *model.parameters())
    before = [value.clone() for value in given]
    for function in (layer.ffn_norm, layer.ffn):
        learning = function(x)
        with torch.no_grad():
            assert torch.equal(function(x), learning)
    with torch.no_grad():
        model.encoder(x, bias)
        model.decoder(x, x, seen)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x, bias).dtype is dtype  # the residual stream stays as wide as it came
    assert all(torch.equal(*pair) for pair in zip(before, given, strict=True))
