"""Speak OpenAI's protocol: chat and plain completions, whole or streamed, and the list of models.

The last message of the user is the question.  What a reader cannot follow (system messages, earlier turns,
temperature) is taken and ignored.  Every response, and every chunk of a stream, carries `citations`, and the whole
answer or the last chunk `no_answer`.
"""

from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator
from itertools import accumulate
from time import time
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from btr.serve.desk import Desk
from btr.serve.schema import MOST_IDS, AnswerRequest, AnswerResponse, Evidence, RequestError, Text
from btr.serve.streams import Happening, begun, event, respond, rest

MOST_CITED = 1 << 16  # characters of all citations together, and of what is cited in every chunk of a stream
TOLD = 100  # of them for the names and numbers of each
LENIENT = ConfigDict(strict=True, extra="ignore")
Kind = Literal["chat", "text"]
# Clients of other languages write whole numbers with a point.
Whole = Annotated[int, BeforeValidator(lambda n: int(n) if isinstance(n, float) and n.is_integer() else n)]
NOTHING = "No passage shares a word with the question."


class Part(BaseModel):
    """Carry one part of a message; only text is read."""

    model_config = LENIENT
    type: str
    text: Text | None = None


class Message(BaseModel):
    """Carry one turn of a conversation."""

    model_config = LENIENT
    role: str
    content: Text | Annotated[list[Part], Field(max_length=MOST_IDS)] | None = None


class StreamOptions(BaseModel):
    """Say whether a stream ends with its usage."""

    model_config = LENIENT
    include_usage: bool | None = None


class CompletionBase(Evidence):
    """Hold what both kinds of completion share; `top_k`, `ids`, `passages`, `mode`, `merge_ratio`, `prune` are ours."""

    model_config = LENIENT
    model: Text
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Whole | None = None
    n: Whole | None = None


class ChatRequest(CompletionBase):
    """Ask the last message of the user."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_IDS)
    max_completion_tokens: Whole | None = None


class CompletionRequest(CompletionBase):
    """Ask the prompt."""

    prompt: Text | Annotated[list[Text], Field(max_length=MOST_IDS)]


def _question(messages: list[Message]) -> str:
    asked = [message for message in messages if message.role == "user"]
    if not asked:
        raise RequestError(400, "no message has the role user; the last one that has is the question", "no_question")
    content = asked[-1].content
    if content is None or isinstance(content, str):
        return content or ""
    if other := [part.type for part in content if part.type != "text"]:
        raise RequestError(400, f"a part of type {other[0][:40]!r} cannot be read; send text", "unsupported_content")
    return " ".join(part.text or "" for part in content)


def _prompt(prompt: str | list[str]) -> str:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) != 1:
        raise RequestError(400, f"send one prompt, not {len(prompt)}; /v1/answer/batch takes several", "out_of_range")
    return prompt[0]


def _to_answer(
    request: CompletionBase, question: str, most: int | None, model: str, bound: int = MOST_IDS
) -> AnswerRequest:
    """Turn a completion into a question, whose answer has `bound` tokens at most: clients send large bounds unasked.

    Raises:
        RequestError: another model, or more than one choice, is asked for.
    """
    if request.model != model:
        message = f"there is no model {request.model[:80]!r}; this server has {model!r}"
        raise RequestError(404, message, "model_not_found")
    if request.n not in (None, 1):
        raise RequestError(400, f"n is {request.n}; a reader gives 1 answer", "out_of_range")
    fields = {name: getattr(request, name) for name in Evidence.model_fields}
    most = 32 if most is None else most if most > 0 else bound  # -1 is how some say: no bound
    return AnswerRequest.model_construct(question=question, timeout=None, max_new_tokens=min(most, bound), **fields)


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
    """Write one answer in OpenAI's words."""

    def __init__(self, kind: Kind, model: str, most: int) -> None:
        self.kind, self.most = kind, most
        name = "chat.completion" if kind == "chat" else "text_completion"
        self.object, self.chunk = name, f"{name}.chunk" if kind == "chat" else name
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        self.head = {"id": f"{prefix}-{uuid4().hex}", "created": int(time()), "model": model}

    def _wrap(self, kind: str, said: dict[str, Any] | None, finish: str | None, cited: Any) -> dict[str, Any]:
        choices = [] if said is None else [{"index": 0, **said, "finish_reason": finish, "logprobs": None}]
        return {**self.head, "object": kind, "choices": choices, "citations": cited}

    def _finish(self, reply: AnswerResponse) -> str:
        return "length" if reply.answer_tokens >= self.most else "stop"

    def whole(self, reply: AnswerResponse) -> dict[str, Any]:
        """Return the answer as one object."""
        said: dict[str, Any] = {"text": spoken(reply)}
        if self.kind == "chat":
            said = {"message": {"role": "assistant", "content": spoken(reply), "refusal": None}}
        made = self._wrap(self.object, said, self._finish(reply), cite(reply))
        return made | {"usage": usage(reply), "timings": reply.timings, "no_answer": reply.no_answer}

    async def stream(self, happenings: AsyncIterator[Happening], with_usage: bool) -> AsyncIterator[str]:
        """Yield the answer as server-sent events: its words as they come, its end, its usage if wanted.

        Until its end what is cited is all that is read. Raises RequestError.
        """
        said, cited = "", []
        async for one in happenings:
            if isinstance(one, AnswerResponse):
                for line in self._end(one, said, with_usage):
                    yield line
            elif one[0] == "reading":
                cited = fitting(one[1]["passages"])
            elif one[0] == "text":
                yield event(self._wrap(self.chunk, self._words(one[1]["text"], not said), None, cited))
                said += one[1]["text"]

    def _end(self, reply: AnswerResponse, said: str, with_usage: bool) -> Iterator[str]:
        left, cited = rest(spoken(reply), said), cite(reply)
        if left or not said:
            yield event(self._wrap(self.chunk, self._words(left, not said), None, cited))
        last: dict[str, Any] = {"delta": {}} if self.kind == "chat" else {"text": ""}
        yield event(self._wrap(self.chunk, last, self._finish(reply), cited) | {"no_answer": reply.no_answer})
        if with_usage:
            yield event(self._wrap(self.chunk, None, None, cited) | {"usage": usage(reply)})
        yield "data: [DONE]\n\n"

    def _words(self, text: str, first: bool) -> dict[str, Any]:
        if self.kind == "text":
            return {"text": text}
        return {"delta": ({"role": "assistant"} if first else {}) | {"content": text}}


def spoken(reply: AnswerResponse) -> str:
    """Return what a chat shows: the answer, or that there was nothing to read."""
    return reply.answer if reply.passages else NOTHING


def usage(reply: AnswerResponse) -> dict[str, int]:
    """Return the tokens of the passages and of the answer."""
    asked, made = reply.tokens_read, reply.answer_tokens
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


def make_router(desk: Desk) -> APIRouter:
    """Return the routes under `/v1` that OpenAI's clients call."""
    router = APIRouter(prefix="/v1")
    model = {"id": desk.service.model, "object": "model", "created": int(time()), "owned_by": "btr"}

    async def complete(http: Request, request: CompletionBase, question: str, most: int | None, kind: Kind) -> Response:
        asked = _to_answer(request, question, most, desk.service.model, desk.service.settings.max_new_tokens)
        writer = Writer(kind, desk.service.model, asked.max_new_tokens)
        if not request.stream:
            return JSONResponse(writer.whole(await desk.ask(http, asked)))
        options = request.stream_options or StreamOptions()
        lines = writer.stream(await begun(desk.follow(http, asked)), bool(options.include_usage))
        return respond(lines, lambda code: desk.metrics.errors.labels(code).inc())

    @router.post("/chat/completions", response_model=None)
    async def chat(http: Request, request: ChatRequest) -> Response:
        """Answer the last message of the user, in OpenAI's words; with `citations`, streamed or not."""
        most = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        return await complete(http, request, _question(request.messages), most, "chat")

    @router.post("/completions", response_model=None)
    async def completions(http: Request, request: CompletionRequest) -> Response:
        """Answer the prompt, in OpenAI's words; with `citations`, streamed or not."""
        return await complete(http, request, _prompt(request.prompt), request.max_tokens, "text")

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """List the one model that is served."""
        return {"object": "list", "data": [model]}

    @router.get("/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """Describe the model that is served."""
        if name != model["id"]:
            message = f"there is no model {name[:80]!r}; this server has {model['id']!r}"
            raise RequestError(404, message, "model_not_found")
        return model

    return router
