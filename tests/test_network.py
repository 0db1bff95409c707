"""The guard of conftest.py: nothing but loopback, and loopback untouched."""

import os
import socket

import pytest

OUTSIDE = "192.0.2.1"  # RFC 5737: reserved for documentation, never routed


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_connection_to_the_outside_is_blocked(method: str) -> None:
    with socket.socket() as plug, pytest.raises(RuntimeError, match="only loopback is allowed"):
        getattr(plug, method)((OUTSIDE, 80))


def test_datagram_to_the_outside_is_blocked() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as plug, pytest.raises(RuntimeError, match="only loopback"):
        plug.sendto(b"hello", (OUTSIDE, 53))


@pytest.mark.parametrize("lookup", [socket.getaddrinfo, lambda host, port: socket.gethostbyname(host)])
def test_name_of_the_outside_is_not_looked_up(lookup) -> None:
    with pytest.raises(RuntimeError, match=r"reached for 'example\.org'"):
        lookup("example.org", 80)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_open(host: str) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection((host, server.getsockname()[1]), timeout=5) as plug,
        server.accept()[0] as other,
    ):
        other.sendall(b"hello")
        assert plug.recv(5) == b"hello"


def test_hub_is_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
