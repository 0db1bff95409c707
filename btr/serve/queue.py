"""Wait in line for the one reader: bounded, fair to small questions, with deadlines.

A question's place is `arrival + PATIENCE * tokens`: a small one overtakes a large one that came up to that much before
it, and no question waits for ever, since later arrivals have later places.  Questions that can be read together are
taken in that order until their tokens fill the batch.
"""

import heapq
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from time import monotonic
from typing import Any

from btr.serve.schema import AnswerRequest, AnswerResponse, Edit, EditResponse, RequestError

PATIENCE = 5e-4  # seconds per token: 2,000 tokens let a question of a few pass that came a second later
MOST_TOGETHER = 64  # questions of one batch
Work = AnswerRequest | Edit
Result = AnswerResponse | EditResponse | Exception
Event = tuple[str, dict[str, Any]]  # something that happens on the way to a result: its name, and what there is to say
_log = logging.getLogger("btr.serve")


@dataclass(eq=False)
class Job:
    """A question, or an edit of the store, in line.

    Jobs of one kind may be read together; after the deadline, or once `wanted` is no longer set, nobody wants the
    answer. `tell` is called in the reader's thread.

    Times are seconds of `monotonic`.
    """

    work: Work
    tokens: int
    kind: Hashable
    arrived: float
    deadline: float
    number: int
    future: Future[Any] = field(default_factory=Future)
    begun: float = 0.0
    tell: Callable[[str, dict[str, Any]], object] = lambda name, said: None
    wanted: bool = True

    def __lt__(self, other: "Job") -> bool:
        return self.place < other.place

    @property
    def place(self) -> tuple[float, int]:
        """Where it stands in line; equal places go by arrival."""
        return self.arrived + PATIENCE * self.tokens, self.number


class Queue:
    """One thread that reads what waits.

    `read` gets the jobs of a batch and gives a result or an exception for each.
    """

    def __init__(self, read: Callable[[Sequence[Job]], Sequence[Result]], size: int, batch_tokens: int) -> None:
        self.read, self.size, self.batch_tokens = read, size, batch_tokens
        self.reading = 0  # questions with the reader now
        self.seconds_each = 0.1  # smoothed; what Retry-After is made of
        self._waiting: list[Job] = []
        self._numbers = count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, first: Callable[[], object] = lambda: None) -> None:
        """Begin to read, after `first` in the same thread.  The thread does not keep the process alive."""
        self._thread = threading.Thread(target=self._run, args=(first,), name="reader", daemon=True)
        self._thread.start()

    def close(self, wait: float = 0.0) -> None:
        """Stop: what waits fails with 503, what is being read has `wait` seconds to end."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                self._settle(job, RequestError(503, "the server is shutting down", "draining", 5))
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(wait)

    def __len__(self) -> int:
        with self._changed:
            return sum(not job.future.done() for job in self._waiting)

    @property
    def alive(self) -> bool:
        """Tell whether the reader's thread runs and takes work."""
        return self._thread is not None and self._thread.is_alive() and not self._closed

    @property
    def idle(self) -> bool:
        """Tell whether nothing waits and nothing is being read."""
        return len(self) == 0 and self.reading == 0

    @property
    def retry_after(self) -> int:
        """Whole seconds until the line will be about half as long, 1 to 60."""
        return round(min(60.0, max(1.0, self.seconds_each * self.size / 2)))

    def put(
        self,
        asked: Sequence[tuple[Work, int, Hashable, float]],
        tell: Callable[[str, dict[str, Any]], object] = lambda name, said: None,
    ) -> list[Job]:
        """Let (work, tokens, kind, seconds until its deadline) stand in line, all or none; `tell` what becomes of it.

        Raises:
            RequestError: 429, they do not fit; 503, the queue is closed.
        """
        now = monotonic()
        with self._changed:
            if self._closed:
                raise RequestError(503, "the server is shutting down", "draining", 5)
            self._waiting = [job for job in self._waiting if not job.future.done()]
            if len(self._waiting) + len(asked) > self.size:
                message = f"{len(self._waiting)} of {self.size} places in line are taken; try again later"
                raise RequestError(429, message, "queue_full", self.retry_after)
            heapq.heapify(self._waiting)
            jobs: list[Job] = [
                Job(work, tokens, kind, now, now + seconds, next(self._numbers), tell=tell)
                for work, tokens, kind, seconds in asked
            ]
            for job in jobs:
                heapq.heappush(self._waiting, job)
            self._changed.notify()
        return jobs

    def _take(self) -> list[Job]:
        """Wait for work, and take a batch of it; empty when the queue is closed."""
        with self._changed:
            while not self._closed:
                batch = self._cut()
                if batch:
                    self.reading = len(batch)
                    return batch
                self._changed.wait()
        return []

    def _cut(self) -> list[Job]:
        """Take the first job, and those after it, of its kind, whose tokens still fit."""
        batch: list[Job] = []
        left: list[Job] = []
        tokens, now = 0, monotonic()
        while self._waiting:
            job = heapq.heappop(self._waiting)
            if batch and not (self.batch_tokens and self._joins(job, batch, tokens)):
                left.append(job)
                if not self.batch_tokens:
                    break
                continue
            if now > job.deadline:
                self._settle(job, late())
            elif job.future.set_running_or_notify_cancel():
                job.begun = now
                batch.append(job)
                tokens += job.tokens
        for job in left:
            heapq.heappush(self._waiting, job)
        return batch

    def _joins(self, job: Job, batch: list[Job], tokens: int) -> bool:
        """Tell whether a job can be read with a batch that has so many tokens."""
        fits = tokens + job.tokens <= self.batch_tokens and len(batch) < MOST_TOGETHER
        return fits and job.kind == batch[0].kind

    def _run(self, first: Callable[[], object]) -> None:
        first()
        while batch := self._take():
            try:
                results = self.read(batch)
            except Exception as error:  # `read` answers for its jobs; this is a fault of its own, and the line goes on
                _log.exception("the reader failed")
                results = [error] * len(batch)
            with self._changed:
                self.reading = 0
                each = (monotonic() - batch[0].begun) / len(batch)
                self.seconds_each += 0.1 * (each - self.seconds_each)
            for job, result in zip(batch, results, strict=True):
                self._settle(job, result)

    @staticmethod
    def _settle(job: Job, result: Result) -> None:
        if job.future.done():
            return
        if isinstance(result, Exception):
            if job.future.running() or job.future.set_running_or_notify_cancel():
                job.future.set_exception(result)
        else:
            job.future.set_result(result)


def late() -> RequestError:
    """Say that the deadline of a question has passed."""
    return RequestError(503, "no answer within the time allowed; ask less, or later", "deadline_exceeded", 1)
