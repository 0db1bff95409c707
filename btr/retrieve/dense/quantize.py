"""Vectors to bits and back: one to four bits a dimension.

A vector x is rotated, x' = R x, and becomes sign(x'). R is learned so that x' lies near its signs (ITQ, Gong and
Lazebnik 2011): 40 rotations of a sample in turn with its signs; no bytes, and more recall than the axes give. Further
bits code what cannot be told from all signs together, of b bits a dimension (b - 1) D, dealt where most is left:

    u = x' / |x'|,  e = sign(u) A + residual,  x' ~ |x|^2 / <x', e> e

A (D, D) is fitted to the sample by least squares: signs of real vectors tell of each other's dimensions. The factor
gives the estimate the vector's own inner product with it, not less (RaBitQ, arXiv 2405.12497, whose rotation is random
and whose vectors are centred). Of one bit e is sign(u), and vectors of length 1 may go without the factor.
Queries stay floats: the score of a passage is the inner product of R q with the estimate.

Shapes: N vectors, D dimensions, W = ceil(D / 64) words, Q queries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from btr import kernels
from btr.errors import InputError
from btr.model.checkpoint import tensors
from btr.model.weights import read_weights
from btr.retrieve.dense.residual import Residual

MOST_CODES = 4
CODES = 2  # where nothing is said
ROUNDS = 40  # of ITQ

Floats = NDArray[np.float32]
SIGNS, REST, SCALES = "codes-0.bin", "rest.bin", "scales.bin"  # what a vector becomes, by names of files
Rows = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Quantizer:
    """A rotation float32 (D, D), rows to be multiplied from the left; bits a dimension; whether vectors have a scale.

    telling: A, what all signs tell of each dimension, float32 (D, D); residual: what they leave. Of one bit neither is.
    """

    rotation: Floats
    codes: int
    scaled: bool
    telling: Floats | None = None
    residual: Residual | None = None

    @classmethod
    def fit(cls, sample: Floats, codes: int = 1, scaled: bool = False) -> Self:
        """Learn from vectors (N, D); scaled: one bit a dimension of vectors of equal length has a scale too.

        Raises:
            InputError: codes out of range.
        """
        if not 1 <= codes <= MOST_CODES:
            raise InputError(f"codes is {codes}; use 1 to {MOST_CODES}")
        lengths = np.linalg.norm(sample, axis=1)
        unequal = bool(np.ptp(lengths) > 0.02 * lengths.mean())
        rotation = learn_rotation(sample)
        if codes == 1:
            return cls(rotation, codes, scaled or unequal)
        units = unit(sample @ rotation)
        telling = learn_telling(units)
        residual = Residual.fit(units - signs(units) @ telling, (codes - 1) * sample.shape[1])
        return cls(rotation, codes, True, telling, residual)

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.rotation)

    @property
    def words(self) -> int:
        """W."""
        return -(-self.dimension // 64)

    @property
    def files(self) -> dict[str, tuple[str, int]]:
        """The type and the number of columns of each of the rows of a vector."""
        found = {SIGNS: ("<u8", self.words)}
        if self.residual is not None:
            found[REST] = ("|u1", self.residual.bytes)
        return found | ({SCALES: ("<f2", 1)} if self.scaled else {})

    @property
    def bytes(self) -> int:
        """Bytes of a vector in memory and on disk."""
        return sum(np.dtype(kind).itemsize * columns for kind, columns in self.files.values())

    def encode(self, vectors: Floats) -> dict[str, NDArray[Any]]:
        """Return the rows of vectors (N, D), by the names of `files`."""
        rotated = self.rotate(vectors)
        rows: dict[str, NDArray[Any]] = {SIGNS: kernels.pack(rotated)}
        estimate = signs(rotated)
        if self.telling is not None and self.residual is not None:
            estimate = estimate @ self.telling
            rows[REST] = self.residual.encode(unit(rotated) - estimate)
            estimate += self.residual.restore(rows[REST])
        return rows | ({SCALES: unbiased(rotated, estimate)} if self.scaled else {})

    def rotate(self, queries: Floats) -> Floats:
        """Bring vectors (N, D) into the basis of the signs."""
        return queries @ self.rotation

    def scores(self, query: Floats, rows: Rows) -> Floats:
        """Score passages by their rows (N, ...) for a rotated query (D,): float32 (N,)."""
        # einsum: a row's sum does not depend, in its last bit, on the other rows, as a matrix product's does
        asked = query if self.telling is None else self.telling @ query
        total = np.einsum("nd,d->n", kernels.unpack(rows[SIGNS], self.dimension).astype(np.float32), asked)
        if self.residual is not None:
            total += np.einsum("nk,k->n", self.residual.decode(rows[REST]), query @ self.residual.basis)
            total += query @ self.residual.mean
        if self.scaled:
            return np.asarray(rows[SCALES][:, 0].astype(np.float32) * total)
        # Signs are longer than the vectors they stand for: without scale this brings scores near cosines.
        return np.asarray(total / np.float32(np.sqrt(self.dimension)))

    def save(self, path: Path) -> None:
        """Write all of it, whole or not at all."""
        values: dict[str, Any] = {"rotation": self.rotation, "facts": np.array([self.codes, int(self.scaled)])}
        if self.residual is not None:
            values |= {f"residual.{name}": value for name, value in vars(self.residual).items()}
            values["telling"] = self.telling
        tensors(path, {name: torch.from_numpy(value) for name, value in values.items()})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; InputError names the file."""
        values = {name: value.numpy() for name, value in read_weights(path).items()}
        try:
            (codes, scaled), rotation = values["facts"].tolist(), values["rotation"]
            if codes == 1:
                return cls(rotation, codes, bool(scaled))
            residual = Residual(*(values[f"residual.{name}"] for name in ("mean", "basis", "spread", "bits")))
            return cls(rotation, codes, bool(scaled), values["telling"], residual)
        except (KeyError, ValueError) as error:
            raise InputError(f"{path}: not a rotation ({error}); build the index again") from error


def signs(values: Floats) -> Floats:
    """Return 1 for what is above 0, else -1, as bits say it."""
    return np.where(values > 0, np.float32(1), np.float32(-1))


def unit(vectors: Floats) -> Floats:
    """Return vectors (N, D) at length 1; of length 0 they stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1), np.float32)


def unbiased(vectors: Floats, estimates: Floats) -> NDArray[np.float16]:
    """Return (N, 1), what brings estimates (N, D) to the vectors' own inner product with them; 0 of nothing."""
    lengths, products = (vectors**2).sum(1), (vectors * estimates).sum(1)
    return np.divide(lengths, products, out=np.zeros_like(products), where=products > 0).astype(np.float16)[:, None]


def learn_telling(units: Floats) -> Floats:
    """Return A (D, D), by which the signs of a sample (N, D) come nearest to it; of few, near a multiple of 1."""
    D = units.shape[1]
    known, length = signs(units).astype(np.float64), float(np.abs(units).mean())
    more = np.linalg.solve(known.T @ known + D * np.eye(D), known.T @ (units - length * known))
    return np.ascontiguousarray(more + length * np.eye(D), np.float32)


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
