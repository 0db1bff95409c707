"""Compile kernels with Numba, and let one parallel loop run at a time: what the modules of machine code share."""

import hashlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numba import config, get_num_threads, njit, set_num_threads, types
from numba.extending import intrinsic

# Numba reads no annotations: inside a kernel they are for the reader, and arrays and scalars go without a dtype.
Array = Any
njit_: Any = njit
intrinsic_: Any = intrinsic
config_: Any = config


def sources() -> str:
    """Return 12 hexadecimal digits over the text of all modules beside this one, which kernels call across."""
    hasher = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        hasher.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return hasher.hexdigest()[:12]


SOURCES = sources()


def compiled(**settings: bool) -> Callable[[Callable[..., Any]], Any]:
    """Compile at the first call, cached on disk if Numba finds a place for it, to run without the interpreter lock.

    Numba names a cached file after the function and trusts it while the function's own module is as it was, whatever
    happens to those that it calls; so the name holds what all modules say.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        function.__qualname__ += f"_{SOURCES}"
        try:
            return njit_(cache=True, nogil=True, **settings)(function)
        except RuntimeError:  # no cache directory is writable
            return njit_(nogil=True, **settings)(function)

    return decorate


@intrinsic_
def bits_of(_context: Any, _value: Any) -> Any:
    """Reinterpret a float32 as the uint32 of its bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.uint32))

    return types.uint32(types.float32), generate


@intrinsic_
def float_of(_context: Any, _bits: Any) -> Any:
    """Reinterpret a uint32 as the float32 of these bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic_
def ctpop(_context: Any, _word: Any) -> Any:
    """Count the set bits of a uint64 with llvm.ctpop.i64, which vectorises (`np.bitwise_count` does not compile)."""
    return types.uint64(types.uint64), lambda context, builder, signature, args: builder.ctpop(args[0])


@njit_(inline="always")
def rounded(bits: Any) -> Any:
    """Round a float32, given by its bits and no NaN, to the uint16 of a bfloat16: to nearest, ties to even."""
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


# One parallel loop at a time: Numba's `workqueue` layer aborts the process on a second.  A forked child never gets the
# gate and runs serially: the threads did not survive the fork, and Numba's OpenMP layer aborts when it notices.
_gate = threading.Lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _gate.acquire(blocking=False))


def alone(loop: Callable[[], None]) -> bool:
    """Run a parallel loop if no other one runs; return whether it was run."""
    if not _gate.acquire(blocking=False):
        return False
    try:
        loop()
    finally:
        _gate.release()
    return True


def usable_threads() -> int:
    """Return how many threads torch was told to take, where it is loaded; else those that Numba has, one a core."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else config_.NUMBA_NUM_THREADS


@contextmanager
def threads_of_torch_kept() -> Iterator[None]:
    """Put back how many threads torch takes: Numba's OpenMP layer sets that too when a kernel with a loop starts it."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    try:
        yield
    finally:
        if torch and torch.get_num_threads() != before:
            torch.set_num_threads(before)


def in_parallel(kernel: Any, threads: int, *arrays: Any) -> bool:
    """Run a kernel's parallel loop on so many threads if they are more than one and no other one runs; else False."""

    @threads_of_torch_kept()
    def loop() -> None:
        before = get_num_threads()
        set_num_threads(min(threads, config_.NUMBA_NUM_THREADS))
        try:
            kernel(*arrays)
        finally:
            set_num_threads(before)

    return threads > 1 and alone(loop)
