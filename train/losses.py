"""The losses of the stages (BTR §3.1, §3.4, arXiv 2310.01329), and ours beside them. Each returns a scalar.

Shapes: B questions, N passages each, R = B * N rows, T row tokens, S answer tokens, V vocabulary, D width, K targets.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEVER = -1e4  # logit of a token that may not be pointed at: probability 0 in float32, and differences stay finite


def passage_tokens(ids: Tensor, lengths: Tensor, question_lengths: Tensor) -> Tensor:
    """Return which tokens of rows ids (R, T) belong to the passage, end of sequence included: bool (R, T)."""
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    return (positions >= question_lengths[:, None]) & (positions < lengths[:, None])


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of values over the chosen tokens, bool of their shape; 0 if none is chosen."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the answers: logits (B, S, V), labels (B, S) with -100 where padded; mean over answer tokens."""
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) of log-probabilities (..., V), in nats: (...)."""
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def answers_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Divergence of the student's answer tokens from the teacher's: logits (B, S, V), mean over answer tokens."""
    found = divergence(student.float().log_softmax(-1), teacher.float().log_softmax(-1))
    return mean_over(found, labels != -100)


def cross_loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Divergence of the student's attention over the memory (B, S, N * T) from the teacher's; mean over answer tokens.

    Attention below 1e-9 counts as 1e-9, so that a weight that vanished in the student costs something finite.
    """
    found = divergence(student.clamp(min=1e-9).log(), teacher.clamp(min=1e-9).log())
    return mean_over(found, labels != -100)


def copying_loss(looked: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    """Return -log of the attention to where the answer's next token stands; mean over the tokens that stand somewhere.

    looked: attention over the memory (B, S, M); ids (B, M) of its passage tokens, -1 for others; labels (B, S), -100
    where padded, the end of sequence last. All places count that read like the whole answer.
    """
    S = labels.shape[1]
    last = (labels != -100).sum(1, keepdim=True) - 1  # of the end of sequence, which is not copied
    begins, total = torch.ones_like(ids, dtype=torch.bool), looked.new_zeros(())
    for s in range(S):
        begins &= (ids.roll(-s, 1) == labels[:, s : s + 1]) | (s >= last)
    begins &= last + torch.arange(ids.shape[1], device=ids.device)[None] <= ids.shape[1]  # else rolled around
    count = looked.new_zeros(())
    for s in range(S):
        there = begins.roll(s, 1) & (s < last)
        stands = there.any(1)
        total = total - ((looked[:, s] * there).sum(1).clamp(min=1e-6).log() * stands).sum()
        count = count + stands.sum()
    return total / count.clamp(min=1)


def pointing(logits: Tensor, pointable: Tensor, questions: int) -> Tensor:
    """Normalise logits (R, T) over all tokens of a question that may be pointed at: log-probabilities (B, N * T)."""
    return logits.float().masked_fill(~pointable, NEVER).view(questions, -1).log_softmax(-1)


def span_loss(start: Tensor, end: Tensor, targets: Tensor) -> Tensor:
    """Return -log of the probability of all targets together, sum of p_start * p_end; mean over questions.

    start, end: log-probabilities (B, N * T). targets (B, K, 2), first and last token, -1 where there are fewer than K;
    each question has one at least. (Clark & Gardner 2018, arXiv 1710.10723, §3.3.)
    """
    first, last = targets.clamp(min=0).unbind(-1)
    found = start.gather(1, first) + end.gather(1, last)
    return -found.masked_fill(targets[..., 0] < 0, -math.inf).logsumexp(1).mean()


def within(targets: Tensor, pointable: Tensor) -> Tensor:
    """Move the first and last tokens of targets (B, K, 2) inwards to tokens that may be pointed at, bool (R, T).

    Of a target without any the next token in the batch that may be is both.
    """
    allowed = pointable.view(len(targets), -1)
    index = torch.arange(allowed.shape[1], device=allowed.device).expand_as(allowed)
    beyond = allowed.shape[1] - 1
    after = index.masked_fill(~allowed, beyond).flip(1).cummin(1)[0].flip(1)
    before = index.masked_fill(~allowed, 0).cummax(1)[0]
    first, last = targets.clamp(min=0).unbind(-1)
    first = after.gather(1, first)
    last = before.gather(1, last).maximum(first)
    return torch.stack((first, last), -1).masked_fill(targets < 0, -1)


def top_count(candidates: Tensor, ratio: float) -> Tensor:
    """Return ceil(ratio * count) of numbers of candidates; float64."""
    return (candidates.double() * ratio - 1e-9).ceil()  # floats make 0.3 * 90 a little more than 27


def top_tokens(scores: Tensor, candidates: Tensor, ratio: float) -> Tensor:
    """Choose in each row the ceil(ratio * count) best-scored candidates: scores (R, T), bool (R, T) -> bool (R, T).

    Equal scores go to the earlier token.
    """
    ranked = scores.masked_fill(~candidates, float("-inf")).argsort(dim=1, descending=True, stable=True)
    count = top_count(candidates.sum(1, keepdim=True), ratio)
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


def root_mean_square(states: Tensor) -> Tensor:
    """Return the root mean square of states (..., D) over D, float32 (..., 1), never 0."""
    return (states.float().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def recovery_loss(apart: Tensor, rebuilt: Tensor, passage: Tensor) -> Tensor:
    """Mean over passage tokens and dimensions of (x - x_hat)²: can the state be rebuilt from its bits? (BTR §3.1)

    apart (R, T, D) is the residual stream before the signs, rebuilt (R, T, D) what the bits give of it, passage bool
    (R, T). Both are divided by the root mean square of the stream, which the store keeps as a scalar, so that only the
    direction has to be in bits.
    """
    error = ((apart.float() - rebuilt.float()) / root_mean_square(apart)).pow(2).mean(-1)
    return mean_over(error, passage)


def rate_loss(signs: Tensor, embedded: Tensor, passage: Tensor, predictor: nn.Module) -> Tensor:
    """Return the cross-entropy of the signs given the token, in bits per bit; mean over passage tokens and dimensions.

    What an entropy coder that knows the token ids would pay, were the probability of a bit a logistic function of the
    token's embedding. signs ±1 (R, T, D) pass the gradient on; embedded (R, T, D) are the tokens', which it does not
    reach; passage bool (R, T); predictor maps an embedding of variance 1 to the D logits of +1.
    """
    logits = predictor(F.layer_norm(embedded.detach().float(), embedded.shape[-1:])).float()
    nats = F.binary_cross_entropy_with_logits(logits, (signs.float() + 1) / 2, reduction="none")
    return mean_over(nats.mean(-1), passage) / math.log(2)
