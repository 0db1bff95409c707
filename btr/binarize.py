"""Calibrated binarization: a token's normalised state becomes D signs and one scalar (BTR §3.1, arXiv 2310.01329).

Inside encoder layer k+1, after its first RMSNorm: u = w * h / s with s the root mean square of h.
Kept: b = sign(u - mean) and s.
Rebuilt: u_hat = mean + magnitude * b for attention, h_hat = u_hat * s / w for the residual stream.
The paper's variant is mean = 0, magnitude = 1; 'channel' learns both per channel, starting from statistics of u.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_WEIGHT = 1e-3  # a norm weight nearer to 0 than this is treated as this, with its sign, when dividing by it
SMALLEST_MAGNITUDE = 1e-6


def straight_through_sign(x: Tensor, kind: Literal["tanh", "clipped"] = "tanh") -> Tensor:
    """Return ±1, 0 counting as -1; the gradient is that of tanh(x) (BTR §3.1), or 1 where |x| < 1 and 0 elsewhere.

    'clipped' is the estimator of binarized networks (Courbariaux et al. 2016, arXiv 1602.02830, §1.3).
    """
    soft = torch.tanh(x) if kind == "tanh" else F.hardtanh(x)
    return soft + (torch.where(x > 0, 1.0, -1.0).to(x.dtype) - soft).detach()


class Binarizer(nn.Module):
    """Signs of u and their values: mean (D,) and magnitude (D,), float32.

    straight_through chooses the gradient of the signs, and matters in training alone.
    """

    def __init__(
        self,
        width: int,
        calibration: Literal["channel", "paper"] = "channel",
        straight_through: Literal["tanh", "clipped"] = "tanh",
    ) -> None:
        super().__init__()
        trained = calibration == "channel"
        self.calibration, self.straight_through = calibration, straight_through
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=trained)
        self.magnitude = nn.Parameter(torch.ones(width), requires_grad=trained)

    @torch.no_grad()
    def calibrate(self, u: Tensor) -> None:
        """Set mean = mean(u) and magnitude = mean |u - mean| from normalised states (M, D).

        The paper's variant has nothing to set.

        Raises:
            ValueError: no tokens to calibrate from.
        """
        if not len(u):
            raise ValueError("calibration needs at least one token, got 0; pass non-empty passages")
        if self.calibration == "channel":
            self.mean.copy_(u.float().mean(0))
            self.magnitude.copy_((u.float() - self.mean).abs().mean(0).clamp(min=SMALLEST_MAGNITUDE))

    def signs(self, u: Tensor) -> Tensor:
        """Return the bits of u (..., D) as booleans: True where u > mean."""
        return u.float() > self.mean

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return u_hat and b = ±1, both float32 (..., D), the bits being those of `signs`.

        Gradients pass straight through tanh((u - mean) / |magnitude|), or its clipped form.
        """
        # Training may carry a magnitude through 0: its sign belongs to u_hat then, and must not turn the bits round.
        width = self.magnitude.detach().abs().clamp(min=SMALLEST_MAGNITUDE)
        b = straight_through_sign((u.float() - self.mean) / width, self.straight_through)
        return self.mean + self.magnitude * b, b


def safe_weight(weight: Tensor) -> Tensor:
    """Keep norm weights (D,) float32 away from 0, on their side of it, so that h_hat = u_hat * s / w stays finite."""
    weight = weight.float()
    nearest = torch.where(weight < 0, -SMALLEST_WEIGHT, SMALLEST_WEIGHT)
    return torch.where(weight.abs() < SMALLEST_WEIGHT, nearest, weight)
