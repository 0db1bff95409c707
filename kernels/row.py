"""Multiply one row with matrices of bfloat16 patterns or int8, as a decoder does for every word: at memory's speed.

One row of a matrix at a time: two or four, which share what is read of x, were slower. Asking for int8 2 KiB
ahead of use made it three times as fast, since a line of it keeps the processor busy for longer; in bfloat16 that
cost a quarter. Sums are float32, of as many partial ones as LLVM likes, so that
results differ from the reference's by the order of additions.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import prange, types
from numpy.typing import NDArray

from btr.kernels.compiled import Array, compiled, in_parallel, intrinsic_, njit_

ROWS = 32  # of a task of a parallel loop
AHEAD, LINE = 2048, 64  # bytes
WORTHWHILE = 2**18  # elements; fewer take less than waking the other threads
ORDER: Any = {"reassoc", "nsz", "contract"}  # what vectors need; NaN and infinities stay what they are


@intrinsic_
def widened(_context: Any, value: Any) -> Any:
    """Make a float32 of an int8, or of a uint16 that is the pattern of a bfloat16."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        float32, word = context.get_value_type(types.float32), context.get_value_type(types.uint32)
        if value == types.int8:
            return builder.sitofp(args[0], float32)
        return builder.bitcast(builder.shl(builder.zext(args[0], word), ir.Constant(word, 16)), float32)

    return types.float32(value), generate


@intrinsic_
def prefetch(_context: Any, array: Any, index: Any) -> Any:
    """Have the cache line of an element of a flat array fetched, which may lie beyond its end."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        builder.call(fetch, [place, *(ir.Constant(number, n) for n in (0, 3, 1))])  # to read, into all caches, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@njit_(fastmath=ORDER, nogil=True)
def dot(row: Array, x: Array) -> Any:
    total = np.float32(0)
    for i in range(x.size):
        total += widened(row[i]) * x[i]
    return total


@njit_(fastmath=ORDER, nogil=True)
def add_times(row: Array, factor: Any, out: Array) -> None:
    for i in range(out.size):
        out[i] += factor * widened(row[i])


@compiled()
def multiply_rows(start: int, stop: int, matrix: Array, scale: Array, x: Array, out: Array) -> None:
    each, flat, width = matrix.shape[0] // x.shape[0], matrix.reshape(matrix.size), matrix.shape[1]
    for o in range(start, stop):
        if matrix.itemsize == 1:
            for i in range(o * width + AHEAD, (o + 1) * width + AHEAD, LINE):
                prefetch(flat, i)
        out[o] = scale[o] * dot(matrix[o], x[o // each])


@compiled(parallel=True)
def multiply_tasks(matrix: Array, scale: Array, x: Array, out: Array) -> None:
    rows = matrix.shape[0]
    for task in prange((rows + ROWS - 1) // ROWS):
        multiply_rows(task * ROWS, min(rows, (task + 1) * ROWS), matrix, scale, x, out)


@compiled()
def multiply_back_group(g: int, matrix: Array, scale: Array, x: Array, out: Array) -> None:
    each, row = matrix.shape[0] // out.shape[0], out[g]
    for i in range(row.size):
        row[i] = 0
    for o in range(g * each, (g + 1) * each):
        add_times(matrix[o], scale[o] * x[o], row)


@compiled()
def multiply_back_groups(matrix: Array, scale: Array, x: Array, out: Array) -> None:
    for g in range(out.shape[0]):
        multiply_back_group(g, matrix, scale, x, out)


@compiled(parallel=True)
def multiply_back_tasks(matrix: Array, scale: Array, x: Array, out: Array) -> None:
    for g in prange(out.shape[0]):
        multiply_back_group(g, matrix, scale, x, out)


def multiply(matrix: Any, x: NDArray[np.float32], out: NDArray[np.float32], threads: int) -> None:
    """Multiply as `reference.multiply`."""
    arrays = (*matrix, x, out)
    if matrix.values.size < WORTHWHILE or not in_parallel(multiply_tasks, threads, *arrays):
        multiply_rows(0, out.size, *arrays)


def multiply_back(matrix: Any, x: NDArray[np.float32], out: NDArray[np.float32], threads: int) -> None:
    """Multiply as `reference.multiply_back`."""
    arrays = (*matrix, x, out)
    if matrix.values.size < WORTHWHILE or not in_parallel(multiply_back_tasks, threads, *arrays):
        multiply_back_groups(*arrays)
