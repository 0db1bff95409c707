"""The learning rate by step, and which optimiser moves which weight."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from btr.model.bert import Bert
from btr.model.config import BertConfig, ReaderConfig
from btr.model.fid import FiD
from btr.model.span_head import SpanReader
from btr.train.schedule import Schedule, build_optimisers

MakeReader = Callable[..., FiD]


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.6), (109, 0.208)])
def test_learning_rate_rises_then_falls(step: int, factor: float) -> None:
    assert math.isclose(Schedule(110, warmup=10, floor=0.2).rate(step), factor)


def test_learning_rate_of_a_run_that_is_all_warm_up() -> None:
    assert [Schedule(4, warmup=8).rate(step) for step in range(4)] == [0.125, 0.25, 0.375, 0.5]
    assert Schedule(4, warmup=0).rate(0) == 1


def given(model: nn.Module, optimiser: torch.optim.Optimizer) -> list[tuple[str, float]]:
    """List the (name, weight decay) of all that an optimiser moves."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [(names[id(p)], group["weight_decay"]) for group in optimiser.param_groups for p in group["params"]]


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_hidden_matrices_and_adamw_the_rest(make_reader: MakeReader, tied: bool) -> None:
    reader = make_reader(tied_head=tied)
    optimisers = build_optimisers(reader.named_parameters(), Schedule(1, weight_decay=0.25))
    assert [type(optimiser).__name__ for optimiser in optimisers] == ["AdamW", "Muon"]
    adamw, muon = (dict(given(reader, optimiser)) for optimiser in optimisers)
    assert sorted([*adamw, *muon]) == sorted(name for name, _ in reader.named_parameters())  # a tied head once
    outside = ("norm.weight", "table.weight", "embedding.weight", "head.weight", "mean", "magnitude")
    assert all(name.endswith(outside) for name in adamw)
    assert all(name.split(".")[-2] in {"q", "k", "v", "o", "wi", "wo"} for name in muon)
    assert ("t5.head.weight" in adamw) == (not tied)
    assert len(muon) == 4 * 6 + 2 * 10  # 4 encoder layers, 2 decoder layers
    assert set(muon.values()) == {0.25}


def test_vectors_do_not_decay(make_reader: MakeReader) -> None:
    reader = make_reader()
    (adamw,) = build_optimisers(reader.named_parameters(), Schedule(1, weight_decay=0.25, matrices="adamw"))
    found = dict(given(reader, adamw))
    dimensions = {name: p.dim() for name, p in reader.named_parameters()}
    assert found == {name: 0.25 if dimensions[name] == 2 else 0.0 for name in found}
    assert set(found.values()) == {0.25, 0.0}


def test_what_is_not_trained_is_left_out(make_reader: MakeReader) -> None:
    reader = make_reader(calibration="paper")
    (adamw,) = build_optimisers(reader.named_parameters(), Schedule(1, matrices="adamw"))
    names = {name for name, _ in given(reader, adamw)}
    assert names == {name for name, _ in reader.named_parameters() if "binarizer" not in name}


def test_muon_of_a_bert_takes_what_is_between_its_layers() -> None:
    shape = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    reader = SpanReader(Bert(shape), ReaderConfig(k=1))
    adamw, muon = (dict(given(reader, o)) for o in build_optimisers(reader.named_parameters(), Schedule(1)))
    assert set(muon) == {f"bert.layers.{i}.{name}.weight" for i in (0, 1) for name in ("qkv", "out", "wi", "wo")}
    assert {"bert.embedding.weight", "bert.positions.weight", "bert.segments.weight", "head.weight"} < set(adamw)
