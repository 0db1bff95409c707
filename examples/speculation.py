"""Measure what reading on with guesses saves, by what the formula predicts: a JSON line a row.

    python examples/speculation.py            # with a retriever and a reader that take set times: they only wait

Every row is steps taken one after the other, then with guesses, in turns, in one process; both must find the same.
The pace has seen one request before, so that it knows what there is to know.

    python examples/speculation.py --store s.btr --questions q.jsonl --rows 60000 [--dense | --words OTHER/bm25]

With a store it answers real questions by the shipped reader, in at most three hops. What it is searched with is made
longer to so many rows, of which none is ever among the best: of words, by the shards of the index OTHER (default: the
store's own), over and over, their scores a hundredth; of vectors, by random signs. It is also measured what keeping
rows saves: steps one after the other, of which each reads all its passages anew.
"""

import argparse
import json
import statistics
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from btr import Reader, Store, kernels
from btr.corpus.questions import find_questions, query
from btr.hops import Hopped, answer_in_hops
from btr.hops.pace import LEAST_GAIN, Pace, best_stride, gain
from btr.hops.speculation import speculate
from btr.hops.steps import take_steps
from btr.retrieve.bm25 import BM25, WordShard
from btr.retrieve.dense.index import SIGNS, Dense
from btr.retrieve.indexed import Preparing

# chance that a guess is right; milliseconds of reading, and of a search for s queries: b0 + b1 s
ROWS = [
    (0.0, 20, 20, 0), (0.5, 20, 20, 0), (0.9, 20, 1, 0), (0.9, 20, 10, 0), (0.9, 20, 20, 0), (0.9, 20, 60, 0),
    (0.9, 20, 60, 6), (0.7, 20, 60, 6),
]  # fmt: skip
TOP = 3
LEARN = 4  # questions that are asked before it is measured


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


def first(shard: WordShard, passages: int) -> WordShard:
    """Return the index of the first passages of a shard."""
    if passages >= shard.passages:
        return shard
    kept = shard.places < passages
    ends = np.concatenate(([0], np.cumsum(kept))).astype(np.uint64)
    terms = np.stack((shard.terms[0], ends[shard.terms[1]], ends[shard.terms[2]]))
    return WordShard(shard.offset, passages, terms, shard.scores[kept], shard.places[kept])


def longer_words(store: Path, words: Path, rows: int) -> BM25:
    """Return the store's index of words, and after it shards of another one, over and over, until it has the rows."""
    bm25 = BM25.open(store / "bm25")
    parts = json.loads((words / "index.json").read_text(encoding="utf-8"))["shards"]
    shards = [WordShard.open(words / part["name"], 0, part["passages"]) for part in parts]
    low = [replace(s, scores=s.scores * np.float32(0.01), places=np.array(s.places)) for s in shards]
    more: list[WordShard] = []
    offset = len(bm25)
    for shard in cycle(low):
        if offset >= rows:
            return bm25.extended(more)
        more.append(replace(first(shard, rows - offset), offset=offset))
        offset += more[-1].passages


def longer_dense(folder: Path, rows: int) -> Dense:
    """Return an index of vectors that looks through random signs as well, of so many rows in all, and finds its own."""
    dense = Dense.open(folder)
    words = dense._files[SIGNS].shape[1]
    more = np.random.default_rng(0).integers(0, 2**64, (max(rows - len(dense), 0), words), np.uint64)
    own = dense._nearest

    def nearest(packed: np.ndarray, wanted: int) -> Any:
        if len(more):
            kernels.nearest_k(packed, more, min(wanted, len(more)))
        return own(packed, wanted)

    dense._nearest = nearest  # type: ignore[method-assign]
    return dense


def expected(steps: int, s: int, g: float, a: float, b0: float, b1: float) -> float:
    """Return how long so many steps take with guesses: the first has nothing to guess from."""

    def rest(left: int) -> float:
        if left == 0:
            return 0.0
        n = min(s, left)
        ends = sum(g**right * (1 - g) * (a + rest(left - right - 1)) for right in range(n))
        return (n - 1) * a + max(a, b0 + b1 * n) + ends + g**n * rest(left - n)

    return a + b0 + b1 + rest(steps - 1)


def told(hopped: Hopped) -> Any:
    """Return all of an answer that must be the same."""
    answer = hopped.answer
    return hopped.steps, hopped.scores.tolist(), answer and (answer.text, answer.score, answer.evidence.tolist())


def measure_real(
    reader: Reader, store: Store, index: Preparing, questions: Sequence[str], long: float
) -> dict[str, Any]:
    """Return a row of real questions, asked for so many seconds after those that the pace learns from."""
    pace, ratios, steps, spent = Pace(), [], [], [0.0, 0.0, 0.0]
    ways = (  # one step after the other, with guesses, and all passages read anew
        partial(answer_in_hops, pace=None),
        partial(answer_in_hops, pace=pace),
        lambda *given: answer_in_hops(*given, read=lambda found, kept: reader.answer(given[3], found)),
    )
    ends = np.inf
    for number, question in enumerate(cycle(questions)):
        if number == LEARN:
            ends = time.perf_counter() + long
            pace.outcomes = dict.fromkeys(pace.outcomes, 0)
        if time.perf_counter() > ends:
            break
        seconds, found = [0.0, 0.0, 0.0], [None, None, None]
        for way in (0, 1, 2) if number % 2 else (2, 1, 0):
            began = time.perf_counter()
            hopped = ways[way](reader, store, index, question, 3, 10)
            seconds[way] = time.perf_counter() - began
            found[way] = told(hopped)
        if found[0] != found[1]:
            raise AssertionError("guesses changed what was found")
        if number >= LEARN:
            ratios.append(seconds[0] / seconds[1])
            steps.append(len(hopped.steps))
            spent = [one + more for one, more in zip(spent, seconds, strict=True)]
    a, (b0, b1), (right, wrong) = pace.a, pace.b, pace.outcomes.values()  # type: ignore[misc]
    g = right / max(right + wrong, 1)
    s = best_stride(g, a, b0, b1)
    chosen = gain(s, g, a, b0, b1) >= LEAST_GAIN
    predicted = sum(steps) * (a + b0 + b1) / sum(expected(n, s, g, a, b0, b1) for n in steps) if chosen else 1.0
    return {
        "requests": len(ratios), "steps": round(statistics.mean(steps), 2), "rows kept": round(spent[2] / spent[0], 2),
        "a": round(1000 * a, 1), "b0": round(1000 * b0, 1), "b1": round(1000 * b1, 1), "accepted": right,
        "rejected": wrong, "g": round(g, 2), "predicted": round(predicted, 2), "total": round(spent[0] / spent[1], 2),
        "measured": round(statistics.median(ratios), 2), "least": round(min(ratios), 2), "most": round(max(ratios), 2),
    }  # fmt: skip


def real_rows(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure real questions over indices of different lengths."""
    reader, questions = (
        Reader.from_pretrained(),
        [query(q) for q in find_questions(given.questions, None, None).questions],
    )
    with Store.open(given.store) as store:
        for rows in map(int, given.rows.split(",")):
            words = given.words or store.path / "bm25"
            dense, path = given.dense, store.path
            index = longer_dense(path / "dense", rows) if dense else longer_words(path, words, rows)
            yield {"rows": rows} | measure_real(reader, store, index, questions, given.seconds)


def main() -> None:
    """Measure every row."""
    options = argparse.ArgumentParser(description="Measure what reading on with guesses saves.", allow_abbrev=False)
    options.add_argument("--steps", type=int, default=40, help="of a request (default %(default)s)")
    options.add_argument("--rounds", type=int, default=7, help="of each row (default %(default)s)")
    options.add_argument("--slower", type=float, default=1.0, help="times as long as in the rows (default %(default)s)")
    options.add_argument("--store", type=Path, help="to answer real questions from; with an index of words")
    options.add_argument("--questions", help="file of questions")
    options.add_argument("--rows", default="60000", help="of the indices, comma-separated (default %(default)s)")
    options.add_argument("--words", type=Path, metavar="FOLDER", help="index of words whose columns are taken")
    options.add_argument("--dense", action="store_true", help="search by vectors, not by words")
    options.add_argument("--seconds", type=float, default=30, help="that a row is measured (default %(default)s)")
    given = options.parse_args()
    for row in real_rows(given) if given.store else ():
        print(json.dumps(row), flush=True)
    for g, *milliseconds in () if given.store else ROWS:
        times = [value * given.slower for value in milliseconds]
        print(json.dumps(measure(g, times, given.steps, given.rounds)), flush=True)


if __name__ == "__main__":
    main()
