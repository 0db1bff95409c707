"""Activations and norms by the kernels against PyTorch's own."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from btr import kernels
from btr.model import elementwise
from btr.model.elementwise import gelu, rms_norm

EVERY = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)


@pytest.fixture(scope="module", autouse=True)
def machine_code() -> Iterator[None]:
    """What is tested here, whatever the environment names."""
    before = kernels.backend()
    kernels.use("numba")
    yield
    kernels.use(before)


def test_kernels_are_used_where_they_can_be() -> None:
    with torch.no_grad():
        assert elementwise.possible(EVERY)
        assert not elementwise.possible(EVERY.float()) and not elementwise.possible(EVERY[1:])
        assert not elementwise.possible(EVERY.repeat(2)[::2])
    assert not elementwise.possible(EVERY)


@torch.no_grad()
def test_kernels_of_numpy_are_slower_than_pytorch_and_not_used() -> None:
    kernels.use("numpy")
    try:
        assert not elementwise.possible(EVERY)
    finally:
        kernels.use("numba")


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@torch.no_grad()
def test_gelu_is_that_of_pytorch_to_the_bit(approximate: str) -> None:
    """For every bfloat16 there is, and times every other one."""
    expected = F.gelu(EVERY, approximate=approximate)
    assert torch.equal(gelu(EVERY.clone(), approximate).nan_to_num(7), expected.nan_to_num(7))
    factors = EVERY.roll(12345)
    product = gelu(EVERY.clone(), approximate, factors)
    assert torch.equal(product.nan_to_num(7), (expected * factors).nan_to_num(7))
    assert torch.equal(factors.view(torch.int16), EVERY.roll(12345).view(torch.int16))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_has_its_gradient(approximate: str) -> None:
    x, y = EVERY[16000:16400].clone().requires_grad_(), torch.ones(400, dtype=torch.bfloat16, requires_grad=True)
    gelu(x, approximate, y).sum().backward()
    assert x.grad is not None and y.grad is not None
    assert torch.equal(y.grad, F.gelu(x, approximate=approximate).detach())


@torch.no_grad()
def test_rms_norm_is_its_definition_to_the_last_place() -> None:
    """The mean of squares is summed in another order: float32 values that differ in the last place, rounded twice."""
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(3, 60, 512, generator=generator) * torch.logspace(-3, 3, 60)[:, None]).bfloat16()
    weight = torch.randn(512, generator=generator).bfloat16()
    before = hidden.clone()
    found = rms_norm(hidden, weight, 1e-6)
    assert elementwise.possible(hidden) and torch.equal(hidden, before)
    scale = (hidden.double().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
    expected = ((hidden.double() * scale).bfloat16() * weight).double()
    assert float(((found.double() - expected).abs() / expected.abs().clamp(min=1e-9)).max()) <= 2**-7 * 1.01
    assert float((found.double() != expected).float().mean()) < 1e-3
