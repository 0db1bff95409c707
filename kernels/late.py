"""Compare question tokens with the signs of passage tokens as machine code; equal to `btr.kernels.reference`.

An int8 number q is q + 128 = sum over p of 2**p * bit p, so a product with signs is eight counts of common set bits:
q . s = 2 * sum over set signs of (q + 128) - sum of (q + 128) - 128 * (2 * set signs - D).
"""

import numpy as np
from numpy.typing import NDArray

from btr.kernels.compiled import Array, compiled, ctpop
from btr.kernels.reference import pack

LEAST = np.int32(-(2**31))


@compiled()
def _best_rows(planes: Array, constant: Array, packed: Array, offsets: Array, base: Array, out: Array) -> None:
    # Along t, whose counts stand side by side: a vector holds 8 question tokens, where W words would fill less.
    width, tokens = planes.shape[1], planes.shape[2]
    counts, best = np.empty(tokens, np.int32), np.empty(tokens, np.int32)
    based = base.shape[0] > 0
    for n in range(out.size):
        for t in range(tokens):
            best[t] = LEAST
        for m in range(offsets[n], offsets[n + 1]):
            positive = np.int32(0)
            for t in range(tokens):
                counts[t] = 0
            for w in range(width):
                word = packed[m, w]
                positive += np.int32(ctpop(word))
                for p in range(8):
                    for t in range(tokens):
                        counts[t] += np.int32(ctpop(word & planes[p, w, t])) << np.int32(p + 1)
            for t in range(tokens):
                value = counts[t] - constant[t] - np.int32(256) * positive
                if based:
                    value += base[m, t]
                best[t] = max(best[t], np.int32(value))
        total = np.int64(0)
        for t in range(tokens):
            total += np.int64(best[t])
        out[n] = total


def max_similarity(
    question: NDArray[np.int8], packed: NDArray[np.uint64], offsets: NDArray[np.int64], base: NDArray[np.int32] | None
) -> NDArray[np.int64]:
    """Score passages as `reference.max_similarity`."""
    width = question.shape[1]
    above = question.astype(np.int16) + 128
    planes = np.stack([pack((above >> p) & 1).T for p in range(8)])
    constant = (above.sum(1) - 128 * width).astype(np.int32)
    out = np.empty(len(offsets) - 1, np.int64)
    base = np.empty((0, 0), np.int32) if base is None else base
    _best_rows(np.ascontiguousarray(planes), constant, packed, offsets, base, out)
    return out
