"""Prune passages by a linear score of the question's states after layer k+1: which are worth reading to the end.

Before layers k+1..n read every row, the question's tokens alone go through layer k+1 and attend to each passage there,
a small part of one layer. A linear score of their mean state, and of how alike the words of both are, orders the
passages; the best are read, the others left. The weights are fitted to what the reader itself makes of each passage in
the end, by ridge regression: no gradients, and some hundred questions are enough.

Shapes: N passages of a question, D width.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from btr.errors import InputError

RIDGE = 0.05  # of a feature's own variance


def features(asked: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Return the pruning features of rows, (R, D + 1) float32.

    That is the mean of the question's states (R, Q, D) after it, and the mean over the Q question tokens, with which
    rows of tokens (R, T, D), lengths (R,), begin, of the greatest cosine with a token of the passage.
    """
    question = asked.shape[1]
    norms = torch.linalg.vector_norm(tokens, dim=-1, dtype=torch.float32).clamp(min=1e-6)
    dots = (tokens[:, :question] @ tokens[:, question:].transpose(1, 2)).float()
    cosines = dots / norms[:, :question, None] / norms[:, None, question:]
    padding = torch.arange(question, tokens.shape[1], device=tokens.device)[None] >= lengths[:, None]
    alike = cosines.masked_fill(padding[:, None], -1.0).amax(2).mean(1)
    return torch.cat((asked.float().mean(1), alike[:, None]), 1)


class Pruner(nn.Module):
    """Scores passages by their pruning features, (N, D + 1): weights (D + 1,), float32."""

    weight: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(width + 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the pruning scores of passages, (N,), for an order among those of one question."""
        return features.float() @ self.weight.float()

    def best(self, features: Tensor, count: int) -> list[int]:
        """Return the `count` passages of the highest score in their own order; of equals the first."""
        order = self(features).argsort(descending=True, stable=True)
        return sorted(int(i) for i in order[:count])

    @classmethod
    def fit(cls, samples: Iterable[tuple[Tensor, Tensor]]) -> "Pruner":
        """Fit to questions' features (N, D + 1) and what the reader made of the same passages in the end, (N,).

        Only differences between the passages of one question count.

        Raises:
            InputError: no question with two passages.
        """
        sums: tuple[Tensor, Tensor] | None = None
        for features, scores in samples:
            if len(features) < 2:
                continue
            x, y = features.double() - features.double().mean(0), scores.double() - scores.double().mean()
            sums = (x.T @ x, x.T @ y) if sums is None else (sums[0] + x.T @ x, sums[1] + x.T @ y)
        if sums is None:
            raise InputError("no question has two passages to tell apart; give it questions with more passages")
        gram, right = sums
        variance = gram.diagonal().clone()
        gram.diagonal().add_(RIDGE * variance + 1e-12 * variance.mean() + 1e-30)
        pruner = cls(len(right) - 1)
        pruner.weight.copy_(torch.linalg.solve(gram, right))
        return pruner
