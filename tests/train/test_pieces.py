"""A batch read in pieces, or with layers computed twice, has the losses and gradients of the whole batch."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from btr.model.checkpoint import configured
from btr.model.config import Mode
from btr.model.fid import FiD
from btr.model.span_head import SpanReader
from btr.reader import Reader
from btr.train.objectives import build_objective
from btr.train.pieces import recompute_layers, split, weigh
from btr.train.stages import Stage

MakeReader = Callable[..., FiD]
Gradients = dict[str, Tensor]
ALL = {"task": 1.0, "answers": 1.0, "recovery": 1.0}
PLAIN = Stage("all", (("binary", 1.0),), ALL)


def written(questions: int) -> tuple[Tensor, ...]:
    """Make rows for a FiD, two to a question, in which lengths of passages and answers differ."""
    drawn = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 64, (2 * questions, 10), generator=drawn)
    lengths = torch.randint(5, 11, (2 * questions,), generator=drawn)
    labels = torch.randint(3, 64, (questions, 6), generator=drawn)
    labels[torch.arange(6)[None] > torch.arange(questions)[:, None] % 6] = -100
    return ids, lengths, torch.full((2 * questions,), 3), labels


def pointed(questions: int) -> tuple[Tensor, ...]:
    """Make rows for a span reader, two to a question."""
    ids, lengths, asked, _ = written(questions)
    places = torch.arange(10)[None]
    targets = torch.full((questions, 3, 2), -1)
    targets[:, 0] = torch.tensor([3, 4])
    targets[::2, 1] = torch.tensor([13, 13])
    return ids, lengths, asked, targets, (places == 0) | ((places >= asked[:, None]) & (places < lengths[:, None]))


def spanning(reader: Reader, noise: float = 0.0) -> SpanReader:
    """Copy a span reader, and move its weights a little."""
    model = copy.deepcopy(reader.model)
    assert isinstance(model, SpanReader)
    drawn = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=drawn)
    return model


def learn(
    student: FiD | SpanReader,
    teacher: FiD | SpanReader,
    inputs: tuple[Tensor, ...],
    pieces: int,
    stage: Stage = PLAIN,
) -> tuple[dict[str, float], Gradients]:
    """Return losses and gradients of a batch, read in so many pieces."""
    objective = build_objective(student, stage)
    parts, total = split(inputs, pieces), dict.fromkeys(stage.losses, 0.0)
    unread = student.config.unread if isinstance(student, SpanReader) else ()
    for part, share in zip(parts, weigh(parts, stage, unread), strict=True):
        losses = objective(student, teacher, part, "binary")
        shared = {name: loss * share[name] for name, loss in losses.items()}
        torch.stack(list(shared.values())).sum().backward()
        total = {name: total[name] + shared[name].item() for name in shared}
    found = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    return total, found


def alike(first: Gradients, second: Gradients) -> bool:
    """Tell whether gradients are the same up to float32's rounding, 6e-8 a sum, some hundred sums deep.

    Those that are 0 but for rounding (a shift of all logits) are held to the largest of all.
    """
    assert first.keys() == second.keys()
    largest = max(gradient.abs().max() for gradient in first.values())
    wrong = {name: (first[name] - second[name]).abs().max() for name in first}
    return all(wrong[name] <= 1e-5 * first[name].abs().max() + 1e-6 * largest for name in first)


@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_pieces_of_a_generative_batch_add_up(make_reader: MakeReader, pieces: int) -> None:
    student, teacher = make_reader(), make_reader(seed=1).eval()
    whole, gradients = learn(student, teacher, written(6), 1)
    losses, found = learn(student, teacher, written(6), pieces)
    assert losses == pytest.approx(whole, rel=1e-5)
    assert alike(gradients, found)


@pytest.mark.parametrize("pieces", [2, 4])
def test_pieces_of_an_extractive_batch_add_up(span_reader: Reader, pieces: int) -> None:
    student, teacher = spanning(span_reader), spanning(span_reader, noise=0.02).eval()
    whole, gradients = learn(student, teacher, pointed(4), 1)
    losses, found = learn(student, teacher, pointed(4), pieces)
    assert losses == pytest.approx(whole, rel=1e-5)
    assert alike(gradients, found)


@pytest.mark.parametrize("unread", [(), tuple(range(10, 30))])
@pytest.mark.parametrize("distill", ["all", "top"])
def test_pieces_of_a_distillation_of_spans_add_up(
    span_reader: Reader, distill: Literal["all", "top"], unread: tuple[int, ...]
) -> None:
    """Exactly where the teacher's states are all as large, which is where its last norm neither scales nor shifts."""
    student, teacher = spanning(span_reader), spanning(span_reader, noise=0.02).eval()
    student = configured(student, replace(student.config, unread=unread))
    assert isinstance(student, SpanReader)
    teacher.bert.layers[-1].norm.reset_parameters()
    stage = replace(PLAIN, weights={**ALL, "distillation": 1.0}, distill=distill)
    batch = uneven(4)
    whole, gradients = learn(student, teacher, batch, 1, stage)
    losses, found = learn(student, teacher, batch, 4, stage)
    assert losses == pytest.approx(whole, rel=1e-5)
    assert alike(gradients, found)


def uneven(questions: int) -> tuple[Tensor, ...]:
    """Make rows for a span reader whose questions are of 2 to 5 tokens, and passages long where questions are short."""
    ids, lengths, asked, targets, _ = pointed(questions)
    asked = 2 + torch.arange(2 * questions) // 2 % 4
    places, lengths = torch.arange(10)[None], 11 - asked // 2
    targets = torch.full_like(targets, -1)
    targets[:, 0] = 5
    return ids, lengths, asked, targets, (places == 0) | ((places >= asked[:, None]) & (places < lengths[:, None]))


def test_pieces_weigh_what_they_hold() -> None:
    ids, lengths, asked, labels = written(6)
    parts = split((ids, lengths, asked, labels), 3)
    shares = weigh(parts, PLAIN)
    answers, passages = (labels != -100).sum(1), (lengths - asked).view(6, 2).sum(1)
    for n, share in enumerate(shares):
        two = slice(2 * n, 2 * n + 2)
        assert share["task"] == share["cross"] == int(answers[two].sum()) / int(answers.sum())
        assert share["recovery"] == pytest.approx(float(passages[two].sum() / passages.sum()))
    assert len({share["task"] for share in shares}) == len({share["recovery"] for share in shares}) == 3
    assert [share["task"] for share in weigh(split(pointed(6), 3), PLAIN)] == [1 / 3] * 3  # a mean over questions


def test_questions_that_do_not_go_into_pieces_are_refused() -> None:
    with pytest.raises(ValueError, match="6 questions do not go into 4 equal pieces"):
        split(written(6), 4)


@pytest.mark.parametrize("mode", ["full", "float", "binary"])
def test_layers_computed_twice_give_the_same_gradients(make_reader: MakeReader, mode: Mode) -> None:
    def gradients(recomputed: bool) -> Gradients:
        reader = make_reader(dropout_rate=0.2).train()
        if recomputed:
            recompute_layers(reader)
        torch.manual_seed(0)
        objective = build_objective(reader, Stage("task", ((mode, 1.0),)))
        with torch.autocast("cpu", torch.bfloat16):
            objective(reader, None, written(4), mode)["task"].backward()
        return {name: p.grad for name, p in reader.named_parameters() if p.grad is not None}

    kept, computed = gradients(False), gradients(True)
    assert kept.keys() == computed.keys()
    assert all(torch.equal(kept[name], computed[name]) for name in kept)


def test_layers_computed_twice_keep_less(make_reader: MakeReader) -> None:
    """What a forward pass keeps for the backward: with recomputing, not what is inside the encoder's layers."""

    def kept(recomputed: bool) -> int:
        reader, sizes = make_reader(), []
        if recomputed:
            recompute_layers(reader)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            reader.rows(*written(16)[:3], "full")
        return sum(sizes)

    assert kept(True) < 0.3 * kept(False)


def test_layers_computed_twice_leave_the_weights_their_names(make_reader: MakeReader) -> None:
    reader = make_reader()
    names = list(reader.state_dict())
    recompute_layers(reader)
    assert list(reader.state_dict()) == names


def test_layers_of_a_span_reader_are_computed_twice(span_reader: Reader) -> None:
    found = []
    for recomputed in (False, True):
        reader = spanning(span_reader).train()
        if recomputed:
            recompute_layers(reader)
        objective = build_objective(reader, Stage("task", (("binary", 1.0),)))
        objective(reader, None, pointed(4), "binary")["task"].backward()
        found.append({name: p.grad for name, p in reader.named_parameters() if p.grad is not None})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
