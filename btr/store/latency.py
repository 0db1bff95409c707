"""How long a store takes to open and to give passages, from the page cache and from the disk: `btr store latency`."""

import os
import random
import statistics
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from btr.errors import InputError
from btr.storage import Store

DRAWS = 60


def measure(path: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Time opening a store, its first passage, and `count` passages drawn at random; milliseconds.

    `cold` draws come after the system was asked to drop the store's files from its cache (POSIX_FADV_DONTNEED, which
    it may not grant), `warm` ones are read a second time. Medians of DRAWS draws, cold of 5.

    Raises:
        InputError: an empty store, or a system without that call.
        StoreError: it cannot be read.
    """
    rng = random.Random(seed)
    with Store.open(path) as store:
        count = min(count, len(store))
        if not count:
            raise InputError(f"store {path} holds no passages, so there is nothing to time; add some")
        ordinals = list(store.live()) if len(store) < store.manifest.ordinals else range(store.manifest.ordinals)

        def draw() -> list[int]:
            return rng.sample(ordinals, count)

        store.at(draw())  # compiles what decodes
    cold = []
    for _ in range(5):
        drop(Path(path))
        with Store.open(path) as store:
            cold.append(timed(partial(store.at, draw())))
    drop(Path(path))
    opening = timed(lambda: Store.open(path).close())
    with Store.open(path) as store:
        first = timed(partial(store.at, draw()[:1]))
        warm = []
        for _ in range(DRAWS):
            wanted = draw()
            store.at(wanted)
            warm.append(timed(partial(store.at, wanted)))
        tokens = store.at(draw()).num_tokens / count
    return {
        "passages": count, "tokens_a_passage": round(tokens, 1), "open": opening, "first_passage_cold": first,
        "cold": statistics.median(cold), "warm": statistics.median(warm), "warm_most": max(warm),
    }  # fmt: skip


def timed(work: Callable[[], object]) -> float:
    """Return how many milliseconds a call takes."""
    began = perf_counter()
    work()
    return 1000 * (perf_counter() - began)


def drop(path: Path) -> None:
    """Ask the system to forget what it has read of all files below a path."""
    if not hasattr(os, "posix_fadvise"):
        raise InputError("this system cannot be asked to forget files, so `cold` cannot be timed; use Linux")
    for file in filter(Path.is_file, path.rglob("*")):
        with suppress(FileNotFoundError):  # a living store replaces files
            handle = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
