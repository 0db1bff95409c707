"""What the signs of a vector leave, in more bits where more is left: transform coding (Goyal 2001).

Coordinates are those along the principal directions of a sample's residuals. Bits are dealt one at a time to the
coordinate where one takes most error off (reverse water-filling), at most MOST_BITS each; a coordinate becomes the
nearest of 2 ** bits levels, which are Lloyd and Max's for a normal distribution. Half of the directions of usual
vectors get none.

Shapes: N vectors, D dimensions, K coordinates with bits.
"""

import itertools
import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

MOST_BITS = 6  # of a coordinate
ROUNDS = 200  # of Lloyd's algorithm

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Residual:
    """The mean (D,), directions (D, K), spread (K,) and bits (K,), falling, of what is coded."""

    mean: Floats
    basis: Floats
    spread: Floats
    bits: NDArray[np.uint8]

    @classmethod
    def fit(cls, sample: Floats, bits: int) -> Self:
        """Learn directions from residuals (N, D), and deal so many bits in all.

        Few vectors tell the variances of directions badly, so these are shrunk to their mean by D / (N + D).
        """
        (N, D), mean = sample.shape, sample.mean(0, dtype=np.float64)
        centred = sample - mean
        covariance, share = centred.T @ centred / N, D / (N + D)
        variances, basis = np.linalg.eigh((1 - share) * covariance + share * covariance.trace() / D * np.eye(D))
        spread = np.sqrt(np.maximum(variances[::-1], 0))
        dealt = deal(spread, bits)
        order = np.argsort(-dealt, kind="stable")[: np.count_nonzero(dealt)]
        chosen = np.ascontiguousarray(basis[:, ::-1][:, order], np.float32)
        return cls(mean.astype(np.float32), chosen, spread[order].astype(np.float32), dealt[order].astype(np.uint8))

    @property
    def bytes(self) -> int:
        """Bytes of a vector."""
        return -(-int(self.bits.sum()) // 8)

    def encode(self, residuals: Floats) -> NDArray[np.uint8]:
        """Return the codes (N, bytes) of residuals (N, D)."""
        found = (residuals - self.mean) @ self.basis / np.where(self.spread > 0, self.spread, 1)
        parts = [np.empty((len(found), 0), np.uint8)]
        for bits, columns in self._groups():
            known = levels(bits)
            numbers = np.searchsorted((known[1:] + known[:-1]) / 2, found[:, columns])
            parts += [(numbers >> place & 1).astype(np.uint8) for place in range(bits)]
        return np.packbits(np.concatenate(parts, 1), axis=1)

    def decode(self, codes: NDArray[np.uint8]) -> Floats:
        """Return the coordinates (N, K) of codes (N, bytes), without the mean."""
        all_bits, start = np.unpackbits(codes, axis=1), 0
        found = np.empty((len(codes), len(self.bits)), np.float32)
        for bits, columns in self._groups():
            size = columns.stop - columns.start
            numbers: NDArray[Any] = np.zeros((len(codes), size), np.uint8)
            for place in range(bits):
                numbers = numbers | all_bits[:, start : start + size] << place
                start += size
            found[:, columns] = levels(bits)[numbers] * self.spread[columns]
        return found

    def restore(self, codes: NDArray[np.uint8]) -> Floats:
        """Return residuals (N, D) as codes have them."""
        return self.decode(codes) @ self.basis.T + self.mean

    def _groups(self) -> list[tuple[int, slice]]:
        """Return the coordinates of each number of bits."""
        sizes = [(bits, len(list(same))) for bits, same in itertools.groupby(self.bits.tolist())]
        ends = list(itertools.accumulate(size for _, size in sizes))
        return [(bits, slice(end - size, end)) for (bits, size), end in zip(sizes, ends, strict=True)]


def deal(spread: NDArray[np.float64], bits: int) -> NDArray[np.int64]:
    """Return the bits of each coordinate (D,) of these standard deviations."""
    errors = np.array([error(count) for count in range(MOST_BITS + 1)])
    gains = np.append(errors[:-1] - errors[1:], -1)  # of one more bit; never one more than MOST_BITS
    dealt = np.zeros(len(spread), np.int64)
    left = np.where(spread > 0, spread**2, np.finfo(float).tiny) * gains[0]
    for _ in range(bits):
        place = int(left.argmax())
        dealt[place] += 1
        left[place] = max(spread[place] ** 2, np.finfo(float).tiny) * gains[dealt[place]]
    return dealt


@cache
def levels(bits: int) -> Floats:
    """Return the 2 ** bits values, rising, that a standard normal variable is nearest to on average."""
    spread = NormalDist(0, math.sqrt(3))  # of the levels, if there were many (Panter and Dite)
    found = np.array([spread.inv_cdf((number + 0.5) / 2**bits) for number in range(2**bits)])
    for _ in range(ROUNDS):
        masses, moments = _between(found)
        found = -np.diff(moments) / masses
    return found.astype(np.float32)


@cache
def error(bits: int) -> float:
    """Return the mean squared error of a standard normal variable in so many bits."""
    known = levels(bits).astype(np.float64)
    masses, moments = _between(known)
    return float(1 + (known**2 * masses).sum() + 2 * (known * np.diff(moments)).sum())


def _between(known: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mass of a standard normal variable nearest to each level, and its density at the borders."""
    borders = np.concatenate(([-np.inf], (known[1:] + known[:-1]) / 2, [np.inf]))
    normal = NormalDist()
    return np.diff([normal.cdf(border) for border in borders]), np.exp(-(borders**2) / 2) / math.sqrt(2 * math.pi)
