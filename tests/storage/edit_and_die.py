"""Change a store and be killed on the way: python edit_and_die.py STORE VERB WHEN NUMBER.

VERB is `delete`, `add`, `upsert` or `compact`. WHEN is a function that a module of `btr.storage` calls, as
`living.os.link`: the process is killed in place of the NUMBERth call; 0 lets it live.
"""

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

from btr.storage import deletions, living, manifest, shard
from btr.storage.shard import ShardWriter

tests = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
MODULES = {"living": living, "shard": shard, "manifest": manifest, "deletions": deletions}


def patch(when: str, number: int) -> None:
    module, *path, name = when.split(".")
    owner: Any = MODULES[module]
    for step in path:
        owner = getattr(owner, step)
    original = getattr(owner, name)

    def counted(*args: Any, **named: Any) -> Any:
        nonlocal number
        number -= 1
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **named)

    setattr(owner, name, counted)


def bring(editor: living.Editor, numbers: range) -> list[Any]:
    (folder,) = editor.folders(1, "test", list(numbers))
    with ShardWriter(folder, editor.manifest.settings) as writer:
        passages = tests["make_encoded"](numbers)
        writer.append(passages, len(numbers))
        return [writer.finish()]


def change(path: str, verb: str) -> None:
    with living.edit(path) as editor:
        if verb == "compact":
            living.compact(editor)
        elif verb == "add":
            editor.commit([*editor.manifest.shards, *bring(editor, range(100, 110))])
        elif verb == "delete":
            editor.commit(editor.delete([3, 4, 19]))
        else:
            with editor.view.read() as reading:
                old = [reading.ordinal(passage_id) for passage_id in ("p0", "p1")]
            editor.commit([*editor.delete(old), *bring(editor, range(2))])


def main(path: str, verb: str, when: str, number: str) -> None:
    if int(number):
        patch(when, int(number))
    change(path, verb)


if __name__ == "__main__":
    main(*sys.argv[1:])
