"""Run the kernels of `btr.kernels.reference` as machine code: Numba compiles each one at its first call.

Importing this module imports Numba, which is why `btr.kernels` does so only when a kernel is first called.  Compiled
code is kept on disk where Numba finds a writable cache directory, and compiled by every process anew where it does not.

The loops are written for LLVM's vectoriser; what it needs is said beside each.  All release the interpreter lock.
"""

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from btr.kernels.compiled import Array, bits_of, compiled, ctpop, in_parallel, njit_, rounded, usable_threads
from btr.kernels.elementwise import dequantize_rows, look_up, quantize_rows, scale_rows
from btr.kernels.late import max_similarity
from btr.kernels.row import multiply, multiply_back
from btr.kernels.sublayer import cross_attend, feed_forward, self_attend

__all__ = [
    "cross_attend", "dequantize_rows", "expand", "expand_bfloat16", "feed_forward", "hamming", "look_up",
    "max_similarity", "multiply", "multiply_back", "nearest", "nearest_k", "pack", "quantize_rows", "scale_rows",
    "self_attend", "unpack",
]  # fmt: skip

GRAIN = 64  # rows of a per task of a parallel loop
# Words compared, about 0.1 s.  Where other work holds the cores, a parallel loop waits 4 to 8 ms for its threads.
WORTHWHILE = 10**9
BLOCK = 64  # rows of a tile that are looked through together
TILE = 1024  # rows of b compared at a time: with W = 12 they take 96 KiB, which stays in the second-level cache
NAN = np.float32(np.nan)
ONE = np.uint64(1)
FARTHEST = np.int32(2**31 - 1)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view, so that a kernel is compiled once and not again for arrays over read-only buffers."""
    view = array.view()
    view.flags.writeable = False
    return view


@compiled()
def _pack_rows(ordered: Array, top: Any, packed: Array) -> None:
    width = ordered.shape[1]
    for m in range(packed.shape[0]):
        for w in range(packed.shape[1]):
            word = np.uint64(0)
            for j in range(min(64, width - 64 * w)):
                value = ordered[m, 64 * w + j]
                if value > 0 and value <= top:
                    word |= ONE << np.uint64(j)
            packed[m, w] = word


# The bits of floats, read as signed integers, are in the order of the floats for the positive ones, negative for the
# negative ones, and above infinity for NaN: so `> 0` needs no float16 arithmetic, which processors and Numba lack.
_ORDERED: dict[str, tuple[type[np.signedinteger[Any]], int]] = {
    "bool": (np.int8, 0x7F),
    "int8": (np.int8, 0x7F),
    "float16": (np.int16, 0x7C00),
    "float32": (np.int32, 0x7F800000),
}


def pack(signs: NDArray[Any]) -> NDArray[np.uint64]:
    """Pack as `reference.pack`."""
    if signs.dtype.name not in _ORDERED:
        signs = np.greater(signs, 0)
    integer, top = _ORDERED[signs.dtype.name]
    packed = np.empty((signs.shape[0], -(-signs.shape[1] // 64)), np.uint64)
    _pack_rows(_frozen(signs.view(integer)), integer(top), packed)
    return packed


@compiled()
def _unpack_rows(packed: Array, signs: Array) -> None:
    width = signs.shape[1]
    for m in range(packed.shape[0]):
        for w in range(packed.shape[1]):
            word = packed[m, w]
            for j in range(min(64, width - 64 * w)):
                signs[m, 64 * w + j] = 1 if word & (ONE << np.uint64(j)) else -1


def unpack(packed: NDArray[np.uint64], width: int) -> NDArray[np.int8]:
    """Unpack as `reference.unpack`."""
    signs = np.empty((len(packed), width), np.int8)
    _unpack_rows(_frozen(packed), signs)
    return signs


@njit_(inline="always")
def _value(word: Any, j: int, high: Any, low: Any, scale: Any) -> Any:
    # The bit is tested where it stands and both values are loaded: one masked blend per vector.  Shifting the bit down
    # and loading only the chosen value ran at a quarter of the speed.
    value = (high if word & (ONE << np.uint64(j)) else low) * scale
    return value if value == value else NAN


@njit_(inline="always")
def _fill(word: Any, m: int, first: int, count: int, high: Array, low: Array, scale: Any, values: Array) -> None:
    for j in range(count):
        d = first + j
        values[m, d] = _value(word, j, high[d], low[d], scale)


@njit_(inline="always")
def _fill_bfloat16(
    word: Any, m: int, first: int, count: int, high: Array, low: Array, scale: Any, values: Array
) -> None:
    for j in range(count):
        d = first + j
        values[m, d] = rounded(bits_of(_value(word, j, high[d], low[d], scale)))


# Full words apart from the last: a loop of a constant 64 steps has no remainder to test for, which is worth half as
# much again in bfloat16.  No parallel loop: on two cores it gained nothing on 184 MB, where new pages set
# the pace, and on 24 MB it saved 0.3 ms when both were free and lost 4 to 8 ms when they were not.
@compiled()
def _expand_rows(packed: Array, high: Array, low: Array, scale: Array, values: Array) -> None:
    full, rest = values.shape[1] // 64, values.shape[1] % 64
    for m in range(values.shape[0]):
        for w in range(full):
            _fill(packed[m, w], m, 64 * w, 64, high, low, scale[m], values)
        if rest:
            _fill(packed[m, full], m, 64 * full, rest, high, low, scale[m], values)


@compiled()
def _expand_bfloat16_rows(packed: Array, high: Array, low: Array, scale: Array, values: Array) -> None:
    full, rest = values.shape[1] // 64, values.shape[1] % 64
    for m in range(values.shape[0]):
        for w in range(full):
            _fill_bfloat16(packed[m, w], m, 64 * w, 64, high, low, scale[m], values)
        if rest:
            _fill_bfloat16(packed[m, full], m, 64 * full, rest, high, low, scale[m], values)


def _channels(
    packed: NDArray[np.uint64],
    mean: NDArray[np.float32],
    magnitude: NDArray[np.float32],
    scale: NDArray[np.float32] | None,
) -> tuple[NDArray[Any], ...]:
    """Return packed (M, W), the value of a set and of a clear bit (D,), and scale (M,): times 1 is the identity."""
    with np.errstate(all="ignore"):
        high, low = mean + magnitude, mean - magnitude
    factors = np.ones(len(packed), np.float32) if scale is None else scale
    return _frozen(packed), _frozen(high), _frozen(low), _frozen(factors)


def expand(
    packed: NDArray[np.uint64],
    mean: NDArray[np.float32],
    magnitude: NDArray[np.float32],
    scale: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Expand as `reference.expand`."""
    values = np.empty((len(packed), mean.size), np.float32)
    _expand_rows(*_channels(packed, mean, magnitude, scale), values)
    return values


def expand_bfloat16(
    packed: NDArray[np.uint64],
    mean: NDArray[np.float32],
    magnitude: NDArray[np.float32],
    scale: NDArray[np.float32] | None,
) -> NDArray[np.uint16]:
    """Expand as `reference.expand_bfloat16`."""
    values = np.empty((len(packed), mean.size), np.uint16)
    _expand_bfloat16_rows(*_channels(packed, mean, magnitude, scale), values)
    return values


@compiled()
def _load_tile(b: Array, first: int, tile: Array) -> int:
    count = min(tile.shape[1], b.shape[0] - first)
    for p in range(count):
        for w in range(tile.shape[0]):
            tile[w, p] = b[first + p, w]
    return count


@compiled()
def _count(a: Array, m: int, tile: Array, counts: Array) -> None:
    # Along p, not along w: a vector then holds 8 or 16 pairs, where W = 12 words would fill one and a half.
    for p in range(counts.size):
        counts[p] = 0
    for w in range(tile.shape[0]):
        word = a[m, w]
        for p in range(counts.size):
            counts[p] += np.int32(ctpop(word ^ tile[w, p]))


@compiled()
def _hamming_rows(start: int, stop: int, a: Array, b: Array, distance: Array) -> None:
    size = min(TILE, b.shape[0])
    tile, counts = np.zeros((b.shape[1], size), np.uint64), np.empty(size, np.int32)
    for first in range(0, b.shape[0], TILE):
        count = _load_tile(b, first, tile)
        for m in range(start, stop):
            _count(a, m, tile, counts)
            row = distance[m, first : first + count]
            for p in range(count):
                row[p] = counts[p]


@compiled()
def _find(counts: Array, value: Any) -> int:
    p = 0
    while counts[p] != value:
        p += 1
    return p


@compiled()
def _nearest_rows(start: int, stop: int, a: Array, b: Array, index: Array, distance: Array) -> None:
    size = min(TILE, b.shape[0])
    tile, counts = np.zeros((b.shape[1], size), np.uint64), np.empty(size, np.int32)
    for m in range(start, stop):
        distance[m] = FARTHEST
    for first in range(0, b.shape[0], TILE):
        count = _load_tile(b, first, tile)
        for m in range(start, stop):
            _count(a, m, tile, counts)
            least = distance[m]
            for p in range(count):
                least = min(least, counts[p])
            if least < distance[m]:
                distance[m] = least
                index[m] = first + _find(counts, least)


@compiled()
def _keep(index: Array, distance: Array, p: int, count: Any) -> None:
    # Insertion from the end: after those at the same distance, whose indices are lower.
    place = distance.size - 1
    while place > 0 and distance[place - 1] > count:
        distance[place] = distance[place - 1]
        index[place] = index[place - 1]
        place -= 1
    distance[place] = count
    index[place] = p


@compiled()
def _nearest_k_rows(start: int, stop: int, a: Array, b: Array, index: Array, distance: Array) -> None:
    size, last = min(TILE, b.shape[0]), distance.shape[1] - 1
    tile, counts = np.zeros((b.shape[1], size), np.uint64), np.empty(size, np.int32)
    for m in range(start, stop):
        for place in range(last + 1):
            distance[m, place] = FARTHEST
    for first in range(0, b.shape[0], TILE):
        count = _load_tile(b, first, tile)
        for m in range(start, stop):
            _count(a, m, tile, counts)
            for begin in range(0, count, BLOCK):  # most blocks hold nothing near enough, which a vector minimum tells
                end, least = min(begin + BLOCK, count), FARTHEST
                for p in range(begin, end):
                    least = min(least, counts[p])
                if least < distance[m, last]:
                    for p in range(begin, end):
                        if counts[p] < distance[m, last]:
                            _keep(index[m], distance[m], first + p, counts[p])


@compiled(parallel=True)
def _hamming_tasks(a: Array, b: Array, distance: Array) -> None:
    rows = a.shape[0]
    for task in prange((rows + GRAIN - 1) // GRAIN):
        _hamming_rows(task * GRAIN, min(rows, (task + 1) * GRAIN), a, b, distance)


@compiled(parallel=True)
def _nearest_tasks(a: Array, b: Array, index: Array, distance: Array) -> None:
    rows = a.shape[0]
    for task in prange((rows + GRAIN - 1) // GRAIN):
        _nearest_rows(task * GRAIN, min(rows, (task + 1) * GRAIN), a, b, index, distance)


@compiled(parallel=True)
def _nearest_k_tasks(a: Array, b: Array, index: Array, distance: Array) -> None:
    rows = a.shape[0]
    for task in prange((rows + GRAIN - 1) // GRAIN):
        _nearest_k_rows(task * GRAIN, min(rows, (task + 1) * GRAIN), a, b, index, distance)


def _run(serial: Any, parallel: Any, a: NDArray[np.uint64], b: NDArray[np.uint64], *results: NDArray[Any]) -> None:
    """Run a kernel over all rows of a: in parallel if the work is worth it and the gate is free."""
    arrays = (_frozen(a), _frozen(b), *results)
    if a.size * len(b) < WORTHWHILE or not in_parallel(parallel, usable_threads(), *arrays):
        serial(0, len(a), *arrays)


def hamming(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Count differing bits as `reference.hamming`."""
    distance = np.empty((len(a), len(b)), np.int32)
    _run(_hamming_rows, _hamming_tasks, a, b, distance)
    return distance


def nearest(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Find the nearest rows as `reference.nearest`."""
    index, distance = np.empty(len(a), np.int64), np.empty(len(a), np.int32)
    _run(_nearest_rows, _nearest_tasks, a, b, index, distance)
    return index, distance


def nearest_k(a: NDArray[np.uint64], b: NDArray[np.uint64], k: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Find the k nearest rows as `reference.nearest_k`."""
    index, distance = np.empty((len(a), k), np.int64), np.empty((len(a), k), np.int32)
    _run(_nearest_k_rows, _nearest_k_tasks, a, b, index, distance)
    return index, distance
