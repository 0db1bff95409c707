"""Serve answers from a store: an HTTP API and a page to ask it from."""

import argparse
import shlex
import signal
import socket
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import NoReturn

import uvicorn

from btr.config import MODES
from btr.errors import InputError
from btr.indexed import StaleIndex, StoreIndex, open_index
from btr.reader import Reader
from btr.serve.app import create_app
from btr.serve.service import AnswerRequest, Limits, RequestError, Service
from btr.storage import Store, StoreError

__all__ = ["AnswerRequest", "Limits", "RequestError", "Service", "create_app", "main"]

DEFAULT_STORE = "corpus.btr"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command's settings."""
    parser = argparse.ArgumentParser(prog="python -m btr.serve", description=__doc__)
    parser.add_argument("store", nargs="?", default=DEFAULT_STORE, metavar="STORE", help=f"default: {DEFAULT_STORE}")
    parser.add_argument("--reader", metavar="R", help="folder or hub id of the reader; default: the bundled one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one; default: 8080")
    parser.add_argument(
        "--top", type=int, metavar="N", help="passages read per question; default: the reader's own number"
    )
    parser.add_argument("--mode", choices=MODES, default="binary", help="default: binary")
    return parser.parse_args(argv)


def refusal(host: str, port: int, error: OSError) -> InputError:
    """Say that the system does not let the server listen there."""
    return InputError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port")


def bind(host: str, port: int) -> socket.socket:
    """Bind a socket, before the slow part, so that a port in use is known at once; it takes no connection yet."""
    if not 0 <= port <= 65535:  # the system would take its lower 16 bits
        raise InputError(f"--port must be 0 to 65535, not {port}")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise refusal(host, port, error) from error
    bound = socket.socket(family, kind)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise refusal(host, port, error) from error
    return bound


def check(path: Path) -> None:
    """Say what is wrong with the store at `path`, or its index, before the reader is loaded."""
    if not path.exists() and not path.with_name(f"{path.name}.building").exists():
        make = "corpus" if path == Path(DEFAULT_STORE) else f"CORPUS --store {shlex.quote(str(path))}"
        raise InputError(f"no store at {path}; make it with: python -m btr.precompute {make}")
    store = Store.open(path)
    if len(store) == 0:
        raise InputError(f"the store {path} has no passages")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaleIndex)  # said once, when the server is about to begin
        open_index(store)


def index_of(store: Store, name: str) -> StoreIndex | None:
    """Open the index of a store, and warn if it has none, or one that has fallen behind."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StaleIndex)
        index = open_index(store)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    if index is None:
        print(f"warning: {name} has no BM25 index; questions must name their passages", file=sys.stderr)
    return index


def load(args: argparse.Namespace) -> Service:
    """Load the reader, open the store it made and the store's index, and answer one question."""
    if args.top is not None and not 1 <= args.top <= Limits.passages:
        raise InputError(f"--top must be 1 to {Limits.passages}, not {args.top}")
    path = Path(args.store)
    check(path)
    reader = Reader.from_pretrained(args.reader)
    store = Store.open(path, reader.fingerprint, args.reader or "")
    model = Path(args.reader).resolve().name if args.reader and Path(args.reader).is_dir() else reader.name
    service = Service(
        reader, store, index_of(store, args.store), model=model, top=args.top or reader.config.passages, mode=args.mode
    )
    try:
        service.warm_up()
    except RequestError as error:  # nothing can be answered in this mode
        raise InputError(f"{path}: {error}") from error
    return service


def serve(service: Service, bound: socket.socket) -> None:
    """Print where, and serve until SIGTERM or SIGINT; then finish the answers under way."""
    host, port = bound.getsockname()[:2]
    try:
        bound.listen()
    except OSError as error:  # another server was bound to it too, and listened first
        raise refusal(host, port, error) from error
    host = f"[{host}]" if ":" in host else host
    print(f"{service.passages:,} passages, model {service.model}: http://{host}:{port}", flush=True)
    config = uvicorn.Config(create_app(service), log_level="warning", access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[bound])


def leave(signum: int, frame: FrameType | None) -> NoReturn:
    """Exit with code 0: a server is meant to be stopped by a signal."""
    raise SystemExit(0)


def main(argv: list[str] | None = None) -> int:
    """Serve a store; return 2 for bad input.  Leaves by SystemExit(0) on SIGTERM or SIGINT."""
    args = parse(argv)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    try:
        with bind(args.host, args.port) as bound:
            service = load(args)
            with service.store:
                serve(service, bound)
    except (InputError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
