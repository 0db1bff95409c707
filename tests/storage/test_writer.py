"""Building a store: what is committed survives, whatever happens."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from btr.storage import (
    BadPassage,
    Building,
    Corrupt,
    DiskFull,
    Encoded,
    Manifest,
    ResumeMismatch,
    Settings,
    Store,
    StoreBusy,
    StoreExists,
    StoreWriter,
)
from btr.storage.format import PAYLOAD
from btr.storage.shard import ShardWriter

Make = Callable[..., Encoded]
Same = Callable[[Encoded, Encoded], None]
Write = Callable[..., Path]
SettingsFor = Callable[..., Settings]

SCRIPT = Path(__file__).with_name("build_and_die.py")


def building(path: Path) -> Path:
    return path.with_name(path.name + ".building")


WHOLE = ["manifest.json", "shards", "shards/S", "shards/S/data.mdb", "shards/S/shard.json"]


def names(path: Path) -> list[str]:
    """Return what a store of one shard consists of, the shard called S."""
    (folder,) = (path / "shards").iterdir()
    return sorted(str(entry.relative_to(path)).replace(folder.name, "S") for entry in path.rglob("*"))


def data(path: Path) -> Path:
    """Return the data file of the only shard."""
    (file,) = path.rglob("data.mdb")
    return file


def plain(store: Store) -> Manifest:
    """Return the manifest without what depends on the history of the file's pages."""
    shards = tuple(replace(shard, data_bytes=0, data_hash="") for shard in store.manifest.shards)
    return replace(store.manifest, shards=shards)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, write: Write) -> Iterator[Store]:
    """A store of 40 passages, built without interruption."""
    with Store.open(write(tmp_path_factory.mktemp("whole") / "s", count=40)) as store:
        yield store


# Resume


@pytest.mark.parametrize(
    ("when", "committed"),
    [
        ("writer.write_json", 0),  # before the settings are there
        ("batch 0", 0),
        ("batch 14", 14),  # within a block
        ("batch 35", 35),  # before the last
        ("block 5", 14),  # in a transaction
        ("shard.hashlib.file_digest", 40),  # while it finishes
        ("writer._replace_directory", 40),  # when all is done but the name
    ],
)
def test_resumes_after_kill(
    tmp_path: Path, settings: SettingsFor, write: Write, whole: Store, when: str, committed: int
) -> None:
    path = tmp_path / "killed"
    command = [sys.executable, str(SCRIPT), str(path), "40", *when.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == -signal.SIGKILL, done.stderr
    with StoreWriter.create_or_resume(path, settings()) as resumed:
        assert (resumed.done, resumed.consumed) == (committed, committed)
    with Store.open(write(path, count=40)) as store:
        assert plain(store) == plain(whole)
        assert list(store.verify()) == []
    assert names(path) == WHOLE
    assert [entry.name for entry in tmp_path.iterdir()] == ["killed"]


@pytest.mark.parametrize("batch", [1, 8, 40])
def test_batches_after_the_first_do_not_change_the_content(
    tmp_path: Path, write: Write, passages: Callable[..., Encoded], settings: SettingsFor, whole: Store, batch: int
) -> None:
    with StoreWriter.create_or_resume(tmp_path / "s", settings()) as writer:
        writer.append(passages(range(7)), 7)  # a shard learns its codebook from these
    with Store.open(write(tmp_path / "s", count=40, batch=batch)) as store:
        assert store.manifest.content_hash == whole.manifest.content_hash
        assert list(store.verify()) == []


def test_settings_must_be_the_same(tmp_path: Path, settings: SettingsFor) -> None:
    path = tmp_path / "s"
    StoreWriter.create_or_resume(path, settings()).close()
    with pytest.raises(ResumeMismatch) as caught:
        StoreWriter.create_or_resume(path, settings(k=8, options={"limit": 5}))
    assert str(caught.value) == (
        f"{building(path)} was begun with k 9, now 8; options {{'limit': None, 'words': 100}}, now {{'limit': 5}}: "
        "use the same settings, or build under another name; --no-resume would delete it and start afresh"
    )


OTHER = {  # a value of every setting that a build depends on
    "fingerprint": "91bc" * 16, "tokenizer_hash": "91bc", "k": 8, "D": 64, "vocab_size": 900, "max_passage_tokens": 99,
    "corpus_hash": "91bc", "width": 96, "passages_per_block": 4, "shard_passages": 7,
    "options": {"limit": 6, "words": 100},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_each_setting_is_one_that_a_build_depends_on(tmp_path: Path, settings: SettingsFor, name: str) -> None:
    """What is resumed, and the shards' names, by which a worker finds what a killed one has written."""
    path, mine, other = tmp_path / "s", settings(), settings(**{name: OTHER[name]})
    StoreWriter.create_or_resume(path, mine).close()
    with pytest.raises(ResumeMismatch, match=rf"was begun with {name} .*, now .*: use the same settings"):
        StoreWriter.create_or_resume(path, other)
    with Building.create_or_resume(path, mine) as begun:
        first = begun.folder(0)
    with Building.create_or_resume(path, other, resume=False) as begun:
        assert begun.folder(0) != first


def test_every_setting_is_tried() -> None:
    assert {field.name for field in fields(Settings)} == {*OTHER, "corpus", "reader"}


def test_names_may_change(tmp_path: Path, settings: SettingsFor) -> None:
    path = tmp_path / "s"
    StoreWriter.create_or_resume(path, settings()).close()
    StoreWriter.create_or_resume(path, settings(corpus="./my corpus", reader="base")).close()


def test_no_resume_starts_afresh(tmp_path: Path, settings: SettingsFor, passages: Make) -> None:
    path = tmp_path / "s"
    with StoreWriter.create_or_resume(path, settings()) as first:
        first.append(passages(range(5)), 5)
    with StoreWriter.create_or_resume(path, settings(k=8), resume=False) as second:
        assert (second.done, second.consumed) == (0, 0)


def test_data_without_settings(tmp_path: Path, settings: SettingsFor) -> None:
    path = tmp_path / "s"
    StoreWriter.create_or_resume(path, settings()).close()
    (building(path) / "settings.json").unlink()
    (tmp_path / "manifest.json").touch()  # of something else
    with pytest.raises(Corrupt, match=r"has data but no settings.json; build under another name; --no-resume"):
        StoreWriter.create_or_resume(path, settings())
    StoreWriter.create_or_resume(path, settings(), resume=False).close()


def test_damaged_data_is_not_resumed(tmp_path: Path, settings: SettingsFor) -> None:
    path = tmp_path / "s"
    StoreWriter.create_or_resume(path, settings()).close()
    data(building(path)).write_bytes(b"nonsense" * 1000)
    with pytest.raises(Corrupt, match=r"build under another name; --no-resume would delete it and start afresh"):
        StoreWriter.create_or_resume(path, settings())


# Append


def test_duplicates_are_skipped_and_counted(tmp_path: Path, settings: SettingsFor, passages: Make, same: Same) -> None:
    with StoreWriter.create_or_resume(tmp_path / "s", settings()) as building:
        assert building.append(passages(range(5)).select([0, 1, 1, 2, 0]), 5) == [0, 1, 3]
        assert building.append(passages(range(5)), 10, cut=2) == [3, 4]
        assert building.append(passages(range(2)), 12) == []
        assert (building.done, building.consumed) == (5, 12)
        assert [building.ordinal(passage_id) for passage_id in ("p0", "p4", "p5")] == [0, 4, None]
        manifest = building.finish()
    assert (manifest.passages, manifest.duplicates, manifest.cut) == (5, 7, 2)
    with Store.open(tmp_path / "s") as store:
        assert list(store.verify()) == []
        same(store.at(range(5)), passages(range(5)))


def test_a_bad_passage_leaves_nothing_of_its_batch(tmp_path: Path, settings: SettingsFor, passages: Make) -> None:
    with StoreWriter.create_or_resume(tmp_path / "s", settings()) as building:
        with pytest.raises(BadPassage):
            building.append(replace(passages(range(3)), ids=("a", "b", "c" * 512)), 3)
        assert building.append(replace(passages(range(3)), ids=("a", "b", "c")), 3) == [0, 1, 2]


def test_grows_the_map(tmp_path: Path, settings: SettingsFor, passages: Make, same: Same) -> None:
    batch = passages(range(40), 768, (100, 150))
    with StoreWriter.create_or_resume(tmp_path / "s", settings(D=768), map_size=1 << 16) as building:
        building.append(batch, 40)
        building.finish()
    with Store.open(tmp_path / "s") as store:
        assert store.manifest.shards[0].data_bytes > 1 << 16
        same(store.at(range(40)), batch)


def test_refuses_a_second_process(tmp_path: Path, settings: SettingsFor, passages: Make) -> None:
    path = tmp_path / "s"
    with StoreWriter.create_or_resume(path, settings()) as writer:
        writer.append(passages(range(7)), 7)
        command = [sys.executable, str(SCRIPT), str(path), "40", "none"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 1 and "StoreBusy: " in done.stderr
        assert f"{building(path)} is being written by another process: let it finish, or stop it" in done.stderr
        writer.append(passages(range(7, 14)), 14)
    assert subprocess.run(command, timeout=900).returncode == 0
    assert len(Store.open(path)) == 40


def test_a_shard_that_another_writes_is_noticed(tmp_path: Path, settings: SettingsFor, passages: Make) -> None:
    """Without the lock, as on a file system that has none: the progress in the transaction tells."""
    writers = [ShardWriter(tmp_path / str(number), settings(), map_size=1 << 16) for number in (1, 2)]
    writers[0].append(passages(range(7)), 7)
    writers[1].close()
    shutil.copy(tmp_path / "1" / "data.mdb", tmp_path / "2" / "data.mdb")
    with ShardWriter(tmp_path / "2", settings(), map_size=1 << 16) as other:
        other.progress = replace(other.progress, passages=0, consumed=0)
        with pytest.raises(StoreBusy, match="is being written by another process"):
            other.append(passages(range(7, 14)), 14)
    writers[0].close()


LIMITED = f"""
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.argv[1:] = [sys.argv[1], "1000", "none"]
try:
    runpy.run_path({str(SCRIPT)!r})
except BaseException as error:
    sys.exit(type(error).__name__ + ": " + str(error))
"""


def test_a_full_disk_can_be_resumed(tmp_path: Path, settings: SettingsFor, write: Write) -> None:
    """A limit on the size of files stands in for the end of the disk: LMDB answers both alike."""
    path = tmp_path / "s"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, timeout=900)
    assert done.stderr.startswith("DiskFull: cannot write "), done.stderr
    assert f"bytes to {building(path) / 'shards'}" in done.stderr
    assert "bytes are free there): make room and run the same command again" in done.stderr
    with StoreWriter.create_or_resume(path, settings()) as resumed:
        count = resumed.consumed + 20
    assert 50 < count < 1000
    whole = Store.open(write(tmp_path / "whole", count=count))
    assert Store.open(write(path, count=count)).manifest.content_hash == whole.manifest.content_hash


def test_no_room_to_begin(tmp_path: Path, settings: SettingsFor, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5))
    with pytest.raises(DiskFull, match=r"cannot write 1048576 bytes to .* 5 bytes are free there"):
        StoreWriter.create_or_resume(tmp_path / "s", settings())


# Finish


def many(count: int) -> Encoded:
    """Return passages of 100 to 150 tokens with D = 768, as a corpus of 100-word passages has them."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(100, 150, count, endpoint=True).astype(np.int32)
    total = int(lengths.sum())
    return Encoded(
        fingerprint="3f2a" * 16,
        D=768,
        ids=tuple(f"{number:07}" for number in rng.permutation(10**7)[:count]),
        titles=tuple(f"Title of {number}" for number in range(count)),
        texts=tuple("word " * (length * 3 // 4) for length in lengths),
        lengths=lengths,
        token_ids=rng.integers(0, 32128, total).astype(np.uint32),
        scale=rng.random(total).astype(np.float16),
        packed=rng.integers(0, 2**64, (total, 12), np.uint64),
    )


def test_overhead_on_disk_is_at_most_3_percent(tmp_path: Path, settings: SettingsFor) -> None:
    all_of_them, path, batch = many(2000), tmp_path / "s", 100
    with StoreWriter.create_or_resume(path, settings(D=768, passages_per_block=64)) as unfinished:
        for first in range(0, 2000, batch):
            last = min(first + batch, 2000)
            unfinished.append(all_of_them.select(range(first, last)), last)
        unfinished.finish()
    with Store.open(path) as store:
        sizes = store.sizes()
    payload = sum(sizes[part] for part in PAYLOAD)
    assert sizes["signs"] == 96 * all_of_them.num_tokens
    on_disk = sum(entry.stat().st_blocks * 512 for entry in (path, *path.rglob("*")))
    assert payload < on_disk <= 1.03 * payload


@pytest.mark.parametrize("copies", [True, False])
def test_slack_goes_where_the_disk_has_room_for_a_copy(
    tmp_path: Path, settings: SettingsFor, passages: Make, monkeypatch: pytest.MonkeyPatch, copies: bool
) -> None:
    batch = passages(range(50), 768, (100, 150))
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 40 if copies else 1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with StoreWriter.create_or_resume(tmp_path / "s", settings(D=768)) as unfinished:
        for first in range(0, 50, 5):
            unfinished.append(batch.select(range(first, first + 5)), first + 5)
        before = data(unfinished.building).stat().st_size
        assert (unfinished.finish().shards[0].data_bytes < before) == copies
    with Store.open(tmp_path / "s") as store:
        assert list(store.verify()) == []


def test_a_store_is_not_overwritten_unasked(tmp_path: Path, write: Write, settings: SettingsFor) -> None:
    path = write(tmp_path / "s")
    with pytest.raises(StoreExists, match=r"exists: choose another path; --overwrite would replace it"):
        StoreWriter.create_or_resume(path, settings())
    with StoreWriter.create_or_resume(path, settings(), overwrite=True) as building:
        assert len(Store.open(path)) == 20  # until the new one is finished
        building.finish()
    assert len(Store.open(path)) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_only_stores_are_overwritten(tmp_path: Path, settings: SettingsFor) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(StoreExists, match=r"exists and is not a store: choose another path"):
        StoreWriter.create_or_resume(tmp_path / "s", settings(), overwrite=True)


def test_a_path_taken_meanwhile(tmp_path: Path, settings: SettingsFor, passages: Make) -> None:
    with StoreWriter.create_or_resume(tmp_path / "s", settings()) as building:
        building.append(passages(range(3)), 3)
        (tmp_path / "s").mkdir()
        with pytest.raises(StoreExists):
            building.finish()
    (tmp_path / "s").rmdir()
    with StoreWriter.create_or_resume(tmp_path / "s", settings()) as building:
        assert building.finish().passages == 3


def test_what_others_put_there_travels_along(tmp_path: Path, settings: SettingsFor) -> None:
    with StoreWriter.create_or_resume(tmp_path / "s", settings()) as unfinished:
        (unfinished.building / "bm25").mkdir()
        (unfinished.building / "bm25" / "index").write_text("words")
        unfinished.finish()
    assert (tmp_path / "s" / "bm25" / "index").read_text() == "words"


def test_remains_of_a_killed_finish_do_not_matter(tmp_path: Path, write: Write, settings: SettingsFor) -> None:
    with StoreWriter.create_or_resume(tmp_path / "s", settings()) as unfinished:
        (folder,) = (unfinished.building / "shards").iterdir()
        (folder / "compact.tmp").mkdir()
        (folder / "compact.tmp" / "data.mdb").write_text("half")
        (unfinished.building / "manifest.json").write_text("{}")
    with StoreWriter.create_or_resume(tmp_path / "s", settings()) as resumed:
        assert sorted(entry.name for entry in folder.iterdir()) == ["data.mdb", "lock", "lock.mdb"]
        assert sorted(entry.name for entry in resumed.building.iterdir()) == ["lock", "settings.json", "shards"]
    with Store.open(write(tmp_path / "s")) as store:
        assert list(store.verify()) == []
    assert names(tmp_path / "s") == WHOLE
