"""A finished store: what it gives back, and what it says of damage and of mistakes."""

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from operator import methodcaller
from pathlib import Path

import lmdb
import pytest

from btr.storage import Corrupt, Encoded, NewerFormat, NotAStore, ReaderMismatch, Store, UnknownId

Make = Callable[..., Encoded]
Same = Callable[[Encoded, Encoded], None]
Write = Callable[..., Path]


def shard(path: Path) -> Path:
    """Return the directory of the only shard of a store."""
    (folder,) = (path / "shards").iterdir()
    return folder


def damage(path: Path, find: bytes, offset: int = 0) -> None:
    """Flip a bit of the data file, `offset` bytes after the only place where these bytes stand."""
    data = bytearray((shard(path) / "data.mdb").read_bytes())
    assert data.count(find) == 1
    data[data.index(find) + offset] ^= 1
    (shard(path) / "data.mdb").write_bytes(data)


def edit_manifest(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def edit_entry(path: Path, **changes: object) -> None:
    """Change what the manifest says of the only shard."""
    (entry,) = json.loads((path / "manifest.json").read_text())["shards"]
    edit_manifest(path, shards=[{**entry, **changes}])


# What it gives back


@pytest.mark.parametrize("D", [1, 63, 64, 65, 768])
def test_gives_back_what_was_written(tmp_path: Path, write: Write, passages: Make, same: Same, D: int) -> None:
    with Store.open(write(tmp_path / "s", D=D)) as store:
        same(store.at(range(20)), passages(range(20), D))
        assert len(store) == store.manifest.passages == 20


def test_get_keeps_order_and_repeats(store: Store, passages: Make, same: Same) -> None:
    numbers = [17, 3, 3, 0, 19]
    expected = Encoded.concat([passages(range(i, i + 1)) for i in numbers])
    same(store.get([f"p{i}" for i in numbers]), expected)
    same(store.at(numbers), expected)


def test_passages_without_tokens_are_kept(store: Store, passages: Make) -> None:
    empty = [i for i, length in enumerate(passages(range(20)).lengths) if length == 0]
    assert empty, "the test needs one"
    back = store.get([f"p{empty[0]}"])
    assert (len(back), back.num_tokens, back.titles) == (1, 0, (f"Title {empty[0]}",))


def test_get_nothing(store: Store) -> None:
    assert len(store.get([])) == len(store.at([])) == 0


def test_what_is_read_outlives_the_store(tmp_path: Path, write: Write, passages: Make, same: Same) -> None:
    with Store.open(write(tmp_path / "s")) as store:
        back = store.get(["p5", "p6"])
    shutil.rmtree(tmp_path / "s")
    same(back, passages(range(5, 7)))


def test_ids_come_in_corpus_order(store: Store) -> None:
    ids = store.ids()
    assert next(ids) == "p0"
    store.close()  # does not pull the rug from under the iterator
    assert list(ids) == [f"p{i}" for i in range(1, 20)]


def test_an_empty_store(tmp_path: Path, write: Write) -> None:
    with Store.open(write(tmp_path / "s", count=0)) as store:
        assert (len(store), list(store.ids()), list(store.verify())) == (0, [], [])


def test_opens_again_after_close(store: Store) -> None:
    store.get(["p1"])
    store.close()
    assert store.get(["p1"]).ids == ("p1",)


def test_opens_lmdb_on_first_use_only(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "s")
    with Store.open(path), lmdb.open(str(shard(path)), readonly=True, lock=False):  # twice in a process LMDB refuses
        pass


def test_two_stores_of_one_path(tmp_path: Path, store: Store) -> None:
    with Store.open(store.path) as second:
        assert second.get(["p1"]).ids == store.get(["p1"]).ids
    assert store.get(["p2"]).ids == ("p2",)


def test_sizes_are_what_du_says(store: Store) -> None:
    (store.path / "bm25").mkdir()
    (store.path / "bm25" / "index").write_bytes(bytes(10_000))
    sizes = store.sizes()
    on_disk = sum(entry.stat().st_blocks * 512 for entry in (store.path, *store.path.rglob("*")))
    assert sum(sizes.values()) == on_disk
    assert sizes["other_files"] >= 10_000
    assert all(number >= 0 for number in sizes.values())


# Processes and threads


def test_pickles_without_its_handle(store: Store, passages: Make, same: Same) -> None:
    store.get(["p1"])
    copy = pickle.loads(pickle.dumps(store))
    same(copy.get(["p1"]), passages(range(1, 2)))


def test_threads_share_it(store: Store, passages: Make, same: Same) -> None:
    with ThreadPoolExecutor(8) as pool:
        for back in pool.map(lambda i: store.at([i % 20, (i + 7) % 20]), range(200)):
            same(
                back, Encoded.concat([passages(range(i, i + 1)) for i in (int(back.ids[0][1:]), int(back.ids[1][1:]))])
            )


def test_processes_read_at_the_same_time(store: Store, same: Same) -> None:
    read = methodcaller("get", ["p3", "p11"])
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        for back in pool.map(read, [store] * 4):
            same(back, read(store))


FORK = """
import os, sys
from btr.storage import Store
store, other = Store.open(sys.argv[1]), Store.open(sys.argv[1])
before = store.get(["p3"]), other.get(["p4"])
child = os.fork()
if child == 0:
    same = store.get(["p3"]).packed.tobytes() == before[0].packed.tobytes() and other.get(["p4"]).ids == ("p4",)
    mine, others = store._view._environments[0], other._view._environments[0]
    own = mine is others and mine.pid == os.getpid()
    os._exit(0 if same and own else 1)
_, status = os.waitpid(child, 0)
assert store.get(["p5"]).ids == ("p5",)  # the child has closed its own copy only
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_survives_a_fork(store: Store) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(store.path)], capture_output=True, text=True, timeout=900)
    assert (done.returncode, done.stderr) == (0, "")


# Mistakes


def test_unknown_ids_are_counted_and_named(store: Store) -> None:
    with pytest.raises(UnknownId, match=r"4 of 5 ids are not in store .*: 'x1', 'x2', '', \.\.\.") as caught:
        store.get(["p1", "x1", "x2", "", "y" * 600])
    assert caught.value.ids == ("x1", "x2", "", "y" * 600)
    assert pickle.loads(pickle.dumps(caught.value)).ids == caught.value.ids


@pytest.mark.parametrize("ordinal", [-1, 20])
def test_ordinals_outside_the_store(store: Store, ordinal: int) -> None:
    with pytest.raises(IndexError, match=rf"ordinal {ordinal} is outside store .* of 20 passages"):
        store.at([0, ordinal])


def test_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(NotAStore, match=r"is not a store: it has no manifest.json"):
            Store.open(path)


def test_an_unfinished_store_says_how_to_resume(store: Store) -> None:
    building = store.path.with_name("new.building")
    building.mkdir()
    settings = {**json.loads((store.path / "manifest.json").read_text())}
    keys = ("fingerprint", "tokenizer_hash", "k", "D", "vocab_size", "max_passage_tokens", "corpus_hash", "width")
    keys += ("passages_per_block", "shard_passages", "options", "corpus", "reader")
    path = store.path.with_name("new")
    plain = {"limit": None, "words": 100, "dtype": "float32", "text": True}
    other = {"limit": 7, "words": 50, "dtype": "bfloat16", "text": False, "k": 9}
    flags = " --limit 7 --words 50 --dtype bfloat16 --no-text --k 9 --shard-passages 12"
    for options, size, said in ((plain, 65_536, ""), (other, 12, flags)):
        changed = {**{key: settings[key] for key in keys}, "options": options, "shard_passages": size}
        (building / "settings.json").write_text(json.dumps(changed))
        command = f"python -m btr.precompute 'my corpus' --reader readers/base --store {path}{said}"
        with pytest.raises(NotAStore) as caught:
            Store.open(path)
        left = f"{building} holds what is built so far; resume with: {command}"
        assert str(caught.value) == f"{path} is not finished: {left}"


def test_a_newer_format(store: Store) -> None:
    edit_manifest(store.path, format_version=3, surprise=1)
    with pytest.raises(NewerFormat, match=r"has format 3, this btr reads formats up to 2: update btr"):
        Store.open(store.path)


def test_another_reader(store: Store) -> None:
    assert Store.open(store.path, store.manifest.fingerprint).path == store.path
    with pytest.raises(ReaderMismatch) as caught:
        Store.open(store.path, "91bc", "readers/new")
    assert str(caught.value) == (
        f"store {store.path} was built by reader {store.manifest.fingerprint} (readers/base), this reader is 91bc; "
        "open it with --reader readers/base, or build another beside it for this reader with: "
        f"python -m btr.precompute 'my corpus' --reader readers/new --store {store.path}.new"
    )
    edit_manifest(store.path, reader="")
    with pytest.raises(ReaderMismatch, match=r"\(shipped with btr\), this reader is 91bc; open it without --reader"):
        Store.open(store.path, "91bc", "readers/new")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_damaged_manifest(store: Store, text: str) -> None:
    (store.path / "manifest.json").write_text(text)
    with pytest.raises(Corrupt, match=r"manifest\.json"):
        Store.open(store.path)


@pytest.mark.parametrize("change", [-4096, -1, 1])
def test_a_data_file_of_another_length(store: Store, change: int) -> None:
    data = shard(store.path) / "data.mdb"
    size = data.stat().st_size
    os.truncate(data, size + change)
    message = (
        rf"has {size + change} bytes, the manifest says {size}; copy the shard again .* --store {store.path}\.new$"
    )
    for read in (lambda: Store.open(store.path), lambda: store.get(["p1"])):
        with pytest.raises(Corrupt, match=message):
            read()


def test_a_missing_data_file(store: Store) -> None:
    (shard(store.path) / "data.mdb").unlink()
    with pytest.raises(Corrupt, match=r"has 0 bytes, the manifest says"):
        Store.open(store.path)


def test_a_damaged_record_is_named(store: Store) -> None:
    damage(store.path, b"Title 13")
    with pytest.raises(Corrupt, match=r"block 1, record 5 \(passage 'p13'\): CRC-32 of the record is \w{8}, stored is"):
        store.get(["p13"])
    assert store.get(["p12", "p14"]).ids == ("p12", "p14")


def test_a_damaged_block_header_is_named(tmp_path: Path, write: Write) -> None:
    with Store.open(write(tmp_path / "s", count=5)) as store:
        damage(store.path, b"BTRB", offset=20)
        with pytest.raises(Corrupt, match=r"block 0: CRC-32 of the header is"):
            store.get(["p3"])


def test_a_file_that_is_not_lmdb(store: Store) -> None:
    size = (shard(store.path) / "data.mdb").stat().st_size
    (shard(store.path) / "data.mdb").write_bytes(bytes(size))
    with pytest.raises(Corrupt, match=r"data\.mdb"):
        store.get(["p3"])


def test_a_store_replaced_since_it_was_opened(store: Store, write: Write) -> None:
    shutil.rmtree(store.path)
    write(store.path, count=19)
    with pytest.raises(Corrupt, match="was replaced since it was opened"):
        store.get(["p3"])


# verify


def test_a_sound_store_has_no_problem(store: Store) -> None:
    seen: list[tuple[int, int]] = []
    assert list(store.verify(lambda done, total: seen.append((done, total)))) == []
    assert seen == [(8, 20), (16, 20), (20, 20)]


def test_verify_finds_damage_and_goes_on(store: Store) -> None:
    damage(store.path, b"Title 13")
    damage(store.path, b"Title 19")
    problems = list(store.verify())
    named = ("data_hash is", "block 1, record 5", "block 2, record 3", "content_hash is")
    assert len(problems) == len(named), problems
    for problem, expected in zip(problems, named, strict=True):
        assert expected in problem


def test_verify_compares_the_counts(store: Store) -> None:
    manifest = store.manifest
    edit_entry(store.path, tokens=manifest.tokens + 1, part_bytes={**manifest.part_bytes, "text": 0, "ids": 0})
    problems = " ".join(Store.open(store.path).verify())
    for expected in (f"tokens is {manifest.tokens}, the manifest says", "text is ", "ids is "):
        assert expected in problems


def edit_index(path: Path, key: bytes, value: bytes | None) -> None:
    with lmdb.open(str(shard(path)), max_dbs=3) as environment:
        index = environment.open_db(b"ids")
        with environment.begin(write=True) as txn:
            assert txn.delete(key, db=index) if value is None else txn.put(key, value, db=index)
    edit_entry(path, data_bytes=(shard(path) / "data.mdb").stat().st_size)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (b"p3", None, "passage 'p3' is number 3, the index of ids says None"),
        (b"p3", b"\4" + bytes(7), "passage 'p3' is number 3, the index of ids says 4"),
        (b"stray", b"\4" + bytes(7), "ids_index is 21, the manifest says 20"),
    ],
)
def test_verify_compares_index_and_records(store: Store, key: bytes, value: bytes | None, expected: str) -> None:
    edit_index(store.path, key, value)
    assert any(expected in problem for problem in Store.open(store.path).verify())


def test_an_index_that_leads_to_another_passage(store: Store) -> None:
    edit_index(store.path, b"p3", b"\4" + bytes(7))
    with pytest.raises(Corrupt, match=r"block 0, record 4 \(passage 'p3'\): it is passage 'p4'"):
        Store.open(store.path).get(["p3"])


def test_verify_survives_damage_to_any_page(store: Store) -> None:
    """Every page in turn is zeroed: LMDB must say so, not crash, and `verify` must notice."""
    data = shard(store.path) / "data.mdb"
    sound = data.read_bytes()
    for start in range(0, len(sound), 4096):
        data.write_bytes(sound[:start] + bytes(4096) + sound[start + 4096 :])
        store.close()
        try:
            problems = list(store.verify())
        except Corrupt as error:
            problems = [str(error)]
        assert problems, start
