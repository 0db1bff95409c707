"""The losses: against transformers where it has the same, against their definition where it has not."""

import math
from collections.abc import Callable
from statistics import mean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence
from transformers import T5Config as HFConfig
from transformers import T5ForConditionalGeneration

from btr.model.fid import FiD
from btr.train.losses import (
    answers_loss,
    copying_loss,
    cross_loss,
    distillation_loss,
    pointing,
    rate_loss,
    recovery_loss,
    span_loss,
    task_loss,
    top_tokens,
    within,
)

MakeReader = Callable[..., FiD]
IDS = torch.randint(3, 64, (3, 11), generator=torch.Generator().manual_seed(1))
LENGTHS, QUESTION_LENGTHS = torch.tensor([11, 8, 6]), torch.tensor([4, 3, 5])


def hf_config(reader: FiD) -> HFConfig:
    return HFConfig(**reader.t5.config.to_hf(), attn_implementation="eager")


def test_task_loss_is_that_of_transformers(make_reader: MakeReader) -> None:
    reader = make_reader()
    oracle = T5ForConditionalGeneration(hf_config(reader)).eval()
    labels = torch.tensor([[5, 9, 1, -100], [7, 1, -100, -100], [8, 8, 8, 1]])
    with torch.no_grad():
        found = oracle(input_ids=IDS, labels=labels)
    assert math.isclose(task_loss(found.logits, labels), found.loss, rel_tol=1e-6)


def test_task_loss_passes_over_padding() -> None:
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[4, 1, -100], [-100, -100, -100]])
    expected = -(logits[0].log_softmax(-1)[0, 4] + logits[0].log_softmax(-1)[1, 1]) / 2
    assert torch.isclose(task_loss(logits, labels), expected)


def test_answers_loss_is_the_divergence_over_answer_tokens() -> None:
    student, teacher = (torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    labels = torch.tensor([[4, 1, -100], [2, -100, -100]])
    kept = labels != -100
    expected = kl_divergence(Categorical(logits=teacher[kept]), Categorical(logits=student[kept])).mean()
    assert torch.isclose(answers_loss(student, teacher, labels), expected)
    assert answers_loss(teacher + 3, teacher, labels) < 1e-6  # logits are sure but for a constant
    changed = torch.where(kept[..., None], student, 1e3)
    assert answers_loss(changed, teacher, labels) == answers_loss(student, teacher, labels)
    assert answers_loss(student, teacher, torch.full_like(labels, -100)) == 0


def test_cross_loss_is_the_divergence_over_answer_tokens() -> None:
    student, teacher = (torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    student, teacher = student / student.sum(-1, keepdim=True), teacher / teacher.sum(-1, keepdim=True)
    labels = torch.tensor([[4, 1, -100], [2, -100, -100]])
    kept = labels != -100
    expected = kl_divergence(Categorical(teacher[kept]), Categorical(student[kept])).mean()
    assert torch.isclose(cross_loss(student, teacher, labels), expected)
    assert cross_loss(teacher, teacher, labels) == 0


def test_cross_loss_of_a_weight_that_vanished_is_finite() -> None:
    student = torch.tensor([[[1.0, 0.0]]], requires_grad=True)
    loss = cross_loss(student, torch.tensor([[[0.5, 0.5]]]), torch.tensor([[3]]))
    assert math.isclose(loss.item(), 0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 1e-9), rel_tol=1e-6)
    loss.backward()
    assert torch.isfinite(student.grad).all()


def test_copying_loss_is_of_the_places_where_the_whole_answer_stands() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 3, (4, 30), generator=generator)
    ids[:, :6] = -1
    labels = torch.full((4, 5), -100)
    for b, n in enumerate((1, 2, 4, 0)):
        labels[b, : n + 1] = torch.tensor([*[0, 1, 2, 1][:n], 9])
    ids[2, 26:] = torch.tensor([0, 1, 2, 1])  # to the very end, whose beginning comes after it in a ring
    ids[1, 29], ids[1, 6] = 0, 1
    looked = torch.rand(4, 5, 30, generator=generator).softmax(-1)
    found = []
    for b, row in enumerate(labels.tolist()):
        answer = row[: row.index(9)]
        begins = [j for j in range(31 - len(answer)) if ids[b, j : j + len(answer)].tolist() == answer]
        for s in range(len(answer)):
            found += [-math.log(sum(float(looked[b, s, j + s]) for j in begins))] if begins else []
    assert len(found) == 7 and math.isclose(copying_loss(looked, ids, labels).item(), mean(found), rel_tol=1e-6)
    assert copying_loss(looked, ids, torch.full_like(labels, -100)) == 0
    assert copying_loss(looked[:, :, :3], ids[:, :3], labels) == 0  # a memory shorter than the answers may be
    assert copying_loss(looked, ids, torch.full_like(labels, 7)) == 0


def test_pointing_shares_one_among_all_rows_of_a_question() -> None:
    logits = 5 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    pointable = torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    pointable[:, 0] = True
    found = pointing(logits, pointable, 2)
    assert found.shape == (2, 12)
    for question in (0, 1):
        rows = slice(2 * question, 2 * question + 2)
        kept = pointable[rows].flatten()
        assert torch.allclose(found[question][kept], logits[rows].flatten()[kept].log_softmax(0))
        assert (found[question].exp()[~kept] == 0).all()


def test_span_loss_is_the_probability_of_all_targets_together() -> None:
    start, end = (torch.randn(2, 9, generator=torch.Generator().manual_seed(seed)).log_softmax(-1) for seed in (0, 1))
    targets = torch.tensor([[[2, 3], [5, 5], [-1, -1]], [[0, 0], [-1, -1], [-1, -1]]])
    first = start[0, 2].exp() * end[0, 3].exp() + start[0, 5].exp() * end[0, 5].exp()
    expected = -(first.log() + start[1, 0] + end[1, 0]) / 2
    assert torch.isclose(span_loss(start, end, targets), expected)


def test_span_loss_does_not_reach_what_is_no_target() -> None:
    start = torch.zeros(1, 4, requires_grad=True)
    span_loss(start, torch.zeros(1, 4), torch.tensor([[[2, 3], [-1, -1]]])).backward()
    assert start.grad.tolist() == [[0, 0, -1, 0]]


@st.composite
def scored(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """Draw scores with many ties, candidates, and a share in hundredths."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    scores = draw(st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=rows * width, max_size=rows * width))
    candidates = draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width))
    return (
        torch.tensor(scores).view(rows, width),
        torch.tensor(candidates).view(rows, width),
        draw(st.integers(0, 100)) / 100,
    )


@given(scored())
@settings(max_examples=50)
def test_top_tokens_are_the_best_and_earliest(drawn: tuple[Tensor, Tensor, float]) -> None:
    scores, candidates, ratio = drawn
    found = top_tokens(scores, candidates, ratio)
    for row in range(len(scores)):
        places = [place for place in range(scores.shape[1]) if candidates[row, place]]
        places.sort(key=lambda place: (-scores[row, place].item(), place))
        count = -(-round(100 * ratio) * len(places) // 100)
        assert found[row].nonzero().flatten().tolist() == sorted(places[:count])


@pytest.mark.parametrize("hundredths", range(1, 101))
def test_top_tokens_counts_exactly(hundredths: int) -> None:
    """Neither 0.3 * 90 in float32 nor 0.07 * 100 in float64 is whole; their ceilings are 28 and 8."""
    candidates = torch.ones(100, 100, dtype=torch.bool).tril()
    found = top_tokens(torch.zeros(100, 100), candidates, hundredths / 100).sum(1)
    assert found.tolist() == [-(-hundredths * count // 100) for count in range(1, 101)]


def test_top_tokens_of_all_and_of_none() -> None:
    scores = torch.tensor([[0.3, 0.1, 0.9, 0.2]])
    candidates = torch.tensor([[True, False, True, True]])
    assert torch.equal(top_tokens(scores, candidates, 1.0), candidates)
    assert not top_tokens(scores, candidates, 0.0).any()
    assert not top_tokens(scores, torch.zeros_like(candidates), 1.0).any()


def states(seed: int) -> Tensor:
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed))


CHOSEN = torch.tensor([[True, False, True, False, False], [False, False, False, False, True]])


def test_distillation_loss_is_zero_for_equal_states() -> None:
    assert distillation_loss(states(0), states(0), CHOSEN) == 0
    assert distillation_loss(states(0), states(1), torch.zeros_like(CHOSEN)) == 0


def test_distillation_loss_is_the_error_relative_to_the_teacher() -> None:
    student, teacher = states(0), states(1)
    expected = (student - teacher)[CHOSEN].pow(2).mean() / teacher[CHOSEN].pow(2).mean()
    assert torch.isclose(distillation_loss(student, teacher, CHOSEN), expected)


def test_distillation_loss_passes_over_unchosen_tokens() -> None:
    changed = torch.where(CHOSEN[..., None], states(0), 1e3)
    assert distillation_loss(changed, states(1), CHOSEN) == distillation_loss(states(0), states(1), CHOSEN)
    assert distillation_loss(states(0), changed, CHOSEN) == 0


@pytest.mark.parametrize("scale", [1 / 64, 512.0])  # powers of two: exact
def test_distillation_loss_does_not_depend_on_scale(scale: float) -> None:
    expected = distillation_loss(states(0), states(1), CHOSEN)
    assert distillation_loss(states(0) * scale, states(1) * scale, CHOSEN) == expected


def test_recovery_loss_is_the_relative_error() -> None:
    assert recovery_loss(states(0), states(0), CHOSEN) == 0
    # 1 % of each number is off: 1e-4 of the mean square, whatever the size.
    for size in (0.1, 300.0):
        assert float(recovery_loss(size * states(0), 1.01 * size * states(0), CHOSEN)) == pytest.approx(1e-4, rel=1e-2)
    assert recovery_loss(states(0), -states(0), CHOSEN) == pytest.approx(4, rel=1e-3)


def test_recovery_loss_passes_over_question_and_padding() -> None:
    expected = recovery_loss(states(1), states(0), CHOSEN)
    changed = torch.where(CHOSEN[..., None], states(1), 1e3)
    assert recovery_loss(changed, states(0), CHOSEN) == expected
    assert recovery_loss(states(1), torch.where(CHOSEN[..., None], states(0), -states(0)), CHOSEN) == expected
    assert recovery_loss(states(1), states(0), torch.zeros_like(CHOSEN)) == 0


@pytest.mark.parametrize("calibration", ["channel", "predictive"])
def test_recovery_loss_reaches_the_encoder_through_the_signs(make_reader: MakeReader, calibration: str) -> None:
    reader = make_reader(calibration=calibration)
    rows = reader.rows(IDS, LENGTHS, QUESTION_LENGTHS, "binary")
    passage = torch.arange(11)[None] >= QUESTION_LENGTHS[:, None]
    recovery_loss(rows.apart.detach(), rows.joined, passage).backward()
    for layer in reader.t5.encoder.layers[:2]:
        assert layer.attention.v.weight.grad is not None and layer.attention.v.weight.grad.abs().max() > 0
    assert reader.t5.encoder.layers[2].attention.v.weight.grad is None  # above the signs


def test_rate_is_one_bit_a_bit_until_something_is_learnt() -> None:
    signs, even = torch.where(states(0) > 0, 1.0, -1.0), torch.nn.Linear(8, 8)
    torch.nn.init.zeros_(even.weight)
    torch.nn.init.zeros_(even.bias)
    assert math.isclose(rate_loss(signs, states(1), CHOSEN, even).item(), 1, rel_tol=1e-6)
    assert rate_loss(signs, states(1), torch.zeros_like(CHOSEN), even) == 0


def test_rate_is_the_entropy_of_bits_of_known_odds() -> None:
    """With p(+1) = 1/4 whatever the token, a quarter of the bits being +1, it is the entropy of 1/4."""
    predictor = torch.nn.Linear(8, 8)
    torch.nn.init.zeros_(predictor.weight)
    torch.nn.init.constant_(predictor.bias, math.log(1 / 3))
    signs = torch.full((1, 4, 8), -1.0)
    signs[0, 1] = 1
    entropy = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    found = rate_loss(signs, states(0)[:1, :4], torch.ones(1, 4, dtype=torch.bool), predictor)
    assert math.isclose(found.item(), entropy, rel_tol=1e-6)


def test_rate_teaches_signs_and_predictor_and_not_the_embedding() -> None:
    signs = torch.where(states(0) > 0, 1.0, -1.0).requires_grad_()
    embedded, predictor = states(1).requires_grad_(), torch.nn.Linear(8, 8)
    rate_loss(signs, embedded, CHOSEN, predictor).backward()
    with torch.no_grad():
        wanted = predictor(torch.nn.functional.layer_norm(embedded, (8,)))
    assert torch.equal(signs.grad.sign()[CHOSEN], -wanted.sign()[CHOSEN])  # descent: towards the likelier bit
    assert (signs.grad[~CHOSEN] == 0).all() and embedded.grad is None
    assert predictor.weight.grad.abs().max() > 0


def test_rate_falls_where_the_token_tells_the_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    table, bits = torch.randn(5, 8, generator=generator), torch.randn(5, 8, generator=generator).sign()
    tokens, predictor = torch.arange(5)[None], torch.nn.Linear(8, 8)
    optimiser = torch.optim.Adam(predictor.parameters(), 0.1)
    for _ in range(100):
        loss = rate_loss(bits[tokens], table[tokens], torch.ones(1, 5, dtype=torch.bool), predictor)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1


def test_targets_move_inwards_to_what_is_read() -> None:
    pointable = torch.tensor([[1, 0, 0, 1, 1, 0], [1, 0, 1, 0, 0, 1]]).bool()  # one question, two rows
    targets = torch.tensor([[[1, 4], [3, 5], [0, 0], [8, 10], [9, 10], [-1, -1]]])
    expected = [[[3, 4], [3, 4], [0, 0], [8, 8], [11, 11], [-1, -1]]]  # of 9, 10 nothing is read: the next that is
    assert within(targets, pointable).tolist() == expected
    assert torch.equal(within(targets, torch.ones_like(pointable)), targets)
    two = within(torch.tensor([[[1, 2]], [[1, 3]]]), pointable)  # two questions of a row: places are their own
    assert two.tolist() == [[[3, 3]], [[2, 2]]]
