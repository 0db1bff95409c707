"""Hang up on clients that take too long to send the head of a request, or its body, or to read what they are sent.

uvicorn bounds only the time between two requests of a connection: one that sends a byte now and then, or nothing from
the start, would keep its place for ever.
"""

import asyncio
import json
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from btr.serve.dispatch import Dispatcher
from btr.serve.schema import error_body

GRACE = 1.0  # seconds after the end of a body's time, in which the middleware says 408


class TimedProtocol(H11Protocol):
    """Serve a connection whose client has `seconds` for each head, and as many again for each body."""

    dispatcher: Dispatcher
    _timer: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None  # until what is written has to be read
    _watched: tuple[Any, Any] = (None, None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self.dispatcher.connections += 1
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came; a byte more of the same does not give more time."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for the next head."""
        super().on_response_complete()
        self._watch()
        self._expect_reading()

    def pause_writing(self) -> None:
        """Begin to wait until the client has read of what waits to be sent."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        self._stop_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self.dispatcher.connections -= 1
        self._stop()
        self._stop_reading()
        super().connection_lost(exc)

    def _expect_reading(self) -> None:
        """Set the timer, if anything waits to be sent: closing would wait for it, for ever if nobody reads."""
        if self.transport.get_write_buffer_size() and self._reading is None:
            self._reading = self.loop.call_later(self.dispatcher.service.settings.send_timeout, self._give_up)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _give_up(self) -> None:
        """Drop the connection with what was not read, unless all of it was."""
        self._reading = None
        if self.transport.get_write_buffer_size():
            self.dispatcher.metrics.errors.labels("slow_reader").inc()
            self.transport.abort()

    def _watch(self) -> None:
        """Set the timer when a head or a body begins, and stop it when the request is there."""
        what = (self.cycle, self.conn.their_state)
        if what == self._watched:
            return
        self._stop()
        self._watched = what
        if what[1] in (h11.IDLE, h11.SEND_BODY):
            grace = GRACE if what[1] is h11.SEND_BODY else 0.0
            self._timer = self.loop.call_later(self.dispatcher.service.settings.receive_timeout + grace, self._hang_up)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self) -> None:
        """Close the connection, with a word if part of a head has come."""
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            seconds = self.dispatcher.service.settings.receive_timeout
            self._refuse(408, f"the head of the request did not come within {seconds:g} seconds", "slow_head")
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Say in the usual shape that what came is no HTTP, and close the connection."""
        self._refuse(400, "what came is no HTTP/1.1 request; is it meant for https, or another port?", "not_http")
        self.transport.close()

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Write a whole response, where there is no request to answer, unless one is being answered."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = json.dumps({"error": error_body(status, message, code)}).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json"
        head += f"\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.dispatcher.metrics.errors.labels(code).inc()


def timed_protocol(dispatcher: Dispatcher) -> type[TimedProtocol]:
    """Return the protocol of a dispatcher's server; uvicorn makes one for each connection, and knows no arguments."""
    return type("TimedProtocolOfDispatcher", (TimedProtocol,), {"dispatcher": dispatcher})
