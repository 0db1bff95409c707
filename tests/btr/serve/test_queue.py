"""Who is read when, and who is not."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest

from btr.serve import queue
from btr.serve.queue import Job, Queue
from btr.serve.schema import RequestError

WAIT = 900


class Reading:
    """A reader that waits for `gate`, and keeps what was read together; work is any name, and its own answer."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.begun, self.gate = threading.Event(), threading.Event()
        self.fault: Exception | None = None

    def __call__(self, jobs: Sequence[Job]) -> list[Any]:
        self.batches.append([job.work for job in jobs])
        self.begun.set()
        assert self.gate.wait(WAIT)
        if self.fault is not None:
            raise self.fault
        return [job.work for job in jobs]


@pytest.fixture
def reading() -> Reading:
    return Reading()


@pytest.fixture
def line(reading: Reading) -> Iterator[Queue]:
    made = Queue(reading, size=8, batch_tokens=100)
    yield made
    reading.gate.set()
    made.close(WAIT)


def put(line: Queue, *works: Any, tokens: int = 10, kind: str = "binary", seconds: float = WAIT) -> list[Job]:
    return line.put([(work, tokens, kind, seconds) for work in works])


def read_all(line: Queue, reading: Reading) -> list[list[Any]]:
    """Read all that waits, and return the batches."""
    jobs = list(line._waiting)
    reading.gate.set()
    line.start()
    for job in jobs:
        job.future.exception(WAIT)
    return reading.batches


def test_questions_that_fit_are_read_together(line: Queue, reading: Reading) -> None:
    jobs = put(line, *"abc", tokens=40)
    assert read_all(line, reading) == [["a", "b"], ["c"]]
    assert [job.future.result(WAIT) for job in jobs] == ["a", "b", "c"]


def test_without_a_budget_each_is_read_alone(reading: Reading) -> None:
    line = Queue(reading, size=8, batch_tokens=0)
    put(line, *"abc", tokens=0)
    assert read_all(line, reading) == [["a"], ["b"], ["c"]]
    line.close(WAIT)


def test_kinds_are_not_mixed_and_a_small_one_fills_the_batch(line: Queue, reading: Reading) -> None:
    put(line, "a", tokens=10)
    put(line, "f", tokens=11, kind="full")
    put(line, "large", tokens=95)
    put(line, "b", tokens=12)
    assert read_all(line, reading) == [["a", "b"], ["f"], ["large"]]


def test_small_question_overtakes_a_large_one_but_not_for_ever(
    line: Queue, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(queue, "monotonic", lambda: now)
    monkeypatch.setattr(queue, "PATIENCE", 0.1)  # seconds per token
    put(line, "large", tokens=100)  # place 10
    now = 5.0
    put(line, "small", tokens=20)  # place 7
    now = 9.0
    put(line, "late", tokens=20)  # place 11
    assert read_all(line, reading) == [["small", "late"], ["large"]]  # the late one fills the first batch


def test_flood_of_small_questions_does_not_starve_a_large_one(
    line: Queue, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(queue, "monotonic", lambda: now)
    monkeypatch.setattr(queue, "PATIENCE", 0.1)
    put(line, "large", tokens=100)
    for second in range(1, 7):
        now = 3.0 * second
        put(line, second, tokens=60)
    assert [batch[0] for batch in read_all(line, reading)] == [1, "large", 2, 3, 4, 5, 6]


def test_full_line_refuses_and_says_when_to_come_back(line: Queue, reading: Reading) -> None:
    line.start()
    put(line, "read", tokens=100)
    assert reading.begun.wait(WAIT)
    put(line, *range(8))
    with pytest.raises(RequestError, match="8 of 8 places in line are taken") as refused:
        put(line, "one more")
    assert (refused.value.status, refused.value.code) == (429, "queue_full")
    assert refused.value.retry_after is not None and 1 <= refused.value.retry_after <= 60


def test_batch_is_taken_whole_or_not_at_all(line: Queue) -> None:
    put(line, *range(6))
    with pytest.raises(RequestError):
        put(line, *"abc")
    assert len(line) == 6


def test_who_left_makes_room_and_is_not_read(line: Queue, reading: Reading) -> None:
    jobs = put(line, *range(8))
    for job in jobs[1:]:
        assert job.future.cancel()
    assert len(line) == 1
    put(line, *"abcdefg")
    assert {work for batch in read_all(line, reading) for work in batch} == {0, *"abcdefg"}
    with pytest.raises(CancelledError):
        jobs[1].future.result(WAIT)


def test_question_past_its_deadline_is_not_read(line: Queue, reading: Reading) -> None:
    late, good = *put(line, "late", seconds=-1.0), *put(line, "good")
    assert read_all(line, reading) == [["good"]]
    error = late.future.exception(WAIT)
    assert isinstance(error, RequestError) and (error.status, error.code) == (503, "deadline_exceeded")
    assert good.future.result(WAIT) == "good"


def test_fault_of_the_reader_ends_its_batch_and_no_other(line: Queue, reading: Reading) -> None:
    reading.fault = MemoryError("no more")
    [bad] = put(line, "bad")
    read_all(line, reading)
    assert isinstance(bad.future.exception(WAIT), MemoryError)
    reading.fault = None
    [good] = put(line, "good")
    assert good.future.result(WAIT) == "good" and line.alive


def test_closing_fails_what_waits_and_ends_what_is_read(line: Queue, reading: Reading) -> None:
    line.start()
    [read] = put(line, "read", tokens=100)
    assert reading.begun.wait(WAIT)
    [waiting] = put(line, "waiting")
    assert not line.idle
    line.close()
    error = waiting.future.exception(WAIT)
    assert isinstance(error, RequestError) and error.status == 503
    reading.gate.set()
    assert read.future.result(WAIT) == "read"
    with pytest.raises(RequestError, match="shutting down"):
        put(line, "after")
