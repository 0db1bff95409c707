"""What stages minimise: the teacher as transformers reads, each loss where it belongs, all of it compilable."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import BertForQuestionAnswering, T5EncoderModel, T5ForConditionalGeneration
from transformers import T5Config as HFConfig

from btr.errors import InputError
from btr.model.checkpoint import configured
from btr.model.config import MODES, Mode
from btr.model.fid import FiD
from btr.model.parameter_names import t5_tensors
from btr.model.span_head import SpanReader
from btr.reader import Reader
from btr.train.losses import distillation_loss, passage_tokens, pointing, span_loss, top_tokens, within
from btr.train.objectives import build_objective, decode_looking, point, read_extractive, read_generative
from btr.train.stages import LOSSES, STAGES, Stage

MakeReader = Callable[..., FiD]

IDS = torch.randint(3, 64, (4, 11), generator=torch.Generator().manual_seed(1))
LENGTHS, ASKED = torch.tensor([11, 8, 6, 11]), torch.tensor([4, 4, 3, 3])
REAL = torch.arange(11)[None] < LENGTHS[:, None]
PASSAGE = passage_tokens(IDS, LENGTHS, ASKED)
LABELS = torch.tensor([[5, 9, 1, -100], [7, 1, -100, -100]])
POINTABLE = PASSAGE | (torch.arange(11)[None] == 0)
TARGETS = torch.tensor([[[5, 6], [16, 16]], [[0, 0], [-1, -1]]])  # of the first question in both rows; of the second no
GENERATIVE, EXTRACTIVE = (IDS, LENGTHS, ASKED, LABELS), (IDS, LENGTHS, ASKED, TARGETS, POINTABLE)
ALL = dict.fromkeys(LOSSES, 1.0)
DECODERS = ("cross", "copying")  # losses of a decoder


@pytest.fixture
def span(span_reader: Reader) -> SpanReader:
    """A span reader that may be changed."""
    assert isinstance(span_reader.model, SpanReader)
    return copy.deepcopy(span_reader.model)


@pytest.fixture
def other(span: SpanReader) -> SpanReader:
    """Another of its shape, to learn from."""
    other = copy.deepcopy(span)
    generator = torch.Generator().manual_seed(7)
    for parameter in other.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return other


def hf_config(reader: FiD) -> HFConfig:
    return HFConfig(**reader.t5.config.to_hf(), attn_implementation="eager")


def stage_of(**weights: float) -> Stage:
    return Stage("any", (("binary", 1.0),), weights)


@pytest.mark.parametrize("k", [0, 2, 3])
@torch.no_grad()
def test_teacher_looks_as_t5_of_transformers_does(make_reader: MakeReader, k: int) -> None:
    reader = make_reader(k=k).eval()
    oracle = T5EncoderModel(hf_config(reader)).eval()
    missing, _ = oracle.load_state_dict(t5_tensors(reader.t5), strict=False)
    assert set(missing) <= {"encoder.embed_tokens.weight"}  # the shared embedding under its other name
    weights = oracle(input_ids=IDS, attention_mask=REAL.long(), output_attentions=True).attentions
    teacher_states = read_generative(reader, IDS, LENGTHS, ASKED, look=True)
    assert teacher_states.looked is not None
    for row, asked in enumerate(ASKED):
        upper = torch.stack([layer[row, :, :asked] for layer in weights[k:]])  # (layers, H, Q, T)
        assert torch.allclose(teacher_states.looked[row], upper.mean((0, 1, 2)), atol=1e-6)
    rows = reader.rows(IDS, LENGTHS, ASKED, "full")
    assert torch.allclose(teacher_states.memory[REAL], rows.memory[REAL], atol=1e-5)
    assert torch.equal(teacher_states.apart, rows.apart)


@torch.no_grad()
def test_teacher_looks_as_bert_of_transformers_does(span: SpanReader, tiny_bert: BertForQuestionAnswering) -> None:
    oracle = copy.deepcopy(tiny_bert.bert)
    oracle.set_attn_implementation("eager")
    index = torch.arange(11)[None].expand(4, -1)
    apart = index >= ASKED[:, None]
    positions = torch.where(apart, index - ASKED[:, None] + span.config.max_question_tokens, index)
    weights = oracle(
        input_ids=IDS, attention_mask=REAL.long(), token_type_ids=apart.long(), position_ids=positions,
        output_attentions=True,
    ).attentions  # fmt: skip
    teacher_states = read_extractive(span, IDS, LENGTHS, ASKED, look=True)
    assert teacher_states.looked is not None
    for row, asked in enumerate(ASKED):
        upper = torch.stack([layer[row, :, :asked] for layer in weights[span.config.k :]])
        assert torch.allclose(teacher_states.looked[row], upper.mean((0, 1, 2)), atol=1e-6)
    rows = span.rows(IDS, LENGTHS, ASKED, "full")
    assert torch.allclose(teacher_states.memory[REAL], rows.memory[REAL], atol=1e-5)
    assert torch.allclose(teacher_states.apart[REAL], rows.apart[REAL], atol=1e-5)


@torch.no_grad()
def test_looking_costs_the_teacher_nothing_where_it_is_not_asked(make_reader: MakeReader, span: SpanReader) -> None:
    for teacher_states, rows in (
        (read_generative(reader := make_reader(), IDS, LENGTHS, ASKED, look=False), reader.rows),
        (read_extractive(span, IDS, LENGTHS, ASKED, look=False), span.rows),
    ):
        assert teacher_states.looked is None and torch.equal(
            teacher_states.memory, rows(IDS, LENGTHS, ASKED, "full").memory
        )


@torch.no_grad()
def test_decoder_looks_as_that_of_transformers(make_reader: MakeReader) -> None:
    reader = make_reader().eval()
    oracle = T5ForConditionalGeneration(hf_config(reader)).eval()
    oracle.load_state_dict(t5_tensors(reader.t5), strict=False)
    oracle.tie_weights()
    ids, real = IDS[:2], REAL[:2]
    found = oracle(input_ids=ids, attention_mask=real.long(), labels=LABELS, output_attentions=True)
    logits, looked = decode_looking(reader.t5, LABELS, reader.t5.encode(ids, real), real)
    assert torch.allclose(logits, found.logits, atol=1e-5)
    assert torch.allclose(looked, torch.stack(found.cross_attentions).mean((0, 2)), atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_its_losses_in_every_mode(
    make_reader: MakeReader, span: SpanReader, other: SpanReader, name: str, mode: Mode
) -> None:
    stage = STAGES[name]
    for student, teacher, inputs in ((make_reader(), make_reader(seed=1), GENERATIVE), (span, other, EXTRACTIVE)):
        losses = build_objective(student, stage)(student, teacher, inputs, mode)
        assert tuple(losses) == stage.losses
        for loss, value in losses.items():
            assert value.shape == () and value.dtype == torch.float32
            assert (value > 0) == (loss != "recovery" or mode == "binary")


def test_objective_learns_from_a_teacher_or_not_at_all(make_reader: MakeReader, span: SpanReader) -> None:
    for student, inputs in ((make_reader(), GENERATIVE), (span, EXTRACTIVE)):
        with pytest.raises(ValueError, match=r"stage 'decomposed' learns from a teacher and has none; pass --teacher"):
            build_objective(student, STAGES["decomposed"])(student, None, inputs, "float")
        assert build_objective(student, STAGES["reader"])(student, None, inputs, "full")["task"] > 0


def test_span_reader_has_no_decoder_to_learn_from(span: SpanReader) -> None:
    for name in DECODERS:
        with pytest.raises(InputError, match=f"the loss '{name}' is of a decoder, and a span reader has none; leave"):
            build_objective(span, stage_of(**{name: 1.0}))


def test_stage_chooses_the_gradient_of_the_signs(make_reader: MakeReader) -> None:
    reader = make_reader()
    for kind in ("clipped", "tanh"):
        build_objective(reader, replace(STAGES["binarized"], straight_through=kind))
        assert reader.binarizer.straight_through == kind


def test_teacher_of_itself_has_nothing_to_teach(make_reader: MakeReader, span: SpanReader) -> None:
    stage = stage_of(distillation=1.0, answers=1.0)
    for student, inputs in ((make_reader().eval(), GENERATIVE), (span, EXTRACTIVE)):
        losses = build_objective(student, stage)(student, student, inputs, "full")
        assert all(value.abs() < 1e-6 for value in losses.values())
        assert all(
            value > 1e-4 for value in build_objective(student, stage)(student, student, inputs, "binary").values()
        )
    reader = make_reader().eval()
    cross = build_objective(reader, stage_of(cross=1.0))
    assert cross(reader, reader, GENERATIVE, "full")["cross"].abs() < 1e-6
    assert cross(reader, reader, GENERATIVE, "binary")["cross"] > 1e-5


def test_teacher_gets_no_gradient(make_reader: MakeReader, span: SpanReader, other: SpanReader) -> None:
    weights = {name: 1.0 for name in LOSSES if name not in DECODERS}
    for student, teacher, inputs, stage in (
        (make_reader(), make_reader(seed=1), GENERATIVE, stage_of(**ALL)),
        (span, other, EXTRACTIVE, stage_of(**weights)),
    ):
        torch.stack(list(build_objective(student, stage)(student, teacher, inputs, "binary").values())).sum().backward()
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert all(parameter.grad is not None for parameter in student.parameters())


@torch.no_grad()
def test_span_task_is_the_probability_of_the_targets(span: SpanReader) -> None:
    start, end = span.point(span.rows(*EXTRACTIVE[:3], "float").memory)
    expected = 0.0
    for question in (0, 1):
        rows = slice(2 * question, 2 * question + 2)
        p, q = (logits[rows].masked_fill(~POINTABLE[rows], -math.inf).flatten().softmax(0) for logits in (start, end))
        places = [(a, b) for a, b in TARGETS[question].tolist() if a >= 0]
        expected -= math.log(sum(float(p[a] * q[b]) for a, b in places)) / 2
    found = build_objective(span, stage_of(task=1.0))(span, None, EXTRACTIVE, "float")["task"]
    assert math.isclose(found, expected, rel_tol=1e-5)


@torch.no_grad()
def test_unread_tokens_are_no_places_for_an_answer(span: SpanReader, other: SpanReader) -> None:
    first = IDS.view(-1)[TARGETS[0, 0, 0]].item()
    student = configured(span, replace(span.config, unread=(first,)))
    assert isinstance(student, SpanReader)
    rows = student.rows(*EXTRACTIVE[:3], "float")
    assert rows.read is not None
    allowed = POINTABLE & rows.read
    moved = within(TARGETS, allowed)
    assert not torch.equal(moved, TARGETS)
    start, end = (pointing(x, allowed, 2) for x in student.point(rows.memory))
    found = build_objective(student, stage_of(task=1.0, answers=1.0))(student, other, EXTRACTIVE, "float")
    assert torch.isclose(found["task"], span_loss(start, end, moved)) and 0 < float(found["answers"]) < 100
    whole = build_objective(student, stage_of(task=1.0))(student, None, EXTRACTIVE, "full")["task"]
    assert torch.equal(whole, build_objective(span, stage_of(task=1.0))(span, None, EXTRACTIVE, "full")["task"])


@torch.no_grad()
def test_span_answers_are_the_divergence_of_start_and_end(span: SpanReader, other: SpanReader) -> None:
    expected = torch.zeros(())
    for student, teacher in zip(
        span.point(span.rows(*EXTRACTIVE[:3], "binary").memory),
        other.point(other.rows(*EXTRACTIVE[:3], "full").memory),
        strict=True,
    ):
        for question in (0, 1):
            rows = slice(2 * question, 2 * question + 2)
            q, p = (x[rows][POINTABLE[rows]].log_softmax(0) for x in (student, teacher))
            expected += (p.exp() * (p - q)).sum() / 4
    found = build_objective(span, stage_of(answers=1.0))(span, other, EXTRACTIVE, "binary")["answers"]
    assert torch.isclose(found, expected, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("distill", "ratio"), [("all", 0.5), ("top", 0.5), ("top", 1.0), ("top", 0.0)])
def test_distilled_are_the_chosen_tokens(
    make_reader: MakeReader, span: SpanReader, other: SpanReader, distill: str, ratio: float
) -> None:
    stage = replace(stage_of(distillation=1.0), distill=distill, top_ratio=ratio)
    reader, teacher = make_reader().eval(), make_reader(seed=1).eval()
    rows, taught = reader.rows(IDS, LENGTHS, ASKED, "float"), teacher.rows(IDS, LENGTHS, ASKED, "full")
    looked = read_generative(teacher, IDS, LENGTHS, ASKED, look=True).looked
    chosen = PASSAGE if distill == "all" else top_tokens(looked, PASSAGE, ratio)
    expected = distillation_loss(rows.memory, taught.memory, chosen)
    expected += distillation_loss(rows.apart, taught.apart, chosen)
    found = build_objective(reader, stage)(reader, teacher, GENERATIVE, "float")["distillation"]
    assert torch.isclose(found, expected, rtol=1e-4)

    rows, taught = span.rows(IDS, LENGTHS, ASKED, "float"), other.rows(IDS, LENGTHS, ASKED, "full")
    looked = read_extractive(other, IDS, LENGTHS, ASKED, look=True).looked
    chosen = PASSAGE if distill == "all" else top_tokens(looked, PASSAGE, ratio)
    expected = distillation_loss(rows.memory, taught.memory, chosen | (torch.arange(11)[None] < ASKED[:, None]))
    found = build_objective(span, stage)(span, other, EXTRACTIVE, "float")["distillation"]
    assert torch.isclose(found, expected, rtol=1e-4)


def test_losses_of_the_bits_have_weights_of_their_own(make_reader: MakeReader, span: SpanReader) -> None:
    for student in (make_reader(), span):
        assert build_objective(student, STAGES["decomposed"]).projection is None
        projection = build_objective(student, stage_of(recovery=1.0, rate=1.0)).projection
        assert projection is not None
        tensors = projection.state_dict()
        assert sorted(tensors) == ["rate.bias", "rate.weight", "recovery.bias", "recovery.weight"]
        assert torch.equal(tensors["recovery.weight"], torch.eye(student.width))
        assert not any(tensors[name].any() for name in ("rate.weight", "rate.bias", "recovery.bias"))


@pytest.mark.parametrize("generative", [True, False])
def test_objective_compiles_in_one_piece(
    make_reader: MakeReader, span: SpanReader, other: SpanReader, generative: bool
) -> None:
    student, teacher = (make_reader(), make_reader(seed=1)) if generative else (span, other)
    weights = {name: 1.0 for name in LOSSES if generative or name not in DECODERS}
    inputs = GENERATIVE if generative else EXTRACTIVE
    objective = build_objective(student, stage_of(**weights))

    def losses(inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return objective(student, teacher, inputs, "binary")

    compiled = torch.compile(losses, backend="eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = losses(inputs), compiled(inputs)
    assert list(found) == list(expected)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-5) for name in expected)


@torch.no_grad()
def test_probabilities_are_exact_where_the_rest_is_not(span: SpanReader) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        memory = span.rows(*EXTRACTIVE[:3], "full").memory
        found = point(span, memory, POINTABLE, 2)
    expected = point(span, memory.float(), POINTABLE, 2)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)
        assert torch.allclose(ours.exp().sum(1), torch.ones(2), atol=1e-5)


@torch.no_grad()
def test_residual_stream_stays_in_float32_under_autocast(make_reader: MakeReader, span: SpanReader) -> None:
    """T5's states run to hundreds: in bfloat16, what a layer adds to them is lost."""
    for reader in (make_reader(), span):
        with torch.autocast("cpu", torch.bfloat16):
            rows = reader.rows(IDS, LENGTHS, ASKED, "binary")
        assert {rows.apart.dtype, rows.joined.dtype, rows.memory.dtype} == {torch.float32}
