"""Listen, and leave in order: SIGTERM stops new questions, those under way are answered, then the process ends."""

import logging
import resource
import socket
from contextlib import suppress
from time import monotonic
from types import FrameType

import uvicorn
from fastapi import FastAPI

from btr.errors import InputError
from btr.serve.dispatch import Dispatcher
from btr.serve.slow_clients import timed_protocol

GRACE = 1.0  # seconds in which /ready says 503 before the door is closed, so that a balancer can see it
_log = logging.getLogger("btr.serve")


def refusal(host: str, port: int, error: OSError) -> InputError:
    """Say that the system does not let the server listen there."""
    return InputError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port")


def raise_file_limit() -> None:
    """Let the process open as many files as the system allows: shards, indices and connections take one each."""
    with suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket, before the slow part, so that a port in use is known at once; it takes no connection yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise refusal(host, port, error) from error
    # The protocol has to be named: asyncio sets TCP_NODELAY only on sockets that say they are TCP's, and without it the
    # body of a reply waits 40 ms for the acknowledgement of its head.
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise refusal(host, port, error) from error
    return bound


def make_config(dispatcher: Dispatcher, app: FastAPI) -> uvicorn.Config:
    """Return how uvicorn serves a dispatcher."""
    return uvicorn.Config(
        app, http=timed_protocol(dispatcher), ws="none", log_config=None, access_log=False, server_header=False,
        lifespan="on", timeout_graceful_shutdown=2,  # the middleware bounds the connections
    )  # fmt: skip


class Server(uvicorn.Server):
    """Serve a dispatcher.  The first signal drains it, a second one ends it at once; so does a fault of its own."""

    def __init__(self, dispatcher: Dispatcher, app: FastAPI) -> None:
        self.dispatcher, self.asked_to_leave = dispatcher, 0.0
        super().__init__(make_config(dispatcher, app))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; the loop looks at it ten times a second."""
        if self.dispatcher.draining:
            self.should_exit = self.force_exit = True
        self.dispatcher.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Leave when the work under way is done, or its time is up."""
        if self.dispatcher.fault is not None:
            self.should_exit = True
        if self.dispatcher.draining and not self.should_exit:
            if not self.asked_to_leave:  # logged here: a signal comes in the middle of whatever request is at work
                self.asked_to_leave = monotonic()
                _log.info("draining", extra={"fields": {"waiting": len(self.dispatcher.queue)}})
            since = monotonic() - self.asked_to_leave
            done = self.dispatcher.queue.idle and since >= GRACE
            self.should_exit = done or since >= self.dispatcher.service.settings.shutdown_timeout
        return await super().on_tick(counter)
