"""A store that changes while it is read: all of a change or nothing, and nobody's view torn."""

import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from runpy import run_path

import pytest

from btr.storage import (
    Corrupt,
    DiskFull,
    Encoded,
    NotAStore,
    ReaderMismatch,
    Settings,
    Store,
    StoreBusy,
    StoreError,
    UnknownId,
)
from btr.storage.disk import cure, take_lock
from btr.storage.living import compact, edit
from btr.storage.shard import ShardWriter

Make = Callable[..., Encoded]
Same = Callable[[Encoded, Encoded], None]
Write = Callable[..., Path]

SCRIPT = Path(__file__).with_name("edit_and_die.py")
change: Callable[[str, str], None] = run_path(str(SCRIPT))["change"]
NUMBERS = {  # after each verb: which passages are there, by ascending ordinal
    "delete": [n for n in range(20) if n not in (3, 4, 19)],
    "add": [*range(20), *range(100, 110)],
    "upsert": [*range(2, 20), 0, 1],
}


FINGERPRINT = "3f2a" * 16


def ids(store: Store) -> list[str]:
    return list(store.ids())


def names(numbers: list[int]) -> list[str]:
    return [f"p{number}" for number in numbers]


def shards(path: Path) -> set[str]:
    return {folder.name for folder in (path / "shards").iterdir()}


# One change after another


@pytest.mark.parametrize("verb", NUMBERS)
def test_a_change_is_there_at_once_and_sound(store: Store, passages: Make, same: Same, verb: str) -> None:
    change(str(store.path), verb)
    with Store.open(store.path) as changed:
        assert ids(changed) == names(NUMBERS[verb])
        assert (len(changed), list(changed.verify())) == (len(NUMBERS[verb]), [])
        expected = Encoded.concat([passages(range(n, n + 1)) for n in NUMBERS[verb]])
        same(changed.get(names(NUMBERS[verb])), expected)
        same(changed.at(list(changed.live())), expected)
        assert changed.manifest.tokens == expected.num_tokens
        assert changed.manifest.generation == 1
    assert ids(store) == names([*range(20)])  # as it was opened


def test_deleted_passages_are_unknown_and_others_keep_their_ordinals(store: Store) -> None:
    change(str(store.path), "delete")
    assert store.refresh() and not store.refresh()
    with pytest.raises(UnknownId, match=r"1 of 2 ids are not in store .*: 'p3'"):
        store.get(["p2", "p3"])
    with pytest.raises(UnknownId, match=r"2 of 3 passages are deleted") as caught:
        store.at([5, 3, 19])
    assert caught.value.ids == ("p3", "p19")
    assert store.at([5, 18]).ids == ("p5", "p18")
    assert store.ordinals(["p5", "p3", "p18", "x"]) == [5, None, 18, None]
    assert store.deleted([2, 3, 4, 5]).tolist() == [False, True, True, False]


def test_deleting_twice_changes_nothing_more(store: Store) -> None:
    for _ in range(2):
        change(str(store.path), "delete")
    store.refresh()
    assert (store.manifest.shards[0].deleted, store.manifest.generation) == (3, 2)
    assert list(store.verify()) == []


def test_compact_drops_the_deleted_and_joins_the_small(store: Store, passages: Make, same: Same, write: Write) -> None:
    for verb in ("add", "delete", "upsert"):
        change(str(store.path), verb)
    with edit(store.path) as editor:
        assert compact(editor) == (1, 0)
    store.refresh()
    numbers = [2, *range(5, 19), *range(100, 110), 0, 1]
    expected = Encoded.concat([passages(range(n, n + 1)) for n in numbers])
    same(store.at(range(len(numbers))), expected)
    assert len(store.manifest.shards) == 1 and list(store.verify()) == []
    with edit(store.path) as editor:
        assert compact(editor) == (0, 27)
    assert shards(store.path) == {store.manifest.shards[0].name}


def test_compact_keeps_what_is_whole(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "s", shard_passages=20)  # so that the ten added stay by themselves
    change(str(path), "add")
    with edit(path) as editor:
        assert compact(editor) == (0, 30)
        editor.commit(editor.delete(range(20, 30)))
        before = editor.manifest.shards
        assert compact(editor) == (1, 20)
        assert editor.manifest.shards == before[:1]


def test_compact_from_a_shard_on_leaves_those_before_and_their_index(store: Store, passages: Make, same: Same) -> None:
    with edit(store.path) as editor:
        editor.commit(editor.delete([3, 4]), indexed=20)
    for verb in ("add", "upsert"):
        change(str(store.path), verb)
    with edit(store.path) as editor:
        first = editor.manifest.shards[0]
        editor.commit(editor.delete([20, 25]))
        assert compact(editor, 1) == (1, 20)
        assert editor.manifest.shards[0] == first and len(editor.manifest.shards) == 2
        assert editor.manifest.indexed == 20  # it knows nothing that moved
    store.refresh()
    same(
        store.at(range(20, 30)),
        Encoded.concat([passages(range(n, n + 1)) for n in (*range(101, 105), *range(106, 110), 0, 1)]),
    )
    assert store.deleted(range(5)).tolist() == [True, True, False, True, True] and list(store.verify()) == []


# Readers


def test_readers_keep_the_shards_they_look_at(store: Store, passages: Make, same: Same) -> None:
    """The store has opened no file of LMDB yet: what it was opened with is still there when it does."""
    old = shards(store.path)
    change(str(store.path), "delete")
    change(str(store.path), "compact")
    assert old < shards(store.path)
    same(store.at(range(20)), passages(range(20)))
    copy = pickle.loads(pickle.dumps(store))
    assert ids(copy) == names([*range(20)])
    copy.refresh()
    store.refresh()
    change(str(store.path), "add")  # finds nobody looking at the old shards any more
    assert not old & shards(store.path)
    assert len(list(store.path.glob("manifest.*.retired"))) <= 1
    assert ids(copy) == names(NUMBERS["delete"])


def test_another_store_in_its_place_is_the_next_state_unless_of_another_reader(
    store: Store, write: Write, passages: Make, same: Same
) -> None:
    store.at([0])
    for number, (fingerprint, count) in enumerate([(store.manifest.fingerprint, 12), ("91bc", 15)]):
        store.path.rename(store.path.with_name(f"away{number}"))
        manifest = write(store.path, count=count) / "manifest.json"
        manifest.write_text(manifest.read_text().replace(FINGERPRINT, fingerprint))
        if fingerprint != "91bc":
            assert store.refresh() and not store.refresh()
        else:
            for _ in range(2):  # told each time, for it does not look at the other store
                with pytest.raises(ReaderMismatch, match="replaced by one of reader 91bc, it was of 3f2a"):
                    store.refresh()
        assert (len(store), store.manifest.fingerprint) == (12, FINGERPRINT)
        same(store.at(range(12)), passages(range(12)))


def test_another_process_keeps_them_too(store: Store) -> None:
    code = """
import sys
from btr.storage import Store
store = Store.open(sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
print(len(store.at(range(20))), store.refresh(), len(store), flush=True)
"""
    command = [sys.executable, "-c", code, str(store.path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        for verb in ("delete", "compact", "add"):
            change(str(store.path), verb)
        assert reader.communicate("go\n", timeout=900)[0] == "20 True 27\n"


def test_a_view_whose_shards_are_gone_says_so(store: Store) -> None:
    state = pickle.dumps(store)
    change(str(store.path), "delete")
    store.refresh()
    change(str(store.path), "compact")
    store.refresh()
    change(str(store.path), "add")
    with pytest.raises(Corrupt, match=r"was replaced since it was opened, shard .* is gone: open it again"):
        pickle.loads(state).get(["p1"])


def test_every_view_is_one_of_the_states_between_changes(store: Store) -> None:
    """A process adds and deletes as fast as it can; what is read meanwhile is always one of the two."""
    code = f"""
import sys
from runpy import run_path
from btr.storage.disk import cure, take_lock
from btr.storage.living import edit
make = run_path({str(SCRIPT)!r})
for turn in range(12):
    make["change"](sys.argv[1], "upsert")
    with edit(sys.argv[1]) as editor:
        if turn % 4 == 3:
            make["living"].compact(editor)
"""
    seen = set()
    with subprocess.Popen([sys.executable, "-c", code, str(store.path)]) as writer:
        while writer.poll() is None:
            with Store.open(store.path) as now:
                assert sorted(ids(now)) == sorted(names([*range(20)]))
                assert now.get(["p0", "p19"]).ids == ("p0", "p19")
                seen.add(now.manifest.generation)
            store.refresh()
            assert store.get(["p0", "p1"]).ids == ("p0", "p1")
    assert writer.returncode == 0
    assert len(seen) > 1
    assert list(Store.open(store.path).verify()) == []


# Writers


def test_one_writer_at_a_time(store: Store) -> None:
    with edit(store.path):
        with pytest.raises(StoreBusy, match=r"is being written by another process: let it finish"), edit(store.path):
            pass
        command = [sys.executable, str(SCRIPT), str(store.path), "delete", "none", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 1 and "StoreBusy" in done.stderr
    change(str(store.path), "delete")
    assert not (store.path / "lock").exists()


def test_a_lock_that_its_holder_deleted_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is opened, then deleted and made anew by others, then locked: that lock keeps nobody out."""
    flock, others = fcntl.flock, list[int]()

    def late(descriptor: int, operation: int) -> None:
        if not others:
            (tmp_path / "lock").unlink()
            others.append(os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT))
            flock(others[0], operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(StoreBusy):
        take_lock(tmp_path)
    os.close(others[0])
    os.close(take_lock(tmp_path))


def test_files_of_others_among_the_shards_stay(store: Store) -> None:
    for name in (".DS_Store", "notes.txt"):
        (store.path / "shards" / name).write_text("x")
    (store.path / "shards" / "elsewhere").symlink_to(store.path.parent)
    for verb in ("delete", "add", "compact"):
        change(str(store.path), verb)
    assert {".DS_Store", "notes.txt", "elsewhere"} < shards(store.path)
    with Store.open(store.path) as changed:
        assert (len(changed), list(changed.verify())) == (27, [])


def test_what_is_no_store_is_not_locked(tmp_path: Path) -> None:
    with pytest.raises(NotAStore), edit(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_store_replaced_meanwhile_is_not_changed(store: Store, write: Write) -> None:
    with edit(store.path) as editor:
        shutil.copy(store.path / "manifest.json", store.path / "copy")
        os.replace(store.path / "copy", store.path / "manifest.json")
        with pytest.raises(StoreError, match="was replaced while it was changed"):
            editor.commit(editor.manifest.shards)


@pytest.mark.parametrize(
    ("verb", "when", "number", "done"),
    [
        ("delete", "deletions.os.replace", 1, False),
        ("delete", "living.os.link", 1, False),
        ("delete", "living.write_manifest", 1, False),
        ("delete", "manifest.os.replace", 1, False),
        ("delete", "living.Editor.forget", 1, True),
        ("delete", "living.Editor.sweep", 2, True),
        ("add", "living.write_json", 1, False),
        ("add", "shard.build_block", 2, False),
        ("add", "shard.write_json", 1, False),
        ("add", "living.write_manifest", 1, False),
        ("upsert", "living.write_manifest", 1, False),
        ("upsert", "living.Editor.sweep", 2, True),
    ],
)
def test_killed_anywhere_all_of_a_change_is_there_or_nothing(
    store: Store, verb: str, when: str, number: int, done: bool
) -> None:
    command = [sys.executable, str(SCRIPT), str(store.path), verb, when, str(number)]
    assert subprocess.run(command, timeout=900).returncode == -signal.SIGKILL
    with Store.open(store.path) as found:
        assert ids(found) == names(NUMBERS[verb] if done else [*range(20)])
        assert list(found.verify()) == []
    if not done:
        change(str(store.path), verb)
    store.refresh()
    assert ids(store) == names(NUMBERS[verb]) and list(store.verify()) == []
    with edit(store.path) as editor:
        editor.forget()
    assert shards(store.path) == {shard.name for shard in store.manifest.shards}
    left = {entry.name for entry in store.path.rglob("*.deleted*")}
    assert left == {shard.deletions_file for shard in store.manifest.shards if shard.deleted}


@pytest.mark.parametrize(
    ("when", "number"), [("shard.build_block", 1), ("shard.write_json", 1), ("living.write_manifest", 1)]
)
def test_a_killed_compact_leaves_the_store_as_it_was(store: Store, when: str, number: int) -> None:
    change(str(store.path), "delete")
    command = [sys.executable, str(SCRIPT), str(store.path), "compact", when, str(number)]
    assert subprocess.run(command, timeout=900).returncode == -signal.SIGKILL
    store.refresh()
    assert ids(store) == names(NUMBERS["delete"]) and list(store.verify()) == []
    change(str(store.path), "compact")
    store.refresh()
    assert store.at(range(17)).ids == tuple(names(NUMBERS["delete"])) and list(store.verify()) == []


def test_a_full_disk_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    change(str(store.path), "delete")
    usage = shutil.disk_usage(store.path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5))
    for verb in ("delete", "compact", "add"):
        with pytest.raises(DiskFull, match="5 bytes are free there"):
            change(str(store.path), verb)
    monkeypatch.undo()
    store.refresh()
    assert ids(store) == names(NUMBERS["delete"]) and list(store.verify()) == []


# Damage


def test_damaged_shard_to_come_is_no_reason_to_give_up_a_store(store: Store, settings: Callable[..., Settings]) -> None:
    with edit(store.path) as editor:
        (folder,) = editor.folders(1, "add")
        folder.mkdir()
        (folder / "data.mdb").write_bytes(b"nonsense" * 1000)
        with pytest.raises(Corrupt) as caught:
            ShardWriter(folder, settings())
        assert "delete" not in cure(store.path)
    assert str(caught.value).endswith(
        f"; store {store.path} does not use it and is as it was; delete {folder}, and run the command again"
    )


@pytest.mark.parametrize("content", [b"", b"\0\0\0", b"\xff\xff\xff", b"\x07\0\0"])  # the last: three, but others
def test_a_damaged_bitmap_is_named(store: Store, content: bytes) -> None:
    change(str(store.path), "delete")
    (file,) = store.path.rglob("*.deleted")
    file.write_bytes(content)
    with pytest.raises(Corrupt, match=r"\.deleted is not the bitmap that the manifest names for shard"):
        Store.open(store.path)
    file.unlink()
    with pytest.raises(Corrupt, match=r"\.deleted cannot be read"):
        Store.open(store.path)
