"""Keep a store of documents that were asked: made the first time, brought up to date when files have changed.

    <cache>/<name>-<key>/        one for each folder, or files, and reader
        state.json               what was read: the files, their sizes and times
        store.btr                the store
        converted/               PDFs and others as text
        documents/               links to the files, where several were named

Nothing outside of these is written or deleted.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import btr
from btr.corpus import convert
from btr.corpus.documents import list_files
from btr.errors import InputError
from btr.progress import say
from btr.storage.manifest import MANIFEST, SHARDS

STATE, STORE = "state.json", "store.btr"
SHIPPED = Path(btr.__file__).parent / "default_reader"


def is_store(path: Path) -> bool:
    """Tell whether a store stands at a path, or one that is not finished; other folders may have a manifest.json."""
    if not path.exists():
        return path.with_name(f"{path.name}.building").exists()
    return (path / MANIFEST).is_file() and (path / SHARDS).is_dir()


def default_cache() -> Path:
    """Return where the system wants what can be made again."""
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "btr"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "btr"


def store_of(sources: Sequence[Path], reader: str | None, cache: Path) -> Path:
    """Return the store of documents, a folder or files, as they are now; progress goes to stderr.

    Raises:
        InputError, StoreError: there is nothing to read, or the cache cannot be written.
    """
    for source in sources:
        if not source.exists():
            cure = "name a store, one folder, or files, and one question; several are read from standard input"
            raise InputError(f"{source}: there is no such file; {cure}")
    for source in sources:
        if len(sources) > 1 and not source.is_file():
            raise InputError(f"{source}: a folder among others; name a store, one folder, or files")
    sources = [source.resolve() for source in sources]
    folder = cache.absolute() / _name(sources, reader)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            return _fresh(sources, reader, folder)
    except OSError as error:
        cure = "give another folder with --cache, or --no-cache"
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); {cure}") from error


def _name(sources: Sequence[Path], reader: str | None) -> str:
    """Name the folder of some documents, for people and apart from all others."""
    told = json.dumps([[os.fsencode(source).hex() for source in sources], _reader_name(reader)])
    return f"{sources[0].name[:40] or 'root'}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def _reader_name(reader: str | None) -> str:
    return os.path.abspath(reader) if reader is not None and os.path.isdir(reader) else reader or ""


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until nobody else makes this store."""
    with open(folder / "lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process reads these documents; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _state(sources: Sequence[Path], reader: str | None) -> dict[str, str]:
    """Say what there is to read, and what reads it, by names, sizes and times."""
    files = [path for source in sources for path in (list_files(str(source)) if source.is_dir() else [str(source)])]
    read = Path(_reader_name(reader)) if reader else SHIPPED
    markitdown = importlib.util.find_spec("markitdown") is not None  # what could not be read may be readable now
    return {
        "documents": ", ".join(map(str, sources)),
        "files": _digest(files),
        "reader": _digest(list_files(str(read))) if read.is_dir() else str(reader),
        "made_by": f"btr {btr.__version__}{', markitdown' if markitdown else ''}",
    }


def _digest(files: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in files:
        try:
            found = os.stat(path)
            told = f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n"
        except OSError:
            told = f"{path}\0gone\n"
        digest.update(told.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _fresh(sources: Sequence[Path], reader: str | None, folder: Path) -> Path:
    store, state = folder / STORE, _state(sources, reader)  # before the files are read: later changes count anew
    try:
        known = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if known == state and is_store(store):
        return store
    (folder / "converted").mkdir(exist_ok=True)
    convert.keep(folder / "converted")
    corpus = sources[0] if len(sources) == 1 else _linked(sources, folder / "documents")
    # torch and the reader are imported here: they take seconds, and a question of what has not changed needs them later
    from btr.ask.making import build, refresh

    same = all(known.get(name) == state[name] for name in ("reader", "made_by"))
    if not (same and is_store(store) and refresh(store, str(corpus), reader)):
        say(f"reading {state['documents']}: kept in {folder}")
        build(store, str(corpus), reader)
    part = folder / f"{STATE}.part"
    part.write_text(json.dumps(state, indent=1), encoding="utf-8")
    os.replace(part, folder / STATE)
    return store


def _linked(sources: Sequence[Path], folder: Path) -> Path:
    """Make a folder of links to files, each of its own name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number, source in enumerate(sources):
        link = folder / source.name
        (folder / f"{number}-{source.name}" if os.path.lexists(link) else link).symlink_to(source)
    return folder
