"""The losses: against transformers where it has the same, against their definition where it has not."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import T5Config as HFConfig
from transformers import T5EncoderModel, T5ForConditionalGeneration

from btr.checkpoint import t5_tensors
from btr.fid import FiD
from btr.train.losses import distillation_loss, question_attention, recovery_loss, task_loss, top_tokens

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


@pytest.mark.parametrize("k", [0, 2, 3])
def test_question_attention_is_that_of_transformers(make_reader: MakeReader, k: int) -> None:
    reader = make_reader(k=k).eval()
    oracle = T5EncoderModel(hf_config(reader)).eval()
    missing, _ = oracle.load_state_dict(t5_tensors(reader.t5), strict=False)
    assert set(missing) <= {"encoder.embed_tokens.weight"}  # the shared embedding under its other name
    mask = torch.arange(11)[None] < LENGTHS[:, None]
    with torch.no_grad():
        weights = oracle(input_ids=IDS, attention_mask=mask.long(), output_attentions=True).attentions
        rows = reader.rows(IDS, LENGTHS, QUESTION_LENGTHS, "full")
        found = question_attention(reader, rows.joined, LENGTHS, QUESTION_LENGTHS)
    for row, asked in enumerate(QUESTION_LENGTHS):
        upper = torch.stack([layer[row, :, :asked] for layer in weights[k:]])  # (layers, H, Q, T)
        assert torch.allclose(found[row], upper.mean((0, 1, 2)), atol=1e-6)


def test_question_attention_of_a_row_adds_up_to_one(make_reader: MakeReader) -> None:
    reader = make_reader().eval()
    with torch.no_grad():
        joined = reader.rows(IDS, LENGTHS, QUESTION_LENGTHS, "full").joined
        found = question_attention(reader, joined, LENGTHS, QUESTION_LENGTHS)
    assert torch.allclose(found.sum(1), torch.ones(3), atol=1e-5)
    assert (found[torch.arange(11)[None] >= LENGTHS[:, None]] == 0).all()


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


def test_recovery_loss_is_zero_when_the_projection_recovers() -> None:
    signs = torch.where(states(0) > 0, 1.0, -1.0)
    one = torch.zeros(2, 5, dtype=torch.bool)
    one[0, 2] = True
    projection = torch.nn.Linear(8, 8)
    with torch.no_grad():
        size = projection(signs)[one].pow(2).mean().sqrt()
        projection.weight /= size
        projection.bias /= size
        apart = 300 * projection(signs)  # direction alone counts
        assert recovery_loss(signs, apart, one, projection) < 1e-10
        assert recovery_loss(-signs, apart, one, projection) > 0.1


def test_recovery_loss_passes_over_question_and_padding() -> None:
    signs, projection = torch.where(states(0) > 0, 1.0, -1.0), torch.nn.Linear(8, 8)
    expected = recovery_loss(signs, states(1), CHOSEN, projection)
    changed = torch.where(CHOSEN[..., None], states(1), 1e3)
    assert recovery_loss(signs, changed, CHOSEN, projection) == expected
    assert recovery_loss(torch.where(CHOSEN[..., None], signs, -signs), states(1), CHOSEN, projection) == expected
    assert recovery_loss(signs, states(1), torch.zeros_like(CHOSEN), projection) == 0


def test_recovery_loss_reaches_the_encoder_through_the_signs(make_reader: MakeReader) -> None:
    reader = make_reader()
    rows = reader.rows(IDS, LENGTHS, QUESTION_LENGTHS, "binary")
    assert rows.signs is not None
    passage = torch.arange(11)[None] >= QUESTION_LENGTHS[:, None]
    recovery_loss(rows.signs, rows.apart.detach(), passage, torch.nn.Linear(64, 64)).backward()
    for layer in reader.t5.encoder.layers[:2]:
        assert layer.attention.v.weight.grad is not None and layer.attention.v.weight.grad.abs().max() > 0
    assert reader.t5.encoder.layers[2].attention.v.weight.grad is None  # above the signs
