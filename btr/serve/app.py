"""Serve a `Service` over HTTP: routes, errors, limits on the wire and security headers.

Reading is bound by the processor, so one worker thread reads, one question at a time, and the event loop stays free.
"""

import asyncio
import html
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from re import DOTALL, findall

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from btr.serve.service import AnswerRequest, AnswerResponse, RequestError, Service

PAGE = Path(__file__).with_name("page.html")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Bound the body of every request, and set the security headers of every response."""

    def __init__(self, app: ASGIApp, body_bytes: int) -> None:
        self.app, self.body_bytes = app, body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.body_bytes:
                raise HTTPException(413, f"the body is over {self.body_bytes} bytes")
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        return await self.app(scope, bounded, guarded)


def _error(status: int, message: str, code: str, headers: dict[str, str] | None = None) -> JSONResponse:
    kind = "server_error" if status >= 500 else "not_found_error" if status == 404 else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "code": code}}
    return JSONResponse(body, status, headers=HEADERS | dict(headers or {}))


def _describe(error: RequestValidationError) -> str:
    """Name each field at fault and its fault, without repeating what was sent."""
    faults = []
    for fault in error.errors()[:5]:
        where = ".".join(str(part)[:40] for part in fault["loc"][1:])
        named = f"{where or 'body'}: {fault['msg']}"
        faults.append("the body is not JSON" if fault["type"] == "json_invalid" else named)
    return "; ".join(faults)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        return _error(error.status, error.message, error.code)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return _error(422, _describe(error), "malformed")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}
        headers = dict(error.headers or {})
        return _error(error.status_code, str(error.detail), codes.get(error.status_code, "bad_request"), headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        return _error(500, "the server failed; its log says how", "internal_error")


def _render(examples: Sequence[str], mode: str) -> tuple[str, str]:
    """Return the page and its content security policy, which allows its own script and style and nothing else."""
    page = PAGE.read_text(encoding="utf-8").replace("[[mode]]", mode)
    page = page.replace("[[examples]]", html.escape(json.dumps(list(examples))))
    allowed = []
    for tag in ("script", "style"):
        for text in findall(rf"<{tag}>(.*?)</{tag}>", page, DOTALL):
            digest = b64encode(sha256(text.encode()).digest()).decode()
            allowed.append(f"{tag}-src 'sha256-{digest}'")
    policy = "; ".join([HEADERS["Content-Security-Policy"], "connect-src 'self'", "img-src data:", *allowed])
    return page, policy


def create_app(service: Service) -> FastAPI:
    """Return the application: the page, its health, and `POST /v1/answer`."""
    page, policy = _render(service.examples(), service.mode)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader") as app.state.worker:
            yield

    app = FastAPI(title="btr", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, body_bytes=service.limits.body_bytes)
    _add_errors(app)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.get("/health")
    async def health() -> dict[str, str | int]:
        return {"status": "ok", "model": service.model, "passages": service.passages}

    @app.post("/v1/answer", response_model_exclude_none=True)
    async def answer(request: AnswerRequest) -> AnswerResponse:
        return await asyncio.get_running_loop().run_in_executor(app.state.worker, service.answer, request)

    return app
