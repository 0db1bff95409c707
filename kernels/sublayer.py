"""Take one row, float32 (D,), through a sublayer of a pre-norm decoder: norm, matrices, and what they give added to it.

A sublayer is one call, whose products run on several threads: between them there is so little to do that waking
Python for it would cost as much again.
"""

from typing import Any

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from btr.kernels.compiled import Array, compiled, float_of, in_parallel, njit_, threads_of_torch_kept
from btr.kernels.elementwise import narrowed
from btr.kernels.row import ORDER, add_times, dot, multiply_rows, multiply_tasks

Row = NDArray[np.float32]
LOG2E = np.float32(1.4426950408889634)
POWERS = tuple(np.float32(0.6931471805599453**k / float(np.prod(range(1, k + 1)))) for k in range(8))
LEAST = np.float32(-126)  # of a power of two that is not denormal


@njit_(fastmath=ORDER, nogil=True, inline="always")
def _exp(x: Any) -> Any:
    """Return e to the x for x <= 0, 1e-5 of it off at most where it is above 1e-37, and some 1e-38 below."""
    y = max(x * LOG2E, LEAST)
    whole = np.floor(y + np.float32(0.5))
    part, power = y - whole, POWERS[7]
    power = POWERS[6] + part * power
    power = POWERS[5] + part * power
    power = POWERS[4] + part * power
    power = POWERS[3] + part * power
    power = POWERS[2] + part * power
    power = POWERS[1] + part * power
    power = POWERS[0] + part * power
    return power * float_of(np.uint32(np.int32(whole) + 127) << np.uint32(23))


@njit_(fastmath=ORDER, nogil=True)
def _softmax(scores: Array) -> None:
    most = scores[0]
    for i in range(scores.size):
        most = max(most, scores[i])
    total = np.float32(0)
    for i in range(scores.size):
        scores[i] = _exp(scores[i] - most)
        total += scores[i]
    for i in range(scores.size):
        scores[i] /= total


@njit_(fastmath=ORDER, nogil=True)
def _normed(row: Array, norm: Any) -> Array:
    squares = np.float32(0)
    for i in range(row.size):
        squares += row[i] * row[i]
    scale = np.float32(1) / np.sqrt(squares / np.float32(row.size) + norm.eps)
    return row * scale * norm.weight


@njit_(nogil=True)
def _times(many: bool, matrix: Any, x: Array) -> Array:
    """Multiply a matrix with x (I,), on many threads or one."""
    out = np.empty(matrix.values.shape[0], np.float32)
    if many:
        multiply_tasks(matrix.values, matrix.scale, x.reshape(1, x.size), out)
    else:
        multiply_rows(0, out.size, matrix.values, matrix.scale, x.reshape(1, x.size), out)
    return out


@compiled()
def _self_attend(
    many: bool, row: Array, norm: Any, parts: Any, keys: Array, values: Array, bias: Array, t: int
) -> None:
    heads, width = keys.shape[0], keys.shape[2]
    x = _normed(row, norm)
    query = _times(many, parts.q, x)
    keys[:, t] = _times(many, parts.k, x).reshape(heads, width)
    values[:, t] = _times(many, parts.v, x).reshape(heads, width)
    found = np.zeros(query.size, np.float32)
    for h in range(heads):
        asked, mixed = query[h * width : (h + 1) * width], found[h * width : (h + 1) * width]
        weights = np.empty(t + 1, np.float32)
        for s in range(t + 1):
            weights[s] = np.float32(bias[h, t, s] + np.sum(keys[h, s] * asked))
        _softmax(weights)
        for s in range(t + 1):
            mixed += weights[s] * values[h, s]
    row += _times(many, parts.o, found)


@compiled()
def _look_head(keys: Array, values: Array, bias: Array, asked: Array, weights: Array, found: Array) -> None:
    for m in range(weights.size):
        weights[m] = dot(keys[m], asked) + bias[m]
    _softmax(weights)
    for i in range(found.size):
        found[i] = 0
    for m in range(weights.size):
        add_times(values[m], weights[m], found)


@compiled(parallel=True)
def _look_heads(keys: Array, values: Array, bias: Array, asked: Array, weights: Array, found: Array) -> None:
    for h in prange(keys.shape[0]):
        _look_head(keys[h], values[h], bias, asked[h], weights[h], found[h])


@compiled()
def _cross_attend(
    many: bool, row: Array, norm: Any, q: Any, o: Any, keys: Array, values: Array, bias: Array, attended: Array
) -> None:
    heads, length, width = keys.shape
    asked = _times(many, q, _normed(row, norm)).reshape(heads, width)
    weights, found = np.empty((heads, length), np.float32), np.empty((heads, width), np.float32)
    if many:
        _look_heads(keys, values, bias, asked, weights, found)
    else:
        for h in range(heads):
            _look_head(keys[h], values[h], bias, asked[h], weights[h], found[h])
    for h in range(heads):
        attended += weights[h] / np.float32(heads)
    row += _times(many, o, found.reshape(heads * width))


@njit_(nogil=True)
def _activate(gate: Array, table: Array, inner: Array) -> None:
    for i in range(inner.size):
        inner[i] *= table[narrowed(gate[i])]


@compiled()
def _feed_forward(many: bool, row: Array, norm: Any, wi: Any, wo: Any) -> None:
    row += _times(many, wo, np.maximum(_times(many, wi, _normed(row, norm)), np.float32(0)))


@compiled()
def _feed_gated(many: bool, row: Array, norm: Any, wi: Any, wo: Any, gate: Any, table: Array) -> None:
    x = _normed(row, norm)
    inner = _times(many, wi, x)
    _activate(_times(many, gate, x), table, inner)
    row += _times(many, wo, inner)


def _run(kernel: Any, threads: int, *arguments: Any) -> None:
    """Run on so many threads, or on this one while another parallel loop runs."""
    if not in_parallel(kernel, threads, True, *arguments):
        with threads_of_torch_kept():
            get_num_threads()  # starts the layer; a cached kernel that may call a loop comes without, and crashes
            kernel(False, *arguments)


def self_attend(row: Row, norm: Any, attention: Any, keys: Any, values: Any, bias: Any, t: int, threads: int) -> None:
    """Attend as `reference.self_attend`."""
    _run(_self_attend, threads, row, norm, attention, keys, values, bias, t)


def cross_attend(
    row: Row, norm: Any, q: Any, o: Any, keys: Any, values: Any, bias: Any, attended: Any, threads: int
) -> None:
    """Attend as `reference.cross_attend`."""
    _run(_cross_attend, threads, row, norm, q, o, keys, values, bias, attended)


def feed_forward(row: Row, norm: Any, wi: Any, wo: Any, gate: Any, table: Any, threads: int) -> None:
    """Feed forward as `reference.feed_forward`."""
    if gate is None:
        _run(_feed_forward, threads, row, norm, wi, wo)
    else:
        _run(_feed_gated, threads, row, norm, wi, wo, gate, table)
