"""Say what a full disk means, and let one writer at a time into a directory."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from .errors import Corrupt, DiskFull, StoreBusy
from .manifest import MANIFEST, SETTINGS, SHARDS, store_command

ROOM = 1 << 20  # bytes that must be free to begin: LMDB maps its lock file, so a full disk would kill the process
LOCK = "lock"

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # EIO is what LMDB makes of a short write


@contextmanager
def disk_errors(directory: Path, needed: int) -> Iterator[None]:
    """Turn what the system and LMDB say of a full disk into DiskFull, and all else that LMDB says into Corrupt."""
    try:
        yield
    except (OSError, lmdb.Error) as error:
        code = error.errno if isinstance(error, OSError) else error.code
        if code not in _NO_SPACE and isinstance(error, OSError):
            raise
        if code not in _NO_SPACE:
            raise Corrupt(f"{directory}: {error}; {cure(directory)}") from error
        free = shutil.disk_usage(directory).free
        raise DiskFull(
            f"cannot write {needed} bytes to {directory} ({os.strerror(code)}; {free} bytes are free there): "
            "make room and run the same command again, it goes on where it stopped"
        ) from error


def cure(directory: Path) -> str:
    """Say what to do about a damaged directory; what a finished store holds is never to be given up for it."""
    store = directory.parent.parent if directory.parent.name == SHARDS else directory
    if (store / MANIFEST).is_file() and not (store / SETTINGS).is_file():  # else it is being built
        if store == directory:
            return f"check it with: {store_command('verify', store)}"
        return f"store {store} does not use it and is as it was; delete {directory}, and run the command again"
    return "build under another name; --no-resume would delete it and start afresh"


def check_room(directory: Path, needed: int = ROOM) -> None:
    """Refuse to begin where the disk is full.

    Raises:
        OSError: less than `needed` bytes are free; `disk_errors` makes DiskFull of it.
    """
    if shutil.disk_usage(directory).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def take_lock(directory: Path, wait: float = 0.0) -> int:
    """Take the lock of a directory, waiting so many seconds for it; returns the descriptor that holds it until closed.

    Raises:
        StoreBusy: another process has it.
    """
    give_up = time.monotonic() + wait
    while True:
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() >= give_up:
                raise StoreBusy(f"{directory} is being written by another process: let it finish, or stop it") from None
            time.sleep(0.1)
            continue
        try:
            if os.fstat(descriptor).st_ino == os.stat(directory / LOCK).st_ino:
                return descriptor
        except FileNotFoundError:  # deleted by its holder between the two lines
            pass
        os.close(descriptor)
