"""Serve a `Service` over HTTP: the routes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from btr import __version__
from btr.serve.completion import MOST_STOPS
from btr.serve.dispatch import Dispatcher
from btr.serve.errors import add_errors
from btr.serve.middleware import Middleware
from btr.serve.openai import given, make_router
from btr.serve.pages import render_docs, render_page
from btr.serve.schema import (
    AnswerResponse,
    BatchItem,
    BatchRequest,
    BatchResponse,
    EditResponse,
    ErrorBody,
    ErrorReply,
    Removal,
    RequestError,
    StoredPassage,
    StreamableRequest,
    UpsertRequest,
)
from btr.serve.streams import begun, respond, write_events

ABOUT = (
    "Answers questions from passages kept as bits. Where the server has keys, send one as "
    "`Authorization: Bearer KEY`. Errors have OpenAI's shape; a 429 or 503 says in Retry-After when to come back."
)
WHY = {
    400: "a value is out of range",
    401: "no key, or a wrong one",
    403: "the store may not be changed",
    404: "no such passage, model or address",
    409: "another process changes the store, or its last passage would be deleted",
    413: "too large",
    422: "malformed",
    429: "the queue is full",
    500: "the server failed, or a passage or file is damaged",
    503: "warming up, shutting down, or out of time",
    507: "the disk is full",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": why} for status, why in WHY.items()
}
ITEMS_AT_FAULT = {"queue_full", "draining"}  # codes that say: none of a batch was taken


INFO: dict[str, Any] = {
    "version": __version__, "model": "default", "family": "extractive", "fingerprint": "0123456789abcdef",
    "passages": 200, "mode": "binary", "no_answer_above": 0.9, "top": 10, "editable": False, "unindexed": 0,
    "queue": 64, "timeout": 60.0, "limits": {
        "max_body_bytes": 1048576, "max_question_chars": 2000, "max_passages": 100, "max_new_tokens": 128,
        "max_questions": 32, "connections": 512, "receive_timeout": 20.0, "max_question_tokens": 64,
        "max_passage_tokens": 320, "max_stops": 4,
    },
}  # fmt: skip


def create_app(dispatcher: Dispatcher) -> FastAPI:
    """Return the application of a dispatcher; the reader's thread lives as long as it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        dispatcher.start()
        yield
        dispatcher.draining = True
        await asyncio.to_thread(dispatcher.queue.close, 5.0)

    app = FastAPI(
        title="btr", version=__version__, description=ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None,
        responses=REFUSALS,
    )  # fmt: skip
    app.add_middleware(Middleware, dispatcher=dispatcher)
    add_errors(app, dispatcher)
    _add_questions(app, dispatcher)
    _add_passages(app, dispatcher)
    app.include_router(make_router(dispatcher))
    _add_operation(app, dispatcher)
    _add_pages(app, dispatcher)
    return app


def _add_questions(app: FastAPI, dispatcher: Dispatcher) -> None:
    streamed = given({"text/event-stream": 'event: text\ndata: {"text": "Wilhelm"}\n\nevent: answer\ndata: {...}\n\n'})

    @app.post("/v1/answer", response_model=AnswerResponse, response_model_exclude_none=True, responses=streamed)
    async def answer(http: Request, request: StreamableRequest) -> AnswerResponse | Response:
        """Answer one question from the store, or from passages sent with it; with `stream`, show it as it comes."""
        if not request.stream:
            return await dispatcher.ask(http, request)
        lines = write_events(await begun(dispatcher.follow(http, request)))
        return respond(lines, lambda code: dispatcher.metrics.errors.labels(code).inc())

    @app.post("/v1/answer/batch", response_model_exclude_none=True)
    async def answer_batch(http: Request, request: BatchRequest) -> BatchResponse:
        """Answer several questions; each item of the result has an `answer` or an `error`."""
        most = min(dispatcher.service.settings.max_questions, dispatcher.service.settings.queue)
        if len(request.questions) > most:
            message = f"questions must be of length 1 to {most}, not {len(request.questions)}"
            raise RequestError(400, message, "out_of_range", param="questions")
        items = []
        for result in await dispatcher.ask_all(http, request.questions):
            if isinstance(result, AnswerResponse):
                items.append(BatchItem(answer=result))
            else:
                dispatcher.metrics.errors.labels(result.code).inc()
                items.append(BatchItem(error=ErrorBody(**result.body)))
        return BatchResponse(results=items)


def _add_passages(app: FastAPI, dispatcher: Dispatcher) -> None:
    id_of = Annotated[str, Path(description="the passage's id, slashes and all", examples=["light-2"])]

    @app.get("/v1/passages/{passage_id:path}")
    async def passage(passage_id: id_of) -> StoredPassage:
        """Look up a passage of the store."""
        return await asyncio.to_thread(dispatcher.service.passage, passage_id)

    @app.post("/v1/passages")
    @app.put("/v1/passages")
    async def upsert(http: Request, request: UpsertRequest) -> EditResponse:
        """Put passages into the store, if the server may change it (`--editable`): all of them or none."""
        return await dispatcher.edit(http, request)

    @app.delete("/v1/passages/{passage_id:path}")
    async def delete(http: Request, passage_id: id_of) -> EditResponse:
        """Delete a passage from the store, if the server may change it (`--editable`)."""
        return await dispatcher.edit(http, Removal(passage_id))


def _add_operation(app: FastAPI, dispatcher: Dispatcher) -> None:
    service = dispatcher.service

    @app.get("/health", responses=given({"application/json": {"status": "ok"}}))
    async def health() -> dict[str, str]:
        """Tell that the process runs."""
        return {"status": "ok"}

    @app.get("/ready", responses=given({"application/json": {"status": "ready"}}))
    async def ready() -> dict[str, str]:
        """Tell whether new questions are taken: the reader is loaded and warm, and nobody asked to stop."""
        if not dispatcher.warm and not dispatcher.draining:
            raise RequestError(503, "the reader warms up; questions wait in line until then", "warming_up", 1)
        if not dispatcher.ready:
            raise RequestError(503, "the server is shutting down", "draining", 5)
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses=given({"text/plain": "btr_ready 1.0\n"}))
    async def metrics() -> Response:
        """Give the server's numbers, for Prometheus."""
        return Response(dispatcher.metrics.render(), media_type=dispatcher.metrics.content_type)

    @app.get("/info", responses=given({"application/json": INFO}))
    async def info() -> dict[str, Any]:
        """Say what is served, and within which limits: `max_…` of `limits` are those that the fields of requests name.

        Bytes of a body, characters of a question, tokens of a question and of a passage (what is longer is cut),
        passages, tokens of an answer, questions of a batch, stops; connections, and seconds for a request to come.
        """
        limits = ("max_body_bytes", "max_question_chars", "max_passages", "max_new_tokens", "max_questions")
        reads = ("max_question_tokens", "max_passage_tokens")  # what is longer is cut
        return {
            "version": __version__, "model": service.model, "family": service.reader.family,
            "fingerprint": service.reader.fingerprint, "passages": service.passages, "mode": service.mode,
            "no_answer_above": service.no_answer_above,
            "top": service.top, "editable": service.settings.editable, "unindexed": service.opened.unindexed,
            "queue": service.settings.queue, "timeout": service.settings.timeout,
            "limits": {name: getattr(service.settings, name) for name in (*limits, "connections", "receive_timeout")}
            | {name: getattr(service.reader.config, name) for name in reads} | {"max_stops": MOST_STOPS},
        }  # fmt: skip


def _add_pages(app: FastAPI, dispatcher: Dispatcher) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        text, policy = render_page(
            dispatcher.service.examples(), dispatcher.service.mode, bool(dispatcher.keys.digests)
        )
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> HTMLResponse:
        text, policy = render_docs(app.openapi())
        return HTMLResponse(text, headers={"Content-Security-Policy": policy})

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> JSONResponse:
        raise HTTPException(404, "Not Found")
