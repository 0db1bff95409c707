"""Tell who asked how his answer comes: what is read, each phase that is done, the words as they are decoded.

The reader's thread tells, the event loop writes: server-sent events, `reading`, `phase`, `text`, `answer` or `error`.
"""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from time import monotonic
from typing import Any

from fastapi.responses import StreamingResponse

from btr.corpus import Passage
from btr.serve.queue import Event, Job
from btr.serve.schema import AnswerResponse, RequestError

HEADERS = {"X-Accel-Buffering": "no"}  # nginx would keep pieces back until it has 4 kB of them
Happening = Event | AnswerResponse  # what a stream is made of; the answer is the last


class Ears:
    """Hear how a batch is answered, and pass on to each job what is its own."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs

    def among(self, numbers: Sequence[int]) -> "Ears":
        """Return the ears of these jobs alone, numbered anew."""
        return Ears([self.jobs[n] for n in numbers])

    def reading(self, b: int, passages: Sequence[Passage]) -> None:
        """Hear which passages are read for a question."""
        self.jobs[b].tell("reading", {"passages": [{"id": p.id, "title": p.title} for p in passages]})

    def phase(self, name: str, seconds: float) -> None:
        """Hear that a phase was done, once more perhaps, and what it took until now."""
        for job in self.jobs:
            job.tell("phase", {"phase": name, "seconds": seconds})

    def words(self, b: int, text: str) -> None:
        """Hear how an answer goes on."""
        self.jobs[b].tell("text", {"text": text})

    def wanted(self, b: int) -> bool:
        """Tell whether somebody still waits for an answer."""
        return self.jobs[b].wanted and monotonic() <= self.jobs[b].deadline


def rest(answer: str, said: str) -> str:
    """Return what of an answer is still to be said, which may write in capitals what was said in small letters."""
    return answer[len(said) :] if answer[: len(said)].casefold() == said.casefold() else ""


def event(data: dict[str, Any], name: str = "") -> str:
    """Write a server-sent event."""
    kind = f"event: {name}\n" if name else ""
    return f"{kind}data: {json.dumps(data)}\n\n"


async def begun(happenings: AsyncIterator[Happening]) -> AsyncIterator[Happening]:
    """Wait until something happens, so that a refusal before that has a status of its own, and return all of it.

    Raises:
        RequestError, ClientLeft: nothing has happened, and nothing will.
    """
    first = await anext(happenings)

    async def all_of_it() -> AsyncIterator[Happening]:
        yield first
        async for one in happenings:
            yield one

    return all_of_it()


def respond(lines: AsyncIterator[str], fail: Callable[[str], object]) -> StreamingResponse:
    """Stream lines to a client; what goes wrong on the way is the last of them, and its code is told to `fail`."""

    async def safe() -> AsyncIterator[str]:
        try:
            async for line in lines:
                yield line
        except RequestError as error:
            fail(error.code)
            yield event({"error": error.body}, "error")

    return StreamingResponse(safe(), headers=HEADERS, media_type="text/event-stream")


async def write_events(happenings: AsyncIterator[Happening]) -> AsyncIterator[str]:
    """Write what happens, the answer at the end; raises RequestError."""
    async for one in happenings:
        if isinstance(one, AnswerResponse):
            yield event(one.model_dump(mode="json", exclude_none=True), "answer")
        else:
            yield event(one[1], one[0])
