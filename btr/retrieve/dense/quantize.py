"""Vectors to signs and back: one to four binary codes a vector.

A vector x is rotated, x' = R x, and becomes sign(x'). R is learned so that x' lies near its signs (ITQ, Gong and
Lazebnik 2011): 40 rotations of a sample in turn with its signs; no bytes, and more recall than the axes give. Further
codes are signs of what is left, each with a scale of its own (the recurrence of BEBR, arXiv 2302.08714, without its
learned layers):

    r_0 = x',  b_c = sign(r_c),  s_c = mean |r_c|,  r_(c+1) = r_c - s_c b_c,  x' ~ sum over c of s_c b_c

All scales of a vector are then multiplied by |x|^2 / <x', sum s_c b_c>, so that the estimate has the vector's own inner
product with it, not less (RaBitQ, arXiv 2405.12497, whose rotation is random and whose vectors are centred). One code
of vectors of length 1 may go without a scale. Queries stay floats: the score of a passage is sum s_c <R q, b_c>.

Shapes: N vectors, D dimensions, C codes, W = ceil(D / 64) words.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from btr import kernels
from btr.errors import InputError
from btr.model.checkpoint import tensors
from btr.model.weights import read_weights

MOST_CODES = 4
ROUNDS = 40  # of ITQ

Floats = NDArray[np.float32]
Words = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Quantizer:
    """A rotation float32 (D, D), rows to be multiplied from the left; C codes; whether each has a scale."""

    rotation: Floats
    codes: int
    scaled: bool

    @classmethod
    def fit(cls, sample: Floats, codes: int = 1, scaled: bool = False) -> Self:
        """Learn the rotation from vectors (N, D); scaled: one code of vectors of equal length has a scale too.

        Raises:
            InputError: codes out of range.
        """
        if not 1 <= codes <= MOST_CODES:
            raise InputError(f"codes is {codes}; use 1 to {MOST_CODES}")
        lengths = np.linalg.norm(sample, axis=1)
        unequal = bool(np.ptp(lengths) > 0.02 * lengths.mean())
        return cls(learn_rotation(sample), codes, scaled or codes > 1 or unequal)

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.rotation)

    @property
    def words(self) -> int:
        """W."""
        return -(-self.dimension // 64)

    @property
    def bytes(self) -> int:
        """Bytes of a vector in memory and on disk."""
        return self.codes * (8 * self.words + 2 * self.scaled)

    def encode(self, vectors: Floats) -> tuple[Words, NDArray[np.float16]]:
        """Return the codes uint64 (C, N, W) and scales float16 (N, C), which are 1 where codes have none."""
        rotated = left = vectors @ self.rotation
        words = np.empty((self.codes, len(left), self.words), np.uint64)
        scales = np.ones((len(left), self.codes), np.float16)
        for code in range(self.codes):
            words[code] = kernels.pack(left)
            if self.scaled:
                scales[:, code] = np.abs(left).mean(1)
                left = left - scales[:, code, None].astype(np.float32) * np.where(left > 0, 1, -1).astype(np.float32)
        return words, unbiased(scales, rotated, rotated - left) if self.scaled else scales

    def rotate(self, queries: Floats) -> Floats:
        """Bring queries (Q, D) into the basis of the codes."""
        return queries @ self.rotation

    def scores(self, query: Floats, words: Words, scales: NDArray[np.float16]) -> Floats:
        """Score passages, codes (C, N, W) and scales (N, C), for a rotated query (D,): float32 (N,)."""
        total = np.zeros(words.shape[1], np.float32)
        for code in range(self.codes):
            signs = kernels.unpack(words[code], self.dimension).astype(np.float32)
            # einsum: a row's sum does not depend, in its last bit, on the other rows, as a matrix product's does
            total += scales[:, code].astype(np.float32) * np.einsum("nd,d->n", signs, query)
        # Signs are longer than the vectors they stand for: of one code without scale this brings scores near cosines.
        return total if self.scaled else total / np.float32(np.sqrt(self.dimension))

    def save(self, path: Path) -> None:
        """Write the rotation, whole or not at all."""
        facts = torch.tensor([self.codes, int(self.scaled)])
        tensors(path, {"rotation": torch.from_numpy(self.rotation), "facts": facts})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; InputError names the file."""
        values = read_weights(path)
        try:
            codes, scaled = values["facts"].tolist()
            rotation = values["rotation"].numpy()
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: not a rotation ({error}); build the index again") from error
        return cls(rotation, codes, bool(scaled))


def unbiased(scales: NDArray[np.float16], vectors: Floats, estimates: Floats) -> NDArray[np.float16]:
    """Stretch the scales (N, C) of estimates (N, D) to the vectors' own inner products with them; of 0 it stays 0."""
    lengths, products = (vectors**2).sum(1), (vectors * estimates).sum(1)
    stretch = np.divide(lengths, products, out=np.ones_like(products), where=products > 0)
    return (scales * stretch[:, None]).astype(np.float16)


def learn_rotation(sample: Floats, rounds: int = ROUNDS, seed: int = 0) -> Floats:
    """Turn a sample (N, D) until it lies near its signs: R minimising |sign(X R) - X R|, from a random rotation.

    Fewer than D vectors leave directions of which nothing is known, and rounding would choose them: R is then the
    random rotation itself.
    """
    D = sample.shape[1]
    values = sample.astype(np.float64)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((D, D)))[0]
    for _ in range(rounds if len(sample) >= D else 0):
        signs = np.where(values @ rotation > 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(values.T @ signs)
        rotation = left @ right
    return np.ascontiguousarray(rotation, np.float32)
