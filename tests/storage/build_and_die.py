"""Build a store in batches of 7 and be killed on the way: python build_and_die.py STORE COUNT WHEN.

WHEN is `batch N` (before the batch from passage N on), `block N` (inside the transaction that writes the Nth block), a
function that a module of `btr.storage` calls, as `shard.os.replace` (in its place), or `none`.
"""

import os
import runpy
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from btr.storage import StoreWriter, shard, writer

tests = runpy.run_path(str(Path(__file__).with_name("conftest.py")))


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_block(number: int) -> None:
    build: Callable[..., bytes] = shard.build_block

    def build_or_die(records: list[bytes], settings: Any) -> bytes:
        nonlocal number
        number -= 1
        return build(records, settings) if number else die() or b""

    shard.build_block = build_or_die


def main(path: str, count: int, when: str, number: int = 0) -> None:
    if when == "block":
        die_at_block(number)
    elif "." in when:
        module, *steps, name = when.split(".")
        owner: Any = {"shard": shard, "writer": writer}[module]
        for step in steps:
            owner = getattr(owner, step)
        setattr(owner, name, die)
    with StoreWriter.create_or_resume(path, tests["make_settings"]()) as building:
        for first in range(building.consumed, count, 7):
            if when == "batch" and first >= number:
                die()
            last = min(first + 7, count)
            building.append(tests["make_encoded"](range(first, last)), last)
        building.finish()


main(sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
