"""Activations and norms of bfloat16 on CPUs, in place and in one pass over memory: GELU to the bit as PyTorch's own,
RMSNorm but for the last place of a few values, since its squares are summed in another order.

Used where no gradient is asked for: there new memory and further passes over it cost more than the arithmetic.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from btr import kernels

WORTHWHILE = 2**16  # elements


def possible(x: Tensor) -> bool:
    """Whether x can be worked on in place by the kernels, and is large enough to gain."""
    plain = x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.is_contiguous() and x.numel() >= WORTHWHILE
    return plain and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and kernels.backend() == "numba"


def patterns(x: Tensor) -> NDArray[np.uint16]:
    """View bfloat16 as its patterns."""
    return x.view(torch.uint16).numpy()


@cache
def gelu_table(approximate: str) -> NDArray[np.float32]:
    """Return the GELU, 'tanh' or exact ('none'), of every bfloat16 there is, as PyTorch rounds it."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    return F.gelu(every, approximate=approximate).float().numpy()


def gelu(x: Tensor, approximate: str = "none", times: Tensor | None = None) -> Tensor:
    """Return the GELU of x, times a tensor if given; both may be overwritten where no gradient is asked for.

    PyTorch's exact one is faster than a table, its tanh (of torch 2.13, bfloat16, CPU) not.
    """
    if approximate == "none" or not possible(x):
        activated = F.gelu(x, approximate=approximate)
        return activated if times is None else activated * times
    factors = None if times is None else patterns(times.contiguous())
    kernels.look_up(patterns(x), gelu_table(approximate), factors, torch.get_num_threads())
    return x


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale hidden (..., D) by the root mean square, taken in float32, round, and multiply by weight (D,)."""
    if not possible(hidden):
        wide = hidden.float()
        unit = wide * (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
        return unit.to(weight.dtype) * weight
    squares = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32).square_()
    scale = squares.div_(hidden.shape[-1]).add_(eps).rsqrt_().view(-1)
    normed = hidden.clone()
    rows = patterns(normed).reshape(-1, hidden.shape[-1])
    kernels.scale_rows(rows, scale.numpy(), weight.float().numpy(), torch.get_num_threads())
    return normed
