"""Speculation: what is found is what steps taken one after the other find, to the bit, whatever was guessed."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btr.hops.pace import Pace
from btr.hops.speculation import speculate
from btr.hops.steps import take_steps

START = (0, 7)


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**64))
def test_outcome_is_that_of_steps_one_after_the_other(fakes: Any, seed: int) -> None:
    one, other = fakes.draw(seed), fakes.draw(seed)
    expected = fakes.outcome(partial(take_steps, one.work, one.index, one.top, START))
    pace = fakes.Forced(other.strides)
    assert fakes.outcome(partial(speculate, other.work, other.index, other.top, START, pace)) == expected
    assert fakes.threads() == []


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**64), most=st.integers(0, 12))
def test_every_round_accepts_a_step_and_none_more_than_there_are(fakes: Any, seed: int, most: int) -> None:
    case = fakes.draw(seed)
    case.index.fails = case.work.fails = 0
    case.work.steps = most
    _, found = speculate(case.work, case.index, case.top, START, fakes.Forced(case.strides), most)
    assert len(case.index.batches) <= len(found) <= most
    assert max(map(len, case.index.batches), default=0) <= max(most, 1)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), queries=st.lists(st.integers(0, 5).map(str), max_size=6), top=st.integers(1, 5))
def test_index_keeps_the_laws_that_this_rests_on(fakes: Any, seed: int, queries: list[str], top: int) -> None:
    index = fakes.FakeIndex(seed)
    together = [(found.tolist(), scores.tolist()) for found, scores in index.search_prepared(queries, top)]
    for query, found in zip(queries, together, strict=True):
        [alone], [more] = index.search([query], top), index.search([query], index.depth(top, top + 3))
        assert found == (alone[0].tolist(), alone[1].tolist()) == (more[0][:top].tolist(), more[1][:top].tolist())
        known = np.union1d(alone[0], np.arange(seed % 9))
        assert index.among(query, known, top)[0].tolist() == found[0]  # ties included


def test_guesses_that_are_right_save_searches(fakes: Any) -> None:
    index, work = fakes.FakeIndex(1), fakes.FakeWork(3, 12, queries=1)
    work.query = lambda state: None if state[0] == 12 else "0"
    _, found = speculate(work, index, 2, START, fakes.Forced([4]))
    assert len(found) == 12 and [len(batch) for batch in index.batches] == [1, 4, 4, 3] and work.reads == 12


def test_last_step_of_a_round_is_read_while_it_is_verified(fakes: Any) -> None:
    index, work = fakes.FakeIndex(1), fakes.FakeWork(3, 2, queries=1)
    searching, read = threading.Event(), threading.Event()
    search, reading = index.search_prepared, work.read

    def search_and_wait(queries: list[str], top: int) -> Any:
        if len(index.batches) == 1:  # the first search has nothing beside it
            searching.set()
            assert read.wait(900)
        return search(queries, top)

    def read_meanwhile(state: Any, ordinals: list[int]) -> Any:
        if state[0] == 1:
            assert searching.wait(900)
            read.set()
        return reading(state, ordinals)

    index.search_prepared, work.read = search_and_wait, read_meanwhile
    work.query = lambda state: None if state[0] == 2 else "0"
    state, _ = speculate(work, index, 2, START, fakes.Forced([1]))
    assert state[0] == 2 and read.is_set()


@pytest.mark.parametrize("where", ["read", "query"])
def test_interruption_leaves_no_thread(fakes: Any, where: str) -> None:
    index, work = fakes.FakeIndex(1), fakes.FakeWork(3, 9, queries=1)
    going, calls = getattr(work, where), count()

    def interrupt(*given: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt  # as a deadline would, not to be taken for the fault of a guess
        return going(*given)

    setattr(work, where, interrupt)
    work.steps, work.seed = 9, next(n for n in range(99) if full_length(fakes, n))
    with pytest.raises(KeyboardInterrupt):
        speculate(work, index, 2, START, fakes.Forced([3]))
    assert fakes.threads() == [] and index.searching == 0


def full_length(fakes: Any, seed: int) -> bool:
    """Tell whether the task of a seed takes nine steps."""
    return len(take_steps(fakes.FakeWork(seed, 9, queries=1), fakes.FakeIndex(1), 2, START)[1]) == 9


@settings(max_examples=30, deadline=None)
@given(seeds=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)))
def test_two_requests_at_a_time_are_as_each_alone(fakes: Any, seeds: tuple[int, int]) -> None:
    pace = fakes.Forced([2, 0, 3])
    with ThreadPoolExecutor(2) as pool:
        cases = [fakes.draw(seed) for seed in seeds]
        runs = [
            pool.submit(fakes.outcome, partial(speculate, case.work, case.index, case.top, START, pace))
            for case in cases
        ]
        together = [run.result() for run in runs]
    apart = [fakes.draw(seed) for seed in seeds]
    assert together == [fakes.outcome(partial(take_steps, case.work, case.index, case.top, START)) for case in apart]


def test_pace_learns_from_what_it_sees(fakes: Any) -> None:
    """A clock that counts the calls of each thread: reading and searching take as long, so it begins to guess."""
    index, work, pace, ticks = fakes.FakeIndex(1), fakes.FakeWork(3, 40, queries=1), Pace(), threading.local()
    work.query = lambda state: None if state[0] == 40 else "0"

    def clock() -> float:
        ticks.count = getattr(ticks, "count", 0.0) + 1.0
        return float(ticks.count)

    speculate(work, index, 2, START, pace, clock=clock)
    assert pace.a == pytest.approx(1) and pace.b is not None and pace.b[0] == pytest.approx(1)
    assert pace.g > 0.9  # it was right all along
