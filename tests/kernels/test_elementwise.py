"""Hold the kernels for bfloat16 patterns to their definition and to PyTorch, for every pattern there is."""

import threading

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from btr import kernels

EVERY = np.arange(2**16, dtype=np.uint16)


def floats(patterns: NDArray[np.uint16]) -> torch.Tensor:
    return torch.from_numpy(patterns).view(torch.bfloat16)


def same(found: NDArray[np.uint16], expected: torch.Tensor) -> bool:
    """Tell whether patterns are those of bfloat16 values, any NaN being the one NaN."""
    wanted = expected.contiguous().view(torch.uint16).numpy()
    return bool((np.where(expected.isnan().numpy(), 0x7FC0, wanted) == found).all())


@pytest.mark.parametrize("threads", [1, 2])
def test_table_is_looked_up_and_rounded_once(back_end: str, threads: int) -> None:
    table = np.random.default_rng(0).normal(0, 100, 2**16).astype(np.float32)
    shuffled = np.random.default_rng(1).permutation(np.tile(EVERY, 3)).reshape(6, -1)
    values, factors = shuffled.copy(), np.roll(shuffled, 7, 1)
    kernels.look_up(values, table, threads=threads)
    found = torch.from_numpy(table[shuffled])
    assert same(values, found.bfloat16())
    values = shuffled.copy()
    kernels.look_up(values, table, factors, threads)
    assert same(values, (found * floats(factors).float()).bfloat16())


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_are_scaled_with_two_roundings(back_end: str, threads: int) -> None:
    values = EVERY.reshape(512, 128).copy()
    rng = np.random.default_rng(2)
    scale, weight = (rng.normal(0, 1, n).astype(np.float32) for n in (512, 128))
    expected = (floats(values.copy()).float() * torch.from_numpy(scale)[:, None]).bfloat16().float()
    kernels.scale_rows(values, scale, weight, threads)
    assert same(values, (expected * torch.from_numpy(weight)).bfloat16())


def test_many_threads_may_ask_at_once(back_end: str) -> None:
    table, given = np.random.default_rng(3).normal(size=2**16).astype(np.float32), np.tile(EVERY, 8)
    results = [given.copy() for _ in range(6)]
    workers = [threading.Thread(target=kernels.look_up, args=(part, table, None, 2)) for part in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    expected = torch.from_numpy(table[given]).bfloat16()
    assert all(same(part, expected) for part in results)


def test_wrong_arrays_are_refused() -> None:
    table, ones = np.zeros(2**16, np.float32), np.ones(4, np.float32)
    good, frozen = np.zeros((4, 4), np.uint16), np.zeros((4, 4), np.uint16)
    frozen.flags.writeable = False
    for wrong in (good.astype(np.int16), good[:, ::2], frozen):
        with pytest.raises(ValueError, match="expected writable C-contiguous uint16"):
            kernels.look_up(wrong, table)
        with pytest.raises(ValueError, match="expected writable C-contiguous uint16"):
            kernels.scale_rows(wrong, ones, ones)
        with pytest.raises(ValueError, match="expected writable C-contiguous uint16"):
            kernels.quantize_rows(wrong)
    with pytest.raises(ValueError, match=r"expected float32 \(65536,\)"):
        kernels.look_up(good, table[1:])
    with pytest.raises(ValueError, match="values has 16 elements, factors 4"):
        kernels.look_up(good, table, good[0])
    with pytest.raises(ValueError, match=r"expected \(M, D\)"):
        kernels.scale_rows(good[0], ones, ones)
    with pytest.raises(ValueError, match=r"scale has shape \(3,\), expected \(4,\)"):
        kernels.scale_rows(good, ones[:3], ones)
    with pytest.raises(ValueError, match=r"bias has shape \(3,\), expected \(4,\)"):
        kernels.dequantize_rows(good, ones, ones[:3])
    with pytest.raises(ValueError, match=r"expected \(M, D\)"):
        kernels.quantize_rows(good[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_are_quantized_in_steps_of_their_own(back_end: str, threads: int) -> None:
    patterns = np.random.default_rng(4).permutation(EVERY).reshape(512, 128)
    patterns[100] = 0
    patterns[101] = patterns[101] & 0x80FF  # magnitudes below 2**-100
    patterns[102:300] &= 0xBFFF  # finite ones
    patterns[300] = 0x3F80
    codes, step = kernels.quantize_rows(patterns.copy(), threads)
    wide = floats(patterns).float()
    finite = wide.isfinite().all(1)
    assert 198 <= int(finite.sum()) < 512
    rows, top = wide[finite], wide[finite].abs().amax(1)
    inverse = torch.where(top >= 2.0**-100, 127 / top, 0)
    assert np.array_equal(codes[finite], (rows * inverse[:, None] + 128.5).floor().to(torch.uint8))
    assert np.array_equal(step[finite], (top / 127).numpy())
    assert np.isnan(step[~finite.numpy()]).all() and (codes[~finite.numpy()] == 128).all()
    assert (codes[100:102] == 128).all() and step[100] == 0 and (codes[300] == 255).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_rows_are_dequantized_with_one_rounding(back_end: str, threads: int) -> None:
    values = EVERY.reshape(512, 128).copy()
    rng = np.random.default_rng(5)
    step, bias = (rng.normal(0, 1, n).astype(np.float32) for n in (512, 128))
    expected = floats(values.copy()).float() * torch.from_numpy(step)[:, None] + torch.from_numpy(bias)
    kernels.dequantize_rows(values, step, bias, threads)
    assert same(values, expected.bfloat16())
