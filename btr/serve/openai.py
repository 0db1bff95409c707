"""Speak OpenAI's protocol: chat and plain completions, whole or streamed, and the list of models.

The last message of the user is the question; system messages and earlier turns are taken and ignored.  Every response,
and every chunk of a stream, carries `citations`, and the whole answer or the last chunk `no_answer`, with
`best_guess` where the reader abstains.
"""

from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator
from itertools import accumulate
from time import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from btr.serve.completion import ChatRequest, CompletionRequest, Form, StreamOptions, form_of, no_model, to_answer
from btr.serve.dispatch import Dispatcher
from btr.serve.schema import REPLY, AnswerResponse
from btr.serve.stops import Stopper, cut
from btr.serve.streams import Happening, begun, event, respond, rest

MOST_CITED = 1 << 16  # characters of all citations together, and of what is cited in every chunk of a stream
TOLD = 100  # of them for the names and numbers of each
Kind = Literal["chat", "text"]
NOTHING = "No passage shares a word with the question."
UNANSWERED = "No passage answers this."


def cite(reply: AnswerResponse) -> list[dict[str, Any]]:
    """Return where the answer stands in the passages read, the place it was quoted from first, at least one.

    Without any, the passage with the most evidence, without offsets. As many as `MOST_CITED` characters have room for.
    """
    quoted = reply.citation
    found = [
        {"id": p.id, "title": p.title, "start": start, "end": end, "evidence": p.evidence, "quote": p.text[start:end]}
        for p in reply.passages
        for start, end in p.highlights
    ]
    if quoted is not None:
        found.sort(key=lambda c: (c["id"], c["start"], c["end"]) != (quoted.id, quoted.start, quoted.end))
    found = found or [{"id": p.id, "title": p.title, "evidence": p.evidence} for p in reply.passages[:1]]
    return fitting(found)


def fitting(cited: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first citations, at least one, whose texts have at most `MOST_CITED` characters together."""
    texts = [sum(len(value) for value in one.values() if isinstance(value, str)) for one in cited]
    totals = list(accumulate(TOLD + size for size in texts))
    return cited[: max(1, bisect_right(totals, MOST_CITED))]


class Writer:
    """Write one answer, of `most` tokens, in OpenAI's words and the form wanted."""

    def __init__(self, kind: Kind, model: str, most: int, form: Form) -> None:
        self.kind, self.most, self.form = kind, most, form
        name = "chat.completion" if kind == "chat" else "text_completion"
        self.object, self.chunk = name, f"{name}.chunk" if kind == "chat" else name
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        self.head = {"id": f"{prefix}-{uuid4().hex}", "created": int(time()), "model": model}

    def _wrap(self, kind: str, said: dict[str, Any] | None, finish: str | None, cited: Any) -> dict[str, Any]:
        choices = [] if said is None else [{"index": 0, **said, "finish_reason": finish, "logprobs": None}]
        return {**self.head, "object": kind, "choices": choices, "citations": cited}

    def _text(self, reply: AnswerResponse) -> str:
        """Return what is said: to a program that reads JSON the answer alone, to a person also that there is none."""
        return spoken(reply) if self.form.field is None else reply.answer

    def _finish(self, reply: AnswerResponse) -> str:
        text = self._text(reply)
        whole = cut(text, self.form.stops) == text
        return "length" if whole and reply.answer_tokens >= self.most else "stop"

    def whole(self, reply: AnswerResponse) -> dict[str, Any]:
        """Return the answer as one object."""
        text = self.form.put(self._text(reply))
        said: dict[str, Any] = {"text": text}
        if self.kind == "chat":
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        made = self._wrap(self.object, said, self._finish(reply), cite(reply))
        return made | {"usage": usage(reply), "timings": reply.timings} | doubt(reply)

    async def stream(self, happenings: AsyncIterator[Happening], with_usage: bool) -> AsyncIterator[str]:
        """Yield the answer as server-sent events: its words as they come, its end, its usage if wanted.

        Until its end what is cited is all that is read; a JSON object comes whole. Raises RequestError.
        """
        heard, said, cited, stopper = "", "", [], Stopper(self.form.stops)
        async for one in happenings:
            if isinstance(one, AnswerResponse):
                if self.form.field is None:
                    left = stopper.feed(rest(self._text(one), heard)) + stopper.end()
                else:
                    left = self.form.put(self._text(one))
                for line in self._end(one, left, not said, with_usage):
                    yield line
            elif one[0] == "reading":
                cited = fitting(one[1]["passages"])
            elif one[0] == "text" and self.form.field is None:
                heard += one[1]["text"]
                if words := stopper.feed(one[1]["text"]):
                    yield event(self._wrap(self.chunk, self._words(words, not said), None, cited))
                    said += words

    def _end(self, reply: AnswerResponse, left: str, first: bool, with_usage: bool) -> Iterator[str]:
        cited = cite(reply)
        if left or first:
            yield event(self._wrap(self.chunk, self._words(left, first), None, cited))
        last: dict[str, Any] = {"delta": {}} if self.kind == "chat" else {"text": ""}
        yield event(self._wrap(self.chunk, last, self._finish(reply), cited) | doubt(reply))
        if with_usage:
            yield event(self._wrap(self.chunk, None, None, cited) | {"usage": usage(reply)})
        yield "data: [DONE]\n\n"

    def _words(self, text: str, first: bool) -> dict[str, Any]:
        if self.kind == "text":
            return {"text": text}
        return {"delta": ({"role": "assistant"} if first else {}) | {"content": text}}


def spoken(reply: AnswerResponse) -> str:
    """Return what a chat shows: the answer, that there is none, with the best guess, or that nothing was read."""
    if not reply.passages:
        return NOTHING
    if reply.best_guess is None:
        return reply.answer
    return f"{UNANSWERED} (Best guess: {reply.best_guess})" if reply.best_guess else UNANSWERED


def doubt(reply: AnswerResponse) -> dict[str, Any]:
    """Return how likely it is that there is no answer, and what would have been said where none is given."""
    guess = {} if reply.best_guess is None else {"best_guess": reply.best_guess}
    return {"no_answer": reply.no_answer} | guess


def usage(reply: AnswerResponse) -> dict[str, int]:
    """Return the tokens of the passages and of the answer."""
    asked, made = reply.tokens_read, reply.answer_tokens
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


def given(examples: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """Return what the documents say of a reply: an example by its content type."""
    return {200: {"content": {kind: {"example": example} for kind, example in examples.items()}}}


def completed(kind: Kind) -> dict[int | str, dict[str, Any]]:
    """Return examples of a completion, whole and streamed."""
    reply = AnswerResponse.model_validate(REPLY)
    writer = Writer(kind, "default", 32, Form())
    writer.head |= {"id": "chatcmpl-17" if kind == "chat" else "cmpl-17", "created": 1780000000}
    return given({"application/json": writer.whole(reply), "text/event-stream": 'data: {"choices": [...]}\n\n'})


def make_router(dispatcher: Dispatcher) -> APIRouter:
    """Return the routes under `/v1` that OpenAI's clients call."""
    router = APIRouter(prefix="/v1")
    model = {"id": dispatcher.service.model, "object": "model", "created": int(time()), "owned_by": "btr"}

    async def complete(http: Request, request: ChatRequest | CompletionRequest, kind: Kind) -> Response:
        asked = to_answer(request, dispatcher.service.model, dispatcher.service.settings.max_new_tokens)
        writer = Writer(kind, dispatcher.service.model, asked.max_new_tokens, form_of(request))
        if not request.stream:
            return JSONResponse(writer.whole(await dispatcher.ask(http, asked)))
        options = request.stream_options or StreamOptions()
        lines = writer.stream(await begun(dispatcher.follow(http, asked)), bool(options.include_usage))
        return respond(lines, lambda code: dispatcher.metrics.errors.labels(code).inc())

    @router.post("/chat/completions", response_model=None, responses=completed("chat"))
    async def chat(http: Request, request: ChatRequest) -> Response:
        """Answer the last message of the user, in OpenAI's words; with `citations`, streamed or not."""
        return await complete(http, request, "chat")

    @router.post("/completions", response_model=None, responses=completed("text"))
    async def completions(http: Request, request: CompletionRequest) -> Response:
        """Answer the prompt, in OpenAI's words; with `citations`, streamed or not."""
        return await complete(http, request, "text")

    shown = {"id": "default", "object": "model", "created": 1780000000, "owned_by": "btr"}

    @router.get("/models", responses=given({"application/json": {"object": "list", "data": [shown]}}))
    async def models() -> dict[str, Any]:
        """List the one model that is served."""
        return {"object": "list", "data": [model]}

    @router.get("/models/{name:path}", responses=given({"application/json": shown}))
    async def one_model(
        name: Annotated[str, Path(description="the model, as /v1/models names it", examples=["default"])],
    ) -> dict[str, Any]:
        """Describe the model that is served."""
        if name != model["id"]:
            raise no_model(name, dispatcher.service.model)
        return model

    return router
