"""Define what the kernels compute, in NumPy; every other back end promises equality to the bit.

Bit order, stated here and only here.  Channel 64*w + j of a token is bit j (of value 2**j) of its word w: little-endian
order, the least significant bit first.  A set bit is the sign +1, a clear bit -1.  The last word is padded with clear
bits up to W = ceil(D/64) words.  Written as little-endian words, byte i of a row therefore holds channels 8*i .. 8*i+7,
again from the least significant bit up.

Arrays come in checked by `btr.kernels`: two-dimensional, C-contiguous, aligned, native byte order, D >= 1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]
LEAST = np.float32(2.0**-100)  # magnitude below which a row is quantized to zeros: 127 / top has to be finite


def pack(signs: NDArray[Any]) -> NDArray[np.uint64]:
    """Pack signs (M, D), bool or real, into words (M, W): 1 where signs > 0, else 0 (so for 0, -0 and NaN)."""
    rows, width = signs.shape
    words = -(-width // 64)
    padded = np.zeros((rows, 8 * words), np.uint8)
    padded[:, : -(-width // 8)] = np.packbits(signs > 0, axis=1, bitorder="little")
    return padded.view("<u8").astype(np.uint64, copy=False)


def unpack(packed: NDArray[np.uint64], width: int) -> NDArray[np.int8]:
    """Unpack words (M, W) into int8 (M, D) of +1 and -1, D = `width`; padding bits are not read."""
    octets = packed.astype("<u8", copy=False).view(np.uint8)
    bits = np.unpackbits(octets, axis=1, count=width, bitorder="little").view(np.int8)
    return 2 * bits - 1


def expand(
    packed: NDArray[np.uint64],
    mean: NDArray[np.float32],
    magnitude: NDArray[np.float32],
    scale: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Expand words (M, W) into float32 (M, D): fl32(mean + magnitude*b), then fl32(that * scale[m]) if scale is given.

    The product with b = +1 or -1 is exact, so there are two values per channel and no question of fused arithmetic.
    IEEE rules hold for infinities and overflow; every NaN leaves as the one pattern 0x7fc00000, whatever its origin,
    because payload and sign of a NaN depend on the processor.  Nothing is reported as a floating-point warning.
    """
    with np.errstate(all="ignore"):
        values = np.where(unpack(packed, mean.size) > 0, mean + magnitude, mean - magnitude)
        if scale is not None:
            values *= scale[:, None]
    values[np.isnan(values)] = np.nan
    return values


def expand_bfloat16(
    packed: NDArray[np.uint64],
    mean: NDArray[np.float32],
    magnitude: NDArray[np.float32],
    scale: NDArray[np.float32] | None,
) -> NDArray[np.uint16]:
    """Expand as `expand`, rounded once more to bfloat16 patterns in uint16 (M, D): to nearest, ties to even.

    Values past the largest bfloat16 round to infinity, subnormals are kept, NaN is 0x7fc0.
    """
    return narrow(expand(packed, mean, magnitude, scale))


def narrow(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to bfloat16 patterns: to nearest, ties to even; every NaN becomes 0x7fc0."""
    bits = values.view(np.uint32)
    # Adding just under half of the last kept place, plus one where that place is odd, carries exactly when it must.
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def widen(patterns: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 values of bfloat16 patterns."""
    return (patterns.astype(np.uint32) << 16).view(np.float32)


def look_up(
    values: NDArray[np.uint16], table: NDArray[np.float32], factors: NDArray[np.uint16] | None, threads: int
) -> None:
    """Replace bfloat16 patterns by what table (65536,) has for them, times bfloat16 factors if given, rounded once."""
    with np.errstate(all="ignore"):
        found = table[values]
        values[...] = narrow(found if factors is None else found * widen(factors))


def scale_rows(
    values: NDArray[np.uint16], scale: NDArray[np.float32], weight: NDArray[np.float32], threads: int
) -> None:
    """Multiply bfloat16 patterns (M, D) by scale (M,), round, multiply by weight (D,), and round again."""
    with np.errstate(all="ignore"):
        values[...] = narrow(widen(narrow(widen(values) * scale[:, None])) * weight)


def quantize_rows(
    values: NDArray[np.uint16], codes: NDArray[np.uint8], step: NDArray[np.float32], threads: int
) -> None:
    """Round rows of bfloat16 patterns (M, D) into codes (M, D), and the steps of each row into step (M,)."""
    wide = widen(values)
    top = np.abs(wide).max(1, initial=0)  # NaN if one is
    with np.errstate(all="ignore"):
        step[...] = np.where(np.isfinite(top), top / np.float32(127), np.float32(np.nan))
        inverse = np.where(np.isfinite(top) & (top >= LEAST), np.float32(127) / top, np.float32(0))
        codes[...] = np.nan_to_num(wide * inverse[:, None] + np.float32(128.5), nan=128)


def dequantize_rows(
    values: NDArray[np.uint16], step: NDArray[np.float32], bias: NDArray[np.float32], threads: int
) -> None:
    """Multiply bfloat16 patterns (M, D) by step (M,), add bias (D,), and round."""
    with np.errstate(all="ignore"):
        values[...] = narrow(widen(values) * step[:, None] + bias)


def multiply(matrix: Any, x: NDArray[np.float32], out: NDArray[np.float32], threads: int) -> None:
    """Multiply a `Matrix` (O, I) with x (G, I), O/G of its rows with each row of x, into out (O,).

    Other back ends add in another order, here and in all that follows.
    """
    each = out.size // len(x)
    for g, row in enumerate(x):
        part = slice(g * each, (g + 1) * each)
        out[part] = matrix.scale[part] * (numbers(matrix.values[part]) @ row)


def multiply_back(matrix: Any, x: NDArray[np.float32], out: NDArray[np.float32], threads: int) -> None:
    """Multiply the transpose of a `Matrix` (O, I) with x (O,), O/G of its numbers for each row of out (G, I)."""
    each, factors = x.size // len(out), matrix.scale * x
    for g, row in enumerate(out):
        part = slice(g * each, (g + 1) * each)
        row[:] = factors[part] @ numbers(matrix.values[part])


def numbers(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return int8, or what bfloat16 patterns mean, as float32."""
    return values.astype(np.float32) if values.dtype == np.int8 else widen(values)


def times(matrix: Any, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Multiply a `Matrix` with one row (I,): (O,)."""
    return np.asarray(matrix.scale * (numbers(matrix.values) @ x))


def normed(row: NDArray[np.float32], norm: Any) -> NDArray[np.float32]:
    """Scale a row (D,) by its root mean square, and by the weights of a `Norm`."""
    return np.asarray(row / np.sqrt(np.square(row).mean() + norm.eps) * norm.weight)


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the softmax over the last axis."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def self_attend(
    row: NDArray[np.float32], norm: Any, attention: Any, keys: Any, values: Any, bias: Any, t: int, threads: int
) -> None:
    """Add to a row (D,) what its heads find in it and the rows before it, t of them, under bias (H, S, S).

    Fills keys and values (H, S, d), float32, at t.
    """
    x, heads, seen = normed(row, norm), len(keys), slice(t + 1)
    query, keys[:, t], values[:, t] = (times(part, x).reshape(heads, -1) for part in attention[:3])
    scores = np.matmul(keys[:, seen], query[:, :, None])[:, :, 0] + bias[:, t, seen]
    row += times(attention.o, np.matmul(softmax(scores)[:, None], values[:, seen]).reshape(-1))


def cross_attend(
    row: NDArray[np.float32], norm: Any, q: Any, o: Any, keys: Any, values: Any, bias: Any, attended: Any, threads: int
) -> None:
    """Add to a row (D,) what its heads find in a memory under bias (M,); and to attended (M,) their mean weights.

    keys and values (H, M, d) are bfloat16 patterns.
    """
    asked = times(q, normed(row, norm)).reshape(len(keys), -1, 1)
    weights = softmax(np.matmul(widen(keys), asked)[:, :, 0] + bias)
    attended += weights.mean(0)
    row += times(o, np.matmul(weights[:, None], widen(values)).reshape(-1))


def feed_forward(row: Row, norm: Any, wi: Any, wo: Any, gate: Any, table: Any, threads: int) -> None:
    """Add to a row (D,) its feed-forward: of ReLU, or, with a gate, of what table (65536,) has for its bfloat16."""
    x = normed(row, norm)
    inner = times(wi, x)
    row += times(wo, np.maximum(inner, 0) if gate is None else inner * table[narrow(times(gate, x))])


def hamming(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int32]:
    """Count differing bits of every pair of rows of a (M, W) and b (P, W): int32 (M, P), exact for D < 2**31."""
    distance = np.empty((len(a), len(b)), np.int32)
    for row, words in zip(distance, a, strict=True):  # row by row: all pairs at once would need M*P*W words
        np.bitwise_count(words ^ b).sum(axis=1, dtype=np.int32, out=row)
    return distance


def nearest(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Find for every row of a (M, W) the row of b (P, W), P >= 1, at the least distance; ties go to the lowest index.

    Returns the index int64 (M,) and the distance int32 (M,).
    """
    index = np.empty(len(a), np.int64)
    distance = np.empty(len(a), np.int32)
    for m in range(len(a)):
        row = hamming(a[m : m + 1], b)[0]
        index[m] = row.argmin()
        distance[m] = row[index[m]]
    return index, distance


def nearest_k(a: NDArray[np.uint64], b: NDArray[np.uint64], k: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Find for every row of a (M, W) the k rows of b (P, W), 1 <= k <= P, at the least distances, nearest first.

    Of equal distances the lower index comes first, and is the one that is kept. Returns the indices int64 (M, k) and
    the distances int32 (M, k).
    """
    index = np.empty((len(a), k), np.int64)
    distance = np.empty((len(a), k), np.int32)
    for m in range(len(a)):
        row = hamming(a[m : m + 1], b)[0]
        index[m] = np.argsort(row, kind="stable")[:k]
        distance[m] = row[index[m]]
    return index, distance


def max_similarity(
    question: NDArray[np.int8], packed: NDArray[np.uint64], offsets: NDArray[np.int64], base: NDArray[np.int32] | None
) -> NDArray[np.int64]:
    """Sum over question tokens the largest of base + product with the signs of a passage's tokens: int64 (N,)."""
    signs = unpack(packed, question.shape[1])
    products = signs.astype(np.int32) @ question.T.astype(np.int32)
    scores = products if base is None else products + base
    return np.asarray(np.maximum.reduceat(scores, offsets[:-1], axis=0).sum(1, dtype=np.int64))
