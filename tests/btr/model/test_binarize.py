"""Binarization: which bit a number becomes, what is rebuilt from it, and where the gradient goes."""

import numpy as np
import pytest
import torch

from btr import kernels
from btr.model.binarize import (
    SMALLEST_MAGNITUDE,
    SMALLEST_WEIGHT,
    Binarizer,
    round_scale,
    safe_weight,
    straight_through_sign,
)
from btr.model.config import ReaderConfig, T5Config
from btr.model.fid import FiD
from btr.model.t5 import T5

D = 64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_zero_counts_as_minus_one() -> None:
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 5.0, -5.0, float("inf"), -float("inf")])
    assert straight_through_sign(x).tolist() == [-1, -1, 1, -1, 1, -1, 1, -1]


@pytest.mark.parametrize("spread", [1e-3, 0.3, 1.0, 30.0])
def test_signs_are_exactly_one(spread: float) -> None:
    x = spread * normal(100_000)
    signs = straight_through_sign(x)
    assert signs.abs().eq(1).all() and torch.equal(signs > 0, x > 0)
    assert torch.equal(straight_through_sign(x, "clipped"), signs)


def test_gradient_of_the_sign_is_that_of_tanh() -> None:
    x = torch.linspace(-6, 6, 101, requires_grad=True)
    straight_through_sign(x).backward(torch.arange(1.0, 102.0))
    expected = torch.arange(1.0, 102.0) / torch.cosh(x.detach()) ** 2
    assert torch.allclose(x.grad, expected, rtol=0, atol=101 * 2**-22)  # 1 - tanh² of float32 is exact to some 2^-23


def test_clipped_gradient_is_one_near_zero_and_none_beyond() -> None:
    x = torch.tensor([-30.0, -1.5, -0.99, -1e-9, 0.0, 0.5, 0.99, 1.01, 7.0], requires_grad=True)
    straight_through_sign(x, "clipped").backward(torch.arange(1.0, 10.0))
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 7, 0, 0]


def test_binarizer_passes_on_the_gradient_that_was_chosen() -> None:
    u = normal(200, D).requires_grad_()
    for kind in ("tanh", "clipped"):
        binarizer, other = Binarizer(D, straight_through=kind), Binarizer(D)
        for one in (binarizer, other):
            one.calibrate(u.detach())
        (found,) = torch.autograd.grad(binarizer(u)[1].sum(), u)
        assert torch.equal(binarizer(u)[0], other(u)[0])  # forward, the choice changes nothing
        inside = (u.detach() - binarizer.mean).abs() < binarizer.magnitude
        slope = 1 / binarizer.magnitude.detach()
        if kind == "clipped":
            assert torch.equal(found, torch.where(inside, slope, 0.0))
        else:
            assert (found[~inside] > 0).any() and (found <= slope).all()
        assert binarizer.state_dict().keys() == other.state_dict().keys()


def test_calibration_is_mean_and_mean_deviation() -> None:
    u = 3 * normal(1000, D) * torch.linspace(0.1, 2, D) + torch.linspace(-5, 5, D)
    binarizer = Binarizer(D)
    binarizer.calibrate(u)
    mean = u.double().mean(0)
    assert torch.allclose(binarizer.mean.double(), mean, atol=1e-5)
    assert torch.allclose(binarizer.magnitude.double(), (u.double() - mean).abs().mean(0), atol=1e-5)
    assert binarizer.mean.requires_grad and binarizer.magnitude.requires_grad


@torch.no_grad()
def test_calibration_is_the_best_magnitude() -> None:
    """Given the signs, mean |u - mean| has the least squared error of all magnitudes."""
    u = normal(1000, D) + 0.5
    binarizer = Binarizer(D)
    binarizer.calibrate(u)

    def error(factor: float) -> float:
        u_hat = binarizer.mean + factor * binarizer.magnitude * binarizer(u)[1]
        return float((u - u_hat).pow(2).mean())

    assert error(1.0) < min(error(0.97), error(1.03))


def test_calibration_takes_bfloat16_and_constant_channels() -> None:
    u = normal(50, D).bfloat16()
    u[:, 3] = 2.0
    binarizer = Binarizer(D)
    binarizer.calibrate(u)
    assert binarizer.mean.dtype is torch.float32 and binarizer.magnitude[3] == np.float32(SMALLEST_MAGNITUDE)
    assert torch.isfinite(binarizer(u)[0]).all()


def test_calibration_needs_tokens() -> None:
    with pytest.raises(ValueError, match=r"at least one token, got 0"):
        Binarizer(D).calibrate(torch.zeros(0, D))


def test_variant_of_the_paper_stays_as_it_is() -> None:
    binarizer = Binarizer(D, "paper")
    binarizer.calibrate(3 * normal(100, D) + 1)
    assert binarizer.mean.eq(0).all() and binarizer.magnitude.eq(1).all()
    assert not any(parameter.requires_grad for parameter in binarizer.parameters())
    u = normal(10, D)
    assert torch.equal(binarizer(u)[0], torch.where(u > 0, 1.0, -1.0))


def test_rebuilt_value_is_mean_plus_or_minus_magnitude() -> None:
    binarizer, u = Binarizer(D), normal(200, D, seed=1)
    binarizer.calibrate(u)
    u_hat, b = binarizer(u)
    above = u > binarizer.mean
    assert torch.equal(b, torch.where(above, 1.0, -1.0)) and torch.equal(binarizer.signs(u), above)
    low, high = binarizer.mean - binarizer.magnitude, binarizer.mean + binarizer.magnitude
    assert torch.equal(u_hat, torch.where(above, high, low))
    packed = kernels.pack(binarizer.signs(u).numpy())
    expanded = kernels.expand(packed, D, binarizer.mean.detach().numpy(), binarizer.magnitude.detach().numpy())
    assert np.array_equal(expanded, u_hat.detach().numpy())


def test_gradients_pass_straight_through() -> None:
    binarizer, u = Binarizer(D), normal(30, D, seed=2).requires_grad_()
    binarizer.calibrate(u.detach() * 2 + 1)
    upstream = normal(30, D, seed=3)
    u_hat, b = binarizer(u)
    u_hat.backward(upstream)
    mean, magnitude = binarizer.mean.detach(), binarizer.magnitude.detach()
    slope = 1 / torch.cosh((u.detach() - mean) / magnitude) ** 2  # of u_hat: the magnitude cancels
    assert torch.allclose(u.grad, upstream * slope, atol=1e-5)
    assert torch.allclose(binarizer.mean.grad, (upstream * (1 - slope)).sum(0), atol=1e-4)
    assert torch.allclose(binarizer.magnitude.grad, (upstream * b.detach()).sum(0), atol=1e-4)


def test_negative_magnitude_keeps_the_slope_of_its_size() -> None:
    """The gradient is of tanh((u - mean) / |magnitude|): by the signed one it would be that of a step, nothing."""
    binarizer, u = Binarizer(D), normal(30, D, seed=2).requires_grad_()
    with torch.no_grad():
        binarizer.magnitude.fill_(-0.5)
    binarizer(u)[0].sum().backward()
    assert torch.allclose(u.grad, -1 / torch.cosh(u.detach() / 0.5) ** 2, atol=1e-6)


def test_scale_is_rounded_within_what_float16_has() -> None:
    """To 3 bits of mantissa, and to no infinity: 61440 is the greatest of them, and 65504 would round beyond."""
    scale = torch.tensor([1.0, 1.0625, 1.07, -3.3, 0.0, 61440.0, 65504.0, 1e6, -1e6, float("inf")])
    expected = [1.0, 1.125, 1.125, -3.25, 0.0, 61440.0, 61440.0, 61440.0, -61440.0, 61440.0]
    assert round_scale(scale).tolist() == expected


@pytest.mark.parametrize("magnitude", [0.0, -0.5, -1e-9])
def test_magnitude_that_crosses_zero_turns_no_bit_round(magnitude: float) -> None:
    """What training computes must stay what the stored bits give."""
    binarizer, u = Binarizer(D), normal(100, D)
    u[0] = 0.25
    with torch.no_grad():
        binarizer.mean.fill_(0.25)
        binarizer.magnitude.fill_(magnitude)
    u_hat, b = binarizer(u)
    assert torch.equal(b > 0, binarizer.signs(u))
    assert torch.equal(u_hat, 0.25 + magnitude * b)


def test_weights_near_zero_keep_their_side() -> None:
    small = SMALLEST_WEIGHT
    weight = torch.tensor([0.5, -0.5, small, -small, small / 2, -small / 2, 0.0, -1e-30])
    assert torch.equal(safe_weight(weight), torch.tensor([0.5, -0.5, small, -small, small, -small, small, -small]))
    assert safe_weight(torch.ones(3, dtype=torch.bfloat16)).dtype is torch.float32


def binarized(weight: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return h_hat, u_hat and u of a model whose norm at the split has this weight, calibrated on hidden itself."""
    config = T5Config(vocab_size=4, d_model=D, d_kv=4, d_ff=4, num_layers=2, num_decoder_layers=1, num_heads=1)
    model = FiD(T5(config), ReaderConfig(k=1))
    with torch.no_grad():
        model.join_norm.weight.copy_(weight)
        u = model.join_norm(hidden)
        model.binarizer.calibrate(u)
        h_hat, u_hat, _ = model.binarized(hidden)
    return h_hat, u_hat, u


def test_residual_stream_is_rebuilt_from_the_same_bits() -> None:
    """h = u * s / w, and so h_hat = u_hat * s / w: the norm of what is rebuilt, taken with the kept s, is u_hat."""
    hidden, weight = 40 * normal(60, D), 0.2 + normal(D, seed=1).abs()
    h_hat, u_hat, u = binarized(weight, hidden)
    scale = (hidden.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(h_hat * weight / scale, u_hat, rtol=1e-5, atol=1e-6)
    assert torch.allclose(u * scale / weight, hidden, rtol=1e-5, atol=1e-4)
    correlation = torch.corrcoef(torch.stack([h_hat.flatten(), hidden.flatten()]))[0, 1]
    assert abs(float(correlation) - (2 / torch.pi) ** 0.5) < 0.02  # one bit of a normal variable keeps sqrt(2/π) of it


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_residual_stream_of_a_tiny_weight_points_the_same_way(sign: float) -> None:
    hidden, weight = normal(60, D), torch.ones(D)
    weight[7] = sign * SMALLEST_WEIGHT / 2
    h_hat, _, _ = binarized(weight, hidden)
    agree = (h_hat[:, 7] > h_hat[:, 7].mean()) == (hidden[:, 7] > hidden[:, 7].mean())
    assert agree.float().mean() > 0.9
    assert torch.isfinite(h_hat).all()


def test_binarized_keeps_the_dtype_of_the_stream() -> None:
    h_hat, u_hat, _ = binarized(torch.ones(D), normal(5, D).bfloat16())
    assert h_hat.dtype is torch.bfloat16 and u_hat.dtype is torch.bfloat16
