"""An index and a task whose answers are numbers: every case is drawn from a seed, with ties, repeats and failures."""

import random
import threading
import zlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from btr.hops.pace import Pace


def number(*parts: object) -> int:
    """Return a number that depends on the parts alone."""
    return zlib.crc32(repr(parts).encode())


class Failed(Exception):
    """Fail on purpose."""


class FakeIndex:
    """Find passages by scores of few levels, of which the lowest is not found; a subset as well, if it does not lie."""

    def __init__(self, seed: int, size: int = 12, levels: int = 5, lies: float = 0.0, fails: float = 0.0) -> None:
        self.seed, self.size, self.levels, self.lies, self.fails = seed, size, levels, lies, fails
        self.searching = 0
        self.batches: list[list[str]] = []

    def prepare(self, query: str) -> str:
        return query

    def _best(self, query: str, ordinals: Sequence[int], top: int) -> tuple[np.ndarray, np.ndarray]:
        scores = {n: number(self.seed, query, n) % self.levels for n in ordinals}
        order = sorted((n for n in ordinals if scores[n]), key=lambda n: (-scores[n], n))[:top]
        return np.array(order, np.int64), np.array([scores[n] for n in order], np.float32)

    def search(self, queries: Sequence[str], top: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return self.search_prepared(queries, top)

    def search_prepared(self, queries: Sequence[str], top: int) -> list[tuple[np.ndarray, np.ndarray]]:
        self.searching += 1
        assert self.searching == 1
        try:
            self.batches.append(list(queries))
            for query in queries:
                if number("fails", self.seed, query) % 1000 < 1000 * self.fails:
                    raise Failed(query)
            return [self._best(query, range(self.size), top) for query in queries]
        finally:
            self.searching -= 1

    def among(self, query: str, ordinals: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        found = self._best(query, ordinals.tolist(), top)
        if number("lies", self.seed, query) % 1000 < 1000 * self.lies:
            return found[0][::-1].copy(), found[1]
        return found

    def depth(self, top: int, most: int) -> int:
        return most if self.seed % 2 else top


class FakeWork:
    """Go from number to number; queries come again now and then. `steps` it ends after, at most."""

    def __init__(self, seed: int, steps: int, queries: int = 4, fails: float = 0.0) -> None:
        self.seed, self.steps, self.queries, self.fails = seed, steps, queries, fails
        self.reads = 0

    def query(self, state: tuple[int, int]) -> str | None:
        step, known = state
        if step >= self.steps or number("ends", self.seed, known) % 13 == 0:
            return None
        if number("query", self.seed, known) % 1000 < 1000 * self.fails / 2:
            raise Failed(f"query {known}")
        return str(known % self.queries)

    def read(self, state: tuple[int, int], ordinals: list[int]) -> tuple[int, int]:
        self.reads += 1
        step, known = state
        if number("read", self.seed, known, ordinals) % 1000 < 1000 * self.fails:
            raise Failed(f"read {known} {ordinals}")
        return step + 1, number(self.seed, known, ordinals)


class Forced(Pace):
    """Guess as many steps as a list says, over and over."""

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__()
        self.strides, self.turn = list(strides), 0

    def stride(self) -> int:
        self.turn += 1
        return self.strides[self.turn % len(self.strides)]


def draw(seed: int) -> Any:
    """Draw an index, a task, the passages of a step, and strides."""
    rng = random.Random(seed)
    fails = rng.choice([0, 0, 0.05, 0.2])
    index = FakeIndex(
        rng.randrange(10**6), rng.randint(1, 14), rng.randint(2, 6), rng.choice([0, 0, 0.3, 1]), rng.choice([0, fails])
    )
    work = FakeWork(rng.randrange(10**6), rng.randint(0, 12), rng.randint(1, 6), rng.choice([0, fails]))
    strides = [rng.randint(0, 5) for _ in range(rng.randint(1, 4))]
    return SimpleNamespace(index=index, work=work, top=rng.randint(1, 4), strides=strides)


def outcome(run: Any) -> Any:
    """Return what a run gives, as plain values, or what it fails with."""
    try:
        state, found = run()
    except Failed as error:
        return repr(error)
    return state, [(ordinals.tolist(), scores.tolist()) for ordinals, scores in found]


def threads() -> list[str]:
    """Return the names of the threads that search beside a reader."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("speculation")]


@pytest.fixture(scope="session")
def fakes() -> SimpleNamespace:
    """What the tests of this folder share."""
    return SimpleNamespace(
        draw=draw, outcome=outcome, threads=threads, Forced=Forced, FakeIndex=FakeIndex, FakeWork=FakeWork,
        Failed=Failed,
    )  # fmt: skip
