"""What the kernels reach, each in turn with what does the same and with the roof that it is held against.

The roof of kernels that write much is a copy of as many bytes to new memory, that of those that read much a sum of as
many. Where other packages do the same work and are installed they do it here too: SimSIMD and NumKong, distances
between all pairs. One thread, and where a kernel takes more by itself, all of them.
"""

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from btr import kernels
from btr.model.elementwise import gelu_table
from btr.progress import Progress

ROWS = 4096  # on both sides, where all pairs are compared
TOKENS = 40 * 160  # of 40 passages
MATRIX = (32128, 768)  # the head of a T5, which one token is multiplied with
GIGA = 1e9
Who = dict[str, Callable[[], object]]


def load(name: str) -> ModuleType | None:
    """Import a package that may be missing."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def pairs(a: np.ndarray, b: np.ndarray) -> Who:
    """Return who counts the differing bits of all pairs of rows, uint64 (M, W) and (P, W), which all agree on."""
    who: Who = {"btr": partial(kernels.hamming, a, b)}
    left, right = a.view(np.uint8), b.view(np.uint8)
    if numkong := load("numkong"):
        who["NumKong"] = partial(numkong.hammings_packed, left, numkong.hammings_pack(right, dtype="uint1"))
    if simsimd := load("simsimd"):
        who["SimSIMD"] = partial(simsimd.cdist, left, right, "hamming", dtype="bin8")
    return who


def jobs(D: int) -> Iterator[tuple[str, str, float, Who]]:
    """Yield what is timed at width D: a kernel, a unit, how much of it one call does, and who does it, us first."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((TOKENS, D), np.float32)
    packed, mean, magnitude, scale = kernels.pack(states), states[0], abs(states[1]), abs(states[:, 0])
    a, b = (kernels.pack(rng.standard_normal((ROWS, D))) for _ in range(2))
    yield "hamming, all pairs", "G pairs/s", ROWS * ROWS / GIGA, pairs(a, b)
    for name, half, source in (
        ("expand to float32", False, states),
        ("expand to bfloat16", True, states.astype(np.uint16)),
    ):
        ours = partial(kernels.expand, packed, D, mean, magnitude, scale, half)
        yield name, "GB/s written", source.nbytes / GIGA, {"btr": ours, "roof": source.copy}
    yield "pack", "GB/s read", states.nbytes / GIGA, {"btr": partial(kernels.pack, states), "roof": states.sum}
    half_states = torch.from_numpy(states).bfloat16()
    patterns = half_states.view(torch.uint16).numpy()
    activate = partial(kernels.look_up, patterns.copy(), gelu_table("tanh"))
    yield (
        "tanh-GELU, bfloat16", "GB/s written", patterns.nbytes / GIGA,
        {"btr": activate, "PyTorch": partial(F.gelu, half_states, approximate="tanh"), "roof": patterns.copy},
    )  # fmt: skip
    values = rng.integers(-127, 128, MATRIX, np.int8)
    matrix, x = kernels.Matrix(values, np.ones(len(values), np.float32)), states[:1, : MATRIX[1]].copy()
    x = np.resize(x, (1, MATRIX[1]))
    half_matrix, half_x = torch.from_numpy(values).bfloat16(), torch.from_numpy(x[0]).bfloat16()
    yield (
        "int8 matrix times a row", "GB/s read", values.nbytes / GIGA,
        {
            "btr": partial(kernels.multiply, matrix, x),
            "PyTorch, bfloat16": partial(torch.mv, half_matrix, half_x),
            "roof": values.view(np.int64).sum,
        },
    )  # fmt: skip


def measure(D: int, runs: int) -> list[dict[str, Any]]:
    """Time all of it, `runs` times in turn after one that is not counted; rates are of the median."""
    rows, report = [], Progress(f"D {D}:", 0, None, "kernels")
    threads = torch.get_num_threads()
    for count in sorted({1, threads}):
        for kernel, unit, amount, who in jobs(D):
            if count > 1 and not kernel.startswith("hamming"):
                continue
            torch.set_num_threads(count)  # kernels take as many
            who = {name: work for name, work in who.items() if count == 1 or name == "btr"}
            seconds: dict[str, list[float]] = {name: [] for name in who}
            for run in range(runs + 1):
                for name, work in who.items():
                    began = perf_counter()
                    work()
                    if run:
                        seconds[name].append(perf_counter() - began)
            rates = {name: amount / median(times) for name, times in seconds.items()}
            rows.append({"kernel": kernel, "D": D, "threads": count, "unit": unit, "rates": rates})
            report(1)
    report.show(last=True)
    torch.set_num_threads(threads)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Lay out the rates for people."""
    lines = []
    for row in rows:
        ours = row["rates"]["btr"]
        cells = [f"btr {ours:.2f} {row['unit']}"]
        cells += [f"{name} {rate:.2f} ({ours / rate:.2f}x)" for name, rate in row["rates"].items() if name != "btr"]
        lines.append(f"{row['kernel']:26} D {row['D']:<5} {row['threads']} thread(s)   " + "   ".join(cells))
    return "\n".join(lines)
