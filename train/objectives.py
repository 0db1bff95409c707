"""What a stage minimises, for each family of readers: named losses of one batch. The loop weighs, sums and logs them.

    task          -log p(answer): of its tokens (FiD), of all places where it stands together (span reader)
    distillation  states of the chosen tokens against the teacher's: memory, and for FiD the join too
    answers       KL of the answer's distribution from the teacher's: of tokens (FiD), of start and end (span reader)
    cross         KL of the decoder's attention over the memory from the teacher's (FiD)
    copying       -log of the decoder's attention to where the answer's next token stands (FiD)
    recovery      can a state be rebuilt from its bits?
    rate          bits per bit that an entropy coder knowing the token ids would pay

FiD is any reader that writes. The teacher reads in mode `full`. Shapes as in `train/losses.py`; M = N * T memory
tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from btr.errors import InputError
from btr.model.bert import Layer
from btr.model.bert_fid import BertFiD
from btr.model.bias import mask_bias
from btr.model.config import Mode
from btr.model.fid import FiD, Rows
from btr.model.kinds import Model
from btr.model.span_head import SpanReader
from btr.model.split import SplitBert
from btr.model.t5 import T5
from btr.train.losses import (
    answers_loss,
    copying_loss,
    cross_loss,
    distillation_loss,
    divergence,
    passage_tokens,
    pointing,
    rate_loss,
    recovery_loss,
    root_mean_square,
    span_loss,
    task_loss,
    top_tokens,
    within,
)
from btr.train.stages import Stage

Written = FiD | BertFiD


class Objective(Protocol):
    """The losses of a stage, for readers of the family that it was built for."""

    @property
    def projection(self) -> nn.Module | None:
        """Weights of the losses alone, trained with the reader and no part of it; None if there are none."""

    def __call__(self, student: Any, teacher: Any, inputs: tuple[Tensor, ...], mode: Mode) -> dict[str, Tensor]:
        """Return the losses `Stage.losses` of a batch (its `tensors()`), unweighted; 0 where `mode` has none.

        Raises:
            ValueError: a loss needs a teacher, and the teacher is None.
        """


def build_objective(student: Model, stage: Stage) -> Objective:
    """Build what a stage minimises for a reader, and set the gradient of its signs.

    Raises:
        InputError: a loss that this family does not have.
    """
    student.binarizer.straight_through = stage.straight_through
    if not isinstance(student, SpanReader):
        return GenerativeObjective(student, stage)
    if lost := {"cross", "copying"}.intersection(stage.losses):
        raise InputError(f"the loss {min(lost)!r} is of a decoder, and a span reader has none; leave it out")
    return SpanObjective(student, stage)


def build_projection(student: Model, stage: Stage) -> nn.ModuleDict | None:
    """Make the weights of the recovery (the identity at first) and of the rate (every bit even at first).

    A predictive binarizer rebuilds states itself, and needs no other weights for its recovery.
    """
    made: dict[str, nn.Module] = {}
    for name, start in (("recovery", nn.init.eye_), ("rate", nn.init.zeros_)):
        if name in stage.losses and (name, student.binarizer.calibration) != ("recovery", "predictive"):
            made[name] = layer = nn.Linear(student.width, student.binarizer.bits)
            start(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.ModuleDict(made) if made else None


@dataclass(frozen=True)
class TeacherStates:
    """What the teacher made of a batch: apart and memory (R, T, D); looked (R, T), as `top_tokens` ranks, or None."""

    apart: Tensor
    memory: Tensor
    looked: Tensor | None


class GenerativeObjective:
    """Losses of readers that write; inputs are ids (R, T), lengths, question_lengths (R,), labels (B, S)."""

    def __init__(self, student: Written, stage: Stage) -> None:
        self.stage, self.projection = stage, build_projection(student, stage)

    def __call__(
        self, student: Written, teacher: Written | None, inputs: tuple[Tensor, ...], mode: Mode
    ) -> dict[str, Tensor]:
        """Return the losses of the stage, by name."""
        ids, lengths, question_lengths, labels = inputs
        rows = student.rows(ids, lengths, question_lengths, mode)
        passage = passage_tokens(ids, lengths, question_lengths)
        logits, looked = self.decode(student, rows.memory, lengths, labels)
        found = {"task": task_loss(logits, labels)}
        if "copying" in self.stage.losses and looked is not None:
            found["copying"] = copying_loss(looked, ids.masked_fill(~passage, -1).view(len(labels), -1), labels)
        if self.stage.needs_teacher:
            if teacher is None:
                raise no_teacher(self.stage)
            found |= self.teacher_losses(teacher, rows, logits, looked, inputs)
        found |= bit_losses(self, student, rows, ids, passage)
        return select(found, self.stage)

    def teacher_losses(
        self, teacher: Written, rows: Rows, logits: Tensor, looked: Tensor | None, inputs: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """Return the losses against the teacher."""
        ids, lengths, question_lengths, labels = inputs
        losses, found = self.stage.losses, {}
        with torch.no_grad():
            top = self.stage.distill == "top"
            if isinstance(teacher, FiD):
                teacher_states = read_generative(teacher, ids, lengths, question_lengths, top)
            else:
                teacher_states = read_extractive(teacher, ids, lengths, question_lengths, top)
            if "answers" in losses or "cross" in losses:
                teacher_logits, teacher_attention = self.decode(teacher, teacher_states.memory, lengths, labels)
        if "distillation" in losses:
            chosen = choose(self.stage, teacher_states, passage_tokens(ids, lengths, question_lengths))
            found["distillation"] = distillation_loss(rows.memory, teacher_states.memory, chosen)
            found["distillation"] = found["distillation"] + distillation_loss(rows.apart, teacher_states.apart, chosen)
        if "answers" in losses:
            found["answers"] = answers_loss(logits, teacher_logits, labels)
        if "cross" in losses and looked is not None and teacher_attention is not None:
            found["cross"] = cross_loss(looked, teacher_attention, labels)
        return found

    def decode(self, reader: Written, memory: Tensor, lengths: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Score labels as (B, S, V), and return where the decoder looked (B, S, M) if a loss asks for it."""
        if {"cross", "copying"}.isdisjoint(self.stage.losses):
            return reader.answer_logits(memory, lengths, labels), None
        B, (_, T, D) = labels.shape[0], memory.shape
        mask = torch.arange(T, device=memory.device)[None] < lengths[:, None]
        return decode_looking(reader.t5, labels, memory.reshape(B, -1, D), mask.reshape(B, -1))


class SpanObjective:
    """Losses of a span reader; inputs are ids (R, T), lengths, question_lengths (R,), targets (B, K, 2), pointable."""

    def __init__(self, student: SpanReader, stage: Stage) -> None:
        self.stage, self.projection = stage, build_projection(student, stage)

    def __call__(
        self, student: SpanReader, teacher: SpanReader | None, inputs: tuple[Tensor, ...], mode: Mode
    ) -> dict[str, Tensor]:
        """Return the losses of the stage, by name."""
        ids, lengths, question_lengths, targets, pointable = inputs
        rows = student.rows(ids, lengths, question_lengths, mode)
        passage = passage_tokens(ids, lengths, question_lengths)
        if rows.read is not None:
            passage, pointable = passage & rows.read, pointable & rows.read
            targets = within(targets, pointable)
        start, end = point(student, rows.memory, pointable, len(targets))
        found = {"task": span_loss(start, end, targets)}
        if self.stage.needs_teacher:
            if teacher is None:
                raise no_teacher(self.stage)
            with torch.no_grad():
                teacher_states = read_extractive(teacher, ids, lengths, question_lengths, self.stage.distill == "top")
                teacher_logits = point(teacher, teacher_states.memory, pointable, len(targets))
            question = torch.arange(ids.shape[1], device=ids.device)[None] < question_lengths[:, None]
            chosen = question | choose(self.stage, teacher_states, passage)
            found["distillation"] = distillation_loss(rows.memory, teacher_states.memory, chosen)
            found["answers"] = (divergence(start, teacher_logits[0]) + divergence(end, teacher_logits[1])).mean() / 2
        found |= bit_losses(self, student, rows, ids, passage)
        return select(found, self.stage)


def no_teacher(stage: Stage) -> ValueError:
    """Return the error of a stage whose teacher is missing."""
    return ValueError(f"stage {stage.name!r} learns from a teacher and has none; pass --teacher FOLDER")


def select(found: dict[str, Tensor], stage: Stage) -> dict[str, Tensor]:
    """Keep the losses of a stage, in its order; 0 for those that this mode or these tokens do not have."""
    zero = found["task"].new_zeros(())
    return {name: found.get(name, zero) for name in stage.losses}


def choose(stage: Stage, teacher_states: TeacherStates, passage: Tensor) -> Tensor:
    """Choose the passage tokens to distil, bool (R, T)."""
    return passage if teacher_states.looked is None else top_tokens(teacher_states.looked, passage, stage.top_ratio)


def bit_losses(
    objective: GenerativeObjective | SpanObjective, student: Model, rows: Rows, ids: Tensor, passage: Tensor
) -> dict[str, Tensor]:
    """Return the losses of the signs that the stage has; none in a mode without signs."""
    found: dict[str, Tensor] = {}
    if rows.signs is None:
        return found
    trained: Mapping[str, nn.Module] = {} if objective.projection is None else dict(objective.projection.items())
    if "recovery" in objective.stage.losses:
        linear = trained.get("recovery")
        rebuilt = rows.joined if linear is None else linear(rows.signs) * root_mean_square(rows.apart)
        found["recovery"] = recovery_loss(rows.apart, rebuilt, passage)
    if "rate" in trained:
        found["rate"] = rate_loss(rows.signs, student.embedding[ids], passage, trained["rate"])
    return found


def point(reader: SpanReader, memory: Tensor, pointable: Tensor, questions: int) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of start and end (B, M), in float32 whatever the precision of the rest."""
    with torch.autocast(memory.device.type, enabled=False):
        start, end = reader.point(memory.to(reader.head.weight.dtype))
    return pointing(start, pointable, questions), pointing(end, pointable, questions)


def read_generative(teacher: FiD, ids: Tensor, lengths: Tensor, question_lengths: Tensor, look: bool) -> TeacherStates:
    """Read rows whole as `FiD.rows` does in mode `full`; with `look`, keep how much the question looks at each token.

    That is the mean of attention over question tokens, heads and layers k+1..n.
    """
    if not look:
        rows = teacher.rows(ids, lengths, question_lengths, "full")
        return TeacherStates(rows.apart, rows.memory, None)
    encoder, k = teacher.t5.encoder, teacher.config.k
    index = torch.arange(ids.shape[1], device=ids.device)[None]
    bias = encoder.bias(index, index < lengths[:, None])
    asking = asking_weights(index, question_lengths)
    hidden = apart = encoder(teacher.t5.embed(ids), bias, 0, k)
    looked = torch.zeros(ids.shape, device=ids.device)
    for layer in encoder.layers[k:]:
        x = layer.attention_norm(hidden)
        mixed, weights = layer.attention.attend_weights(x, *layer.attention.keys_values(x), bias)
        looked = looked + torch.einsum("rhqt,rq->rt", weights.float(), asking)
        hidden = hidden + mixed
        hidden = hidden + layer.ffn(layer.ffn_norm(hidden))
    heads = teacher.t5.config.num_heads
    return TeacherStates(apart, encoder.finish(hidden), looked / (heads * len(encoder.layers[k:])))


def read_extractive(
    teacher: SplitBert, ids: Tensor, lengths: Tensor, question_lengths: Tensor, look: bool
) -> TeacherStates:
    """Read rows whole as `SplitBert.rows` does in mode `full`; `look` as in `read_generative`."""
    if not look:
        rows = teacher.rows(ids, lengths, question_lengths, "full")
        return TeacherStates(rows.apart, rows.memory, None)
    bert, k = teacher.bert, teacher.config.k
    index = torch.arange(ids.shape[1], device=ids.device)[None]
    mask = (index < lengths[:, None])[:, None]
    asking = asking_weights(index, question_lengths)
    passage = index >= question_lengths[:, None]
    embedded = teacher.embed(ids, passage, question_lengths)
    hidden = apart = bert(embedded, mask, 0, k)
    looked, scores = torch.zeros(ids.shape, device=ids.device), bert.scores(mask, ids.shape[1])
    for number, layer in enumerate(cast("Sequence[Layer]", bert.layers[k:]), k):
        looked = looked + torch.einsum("rhqt,rq->rt", attention(layer, hidden, scores).float(), asking)
        hidden = bert(hidden, mask, number, number + 1)
    memory = teacher.ended(hidden, ids, passage & mask[:, 0])
    return TeacherStates(apart, memory, looked / (bert.config.num_attention_heads * len(bert.layers[k:])))


def asking_weights(index: Tensor, question_lengths: Tensor) -> Tensor:
    """Return weights of the tokens (R, T) that average over each row's question."""
    asking = (index < question_lengths[:, None]).float()
    return asking / asking.sum(1, keepdim=True).clamp(min=1)


def attention(layer: Layer, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention weights (R, H, T, T) of a layer of BERT for hidden (R, T, D), mask as the layer takes it."""
    queries, keys, _ = (
        part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in layer.qkv(hidden).chunk(3, -1)
    )
    scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


def decode_looking(t5: T5, labels: Tensor, memory: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Score labels (B, S) as `T5.answer_logits` does, and return the attention over the memory (B, S, M) too.

    The attention is the mean over layers and heads, before dropout.
    """
    decoder = t5.decoder
    index = torch.arange(labels.shape[1], device=labels.device)[None]
    bias = decoder.position_bias(index, index)
    bias = bias + mask_bias(index[:, None, :] <= index[:, :, None], bias.dtype)
    memory_bias = mask_bias(mask, memory.dtype)
    hidden, looked = t5.embed(t5.shift(labels)), torch.zeros((), device=labels.device)
    for layer in decoder.layers:
        hidden = hidden + layer.dropout(layer.attention(layer.attention_norm(hidden), bias))
        pairs = layer.cross.keys_values(memory)
        mixed, weights = layer.cross.attend_weights(layer.cross_norm(hidden), *pairs, memory_bias)
        looked = looked + weights.float().mean(1)
        hidden = hidden + layer.dropout(mixed)
        hidden = hidden + layer.dropout(layer.ffn(layer.ffn_norm(hidden)))
    return t5.logits(decoder.dropout(decoder.norm(hidden))), looked / len(decoder.layers)
