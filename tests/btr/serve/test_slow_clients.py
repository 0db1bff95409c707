"""Clients that take their time: cut off, however they drip, while others are served."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

LIMIT = 0.5  # seconds
HEAD = b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def port(kit: Any, reader: Any) -> Iterator[int]:
    with kit.serving(kit.make_desk(reader, receive_timeout=LIMIT)) as port:
        yield port


def drip(port: int, begin: bytes, drop: bytes) -> tuple[bytes, float]:
    """Send `begin`, then a drop twenty times a second; returns what came back, and when the server hung up."""
    began, came = time.monotonic(), b""  # before the server's clock can have begun
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(0.05)
        client.sendall(begin)
        while time.monotonic() - began < 30:
            try:
                part = client.recv(4096)
                if not part:
                    return came, time.monotonic() - began
                came += part
            except TimeoutError:
                pass
            except ConnectionResetError:
                return came, time.monotonic() - began
            try:
                client.sendall(drop)
            except (BrokenPipeError, ConnectionResetError):
                return came, time.monotonic() - began
    pytest.fail("the server did not hang up")


def test_slow_head_is_cut_off(kit: Any, port: int) -> None:
    came, took = drip(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-", b"x")
    assert came.startswith(b"HTTP/1.1 408 ") and took >= LIMIT
    assert json.loads(came.partition(b"\r\n\r\n")[2])["error"]["code"] == "slow_head"
    assert 'btr_errors_total{code="slow_head"} 1.0' in kit.send(port, "GET", "/metrics")[2]


def test_slow_body_is_cut_off(kit: Any, port: int) -> None:
    came, took = drip(port, HEAD, b" ")
    assert came.startswith(b"HTTP/1.1 408 ") and b'"slow_body"' in came and b"connection: close" in came.lower()
    assert took >= LIMIT
    assert kit.ask(port)["answer"] == "Ada Berg"


def test_client_that_says_nothing_is_cut_off(port: int) -> None:
    came, took = drip(port, b"", b"")
    assert came == b"" and took >= LIMIT


def test_slow_second_head_of_a_connection_is_cut_off(port: int) -> None:
    came, _ = drip(port, WHOLE + b"GET /he", b"a")
    assert came.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in came


def test_body_that_nobody_reads_does_not_keep_the_connection(kit: Any, reader: Any, tmp_path: Any) -> None:
    from btr.serve.keys import Keys

    (tmp_path / "keys").write_text("k" * 20, encoding="utf-8")
    with kit.serving(kit.make_desk(reader, keys=Keys.read(tmp_path / "keys"), receive_timeout=LIMIT)) as port:
        came, took = drip(port, HEAD, b" ")
    assert came.startswith(b"HTTP/1.1 401 ") and LIMIT <= took < 20


def test_slow_clients_take_no_place_from_others(kit: Any, port: int) -> None:
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    try:
        for client in slow:
            client.sendall(b"POST /v1/answer HTTP/1.1\r\n")
        assert kit.ask(port)["answer"] == "Ada Berg"
        for client in slow:
            client.settimeout(kit.WAIT)
            assert b" 408 " in client.recv(4096)
    finally:
        for client in slow:
            client.close()


def test_slow_answer_is_not_cut_off(kit: Any, port: int, reader: Any) -> None:
    reader.during = lambda: time.sleep(3 * LIMIT)
    assert kit.ask(port)["answer"] == "Ada Berg"


def test_clients_that_do_not_read_lose_their_places(kit: Any, reader: Any) -> None:
    asked = HEAD.replace(b"100", b"19") + b'{"question":"Who?"}'
    dispatcher = kit.make_desk(reader, ["x" * 3_000_000] * 4, send_timeout=LIMIT, connections=2)
    dropped = dispatcher.metrics.errors.labels("slow_reader")._value.get
    with kit.serving(dispatcher) as port:
        deaf = [socket.socket() for _ in range(2)]
        try:
            for client in deaf:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", port))
                client.sendall(asked)
            until = time.monotonic() + kit.WAIT
            while dropped() < 2 and time.monotonic() < until:
                time.sleep(0.05)
            assert dropped() == 2
            assert kit.ask(port, passages=[{"text": "Ada Berg"}])["answer"] == "Ada Berg"
        finally:
            for client in deaf:
                client.close()
