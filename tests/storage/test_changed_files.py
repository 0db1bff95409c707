"""A data file that is changed under a process that has it mapped: an error that can be caught, never SIGBUS."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from btr.storage import Store

# Read, change the file as the name of the change says, read again by ordinal, by id and whole; print what is raised.
SCRIPT = """
import os, sys
from pathlib import Path
from btr.storage import Store, StoreError

path, change = Path(sys.argv[1]), sys.argv[2]
(data,) = path.glob("shards/*/data.mdb")
length = data.stat().st_size
store = Store.open(path)
assert store.at([0]).ids == ("p0",)
if change == "emptied":
    os.truncate(data, 0)
elif change == "cut":
    os.truncate(data, length // 8192 * 4096)
elif change == "zeroed":
    os.truncate(data, 0)
    os.truncate(data, length)
elif change == "grown":
    os.truncate(data, 2 * length)
elif change == "replaced":  # the file that is mapped lives on
    data.with_name("new").write_bytes(b"another")
    os.replace(data.with_name("new"), data)
elif change == "overwritten":
    (other,) = path.with_name("other.btr").glob("shards/*/data.mdb")
    with open(data, "r+b") as file:
        file.write(other.read_bytes())
for read in (lambda: store.at([len(store) - 1]), lambda: store.get(["p3"]), lambda: list(store.ids())):
    try:
        read()
        print("read")
    except StoreError as error:
        print(type(error).__name__)
"""


def run(store: Path, change: str) -> list[str]:
    """Run the script; what ends it by a signal is a failure."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, store, change], capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("emptied", "WrongLength"),
        ("cut", "WrongLength"),
        ("grown", "WrongLength"),
        ("zeroed", "Corrupt"),
        ("replaced", "read"),
    ],
)
def test_changed_file_is_an_error_not_the_end(
    tmp_path: Path, write: Callable[..., Path], change: str, said: str
) -> None:
    assert run(write(tmp_path / "s.btr", 200), change) == [said] * 3


def test_file_of_another_shard_written_over_it_is_noticed(tmp_path: Path, write: Callable[..., Path]) -> None:
    path, other = write(tmp_path / "s.btr", 200), write(tmp_path / "other.btr", 200, passages_per_block=9)
    (mine,), (its,) = path.glob("shards/*/data.mdb"), other.glob("shards/*/data.mdb")
    sizes = [file.stat().st_size for file in (mine, its)]
    os.truncate(its, max(sizes))  # if need be, so that the lengths alone tell nothing
    assert run(path, "overwritten") == (["Corrupt"] * 3 if sizes[0] >= sizes[1] else ["WrongLength"] * 3)


def test_length_is_asked_for_before_each_record(tmp_path: Path, write: Callable[..., Path]) -> None:
    from btr.storage import WrongLength

    store = Store.open(write(tmp_path / "s.btr", 20))
    (data,) = store.path.glob("shards/*/data.mdb")
    whole = data.read_bytes()
    with store._view.snapshot(0) as snapshot:
        assert snapshot.record(0).id == "p0"
        os.truncate(data, len(whole) + 4096)
        with pytest.raises(WrongLength, match=r"has .* bytes, the manifest says"):
            snapshot.record(1)
        os.truncate(data, len(whole))
        assert snapshot.record(1).id == "p1"
