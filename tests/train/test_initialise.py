"""Fresh weights: deterministic, and with circuits that behave as they are said to before any training."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from btr.model.config import T5_SHAPES, T5Config
from btr.model.t5 import T5
from btr.train.initialise import initialise

T = 24
SHAPES = {name: replace(T5_SHAPES[name], vocab_size=512) for name in ("tiny", "small")}


def fresh(config: T5Config, seed: int, circuits: bool = True) -> T5:
    model = T5(config)
    initialise(model, seed, circuits)
    return model.eval()


def equal(a: T5, b: T5) -> list[bool]:
    return [torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)]


def test_weights_are_a_function_of_the_seed() -> None:
    config = replace(T5_SHAPES["tiny"], tied_head=False)
    torch.manual_seed(1)
    first = fresh(config, 7)
    torch.manual_seed(2)
    assert all(equal(first, fresh(config, 7)))
    names = [name for name, same in zip(first.state_dict(), equal(first, fresh(config, 8)), strict=True) if same]
    assert all("norm" in name for name in names)


def test_few_heads_have_no_circuits() -> None:
    config = replace(T5_SHAPES["tiny"], num_heads=2)
    assert all(equal(fresh(config, 0), fresh(config, 0, circuits=False)))
    assert not all(equal(fresh(T5_SHAPES["tiny"], 0), fresh(T5_SHAPES["tiny"], 0, circuits=False)))


def distinct(seed: int) -> Tensor:
    return torch.randperm(400, generator=torch.Generator().manual_seed(seed))[:T] + 3


@torch.no_grad()
def attention(model: T5, ids: Tensor, layer: int) -> Tensor:
    """Return the weights (H, T, T) of an encoder layer for one sequence ids (T,)."""
    encoder, positions = model.encoder, torch.arange(len(ids))[None]
    bias = encoder.bias(positions, torch.ones(1, len(ids), dtype=torch.bool))
    hidden = encoder(model.embed(ids[None]), bias, 0, layer)
    chosen = encoder.layers[layer]
    x = chosen.attention_norm(hidden)
    return chosen.attention.attend_weights(x, *chosen.attention.keys_values(x), bias)[1][0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_matching_heads_find_the_same_token_elsewhere(shape: str, seed: int) -> None:
    ids = distinct(seed)
    ids[17] = ids[4]
    weights = attention(fresh(SHAPES[shape], seed), ids, 0)
    matching = weights[: len(weights) // 2]
    for here, there in ((4, 17), (17, 4)):
        assert (matching[:, here].argmax(-1) == there).all()
        assert matching[:, here, there].mean() > 0.5
        assert matching[:, here, here].max() < 0.05
    plain = attention(fresh(SHAPES[shape], seed, circuits=False), ids, 0)
    assert plain[: len(weights) // 2, 4, 17].mean() < 0.2


@pytest.mark.parametrize("shape", SHAPES)
def test_neighbour_heads_look_one_back_and_one_ahead(shape: str) -> None:
    weights = attention(fresh(SHAPES[shape], 0), distinct(0), 0)
    half, inner = len(weights) // 2, torch.arange(1, T - 1)
    assert weights[half, inner, inner - 1].mean() > 0.9
    assert weights[half + 1, inner, inner + 1].mean() > 0.9


@pytest.mark.parametrize(("circuits", "least", "most"), [(True, 2.0, 24.0), (False, 0.0, 1.6)])
def test_context_heads_find_tokens_with_the_same_neighbour(circuits: bool, least: float, most: float) -> None:
    """On average over seeds: what layer 1 wrote of the neighbour stands among all else that is in the stream."""
    before, after = [], []
    for seed in range(8):
        ids = distinct(seed)
        ids[16], ids[20] = ids[5], ids[9]  # 17 has the neighbour before that 6 has; 19 the neighbour after that 8 has
        weights = attention(fresh(SHAPES["small"], seed, circuits), ids, 1)
        before += [weights[6, 17, 6], weights[6, 6, 17]]
        after += [weights[7, 19, 8], weights[7, 8, 19]]
    for found in (before, after):
        assert least < T * sum(found) / len(found) < most  # times what an even look would give


@pytest.mark.parametrize(("circuits", "least", "most"), [(True, 0.4, 1.0), (False, 0.0, 0.1)])
@torch.no_grad()
def test_induction_heads_look_for_what_followed_the_token_just_written(
    circuits: bool, least: float, most: float
) -> None:
    """The first copies what followed the token, the second what came before it."""
    inner = torch.arange(1, T - 1)
    for seed in range(3):
        model, ids = fresh(SHAPES["small"], seed, circuits), distinct(seed)[None]
        memory = model.encode(ids, torch.ones(1, T, dtype=torch.bool))
        layer = model.decoder.layers[0]
        written = layer.cross_norm(model.embed(ids))
        weights = layer.cross.attend_weights(written, *layer.cross.keys_values(memory), None)[1][0]
        assert least < weights[4, inner, inner + 1].mean() < most
        assert least < weights[5, inner, inner - 1].mean() < most
