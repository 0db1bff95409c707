"""What T5's attention, and MPNet's, adds to its scores: for distances, for what may not be seen, for how many tokens a
key stands.

Shapes: B rows, T tokens (Tq queries, Tk keys), M memory tokens, H heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from btr.model.config import MPNetConfig, T5Config
from btr.model.merge import Tokens


class PositionBias(nn.Module):
    """Relative position bias, one table per stack, shared by its layers (T5 §2.1; MPNet has the same)."""

    def __init__(self, config: T5Config | MPNetConfig, bidirectional: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
        self.bidirectional = bidirectional
        self.max_distance = config.relative_attention_max_distance

    def bucket(self, distance: Tensor) -> Tensor:
        """Map distance = key position - query position (int64) to a bucket: exact when near, logarithmic when far."""
        count, first = self.table.num_embeddings, torch.zeros_like(distance)
        if self.bidirectional:
            count //= 2
            first, distance = (distance > 0) * count, distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = count // 2
        steps = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact) * (count - exact)
        far = (exact + steps.long()).clamp(max=count - 1)
        return first + torch.where(distance < exact, distance, far)

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Return the bias (B|1, H, Tq, Tk) for int64 positions (B|1, Tq) and (B|1, Tk).

        All distances from max_distance on share a bucket, so few have to be looked up; row by row, as attention reads.
        """
        reach = self.max_distance
        distance = (key_positions[:, None, :] - query_positions[:, :, None]).clamp_(-reach, reach).add_(reach)
        near = torch.arange(-reach, reach + 1, device=distance.device)
        return F.embedding(distance, self.table(self.bucket(near))).permute(0, 3, 1, 2).contiguous()


def mask_bias(mask: Tensor, dtype: torch.dtype, sizes: Tensor | None = None) -> Tensor:
    """Turn a boolean mask, True where attention may look, (B, Tk) or (B, Tq, Tk), into an additive (B, 1, Tq|1, Tk).

    sizes (B, Tk): for how many tokens each key stands; its logarithm makes it count as often (arXiv 2210.09461 §3).
    """
    mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
    if sizes is None:
        bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    else:
        bias = sizes.clamp(min=1).to(torch.promote_types(dtype, torch.float32)).log().to(dtype)[:, None, None, :]
    return bias.masked_fill_(~mask, torch.finfo(dtype).min)


def memory_bias(memory: Tensor | Tokens, dtype: torch.dtype, proportional: bool) -> Tensor:
    """Return the additive bias (B, 1, 1, M) of a memory: a mask (B, M), or tokens with log sizes if proportional."""
    if isinstance(memory, Tensor):
        return mask_bias(memory, dtype)
    return mask_bias(memory.mask, dtype, memory.sizes if proportional else None)
