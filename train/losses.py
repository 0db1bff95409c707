"""The losses of the three stages (BTR §3.1, §3.4, arXiv 2310.01329). Each returns a scalar, every weight is 1."""

import torch
import torch.nn.functional as F
from torch import Tensor

from btr.fid import FiD


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the answers: logits (B, S, V), labels (B, S) with -100 where padded; mean over answer tokens."""
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)


def question_attention(model: FiD, joined: Tensor, lengths: Tensor, question_lengths: Tensor) -> Tensor:
    """Return how much the question's tokens look at each token in layers k+1..n: float32 (R, T).

    The mean over layers, heads and question tokens. joined (R, T, D) is the residual stream that enters layer k+1.
    """
    encoder = model.t5.encoder
    upper = encoder.layers[model.config.k :]
    positions = torch.arange(joined.shape[1], device=joined.device)[None]
    bias = encoder.bias(positions, positions < lengths[:, None])
    asking = (positions < question_lengths[:, None]).float()
    total = torch.zeros(joined.shape[:2], device=joined.device)
    hidden = joined
    for layer in upper:
        x = layer.attention_norm(hidden)
        _, weights = layer.attention.attend_weights(x, *layer.attention.keys_values(x), bias)
        total += torch.einsum("rhqt,rq->rt", weights.float(), asking)
        hidden = layer(hidden, bias)
    return total / (asking.sum(1, keepdim=True).clamp(min=1) * len(upper) * model.t5.config.num_heads)


def top_tokens(scores: Tensor, candidates: Tensor, ratio: float) -> Tensor:
    """Choose in each row the ceil(ratio * count) best-scored candidates: scores (R, T), bool (R, T) -> bool (R, T).

    Equal scores go to the earlier token.
    """
    ranked = scores.masked_fill(~candidates, float("-inf")).argsort(dim=1, descending=True, stable=True)
    # float32 makes 0.3 * 90 a little more than 27, of which the ceiling is 28
    count = (candidates.sum(1, keepdim=True).double() * ratio - 1e-9).ceil()
    chosen = torch.zeros_like(candidates)
    chosen.scatter_(1, ranked, torch.arange(scores.shape[1], device=scores.device)[None].expand_as(ranked) < count)
    return chosen & candidates


def distillation_loss(student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
    """Mean squared difference of hidden states (R, T, D) over the chosen tokens (R, T), by the teacher's mean square.

    Dividing by the teacher's mean square keeps the loss's scale the same for any T5 (its states run from -500 to 300).
    """
    weights = chosen.float()[..., None]
    count = (weights.sum() * student.shape[-1]).clamp(min=1)
    error = ((student.float() - teacher.float()).pow(2) * weights).sum() / count
    return error / ((teacher.float().pow(2) * weights).sum() / count).clamp(min=1e-6)


def recovery_loss(signs: Tensor, apart: Tensor, passage: Tensor, projection: torch.nn.Linear) -> Tensor:
    """Mean over passage tokens and dimensions of (x - (W b + c))²: can the state be rebuilt from its bits? (BTR §3.1)

    signs ±1 (R, T, D), apart (R, T, D) the residual stream before the signs, passage bool (R, T); x is the stream
    divided by its root mean square, which the store keeps as a scalar, so that only the direction has to be in bits.
    """
    states = apart.float()
    unit = states * (states.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
    error = (unit - projection(signs)).float().pow(2).mean(-1)
    return (error * passage).sum() / passage.sum().clamp(min=1)
