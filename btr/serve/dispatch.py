"""Take questions from the event loop to the reader's thread, and bring the answers back."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from time import monotonic
from typing import Any

from fastapi import Request

from btr.errors import InputError
from btr.serve.edits import apply_edit, check_edit, edit_cost
from btr.serve.keys import Keys
from btr.serve.metrics import Metrics
from btr.serve.queue import Event, Job, Queue, Result, Work, late
from btr.serve.schema import AnswerRequest, AnswerResponse, Edit, EditResponse, RequestError
from btr.serve.service import Service
from btr.serve.streams import Ears, Happening
from btr.storage import StoreError

_log = logging.getLogger("btr.serve")


class ClientLeft(Exception):
    """Report that nobody waits for the answer any more."""


class Dispatcher:
    """Where requests come in: the service, its queue and its numbers."""

    def __init__(self, service: Service, keys: Keys | None = None, *, warm: bool = True) -> None:
        """Take questions from the start; without `warm` the reader's thread answers one of its own before."""
        self.service, self.keys, self.metrics = service, keys or Keys(), Metrics()
        self.draining, self.warm = False, warm
        self.fault: Exception | None = None  # why the server cannot go on
        self.connections = 0  # that are open
        self.queue = Queue(self._read, service.settings.queue, service.batch_tokens)
        self.metrics.watch("btr_queue_depth", "Questions in line", lambda: len(self.queue))
        self.metrics.watch("btr_reading", "Questions with the reader now", lambda: self.queue.reading)
        self.metrics.watch("btr_connections", "Connections that are open", lambda: self.connections)
        self.metrics.watch("btr_ready", "1 if new questions are taken", lambda: self.ready)
        self.metrics.watch("btr_passages", "Passages in the store", lambda: self.service.passages)
        about = "Guesses at what the next search of a question in several hops finds, by outcome"
        self.metrics.count("btr_hop_guesses", about, "outcome", lambda: self.service.pace.outcomes)

    @property
    def ready(self) -> bool:
        """Tell whether questions are answered and new ones taken."""
        return self.warm and self.queue.alive and not self.draining

    def start(self) -> None:
        """Begin to read, the warm-up first; questions that come meanwhile stand in line."""
        self.queue.start(lambda: None if self.warm else self._warm_up())

    def _warm_up(self) -> None:
        try:
            self.service.warm_up()
        except Exception as error:  # whatever it is, nobody's question would fare better
            self.fault = error
            self.queue.close()
        else:
            self.warm = True
            _log.info("warm")

    def reload(self) -> bool:
        """Open the store, and read the keys, anew; on a fault log it, keep what is there, and return False."""
        try:
            keys = Keys.read(self.service.settings.keys_file)
            self.service.reload()
        except (InputError, StoreError, OSError) as error:
            _log.error("reload failed: %s", error)
            self.metrics.reloads.labels("failed").inc()
            return False
        self.keys = keys
        _log.info("reloaded", extra={"fields": {"passages": self.service.passages}})
        self.metrics.reloads.labels("done").inc()
        return True

    def _read(self, jobs: Sequence[Job]) -> Sequence[Result]:
        """Answer the jobs of a batch, or do the edit that one of them is; runs in the reader's thread."""
        asked = [job.work for job in jobs if isinstance(job.work, AnswerRequest)]
        if len(asked) < len(jobs):
            return [self._edit(job.work) for job in jobs if not isinstance(job.work, AnswerRequest)]
        results = self.service.answer(asked, Ears(jobs))
        now = monotonic()
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, AnswerResponse):
                times = {"queue": job.begun - job.arrived}
                result.timings = times | result.timings | {"total": now - job.arrived}
        answers = [result for result in results if isinstance(result, AnswerResponse)]
        self.metrics.count_batch(answers, [job.begun - job.arrived for job in jobs])
        return results

    def _edit(self, work: Edit) -> EditResponse | RequestError:
        try:
            reply = apply_edit(self.service, work)
        except RequestError as refused:
            return refused
        for kind in ("added", "replaced", "same", "cut", "deleted"):
            self.metrics.edits.labels(kind).inc(getattr(reply, kind))
        return reply

    def _put(self, asked: Sequence[Work], tell: Callable[[str, Any], object] = lambda name, said: None) -> list[Job]:
        if self.draining:
            raise RequestError(503, "the server is shutting down", "draining", 5)
        service, most = self.service, self.service.settings.timeout
        return self.queue.put(
            [
                (one, service.cost(one), service.kind(one), min(most, one.timeout or most))
                if isinstance(one, AnswerRequest)
                else (one, edit_cost(service, one), object(), most)  # read with nothing else
                for one in asked
            ],
            tell,
        )

    async def edit(self, request: Request, asked: Edit) -> EditResponse:
        """Change the store; what it answers from next is the store as changed.

        Raises:
            RequestError: it is refused, or failed.
            ClientLeft: nobody waits any more; it is done all the same if it was begun.
        """
        await asyncio.to_thread(check_edit, self.service, asked)
        [job] = self._put([asked])
        [result] = await self._wait(request, [_settle(job)])
        if isinstance(result, RequestError):
            if result.code == "deadline_exceeded" and job.begun:
                message = "no word from the store within the time allowed; the edit was begun and may yet be done"
                result = RequestError(503, message, "unconfirmed", 1)
            raise result
        assert isinstance(result, EditResponse)
        return result

    async def ask(self, request: Request, asked: AnswerRequest) -> AnswerResponse:
        """Answer one question.

        Raises:
            RequestError: it is refused, or could not be answered.
            ClientLeft: nobody waits any more; what still stood in line was taken out of it.
        """
        [result] = await self.ask_all(request, [asked])
        if isinstance(result, RequestError):
            raise result
        return result

    async def ask_all(self, request: Request, asked: Sequence[AnswerRequest]) -> list[AnswerResponse | RequestError]:
        """Answer several questions; one that is at fault has a refusal in its place.

        Raises:
            RequestError: 429 or 503, none of them was taken.
            ClientLeft: nobody waits any more.
        """
        faults = [self._fault(one) for one in asked]
        jobs = iter(self._put([one for one, fault in zip(asked, faults, strict=True) if fault is None]))
        found: list[AnswerResponse | RequestError] = await self._wait(
            request, [_settle(next(jobs)) if fault is None else _same(fault) for fault in faults]
        )
        _note(request, [one for one in found if isinstance(one, AnswerResponse)])
        return found

    async def follow(self, request: Request, asked: AnswerRequest) -> AsyncIterator[Happening]:
        """Answer one question, and yield what happens on the way, then the answer.

        Raises:
            RequestError: it is refused, or could not be answered.
            ClientLeft: nobody waits any more; it left the line, or is decoded no further.
        """
        if (fault := self._fault(asked)) is not None:
            raise fault
        loop, happened = asyncio.get_running_loop(), asyncio.Queue[Event | asyncio.Task[Any]]()

        def tell(name: str, said: dict[str, Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever listened
                loop.call_soon_threadsafe(happened.put_nowait, (name, said))

        [job] = self._put([asked], tell)
        done, gone = asyncio.create_task(_settle(job)), asyncio.create_task(_gone(request))
        try:
            done.add_done_callback(happened.put_nowait)
            gone.add_done_callback(happened.put_nowait)
            while not isinstance(one := await happened.get(), asyncio.Task):
                yield one
            if one is gone:
                raise ClientLeft
            result = done.result()
            if isinstance(result, RequestError):
                raise result
            assert isinstance(result, AnswerResponse)
            _note(request, [result])
            yield result
        finally:
            job.wanted = False
            if not done.done():  # the client left; whoever writes the stream may have noticed first
                self.metrics.left.inc()
            await _end(done, gone)

    async def _wait(self, request: Request, results: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Wait for all results, as long as the client does; raises ClientLeft."""
        answers = asyncio.gather(*results)
        gone = asyncio.create_task(_gone(request))
        either: set[asyncio.Future[Any]] = {answers, gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                self.metrics.left.inc(len(results))
                raise ClientLeft
            return answers.result()
        finally:
            await _end(*either)

    def _fault(self, asked: AnswerRequest) -> RequestError | None:
        try:
            self.service.check(asked)
        except RequestError as error:
            return error
        return None


def _note(request: Request, done: Sequence[AnswerResponse]) -> None:
    """Keep what answers took, for the headers and the log."""
    if done:
        request.state.waited = max(one.timings["queue"] for one in done)
        request.state.computed = max(one.timings["total"] - one.timings["queue"] for one in done)


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _same(fault: RequestError) -> RequestError:
    return fault


async def _settle(job: Job) -> AnswerResponse | EditResponse | RequestError:
    """Wait for a job until its deadline; given up, it leaves the line."""
    try:
        return await asyncio.wait_for(asyncio.wrap_future(job.future), max(0.0, job.deadline - monotonic()))
    except TimeoutError:
        return late()
    except RequestError as error:
        return error
    except Exception:  # the queue has logged it
        return RequestError(500, "the server failed; its log says how", "internal_error")
    finally:
        job.wanted = False  # done, or nobody waits any more


async def _gone(request: Request) -> None:
    """Wait until the client has left: its body was read before, so that is all that can still come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
