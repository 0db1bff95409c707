"""Where a model computes, and in which precision: chosen by name, or by what is here."""

import os
from pathlib import Path

import torch

from btr.command import INT8, PRECISIONS, cores
from btr.errors import InputError
from btr.progress import say

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAID = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}  # variables that say how many threads torch takes
PROCESSOR = Path("/proc/cpuinfo")
MULTIPLIES = {"avx512_bf16", "amx_bf16"}  # what a processor that multiplies bfloat16 says of itself
MULTIPLIES_INT8 = {"avx512_vnni", "avx_vnni", "amx_int8"}


def choose_device(asked: str | torch.device = "cpu") -> torch.device:
    """Return a device by its name, as torch has it (cpu, cuda, cuda:1, mps, ...); auto: the accelerator, else the CPU.

    Raises:
        InputError: torch knows no such device, or none is here.
    """
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if asked == "auto":
        return there or torch.device("cpu")
    found = f"cpu and {there.type}" if there else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise InputError(f"device is {asked!r}, which torch does not know; there is {found}, or auto") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if there is None or device.type != there.type:
        cure = f"use device cpu, or, where there is one, install a build of torch for {device.type}"
        raise InputError(f"torch {torch.__version__} sees no {device.type} device here, there is {found}; {cure}")
    if (device.index or 0) >= (count := torch.accelerator.device_count()):
        raise InputError(f"device is {asked!s}, torch sees {count} of them, numbered from 0; use {device.type}:0")
    return device


def choose_dtype(asked: str, device: torch.device) -> str:
    """Return the name of a precision; auto: bfloat16 where the device multiplies it, else float32.

    It is never float16, in which T5 overflows.

    Raises:
        InputError: there is no such precision, or int8 is asked for where nothing multiplies it.
    """
    if asked not in (*PRECISIONS, INT8):
        raise InputError(f"dtype is {asked!r}; use {', '.join(DTYPES)}, int8 or auto (T5 overflows in float16)")
    if asked == INT8 and not multiplies_int8(device):
        raise InputError(f"dtype is int8, which the {device.type} here has no instructions for (VNNI, AMX); use auto")
    if asked != "auto":
        return asked
    return "bfloat16" if multiplies_bfloat16(device) else "float32"


def use_threads(asked: int | None = None) -> None:
    """Compute with so many threads; None: with no more than there are cores for, unless the environment says how many.

    torch takes every core of the machine, also in a container that has a few of them, and is far slower so.

    Raises:
        InputError: fewer than one.
    """
    if asked is not None and asked < 1:
        raise InputError(f"threads are {asked}; use 1 or more")
    if asked is not None:
        torch.set_num_threads(asked)
    elif not SAID & os.environ.keys() and torch.get_num_threads() > (most := cores()):
        torch.set_num_threads(most)


def settle(dtype: str, device: str, threads: int | None = None) -> tuple[str, str]:
    """Return precision and device for what a command was asked for; what `auto` came to is said.

    Threads are set, as `use_threads` does.

    Raises:
        InputError: as `use_threads`, `choose_device` and `choose_dtype`.
    """
    use_threads(threads)
    place = choose_device(device)
    precision = choose_dtype(dtype, place)
    if "auto" in (dtype, device):
        say(f"computing in {precision} on {place}")
    return precision, str(place)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Tell whether a device has instructions that multiply bfloat16; of an Apple GPU it is not known to be faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(MULTIPLIES & set(processor_says("flags").split()))


def multiplies_int8(device: torch.device) -> bool:
    """Tell whether a device has instructions that multiply int8, and torch what uses them."""
    known = MULTIPLIES_INT8 & set(processor_says("flags").split())
    return device.type == "cpu" and bool(known) and torch.backends.mkldnn.is_available()


def processor_says(what: str) -> str:
    """Return what the processor says of itself, as its `flags` or `model name`; "" where the system does not tell."""
    try:
        lines = PROCESSOR.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == what), "")
