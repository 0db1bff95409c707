"""A memory as decoder layers see it.

Shapes: B questions, M memory tokens, H heads, D model width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from btr.model.bias import memory_bias
from btr.model.merge import Tokens


@dataclass(frozen=True, eq=False)
class LayerMemory:
    """A memory with its bias (B, 1, M); attended (B, M): the attention it has had, averaged over heads, float32."""

    tokens: Tokens
    bias: Tensor
    attended: Tensor

    @classmethod
    def of(cls, tokens: Tokens, proportional: bool) -> "LayerMemory":
        """Prepare a memory for attention; proportional adds the log of their sizes to its keys."""
        bias = memory_bias(tokens, tokens.hidden.dtype, proportional)[:, 0]
        return cls(tokens, bias, torch.zeros_like(bias[:, 0], dtype=torch.float32))

    def ask(self, asked: Tensor) -> Tensor:
        """Return what heads that ask (B, H, D) find, the mean of the memory under their weights; and note where."""
        memory = self.tokens.hidden
        scores = torch.bmm(memory, asked.mT).mT.contiguous()  # a third faster than (B, H, M) at once
        weights = (scores + self.bias).softmax(-1)
        self.attended.add_(weights.float().mean(1))
        return torch.bmm(weights, memory)
