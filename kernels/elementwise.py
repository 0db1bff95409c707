"""Work on bfloat16 patterns, in place: in one pass what PyTorch does in several.

Results are float32 arithmetic rounded to nearest, ties to even, and so PyTorch's to the bit. The loops run over slices,
whose indices cannot be negative: over parts of a whole array they ran at a quarter of the speed.
"""

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from btr.kernels.compiled import Array, bits_of, compiled, float_of, in_parallel, njit_, rounded
from btr.kernels.reference import LEAST

GRAIN = 2**14  # elements of a task of a parallel loop


@njit_(inline="always")
def _wide(pattern: Any) -> Any:
    return float_of(np.uint32(np.uint32(pattern) << np.uint32(16)))


@njit_(inline="always")
def narrowed(value: Any) -> Any:
    return rounded(bits_of(value)) if value == value else np.uint16(0x7FC0)


@compiled()
def _look_up(values: Array, table: Array) -> None:
    for i in range(values.size):
        values[i] = narrowed(table[values[i]])


@compiled()
def _look_up_times(values: Array, table: Array, factors: Array) -> None:
    for i in range(values.size):
        values[i] = narrowed(table[values[i]] * _wide(factors[i]))


@compiled()
def _scale_row(values: Array, scale: Any, weight: Array) -> None:
    for d in range(values.size):
        values[d] = narrowed(_wide(narrowed(_wide(values[d]) * scale)) * weight[d])


@compiled(parallel=True)
def _look_up_tasks(values: Array, table: Array) -> None:
    for task in prange((values.size + GRAIN - 1) // GRAIN):
        _look_up(values[task * GRAIN : (task + 1) * GRAIN], table)


@compiled(parallel=True)
def _look_up_times_tasks(values: Array, table: Array, factors: Array) -> None:
    for task in prange((values.size + GRAIN - 1) // GRAIN):
        part = slice(task * GRAIN, (task + 1) * GRAIN)
        _look_up_times(values[part], table, factors[part])


@compiled()
def _scale_rows(values: Array, scale: Array, weight: Array) -> None:
    for m in range(values.shape[0]):
        _scale_row(values[m], scale[m], weight)


@compiled(parallel=True)
def _scale_rows_tasks(values: Array, scale: Array, weight: Array) -> None:
    for m in prange(values.shape[0]):
        _scale_row(values[m], scale[m], weight)


@compiled()
def _quantize_row(values: Array, codes: Array) -> Any:
    greatest = np.uint16(0)
    for d in range(values.size):
        greatest = max(greatest, np.uint16(values[d] & np.uint16(0x7FFF)))  # magnitudes are in the order of patterns
    finite, top = greatest < np.uint16(0x7F80), _wide(greatest)
    inverse = np.float32(127) / top if finite and top >= LEAST else np.float32(0)
    for d in range(values.size):
        scaled = _wide(values[d]) * inverse if finite else np.float32(0)
        codes[d] = np.uint8(np.int32(scaled + np.float32(128.5)))
    return top / np.float32(127) if finite else np.float32(np.nan)


@compiled()
def _dequantize_row(values: Array, step: Any, bias: Array) -> None:
    for d in range(values.size):
        values[d] = narrowed(_wide(values[d]) * step + bias[d])


@compiled()
def _quantize_rows(values: Array, codes: Array, step: Array) -> None:
    for m in range(values.shape[0]):
        step[m] = _quantize_row(values[m], codes[m])


@compiled(parallel=True)
def _quantize_rows_tasks(values: Array, codes: Array, step: Array) -> None:
    for m in prange(values.shape[0]):
        step[m] = _quantize_row(values[m], codes[m])


@compiled()
def _dequantize_rows(values: Array, step: Array, bias: Array) -> None:
    for m in range(values.shape[0]):
        _dequantize_row(values[m], step[m], bias)


@compiled(parallel=True)
def _dequantize_rows_tasks(values: Array, step: Array, bias: Array) -> None:
    for m in prange(values.shape[0]):
        _dequantize_row(values[m], step[m], bias)


def _run(serial: Any, parallel: Any, threads: int, *arrays: NDArray[Any]) -> None:
    """Run on so many threads, or on this one while another parallel loop runs."""
    if not in_parallel(parallel, threads, *arrays):
        serial(*arrays)


def look_up(
    values: NDArray[np.uint16], table: NDArray[np.float32], factors: NDArray[np.uint16] | None, threads: int
) -> None:
    """Look up as `reference.look_up`."""
    if factors is None:
        _run(_look_up, _look_up_tasks, threads, values, table)
    else:
        _run(_look_up_times, _look_up_times_tasks, threads, values, table, factors)


def scale_rows(
    values: NDArray[np.uint16], scale: NDArray[np.float32], weight: NDArray[np.float32], threads: int
) -> None:
    """Scale as `reference.scale_rows`."""
    _run(_scale_rows, _scale_rows_tasks, threads, values, scale, weight)


def quantize_rows(
    values: NDArray[np.uint16], codes: NDArray[np.uint8], step: NDArray[np.float32], threads: int
) -> None:
    """Quantize as `reference.quantize_rows`."""
    _run(_quantize_rows, _quantize_rows_tasks, threads, values, codes, step)


def dequantize_rows(
    values: NDArray[np.uint16], step: NDArray[np.float32], bias: NDArray[np.float32], threads: int
) -> None:
    """Dequantize as `reference.dequantize_rows`."""
    _run(_dequantize_rows, _dequantize_rows_tasks, threads, values, step, bias)
