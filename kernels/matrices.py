"""Hold what a decoder's kernels read: matrices, norms, and the four matrices of an attention.

They are tuples, which Numba takes apart by itself.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Attention", "Matrix", "Norm"]


class Matrix(NamedTuple):
    """A matrix (O, I) of bfloat16 patterns (uint16) or int8, and what each of its rows is multiplied with, (O,)."""

    values: NDArray[Any]
    scale: NDArray[np.float32]

    def check(self) -> "Matrix":
        """Return the matrix itself.

        Raises ValueError unless it is C-contiguous, uint16 or int8, and its scale float32 (O,).
        """
        values, scale = self
        if values.dtype not in (np.uint16, np.int8) or values.ndim != 2 or not values.flags.c_contiguous:
            raise ValueError(
                f"matrix is {values.dtype} {values.shape}, expected C-contiguous uint16 or int8 (O, I): copy it to such"
            )
        plain("scale", scale, values.shape[:1])
        return self


class Norm(NamedTuple):
    """A root mean square norm: weight float32 (D,), and what is added to the mean square."""

    weight: NDArray[np.float32]
    eps: np.float32


class Attention(NamedTuple):
    """The matrices of an attention: q, k and v (H * d, D), o (D, H * d)."""

    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix


def plain(name: str, array: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an array; ValueError unless it is C-contiguous float32 of this shape."""
    if array.dtype != np.float32 or array.shape != shape or not array.flags.c_contiguous:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected C-contiguous float32 {shape}: convert it")
    return array
