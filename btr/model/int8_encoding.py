"""Products of the joint layers in int8: weights rounded once, activations token by token as they come.

A token's activations are rounded in steps of its own, so that what becomes of a row does not depend on the rows that
are read beside it. oneDNN multiplies (VNNI, AMX), to sums of integers, which are exact but for one rounding.

Layers 1..k stay as they are, and with them what a store keeps.

Shapes: M tokens, I inputs, O outputs.
"""

import torch
from torch import Tensor, nn

from btr import kernels
from btr.kernels import reference
from btr.model.elementwise import patterns, possible
from btr.model.fid import FiD
from btr.model.int8_decoding import rounded
from btr.model.kinds import Model

ZERO = 128  # the code of 0


class Int8Linear(nn.Linear):
    """A linear map, whose weights are rounded to int8 beside those it is made of, a byte more a weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        matrix = rounded(linear)
        self._packed = torch.ops.onednn.qlinear_prepack(torch.from_numpy(matrix.values), None)
        self._steps = torch.from_numpy(matrix.scale)
        self._zeros = torch.zeros(self.out_features, dtype=torch.int32)
        self._shift = torch.zeros(self.out_features) if linear.bias is None else linear.bias.detach().float()
        self._parts: dict[tuple[int, int], Int8Linear] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        codes, step = quantize(x.reshape(-1, self.in_features))
        sums = torch.ops.onednn.qlinear_pointwise(
            codes, 1.0, ZERO, self._packed, self._steps, self._zeros, None, 1.0, 0, x.dtype, "none", [], ""
        )
        return dequantize(sums, step, self._shift).view(*x.shape[:-1], -1)

    def part(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Map (..., I) to the outputs from `start` to `stop` alone, as `bert.Stacked`."""
        if (start, stop) not in self._parts:
            linear = nn.Linear(self.in_features, stop - start, device="meta")
            linear.weight, linear.bias = (nn.Parameter(whole[start:stop], False) for whole in (self.weight, self.bias))
            self._parts[start, stop] = Int8Linear(linear)
        return self._parts[start, stop](x)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round x (M, I) to codes (M, I), uint8, and the steps of each row (M,), as `kernels.quantize_rows`."""
    x = x.contiguous()
    if possible(x):
        found = kernels.quantize_rows(patterns(x), torch.get_num_threads())
        return torch.from_numpy(found[0]), torch.from_numpy(found[1])
    wide = x.float()
    top = wide.abs().amax(1)
    step = torch.where(top.isfinite(), top / 127, torch.nan)
    inverse = torch.where(top.isfinite() & (top >= float(reference.LEAST)), 127 / top, 0)
    return (wide * inverse[:, None] + 128.5).nan_to_num(ZERO).to(torch.uint8), step


def dequantize(sums: Tensor, step: Tensor, shift: Tensor) -> Tensor:
    """Multiply sums (M, O) by the steps of their rows (M,) and add the shift (O,); bfloat16 sums are overwritten."""
    if not possible(sums):
        return (sums.float() * step[:, None] + shift).to(sums.dtype)
    kernels.dequantize_rows(patterns(sums), step.numpy(), shift.numpy(), torch.get_num_threads())
    return sums


def round_joint(model: Model) -> None:
    """Have layers k+1..n multiply in int8."""
    layers = model.t5.encoder.layers if isinstance(model, FiD) else model.bert.layers
    for layer in list(layers)[model.config.k :]:
        for part in list(layer.modules()):
            for name, child in part.named_children():
                if isinstance(child, nn.Linear) and not isinstance(child, Int8Linear):
                    setattr(part, name, Int8Linear(child))
