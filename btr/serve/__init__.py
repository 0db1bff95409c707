"""Serve answers from a store: an HTTP API and a page to ask it from."""

import json
import os
import shlex
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import NoReturn

from btr.command import INT8
from btr.errors import InputError
from btr.model.devices import settle
from btr.reader import Reader
from btr.retrieve.indexed import StaleIndex, open_index
from btr.serve.app import create_app
from btr.serve.dispatch import Dispatcher
from btr.serve.keys import Keys
from btr.serve.logs import write_json
from btr.serve.opened import OpenStore
from btr.serve.schema import AnswerRequest, RequestError
from btr.serve.server import Server, bind, raise_file_limit, refusal
from btr.serve.service import Service
from btr.serve.settings import DEFAULT_STORE, Settings, parse
from btr.storage import Store, StoreError
from btr.storage.manifest import Manifest, read_manifest

__all__ = ["AnswerRequest", "Dispatcher", "OpenStore", "RequestError", "Service", "Settings", "create_app", "main"]


def check(settings: Settings) -> Keys:
    """Say what is wrong with the settings, the keys and the store before the reader is loaded; return the keys.

    Raises:
        InputError, StoreError: one of them cannot be served with.
    """
    path, top = settings.store, settings.top
    if top is not None and top > settings.max_passages:
        raise InputError(f"--top is {top}, over --max-passages, {settings.max_passages}")
    keys = Keys.read(settings.keys_file)
    if not path.exists() and not path.with_name(f"{path.name}.building").exists():
        make = f"python -m btr.precompute CORPUS --store {shlex.quote(str(path))}"
        sample = " (CORPUS: your files, or sample)" if path == Path(DEFAULT_STORE) else ""
        raise InputError(f"no store at {path}; make it with: {make}{sample}")
    store = Store.open(path)
    if settings.editable and not os.access(path, os.W_OK):
        raise InputError(f"--editable: {path} cannot be written to; change its owner or rights, or serve without")
    if len(store) == 0:
        raise InputError(f"the store {path} has no passages")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaleIndex)  # said once, when the server is about to begin
        index = open_index(store)
    if index is None:
        print(f"warning: {path} has no BM25 index; questions must name their passages", file=sys.stderr)
    return keys


def load(settings: Settings) -> Service:
    """Load the reader, by default the one that the store names, open the store it made and the store's index."""
    manifest = read_manifest(settings.store.absolute())
    name = settings.reader or manifest.reader or None
    dtype, device = settle(precision(settings, manifest), settings.device, settings.threads)
    try:
        reader = Reader.from_pretrained(name, dtype=dtype, device=device)
        if not reader.config.k:  # a plain T5: the store knows where it was split
            reader = Reader.from_pretrained(name, k=manifest.k, dtype=dtype, device=device)
    except InputError as error:
        if settings.reader or name is None:
            raise
        cure = "say with --reader where it is now"
        raise InputError(
            f"store {settings.store} was built by reader {name}, not to be loaded ({error}); {cure}"
        ) from error
    if settings.dtype == INT8 and dtype != INT8:  # with --editable: loaded in the precision of the store
        reader.round_weights()
    settings = settings.model_copy(update={"reader": name})
    opened = OpenStore.open(settings.store, reader, name or "")
    model = Path(name).resolve().name if name and Path(name).is_dir() else reader.name
    service = Service(reader, opened, settings, model=model)
    try:
        service.check_mode()
    except RequestError as error:  # nothing can be answered in this mode
        raise InputError(f"{settings.store}: {error}") from error
    return service


def precision(settings: Settings, manifest: Manifest) -> str:
    """Return in which precision to read: passages that are put into a store are encoded as the others in it."""
    if settings.editable and settings.dtype in ("auto", INT8):
        return str(manifest.options.get("dtype") or "float32")
    return settings.dtype


def serve(service: Service, keys: Keys, bound: socket.socket) -> None:
    """Print where, and serve until SIGTERM or SIGINT; SIGHUP reloads the store and the keys.

    Raises:
        InputError: the port is taken, or the first answer, which warms the reader up, failed.
    """
    host, port = bound.getsockname()[:2]
    try:
        bound.listen(1024)
    except OSError as error:  # another server was bound to it too, and listened first
        raise refusal(host, port, error) from error
    host = f"[{host}]" if ":" in host else host
    editable = service.settings.editable
    if not keys.digests and (editable or host not in ("127.0.0.1", "[::1]")):
        may = "ask, and change the store" if editable else "ask"
        print(f"warning: everybody who reaches {host}:{port} may {may}; --keys-file gives it keys", file=sys.stderr)
    dispatcher = Dispatcher(service, keys, warm=False)
    server = Server(dispatcher, create_app(dispatcher))
    signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=dispatcher.reload, daemon=True).start())
    print(f"{service.passages:,} passages, model {service.model}: http://{host}:{port}", flush=True)
    server.run(sockets=[bound])
    if dispatcher.fault is not None:
        raise InputError(
            f"{service.settings.store}: no question can be answered ({dispatcher.fault})"
        ) from dispatcher.fault


def leave(signum: int, frame: FrameType | None) -> NoReturn:
    """Exit with code 0: a server is meant to be stopped by a signal."""
    raise SystemExit(0)


def main(argv: list[str] | None = None) -> int:
    """Serve a store; return 2 for bad input.  Leaves by SystemExit(0) on SIGTERM or SIGINT while it loads."""
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    try:
        settings, dry_run = parse(argv)
        if dry_run:  # also beside the server that is to be followed, whose port is taken
            check(settings)
            print(json.dumps(settings.model_dump(mode="json"), indent=2))
            return 0
        with bind(settings.host, settings.port) as bound:
            keys = check(settings)
            raise_file_limit()
            service = load(settings)
            write_json()
            serve(service, keys, bound)
    except (InputError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
