"""Bits in, integers and floats out: pack signs, expand them again, count how many differ.

M and P tokens of D channels are M and P rows of W = ceil(D/64) uint64 words.  `reference` defines every result, and the
bit order; `jit` gives the same bits faster.  Which of the two runs is decided at the first call: what `use` was told,
else the environment variable BTR_KERNELS ("numba" or "numpy"), else Numba if it is there.  Importing this package does
not import Numba; the first kernel, or `backend`, does.

Arguments may be non-contiguous, read-only or of either byte order; wrong dtypes and shapes raise ValueError.
"""

import importlib
import importlib.util
import operator
import os
import warnings
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from btr.kernels.matrices import Attention, Matrix, Norm, plain

__all__ = [
    "Attention", "Matrix", "Norm", "backend", "cross_attend", "dequantize_rows", "expand", "feed_forward", "hamming",
    "look_up", "max_similarity", "multiply", "multiply_back", "nearest", "nearest_k", "pack", "quantize_rows",
    "scale_rows", "self_attend", "unpack", "use",
]  # fmt: skip

_MODULES = {"numba": "btr.kernels.jit", "numpy": "btr.kernels.reference"}
_name: str | None = None


def use(name: str) -> None:
    """Choose the back end of all later calls, in all threads: "numba" or "numpy".

    Raises ValueError for another name, ImportError if Numba is not installed.
    """
    global _name
    _name = _known(name, "btr.kernels.use")


def backend() -> str:
    """Return the name of the back end in use; if none was chosen yet, choose it as this module's text says.

    Raises ValueError or ImportError as `use`, if BTR_KERNELS names the back end.
    """
    global _name
    if _name is None:
        asked = os.environ.get("BTR_KERNELS")
        _name = _known(asked, "the environment variable BTR_KERNELS") if asked else _default()
    return _name


def _known(name: str, source: str) -> str:
    if name not in _MODULES:
        raise ValueError(f"{source} names the back end {name!r}, known are {sorted(_MODULES)}: name one of these")
    if name == "numba" and importlib.util.find_spec("numba") is None:
        raise ImportError(f"{source} names 'numba', which is not installed: pip install numba, or name 'numpy'")
    return name


def _default() -> str:
    """Return "numba" if it can be imported, else "numpy", with a warning if Numba is there but broken."""
    if importlib.util.find_spec("numba") is None:
        return "numpy"
    try:
        importlib.import_module(_MODULES["numba"])
    except ImportError as error:
        warnings.warn(f"Numba cannot be imported ({error}): using the slower NumPy kernels", stacklevel=5)
        return "numpy"
    return "numba"


def _kernels() -> ModuleType:
    return importlib.import_module(_MODULES[backend()])


def pack(signs: ArrayLike) -> NDArray[np.uint64]:
    """Pack signs (..., D), bool or any real dtype, into uint64 words (..., W): > 0 is 1; 0, -0, NaN and less are 0.

    Padding bits are 0.  Raises ValueError unless the dtype is bool or real and D >= 1.
    """
    array = np.asarray(signs)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"signs has dtype {array.dtype}, expected bool or a real number: convert it, e.g. to float32")
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"signs has shape {array.shape}, expected (..., D) with D >= 1: give every token its channels")
    rows = _clean(array).reshape(-1, array.shape[-1])
    packed: NDArray[np.uint64] = _kernels().pack(rows)
    return packed.reshape(*array.shape[:-1], packed.shape[1])


def unpack(packed: ArrayLike, D: int) -> NDArray[np.int8]:
    """Unpack words (..., W) into int8 (..., D) of +1 and -1; padding bits are not read.

    Raises ValueError unless packed is uint64 and W = ceil(D/64).
    """
    words = _words("packed", packed)
    width = _width(words, D)
    signs: NDArray[np.int8] = _kernels().unpack(words.reshape(-1, words.shape[-1]), width)
    return signs.reshape(*words.shape[:-1], width)


def expand(
    packed: ArrayLike,
    D: int,
    mean: ArrayLike,
    magnitude: ArrayLike,
    scale: ArrayLike | None = None,
    bf16: bool = False,
) -> NDArray[Any]:
    """Expand words (M, W) into values float32 (M, D), or their bfloat16 patterns uint16 (M, D).

    With b = +1 or -1 the value is fl32(mean + magnitude*b), then, if scale is given, fl32(value * scale[m]); bf16
    rounds that once more, to nearest with ties to even.  mean and magnitude are float32 (D,), scale is float32 or
    float16 (M,).
    Infinities in scale give infinities of the product's sign, overflow too; infinity times 0 and NaN give the one NaN
    0x7fc00000 (0x7fc0); there are no floating-point warnings.  Padding bits are not read.

    Raises ValueError for other dtypes or shapes.
    """
    words = _words("packed", packed, rows_only=True)
    channels = [_floats(name, value, (_width(words, D),)) for name, value in (("mean", mean), ("magnitude", magnitude))]
    factors = None if scale is None else _floats("scale", scale, words.shape[:1], half=True)
    kernels = _kernels()
    values: NDArray[Any] = (kernels.expand_bfloat16 if bf16 else kernels.expand)(words, *channels, factors)
    return values


def look_up(
    values: NDArray[np.uint16], table: NDArray[np.float32], factors: NDArray[np.uint16] | None = None, threads: int = 1
) -> None:
    """Replace bfloat16 patterns, in place, by what table (65536,) has for each, times those in factors if given.

    With a table of an activation's values that is the activation, rounded once, to nearest with ties to even; a NaN
    leaves as 0x7fc0.  Runs on so many threads, if no other kernel does.
    Raises ValueError unless values and factors are writable, C-contiguous uint16 of one size and table is float32.
    """
    flat = _patterns("values", values).reshape(-1)
    if table.dtype != np.float32 or table.shape != (65536,):
        raise ValueError(f"table is {table.dtype} {table.shape}, expected float32 (65536,): one value for each pattern")
    times = None if factors is None else _patterns("factors", factors).reshape(-1)
    if times is not None and times.size != flat.size:
        raise ValueError(f"values has {flat.size} elements, factors {times.size}: give one factor for each")
    _kernels().look_up(flat, table, times, threads)


def scale_rows(
    values: NDArray[np.uint16], scale: NDArray[np.float32], weight: NDArray[np.float32], threads: int = 1
) -> None:
    """Multiply bfloat16 patterns (M, D), in place, by scale (M,), round, multiply by weight (D,), and round again.

    Rounding and threads as in `look_up`.
    Raises ValueError unless values is writable, C-contiguous uint16 and the others are float32 of these shapes.
    """
    rows = _pattern_rows(values)
    factors = [_floats("scale", scale, rows.shape[:1]), _floats("weight", weight, rows.shape[1:])]
    _kernels().scale_rows(rows, *factors, threads)


def quantize_rows(values: NDArray[np.uint16], threads: int = 1) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Round rows of bfloat16 patterns (M, D) to codes uint8 (M, D), each in steps of its own, float32 (M,).

    With top the greatest magnitude of a row, step = fl32(top / 127) and code = floor(value * fl32(127 / top) + 128.5),
    1 to 255, 128 for 0; all of a row are 128 if top is below 2**-100, or infinite or no number: then step is NaN.
    Threads as in `look_up`.
    Raises ValueError unless values is writable, C-contiguous uint16 (M, D).
    """
    rows = _pattern_rows(values)
    codes, step = np.empty(rows.shape, np.uint8), np.empty(len(rows), np.float32)
    _kernels().quantize_rows(rows, codes, step, threads)
    return codes, step


def dequantize_rows(
    values: NDArray[np.uint16], step: NDArray[np.float32], bias: NDArray[np.float32], threads: int = 1
) -> None:
    """Multiply bfloat16 patterns (M, D), in place, by step (M,), add bias (D,), and round.

    Rounding and threads as in `look_up`.
    Raises ValueError as `scale_rows`.
    """
    rows = _pattern_rows(values)
    _kernels().dequantize_rows(
        rows, _floats("step", step, rows.shape[:1]), _floats("bias", bias, rows.shape[1:]), threads
    )


def multiply(matrix: Matrix, x: NDArray[np.float32], threads: int = 1) -> NDArray[np.float32]:
    """Multiply a matrix (O, I) with rows x (G, I): (O,), of which O/G numbers belong to each row of x.

    out[o] = scale[o] * sum over i of values[o, i] * x[o // (O/G), i], in float32, in any order of additions.
    Runs on so many threads, if no other kernel does.
    Raises ValueError as `Matrix.check`, unless x is C-contiguous float32, and if G does not divide O.
    """
    groups = _groups(matrix, x.shape[0] if x.ndim == 2 else 0)
    out = np.empty(matrix.values.shape[0], np.float32)
    _kernels().multiply(matrix, plain("x", x, groups), out, threads)
    return out


def multiply_back(matrix: Matrix, x: NDArray[np.float32], groups: int = 1, threads: int = 1) -> NDArray[np.float32]:
    """Multiply a transposed matrix (O, I) with x (O,) group by group: (G, I), G = `groups`.

    out[g, i] = sum over the O/G numbers o of group g of scale[o] * x[o] * values[o, i]; else as `multiply`.
    """
    out = np.empty(_groups(matrix, groups), np.float32)
    _kernels().multiply_back(matrix, plain("x", x, matrix.values.shape[:1]), out, threads)
    return out


def self_attend(
    row: NDArray[np.float32], norm: Norm, attention: Attention, keys: NDArray[np.float32],
    values: NDArray[np.float32], bias: NDArray[np.float32], t: int, threads: int = 1,
) -> None:  # fmt: skip
    """Add to a row (D,) what its heads find in it and the t rows before it: a decoder's self-attention with its norm.

    keys and values (H, S, d), which are filled at t; bias (H, S, S); all float32. Not checked: matrices that fit each
    other are the caller's care, here and in `cross_attend` and `feed_forward`. Threads and rounding as in `multiply`.
    """
    _kernels().self_attend(row, norm, attention, keys, values, bias, t, threads)


def cross_attend(
    row: NDArray[np.float32], norm: Norm, q: Matrix, o: Matrix, keys: NDArray[np.uint16], values: NDArray[np.uint16],
    bias: NDArray[np.float32], attended: NDArray[np.float32], threads: int = 1,
) -> None:  # fmt: skip
    """Add to a row (D,) what its heads find in a memory, and to attended (M,) their weights there, averaged over heads.

    keys and values (H, M, d) are bfloat16 patterns, bias (M,) float32; else as `self_attend`.
    """
    _kernels().cross_attend(row, norm, q, o, keys, values, bias, attended, threads)


def feed_forward(
    row: NDArray[np.float32], norm: Norm, wi: Matrix, wo: Matrix, gate: Matrix | None, table: NDArray[np.float32],
    threads: int = 1,
) -> None:  # fmt: skip
    """Add to a row (D,) its feed-forward with its norm: wo of wi's ReLU, or of wi times an activation of the gate.

    table (65536,) has the activation of every bfloat16, to which what the gate gives is rounded; else as `self_attend`.
    """
    _kernels().feed_forward(row, norm, wi, wo, gate, table, threads)


def hamming(a: ArrayLike, b: ArrayLike) -> NDArray[np.int32]:
    """Count the bits that differ between every row of a (M, W) and of b (P, W): int32 (M, P), exact for D < 2**31.

    All W words are compared, so padding bits must be equal, as `pack` leaves them.
    Raises ValueError unless both are uint64 matrices of the same W.
    """
    distance: NDArray[np.int32] = _kernels().hamming(*_pair(a, b))
    return distance


def nearest(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Find for every row of a (M, W) the nearest row of b (P, W): index int64 (M,), distance in bits int32 (M,).

    Ties go to the lowest index.  Needs memory for M + P rows, not for M*P distances.
    Raises ValueError unless both are uint64 matrices of the same W, and if P = 0.
    """
    rows, candidates = _pair(a, b)
    if len(candidates) == 0:
        raise ValueError(f"b has shape {candidates.shape}, expected P >= 1 rows: do not ask when there is no candidate")
    found: tuple[NDArray[np.int64], NDArray[np.int32]] = _kernels().nearest(rows, candidates)
    return found


def nearest_k(a: ArrayLike, b: ArrayLike, k: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Find for every row of a (M, W) the k nearest rows of b (P, W), nearest first: index int64, distance int32 (M, k).

    Of equal distances the lower index comes first. Needs memory for M*k results, not for M*P distances; meant for a k
    of up to some thousand, since a row's results are kept sorted as they come.
    Raises ValueError unless both are uint64 matrices of the same W, and 1 <= k <= P.
    """
    rows, candidates = _pair(a, b)
    if not 1 <= operator.index(k) <= len(candidates):
        raise ValueError(f"k is {k}, b has {len(candidates)} rows: ask for 1 to that many")
    found: tuple[NDArray[np.int64], NDArray[np.int32]] = _kernels().nearest_k(rows, candidates, operator.index(k))
    return found


def max_similarity(
    question: NDArray[np.int8], packed: ArrayLike, offsets: NDArray[np.int64], base: NDArray[np.int32] | None = None
) -> NDArray[np.int64]:
    """Score passages by late interaction with their signs (ColBERT's MaxSim, arXiv 2004.12832 §3.3): int64 (N,).

    score[n] = sum over t of the largest, over the tokens m of passage n, of base[m, t] + sum over d of question[t, d] *
    sign[m, d]. question is int8 (T, D), packed (M, W); passage n has the tokens offsets[n] to offsets[n+1], at least
    one; base is int32 (M, T), 0 if not given. Products and sums are integers, exact while |base| < 2**30 and D < 2**22.
    Padding bits must be 0, as `pack` leaves them.

    Raises ValueError for other dtypes or shapes, or a passage without tokens.
    """
    words = _words("packed", packed, rows_only=True)
    if question.dtype != np.int8 or question.ndim != 2 or not question.size:
        raise ValueError(f"question is {question.dtype} {question.shape}, expected int8 (T, D), T and D at least 1")
    _width(words, question.shape[1])
    bounds = np.ascontiguousarray(offsets, np.int64)
    if bounds.ndim != 1 or len(bounds) < 1 or bounds[0] != 0 or bounds[-1] != len(words) or (np.diff(bounds) < 1).any():
        raise ValueError(
            f"offsets do not divide {len(words)} tokens into passages of one or more: pass Encoded.offsets"
        )
    shape = (len(words), len(question))
    if base is not None and (base.dtype != np.int32 or base.shape != shape):
        raise ValueError(f"base is {base.dtype} {base.shape}, expected int32 {shape}: one for each pair of tokens")
    if len(bounds) == 1:
        return np.empty(0, np.int64)
    aligned = None if base is None else np.ascontiguousarray(base)
    scores: NDArray[np.int64] = _kernels().max_similarity(np.ascontiguousarray(question), words, bounds, aligned)
    return scores


def _clean(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array itself or a copy that is C-contiguous, aligned and of native byte order."""
    return np.require(array, array.dtype.newbyteorder("="), ["C", "A"])


def _words(name: str, value: ArrayLike, rows_only: bool = False) -> NDArray[np.uint64]:
    words = np.asarray(value)
    if words.dtype.newbyteorder("=") != np.uint64:
        raise ValueError(f"{name} has dtype {words.dtype}, expected uint64: make it with btr.kernels.pack")
    if words.ndim == 0 or words.shape[-1] == 0 or (rows_only and words.ndim != 2):
        shape = "(rows, W)" if rows_only else "(..., W)"
        raise ValueError(f"{name} has shape {words.shape}, expected {shape}, W >= 1: reshape it to one row per token")
    return _clean(words)


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    rows, others = _words("a", a, rows_only=True), _words("b", b, rows_only=True)
    if rows.shape[1] != others.shape[1]:
        raise ValueError(f"a has {rows.shape[1]} words per row, b has {others.shape[1]}: compare tokens of the same D")
    return rows, others


def _patterns(name: str, array: NDArray[np.uint16]) -> NDArray[np.uint16]:
    if array.dtype != np.uint16 or not (array.flags.c_contiguous and array.flags.writeable):
        raise ValueError(
            f"{name} is {array.dtype}, {array.flags}, expected writable C-contiguous uint16: copy it to such"
        )
    return array


def _pattern_rows(array: NDArray[np.uint16]) -> NDArray[np.uint16]:
    rows = _patterns("values", array)
    if rows.ndim != 2:
        raise ValueError(f"values has shape {rows.shape}, expected (M, D): reshape it to one row per token")
    return rows


def _groups(matrix: Matrix, groups: int) -> tuple[int, int]:
    """Return (G, I) of a matrix (O, I) whose rows come in G groups."""
    rows, width = matrix.check().values.shape
    if groups < 1 or rows % groups:
        raise ValueError(f"matrix has {rows} rows, which {groups} groups do not share: give a divisor")
    return groups, width


def _width(words: NDArray[np.uint64], D: int) -> int:
    width = operator.index(D)
    if width < 1 or words.shape[-1] != -(-width // 64):
        raise ValueError(
            f"packed has {words.shape[-1]} words per token, D = {width} needs {max(0, -(-width // 64))}: "
            "pass the D that was packed"
        )
    return width


def _floats(name: str, value: ArrayLike, shape: tuple[int, ...], half: bool = False) -> NDArray[np.float32]:
    floats = np.asarray(value)
    known = (np.float32, np.float16) if half else (np.float32,)
    if floats.dtype.newbyteorder("=") not in known:
        expected = " or ".join(np.dtype(kind).name for kind in known)
        raise ValueError(f"{name} has dtype {floats.dtype}, expected {expected}: convert it with .astype(np.float32)")
    if floats.shape != shape:
        raise ValueError(f"{name} has shape {floats.shape}, expected {shape}: pass the one made for packed and D")
    return np.require(floats, np.float32, ["C", "A"])
