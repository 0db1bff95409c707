"""Take steps sooner: read on with guesses, while one search for several of them runs beside it.

What is found is what `take_steps` finds, to the bit. A guess is the best, by the index's own scores, of the passages
that this request has come across; a search for all guessed steps then says up to where they were right. At the first
that was not, what was made of it is dropped, and the step is read with what the search found.

Never two searches run at once: one thread of the request's own searches, and is gone when the request ends, however it
ends. What a guess led to and fails is not told, unless the search says that it was no guess: then it fails again.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any, Generic

import numpy as np

from btr.hops.pace import MOST, Pace
from btr.hops.steps import State, Work
from btr.retrieve.bm25 import Hits
from btr.retrieve.indexed import Preparing

PREFETCH = 20  # times as many passages are come across as are read, if the index gives them away

Clock = Callable[[], float]


def speculate(
    work: Work[State], index: Preparing, top: int, state: State, pace: Pace, most: int | None = None,
    clock: Clock = perf_counter,
) -> tuple[State, list[Hits]]:  # fmt: skip
    """Search and read until it is done, as `take_steps`.

    pace: what is known of how long things take; it learns, and may serve many requests, one after the other.
    most: steps that are taken at the most, if that is known.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="speculation") as pool:
        run = _Run(work, index, top, pace, clock, pool)
        while (query := work.query(state)) is not None:
            left = MOST if most is None else most - len(run.found)
            stride = min(pace.stride(), left) if len(run.known) else 0
            state = run.guess(state, query, stride) if stride > 0 else run.step(state, query)
        return state, run.found


class _Run(Generic[State]):
    """The steps of one request."""

    def __init__(
        self, work: Work[State], index: Preparing, top: int, pace: Pace, clock: Clock, pool: ThreadPoolExecutor
    ) -> None:
        self.work, self.index, self.top, self.pace, self.clock, self.pool = work, index, top, pace, clock, pool
        self.depth = index.depth(top, PREFETCH * top)
        self.known = np.zeros(0, np.int64)  # ordinals that were come across, rising
        self.found: list[Hits] = []

    def step(self, state: State, query: str) -> State:
        """Search, then read."""
        [hits] = self._search([self.index.prepare(query)])
        return self._read(state, self._accept(hits))

    def guess(self, state: State, query: str, stride: int) -> State:
        """Read so many steps by guesses, the last while they are verified; returns the state after the right ones."""
        asked = [self.index.prepare(query)]
        guesses, states = [self._guess(asked[0])], [state]
        searching: Future[list[Hits]] | None = None
        try:
            for left in reversed(range(stride)):
                if left == 0:
                    searching = self.pool.submit(self._search, asked)
                states.append(self._read(states[-1], guesses[-1]))
                following = self.work.query(states[-1]) if left else None
                if following is None:
                    break
                one = self.index.prepare(following)
                asked, guesses = [*asked, one], [*guesses, self._guess(one)]
        except Exception:  # of a wrong guess perhaps; if not, what failed is done again, below or by who asks next
            pass
        return self._verify(states, asked, guesses, searching)

    def _verify(
        self, states: list[State], asked: list[Any], guesses: list[list[int]], searching: Future[list[Hits]] | None
    ) -> State:
        """Search for what was guessed, and return the state after the last step that is right, or was put right."""
        try:
            found = self._search(asked) if searching is None else searching.result()
        except Exception:  # of a query perhaps that nobody will ask
            found = None
        for n, (one, guess) in enumerate(zip(asked, guesses, strict=True)):
            [hits] = self._search([one]) if found is None else [found[n]]
            ordinals = self._accept(hits)
            if ordinals != guess:
                self.pace.ended(n, True)
                return self._read(states[n], ordinals)
            if n + 1 == len(states):  # this is what failed
                return self._read(states[n], ordinals)
        self.pace.ended(len(asked), False)
        return states[len(asked)]

    def _guess(self, asked: Any) -> list[int]:
        """Return the best of what was come across."""
        ordinals: list[int] = self.index.among(asked, self.known, self.top)[0].tolist()
        return ordinals

    def _search(self, asked: Sequence[Any]) -> list[Hits]:
        """Search once for all of them."""
        began = self.clock()
        found = self.index.search_prepared(asked, self.depth)
        self.pace.searched(len(asked), self.clock() - began)
        return found

    def _accept(self, hits: Hits) -> list[int]:
        """Take what a search found for the next step, and keep what else it came across; returns what is to be read."""
        self.known = np.union1d(self.known, hits[0])
        self.found.append((hits[0][: self.top], hits[1][: self.top]))
        ordinals: list[int] = self.found[-1][0].tolist()
        return ordinals

    def _read(self, state: State, ordinals: list[int]) -> State:
        """Read a step."""
        began = self.clock()
        state = self.work.read(state, ordinals)
        self.pace.read(self.clock() - began)
        return state
