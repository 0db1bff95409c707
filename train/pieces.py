"""Fit a batch into memory: in pieces that add up to the whole, and without keeping what is inside encoder layers."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from btr.model.fid import FiD
from btr.model.kinds import Model
from btr.train.losses import passage_tokens, top_count
from btr.train.stages import LOSSES, Stage

PER_PASSAGE_TOKEN = {"recovery", "rate"}  # losses that are means over passage tokens


def split(inputs: tuple[Tensor, ...], count: int) -> list[tuple[Tensor, ...]]:
    """Cut a batch of B questions into `count` pieces of B / count; first dimensions are B or a multiple of it.

    Raises:
        ValueError: B is no multiple of count.
    """
    questions = len(inputs[3])
    if questions % count:
        raise ValueError(f"{questions} questions do not go into {count} equal pieces")
    return list(zip(*(tensor.chunk(count) for tensor in inputs), strict=True))


def weigh(pieces: Sequence[tuple[Tensor, ...]], stage: Stage, unread: Sequence[int] = ()) -> list[Mapping[str, float]]:
    """Return for each piece the share that each of its losses has in that of the whole batch, by the loss's name.

    A loss is a mean, over passage tokens, over answer tokens (labels (B, S), -100 where padded) or over questions
    (targets (B, K, 2)), and pieces hold different numbers of them. The distillation is one over the passage tokens that
    `stage` chooses, and for a span reader over question tokens too; nearly so: it is relative to the mean square of the
    teacher's states, which each piece takes of its own. unread: ids of tokens that a span reader does not read of
    passages in this mode.
    """
    answers = shares([torch.tensor(len(p[3])) if p[3].dim() == 3 else (p[3] != -100).sum() for p in pieces])
    passages = [count_passage(piece, unread) for piece in pieces]
    chosen = [counts.sum() for counts in (distilled_counts(count, stage) for count in passages)]
    if pieces[0][3].dim() == 3:
        chosen = [count + piece[2].sum() for count, piece in zip(chosen, pieces, strict=True)]
    each = zip(answers, shares([count.sum() for count in passages]), shares(chosen), strict=True)
    return [
        dict.fromkeys(LOSSES, answer) | dict.fromkeys(PER_PASSAGE_TOKEN, passage) | {"distillation": distilled}
        for answer, passage, distilled in each
    ]


def count_passage(piece: tuple[Tensor, ...], unread: Sequence[int]) -> Tensor:
    """Count the passage tokens of each row that are read, (R,)."""
    ids, lengths, question_lengths = piece[:3]
    passage = passage_tokens(ids, lengths, question_lengths)
    return (passage & ~torch.isin(ids, torch.tensor(unread, dtype=ids.dtype, device=ids.device))).sum(1)


def distilled_counts(counts: Tensor, stage: Stage) -> Tensor:
    """Return how many of so many passage tokens (R,) of each row are distilled."""
    return top_count(counts, stage.top_ratio) if stage.distill == "top" else counts


def shares(counts: Sequence[Tensor]) -> list[float]:
    """Divide counts by their sum."""
    numbers = [int(count) for count in counts]
    return [number / max(sum(numbers), 1) for number in numbers]


def recompute_layers(student: Model) -> None:
    """Make the encoder's layers keep their input alone, and compute the rest again in the backward pass.

    The gradients are the same. Only the calls are wrapped: modules, and the names of their weights, stay as they are.
    """
    for layer in student.t5.encoder.layers if isinstance(student, FiD) else student.bert.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
