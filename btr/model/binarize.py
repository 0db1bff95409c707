"""Calibrated binarization: a token's normalised state becomes D signs and one scalar (BTR §3.1, arXiv 2310.01329).

Inside encoder layer k+1, after its first RMSNorm: u = w * h / s with s the root mean square of h.
Kept: b = sign(u - mean) and s.
Rebuilt: u_hat = mean + magnitude * b for attention, h_hat = u_hat * s / w for the residual stream.
The paper's variant is mean = 0, magnitude = 1; 'channel' learns both per channel, starting from statistics of u.

'predictive' (ours) keeps signs of what the tokens alone do not tell. What is expected of a token, given its id and
those beside it, which a store keeps anyway, is mean + A e(t) + B e(t-1) + C e(t+1), with e the reader's own embeddings.
Signs are taken of m <= D directions of the rest, b = sign(code (u - expected)), and u_hat = expected + value b:
predictive coding, with the paper's W_proj (§3.1) at work at run time too.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from btr.model.config import Calibration, StraightThrough

SMALLEST_WEIGHT = 1e-3  # a norm weight nearer to 0 than this is treated as this, with its sign, when dividing by it
SMALLEST_MAGNITUDE = 1e-6
LARGEST_SCALE = 61440.0  # that float16 has with 3 bits of mantissa
RIDGE = 1e-4  # of the mean variance of what is regressed on, and in itself


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of tokens beside their bits.

    ids int64 (..., T); follows bool (..., T): a token comes after another one of its passage; embedding (V, D).
    """

    ids: Tensor
    follows: Tensor
    embedding: Tensor

    @classmethod
    def of_passages(cls, ids: Tensor, offsets: Tensor, embedding: Tensor) -> "Known":
        """Take tokens (M,) of passages that begin at these offsets."""
        follows = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        follows[offsets[offsets < len(ids)]] = False
        return cls(ids, follows, embedding)

    @classmethod
    def of_rows(cls, ids: Tensor, passage: Tensor, embedding: Tensor) -> "Known":
        """Take rows (R, T), of which `passage`, bool (R, T), says where the passage stands."""
        follows = passage.clone()
        follows[:, 1:] &= passage[:, :-1]
        follows[:, :1] = False
        return cls(ids, follows, embedding)

    def features(self) -> Tensor:
        """Lay a token's embedding beside those of its neighbours in the passage, else 0: (..., T, 3D)."""
        own, linked = self.embedding[self.ids], self.follows[..., 1:, None]
        before = F.pad(own[..., :-1, :] * linked, (0, 0, 1, 0))
        return torch.cat((own, before, F.pad(own[..., 1:, :] * linked, (0, 0, 0, 1))), -1)


def straight_through_sign(x: Tensor, kind: StraightThrough = "tanh") -> Tensor:
    """Return ±1, 0 counting as -1; the gradient is that of tanh(x) (BTR §3.1), or 1 where |x| < 1 and 0 elsewhere.

    'clipped' is the estimator of binarized networks (Courbariaux et al. 2016, arXiv 1602.02830, §1.3).
    """
    soft = torch.tanh(x) if kind == "tanh" else F.hardtanh(x)
    return soft + (torch.where(x > 0, 1.0, -1.0).to(x.dtype) - soft).detach()


class Binarizer(nn.Module):
    """Signs of u and their values, float32: mean (D,) and magnitude (D,) or, 'predictive', what the module's text says.

    bits: m, signs a token; 0: D, and 'channel' and 'paper' know no other number. straight_through chooses the gradient
    of the signs, and matters in training alone.
    """

    def __init__(
        self,
        width: int,
        calibration: Calibration = "channel",
        straight_through: StraightThrough = "tanh",
        bits: int = 0,
    ) -> None:
        super().__init__()
        if bits > width:
            raise ValueError(f"bits is {bits}, the reader is {width} wide; choose at most that")
        self.calibration, self.straight_through, self.bits = calibration, straight_through, bits or width
        trained = calibration != "paper"
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=trained)
        if calibration == "predictive":
            self.context = nn.Parameter(torch.zeros(3 * width, width))  # A, B, C
            self.code = nn.Parameter(torch.eye(self.bits, width))
            self.value = nn.Parameter(torch.eye(width, self.bits))
        else:
            self.magnitude = nn.Parameter(torch.ones(width), requires_grad=trained)

    @torch.no_grad()
    def calibrate(self, u: Tensor, known: Known | None = None) -> None:
        """Set the values from normalised states u (M, D): 'channel' by their statistics, 'predictive' by least squares.

        mean = mean(u), magnitude = mean |u - mean|. code: the m principal directions of what is not expected, turned at
        random so that each sign carries as much, its rows scaled to mean |z| = 1. The paper's variant has nothing to
        set.

        Raises:
            ValueError: no tokens to calibrate from.
        """
        if not len(u):
            raise ValueError("calibration needs at least one token, got 0; pass non-empty passages")
        if self.calibration == "channel":
            self.mean.copy_(u.float().mean(0))
            self.magnitude.copy_((u.float() - self.mean).abs().mean(0).clamp(min=SMALLEST_MAGNITUDE))
        elif self.calibration == "predictive":
            weights, offset = regress(needed(known).features().double(), u.double())
            self.context.copy_(torch.cat(weights.chunk(3, 1)))
            self.mean.copy_(offset)
            rest = (u - self.expected(known)).double()
            self.code.copy_(directions(rest, self.bits))
            z = rest @ self.code.double().T
            self.code.div_(z.abs().mean(0).clamp(min=SMALLEST_MAGNITUDE)[:, None])
            self.value.copy_(regress(torch.where(z > 0, 1.0, -1.0).double(), rest)[0])

    def expected(self, known: Known | None = None) -> Tensor:
        """Return what is expected of tokens before their bits are seen: (..., D), or (D,) where all are alike."""
        if self.calibration != "predictive":
            return self.mean
        known = needed(known)
        kinds, place = known.ids.unique(return_inverse=True)  # an id is multiplied once, however often it comes
        own, before, after = F.linear(known.embedding[kinds], self.context.to(known.embedding.dtype)).chunk(3, 1)
        linked, expected = known.follows[..., 1:], (self.mean + own)[place]
        before, after = (F.pad(part, (0, 0, 0, 1)) for part in (before, after))  # a last row for no neighbour: zeros
        expected[..., 1:, :] += before[torch.where(linked, place[..., :-1], len(kinds))]
        expected[..., :-1, :] += after[torch.where(linked, place[..., 1:], len(kinds))]
        return expected

    def signs(self, u: Tensor, known: Known | None = None, expected: Tensor | None = None) -> Tensor:
        """Return the bits of u (..., D) as booleans (..., m): True where +1; expected as in `rebuild`."""
        rest = u.float() - (self.expected(known) if expected is None else expected)
        return (F.linear(rest, self.code.float()) if self.calibration == "predictive" else rest) > 0

    def keep(self, u: Tensor, known: Known | None = None) -> tuple[Tensor, Tensor]:
        """Return u_hat (..., D) as `rebuild` makes it in the precision of u, and the bits that `signs` returns."""
        expected = self.expected(known)
        bits = self.signs(u, known, expected)
        return self.rebuild((2 * bits.to(u.dtype)).sub_(1), known, expected), bits

    def rebuild(self, b: Tensor, known: Known | None = None, expected: Tensor | None = None) -> Tensor:
        """Return u_hat (..., D) from b = ±1 (..., m); expected, where it is known already, saves its computation."""
        expected = self.expected(known) if expected is None else expected
        if self.calibration == "predictive":
            return expected + F.linear(b, self.value.to(b.dtype))
        return expected + self.magnitude * b

    def forward(self, u: Tensor, known: Known | None = None) -> tuple[Tensor, Tensor]:
        """Return u_hat float32 (..., D) and b = ±1 (..., m), the bits being those of `signs`.

        Gradients pass straight through tanh((u - mean) / |magnitude|), or tanh(code (u - expected)), or the clipped
        forms.
        """
        expected = self.expected(known)
        rest = u.float() - expected
        if self.calibration == "predictive":
            b = straight_through_sign(F.linear(rest, self.code.float()).float(), self.straight_through)
            return (expected + F.linear(b, self.value.float())).float(), b
        # Training may carry a magnitude through 0: its sign belongs to u_hat then, and must not turn the bits round.
        width = self.magnitude.detach().abs().clamp(min=SMALLEST_MAGNITUDE)
        b = straight_through_sign(rest / width, self.straight_through)
        return expected + self.magnitude * b, b


def needed(known: Known | None) -> Known:
    """Return what is known of tokens; ValueError if it was not given."""
    if known is None:
        raise ValueError("a predictive binarizer needs to know the tokens; pass known")
    return known


def regress(known: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Fit wanted (M, D) by known (M, K): weights (D, K) and intercept (D,), with a slight ridge."""
    middle, mean = known.mean(0), wanted.mean(0)
    centred = known - middle
    gram = centred.T @ centred
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + RIDGE)
    weights = torch.linalg.solve(gram, centred.T @ (wanted - mean)).T
    return weights, mean - weights @ middle


def directions(rest: Tensor, bits: int) -> Tensor:
    """Return the `bits` principal directions of rest (M, D), float64, in a basis turned at random: (bits, D)."""
    principal = torch.linalg.eigh(rest.T @ rest)[1].flip(1)[:, :bits]
    drawn = torch.randn(bits, bits, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(drawn)[0].to(rest.device) @ principal.T


def round_scale(scale: Tensor) -> Tensor:
    """Round scalars (M,) to float16 with 3 of its 10 bits of mantissa: within a sixteenth, so that one byte can say it.

    Beside the signs' error this is nothing, and few different values are cheap to store.
    """
    bits = scale.clamp(-LARGEST_SCALE, LARGEST_SCALE).to(torch.float16).view(torch.int16)
    return ((bits + 0x40) & ~0x7F).view(torch.float16)


def safe_weight(weight: Tensor) -> Tensor:
    """Keep norm weights (D,) float32 away from 0, on their side of it, so that h_hat = u_hat * s / w stays finite."""
    weight = weight.float()
    nearest = torch.where(weight < 0, -SMALLEST_WEIGHT, SMALLEST_WEIGHT)
    return torch.where(weight.abs() < SMALLEST_WEIGHT, nearest, weight)
