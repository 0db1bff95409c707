"""Measure what reading on with guesses saves, with a retriever and a reader that take set times: they only wait.

    python examples/speculation.py            # a JSON line a row: what the formula predicts, and what was measured

Every row is steps taken one after the other, then with guesses, in turns, in one process; both must find the same.
The pace has seen one request before, so that it knows what there is to know.
"""

import argparse
import json
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from btr.hops.pace import LEAST_GAIN, Pace, best_stride, gain
from btr.hops.speculation import speculate
from btr.hops.steps import take_steps

# chance that a guess is right; milliseconds of reading, and of a search for s queries: b0 + b1 s
ROWS = [
    (0.0, 20, 20, 0), (0.5, 20, 20, 0), (0.9, 20, 1, 0), (0.9, 20, 10, 0), (0.9, 20, 20, 0), (0.9, 20, 60, 0),
    (0.9, 20, 60, 6), (0.7, 20, 60, 6),
]  # fmt: skip
TOP = 3


def draw(*parts: object) -> int:
    """Return a number that depends on the parts alone."""
    return zlib.crc32(repr(parts).encode())


class Waiting:
    """Search and read, by waiting; states are (step, what was read so far)."""

    def __init__(self, g: float, a: float, b0: float, b1: float, steps: int, seed: int) -> None:
        self.g, self.a, self.b0, self.b1, self.steps, self.seed = g, a, b0, b1, steps, seed

    def query(self, state: tuple[int, int]) -> str | None:
        """Ask for what depends on all that was read."""
        return None if state[0] == self.steps else repr(state)

    def read(self, state: tuple[int, int], ordinals: list[int]) -> tuple[int, int]:
        """Read."""
        time.sleep(self.a)
        return state[0] + 1, draw(state[1], ordinals)

    def prepare(self, question: str) -> str:
        """Do nothing."""
        return question

    def search(self, questions: Sequence[str], top: int) -> list[Any]:
        """Search."""
        return self.search_prepared(questions, top)

    def search_prepared(self, questions: Sequence[str], top: int) -> list[Any]:
        """Search."""
        time.sleep(self.b0 + self.b1 * len(questions))
        return [self._found(question, True) for question in questions]

    def among(self, question: str, ordinals: np.ndarray, top: int) -> Any:
        """Guess, and be right as often as was said."""
        return self._found(question, draw(self.seed, question) % 10**6 < 10**6 * self.g)

    def depth(self, top: int, most: int) -> int:
        """Give no more away."""
        return top

    def __len__(self) -> int:
        return 10**6

    def _found(self, question: str, right: bool) -> tuple[np.ndarray, np.ndarray]:
        ordinals = [draw(question, place) % 10**6 for place in range(TOP)]
        return np.array(ordinals if right else ordinals[::-1]), np.ones(TOP, np.float32)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds that a run takes, and what it finds."""
    began = time.perf_counter()
    state, found = run()
    return time.perf_counter() - began, (state, [ordinals.tolist() for ordinals, _ in found])


def measure(g: float, milliseconds: Sequence[float], steps: int, rounds: int) -> dict[str, Any]:
    """Return a row: by how many times guesses are sooner."""
    a, b0, b1 = (value / 1000 for value in milliseconds)
    pace, ratios = Pace(), []
    for seed in range(rounds + 1):
        both = Waiting(g, a, b0, b1, steps, seed)
        plain, expected = timed(lambda both=both, seed=seed: take_steps(both, both, TOP, (0, seed)))
        sooner, found = timed(lambda both=both, seed=seed: speculate(both, both, TOP, (0, seed), pace, steps))
        if found != expected:
            raise AssertionError("guesses changed what was found")
        ratios.append(plain / sooner)
    stride = best_stride(g, a, b0, b1)
    predicted = gain(stride, g, a, b0, b1)
    chosen = predicted >= LEAST_GAIN
    return {
        "g": g, "a": milliseconds[0], "b0": milliseconds[1], "b1": milliseconds[2], "stride": stride if chosen else 0,
        "predicted": round(predicted if chosen else 1.0, 2), "measured": round(statistics.median(ratios[1:]), 2),
        "least": round(min(ratios[1:]), 2), "most": round(max(ratios[1:]), 2),
    }  # fmt: skip


def main() -> None:
    """Measure every row."""
    options = argparse.ArgumentParser(description="Measure what reading on with guesses saves.", allow_abbrev=False)
    options.add_argument("--steps", type=int, default=40, help="of a request (default %(default)s)")
    options.add_argument("--rounds", type=int, default=7, help="of each row (default %(default)s)")
    options.add_argument("--slower", type=float, default=1.0, help="times as long as in the rows (default %(default)s)")
    given = options.parse_args()
    for g, *milliseconds in ROWS:
        times = [value * given.slower for value in milliseconds]
        print(json.dumps(measure(g, times, given.steps, given.rounds)), flush=True)


if __name__ == "__main__":
    main()
