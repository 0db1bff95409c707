"""Stand before every request: its id, its key, the bounds of its body; and the headers of every response."""

import asyncio
import logging
import re
from contextlib import suppress
from ipaddress import ip_address
from time import perf_counter
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from btr.serve.dispatch import Dispatcher
from btr.serve.errors import error_response
from btr.serve.logs import request_id

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SPARE = 16  # connections past twice the requests that are let in, over which one that asks is refused and closed
# what is said, the code, the challenge
NO_KEY = ("no key came; send one of this server's as: Authorization: Bearer KEY", "missing_api_key", "Bearer")
WRONG_KEY = (
    "the key that came is none of this server's; check it, or ask for one who runs the server",
    "invalid_api_key",
    'Bearer error="invalid_token"',
)
IN_PATH = re.compile(r"/+v1/+passages/(.+)", re.DOTALL)  # an id, which may have slashes of its own
FORM = "application/x-www-form-urlencoded"  # as curl calls what it is not told the name of
OPEN = {"/", "/health", "/ready", "/docs", "/openapi.json"}  # without a key
_log = logging.getLogger("btr.serve")


def is_local(host: str) -> bool:
    """Tell whether a name or an address is one of this machine alone."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def plain_path(path: str) -> str:
    """Return a path without the slashes that stand twice or at its end, as addresses are joined by clients."""
    if held := IN_PATH.fullmatch(path):
        return f"/v1/passages/{held[1]}"
    return "/" + "/".join(part for part in path.split("/") if part)


def read_as_json(scope: Scope) -> None:
    """Take a body of no type, or of curl's, for JSON; not from a browser, where any page can have these sent."""
    headers = MutableHeaders(scope=scope)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", FORM):
        return
    if "origin" not in headers and "sec-fetch-site" not in headers:
        headers["content-type"] = "application/json"
    elif not kind:
        headers["content-type"] = "application/octet-stream"


class Middleware:
    """Let a request through to the application, or answer it here."""

    def __init__(self, app: ASGIApp, dispatcher: Dispatcher) -> None:
        self.app, self.dispatcher = app, dispatcher
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope["path"] = plain_path(scope["path"])
        read_as_json(scope)
        began, status = perf_counter(), 0
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid4().hex
        state = scope.setdefault("state", {})
        token = request_id.set(name)

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for key, value in HEADERS.items():
                    headers.setdefault(key, value)
                headers["X-Request-Id"] = name
                if "waited" in state:
                    queued, computed = 1000 * state["waited"], 1000 * state["computed"]
                    headers["Server-Timing"] = f"queue;dur={queued:.1f}, compute;dur={computed:.1f}"
            await send(message)

        self.inside += 1
        try:
            await self._pass(scope, receive, guarded)
        except Exception:
            _log.exception("a request failed")
            self.dispatcher.metrics.errors.labels("internal_error").inc()
            if not status:
                failed = error_response(500, "the server failed; its log says how", "internal_error")
                await failed(scope, receive, guarded)
        finally:
            self.inside -= 1
            self._note(scope, status, perf_counter() - began, state)
            request_id.reset(token)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request without a key, or one too many; let others through with a bounded body."""
        most = self.dispatcher.service.settings.connections
        given = Headers(scope=scope).get("authorization", "")
        if scope["path"] not in OPEN and not self.dispatcher.keys.admit(given):
            wrong = given.strip().lower().startswith("bearer ")
            message, code, challenge = WRONG_KEY if wrong else NO_KEY
            self.dispatcher.metrics.errors.labels(code).inc()
            return await error_response(401, message, code, {"WWW-Authenticate": challenge})(scope, receive, send)
        if not self._known(Headers(scope=scope).get("host", "")):
            message = "a server without keys answers to names of its machine alone; add others with --allowed-hosts"
            self.dispatcher.metrics.errors.labels("unknown_host").inc()
            return await error_response(403, message, "unknown_host")(scope, receive, send)
        crowded = self.dispatcher.connections > 2 * most + SPARE
        if self.inside > most or crowded:
            message = f"{most} requests are under way, or too many connections open; try again later"
            self.dispatcher.metrics.errors.labels("too_many_connections").inc()
            headers = {"Retry-After": "1"} | ({"Connection": "close"} if crowded else {})
            return await error_response(503, message, "too_many_connections", headers)(scope, receive, send)
        return await self.app(scope, self._bounded(receive), send)

    def _known(self, host: str) -> bool:
        """Tell whether a browser may have meant this server: without keys, a page of another name can call it."""
        settings = self.dispatcher.service.settings
        if self.dispatcher.keys.digests or not (is_local(settings.host) or settings.allowed_hosts):
            return True
        name = re.sub(r":\d*$", "", host).strip("[]").rstrip(".").lower()
        return not name or is_local(name) or name in settings.allowed_hosts.lower().replace(",", " ").split()

    def _bounded(self, receive: Receive) -> Receive:
        """Bound the bytes of a body, and the time that it takes to come."""
        settings, seen, more = self.dispatcher.service.settings, 0, True
        most, seconds = settings.max_body_bytes, settings.receive_timeout
        until = asyncio.get_running_loop().time() + seconds

        async def bounded() -> Message:
            nonlocal seen, more
            if not more:  # what comes now is that the client leaves
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                said = f"the body did not come within {seconds:g} seconds"
                raise HTTPException(408, said, {"Connection": "close"}) from None
            seen, more = seen + len(message.get("body", b"")), message.get("more_body", False)
            if seen > most:
                raise HTTPException(413, f"the body is over {most} bytes")
            return message

        return bounded

    def _note(self, scope: Scope, status: int, seconds: float, state: dict[str, float]) -> None:
        """Log and count a request by its route, never by what its sender put into the path."""
        route = getattr(scope.get("route"), "path", "none")
        self.dispatcher.metrics.requests.labels(route, str(status)).inc()
        self.dispatcher.metrics.seconds.labels(route).observe(seconds)
        fields = {"method": scope["method"][:10], "route": route, "status": status, "seconds": round(seconds, 4)}
        if "waited" in state:
            fields |= {"queue_seconds": round(state["waited"], 4), "compute_seconds": round(state["computed"], 4)}
        _log.info("request", extra={"fields": fields})
