"""Run `btr precompute` again and again, each time in a fork of this process: python precompute_and_die.py READER.

This process has imported everything and read one passage, so that a run takes a fraction of a second. One request a
line comes in, {"argv": [...], "cwd": ..., "die"?, "fail"?, "free"?, "file_limit"?}, and one reply a line goes out,
{"code": ..., "out": ..., "err": ...}; a code below 0 is the signal that killed the run.

    die         ["module:function", n]: kill the run, with SIGKILL, when it calls this for the nth time
    fail        the same, but the disk is full from there on
    free        bytes that the disk claims to have free
    file_limit  bytes that a file may grow to
"""

import errno
import json
import os
import pkgutil
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from btr.corpus import Passage
from btr.precompute import __main__ as precompute
from btr.precompute import encode
from btr.precompute import run as making
from btr.reader import Reader
from btr.retrieve import bm25 as retrieve
from btr.retrieve import stems
from btr.retrieve.dense import build, writer

# Small enough for a corpus of 90 passages to have several of each.
encode.CHUNK = making.INDEXED = build.CHUNK = 16
writer.SAMPLE = 40
making.SHARD_PASSAGES = 40
retrieve.BM25Writer.create_or_resume.__func__.__kwdefaults__["shard_size"] = 20


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail() -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def patch(function: str, number: int, act: Callable[[], None]) -> None:
    """Act at every call from the nth on, before the function does anything."""
    path, _, name = function.replace(":", ".").rpartition(".")
    owner = pkgutil.resolve_name(path)
    original = getattr(owner, name)

    def counted(*args: Any, **named: Any) -> Any:
        nonlocal number
        number -= 1
        if number <= 0:
            act()
        return original(*args, **named)

    setattr(owner, name, counted)


def run(request: dict[str, Any], out: str, err: str) -> NoReturn:
    """Be the run: never come back."""
    for target, stream in ((out, 1), (err, 2)):
        os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT), stream)
    os.chdir(request["cwd"])
    estimate, code = making.expected_bytes, 1

    def arm(*given: Any) -> int:
        expected = estimate(*given)  # what it writes for a moment is no part of the run
        for key, act in (("die", die), ("fail", fail)):
            if key in request:
                patch(*request[key], act)
        if "free" in request:
            shutil.disk_usage = lambda path: SimpleNamespace(free=request["free"])
        if "file_limit" in request:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
        return expected

    making.expected_bytes = arm
    try:
        code = precompute.main(request["argv"])
    finally:
        if sys.exc_info()[0] is not None:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        os._exit(code)


def main(reader: str) -> None:
    Reader.from_pretrained(reader).encode_passages([Passage("warm", "up", "once for all")])
    stems.bm25s()
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            if not (child := os.fork()):
                run(json.loads(line), str(out), str(err))
            _, status = os.waitpid(child, 0)
            reply = {"code": os.waitstatus_to_exitcode(status), "out": out.read_text(), "err": err.read_text()}
        print(json.dumps(reply), flush=True)


main(sys.argv[1])
