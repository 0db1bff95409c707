"""What every test stands on: no network but loopback, few threads, the same examples on every run."""

import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any

# Before anything imports torch or transformers, which read these once; processes started by a test inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread costs more than it gives
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warning about forks would be an error here

from hypothesis import settings

settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")


class NetworkBlocked(RuntimeError):
    """A test reached for the network. Not an OSError: code that expects those would swallow it and try again."""


def is_local(host: object) -> bool:
    """Tell whether `host` (text, bytes or None) is this machine: a loopback address, its name, or no name at all."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(name).partition("%")[0]).is_loopback
    except ValueError:
        return False


def refuse_unless_local(host: object) -> None:
    """Raise NetworkBlocked unless `host` is this machine."""
    if not is_local(host):
        raise NetworkBlocked(f"a test reached for {host!r}; only loopback is allowed")


def guard_method(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `socket.connect` and its kin, whose last argument is the address: (host, port, ...), or a path."""

    def guarded(self: socket.socket, *args: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse_unless_local(args[-1][0])
        return method(self, *args)

    return guarded


def guard_lookup(lookup: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `socket.getaddrinfo` and its kin, whose first argument is the host."""

    def guarded(host: object, *args: Any, **kwargs: Any) -> Any:
        refuse_unless_local(host)
        return lookup(host, *args, **kwargs)

    return guarded


# On import rather than in a fixture, so that collecting the tests is held to it too.
for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, guard_method(getattr(socket.socket, _name)))
for _name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    setattr(socket, _name, guard_lookup(getattr(socket, _name)))

# Fixtures shared by more than one room go below.
