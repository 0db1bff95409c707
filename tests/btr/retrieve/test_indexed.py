"""The index of a living store: no deleted passage comes back, and one that has fallen behind says so."""

import json
import shutil
from pathlib import Path

import pytest

from btr.corpus import Passage
from btr.errors import InputError
from btr.precompute import __main__ as precompute
from btr.retrieve import indexed
from btr.retrieve.indexed import StaleIndex, Tail, open_index
from btr.storage import NetworkFileSystem, Store, network
from btr.storage.living import compact, edit
from btr.store import __main__ as command

Capture = pytest.CaptureFixture[str]


def write(path: Path, rows: dict[str, str]) -> str:
    path.write_text(
        "\n".join(json.dumps({"id": i, "title": "T", "text": t}) for i, t in rows.items()), encoding="utf-8"
    )
    return str(path)


@pytest.fixture(scope="module")
def built(reader_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    corpus = write(folder / "c.jsonl", {f"p{n}": f"salt mule mark{n}" for n in range(12)})
    assert precompute.main([corpus, "--reader", str(reader_folder), "--store", str(folder / "s.btr")]) == 0
    return folder / "s.btr"


@pytest.fixture
def path(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "s.btr"))


def found(path: Path, question: str, top: int = 3) -> list[str]:
    with Store.open(path) as store:
        index = open_index(store)
        assert index is not None
        ((ordinals, scores),) = index.search([question], top)
        assert len(ordinals) == len(scores)
        return list(store.at(ordinals).ids)


def test_deleted_passages_do_not_come_back(path: Path, capsys: Capture) -> None:
    assert found(path, "salt") == ["p0", "p1", "p2"]
    assert command.main(["delete", str(path), "p1", *(f"p{n}" for n in range(3, 11))]) == 0
    assert capsys.readouterr().out == f"{path}: 9 deleted; 3 passages\n"
    assert found(path, "salt") == ["p0", "p2", "p11"]
    assert found(path, "mark1") == []


def test_unknown_ids_delete_nothing(path: Path, capsys: Capture) -> None:
    ids = path.with_name("ids")
    ids.write_text("p1\nnope\n")
    assert command.main(["delete", str(path), "p2", "--ids-file", str(ids)]) == 2
    assert "1 of 3 ids are not in store" in capsys.readouterr().err
    assert len(Store.open(path)) == 12
    assert command.main(["delete", str(path), "p2", "--ids-file", str(ids), "--missing-ok"]) == 0
    assert len(Store.open(path)) == 10


def test_add_upsert_and_index(path: Path, capsys: Capture) -> None:
    more = write(path.with_name("more.jsonl"), {"p1": "salt mule mark1", "p2": "heron", "new": "salt newword"})
    assert command.main(["add", str(path), more]) == 0
    assert f"{path}: 1 added, 2 there already and left out; 13 passages" in capsys.readouterr().out
    with pytest.warns(StaleIndex, match="does not know the last 1 passages of the store; build it anew with: python"):
        assert found(path, "newword") == []
    assert command.main(["upsert", str(path), more]) == 0
    assert f"{path}: 1 replaced, 2 unchanged; 13 passages" in capsys.readouterr().out
    assert command.main(["index", str(path)]) == 0
    assert (found(path, "newword"), found(path, "heron"), found(path, "mark2")) == (["new"], ["p2"], [])
    with Store.open(path) as store:
        assert store.get(["p2"]).texts == ("heron",) and list(store.verify()) == []


def test_tail_finds_what_the_index_does_not_know(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = write(path.with_name("more.jsonl"), {"new": "salt newword", "p2": "heron", "q": "heron salt"})
    tail = Tail()

    def search(question: str) -> list[str]:
        store = Store.open(path)
        index = open_index(store, tail)
        assert index is not None and len(index) == store.manifest.ordinals
        return list(store.at(index.search([question], 20)[0][0]).ids)

    assert command.main(["upsert", str(path), more]) == 0
    assert (search("newword"), search("heron"), search("mark2")) == (["new"], ["p2", "q"], [])
    assert {"new", "q", "p0"} <= set(search("salt")) and "p2" not in search("salt")
    read: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "btr.retrieve.indexed.read_words", lambda store, first, end: read.append((first, end)) or [Passage("", "", "")]
    )
    assert command.main(["delete", str(path), "q"]) == 0
    assert search("heron") == ["p2"]
    assert read == []  # its words were known


def test_tail_finds_what_a_compaction_moved_and_has_read_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"shard_passages": 4}))  # so that none are joined
    for name, bird in (("x", "stork"), ("y", "crane")):
        corpus = write(path.with_name(name), {f"{name}{n}": f"{bird}{n}" for n in range(3)})
        assert command.main(["add", str(path), corpus]) == 0
    tail = Tail()

    def search(question: str) -> list[str]:
        store = Store.open(path)
        index = open_index(store, tail)
        assert index is not None
        return list(store.at(index.search([question], 9)[0][0]).ids)

    assert (search("stork2"), search("crane1")) == (["x2"], ["y1"])
    with edit(path) as editor:
        editor.commit(editor.delete([12]))
        assert compact(editor, 1) == (1, 12)
    read: list[tuple[int, int]] = []
    words = indexed.read_words
    monkeypatch.setattr(indexed, "read_words", lambda store, *ends: read.append(ends) or words(store, *ends))
    assert (search("stork2"), search("crane1"), search("stork0")) == (["x2"], ["y1"], [])
    assert read == [(12, 14)]  # what was written anew; the other shard stands one place before


def test_tail_keeps_to_its_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        assert command.main(["add", str(path), write(path.with_name(name), {name: "stork", f"{name}2": "crane"})]) == 0
    monkeypatch.setattr("btr.retrieve.indexed.MOST", 3)
    store = Store.open(path)
    with pytest.warns(StaleIndex, match="does not know the last 2 passages"):
        index = open_index(store, Tail())
    assert index is not None and store.at(index.search(["stork"], 9)[0][0]).ids == ("one",)


def test_compact_takes_the_index_away(path: Path) -> None:
    assert command.main(["delete", str(path), "p1"]) == 0
    assert command.main(["compact", str(path)]) == 0
    with Store.open(path) as store:
        assert open_index(store) is None and store.at([1]).ids == ("p2",)
    assert command.main(["index", str(path)]) == 0
    assert found(path, "mark11") == ["p11"]


def test_an_index_of_another_store_is_refused(path: Path) -> None:
    data = json.loads((path / "manifest.json").read_text())
    for known, message in ((5, "has 12 passages, the store says 5"), (0, "is no longer that of store")):
        (path / "manifest.json").write_text(json.dumps({**data, "indexed": known}))
        with pytest.raises(InputError, match=message), Store.open(path) as store:
            open_index(store)


def test_index_of_an_older_format_names_the_command_that_rebuilds_it(path: Path) -> None:
    file = path / "bm25" / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 1}))
    with pytest.raises(InputError, match=rf"format 1, .*; build it anew with: python -m btr\.store index {path}$"):
        found(path, "salt")
    assert command.main(["index", str(path)]) == 0
    assert found(path, "salt") == ["p0", "p1", "p2"]


def test_merge_keeps_the_first_of_two(path: Path, capsys: Capture) -> None:
    other = Path(shutil.copytree(path, path.with_name("other.btr")))
    assert (
        command.main(["upsert", str(other), write(path.with_name("m.jsonl"), {"p3": "changed", "x": "only there"})])
        == 0
    )
    assert command.main(["delete", str(path), "p5"]) == 0
    out = path.with_name("out.btr")
    assert command.main(["merge", str(out), str(path), str(other)]) == 0
    with Store.open(out) as store:
        assert sorted(store.ids()) == sorted([*(f"p{n}" for n in range(12)), "x"])
        assert store.get(["p3", "x"]).texts == ("salt mule mark3", "only there")
        assert list(store.verify()) == []


def test_export_is_read_again(path: Path, reader_folder: Path, capsys: Capture) -> None:
    assert command.main(["delete", str(path), "p5"]) == 0
    out = path.with_name("out.jsonl")
    assert command.main(["export", str(path), "--out", str(out), "--bits"]) == 0
    again = path.with_name("again.btr")
    assert precompute.main([str(out), "--reader", str(reader_folder), "--store", str(again)]) == 0
    with Store.open(path) as one, Store.open(again) as two:
        assert list(one.ids()) == list(two.ids())
        ids = list(one.ids())
        assert one.get(ids).texts == two.get(ids).texts
        assert one.get(ids).packed.tobytes() == two.get(ids).packed.tobytes()  # type: ignore[union-attr]


def test_a_data_loader_with_workers_reads_a_store(path: Path) -> None:
    from torch.utils.data import DataLoader, Dataset

    class Passages(Dataset[str]):
        def __init__(self, store: Store) -> None:
            self.store = store

        def __len__(self) -> int:
            return len(self.store)

        def __getitem__(self, i: int) -> str:
            return self.store.at([i]).ids[0]

    with Store.open(path) as store:
        assert store.at([0]).ids == ("p0",)  # LMDB is open when the workers are forked
        batches = list(DataLoader(Passages(store), batch_size=4, num_workers=2))
    assert [i for batch in batches for i in batch] == [f"p{n}" for n in range(12)]


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:36 / /net rw - nfs4 server:/export rw
41 40 0:37 / /net/with\\040space rw - fuse.sshfs host: rw
42 22 0:38 / /netlocal rw - tmpfs tmpfs rw
43 22 0:39 / /mnt/données rw - nfs4 server:/e rw
44 22 0:40 / /mnt/a\\134b rw - nfs server:/f rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "warned"),
    [
        ("/home/s", "ext4", False),
        ("/net/s", "nfs4", True),
        ("/net/with space/s", "fuse.sshfs", True),
        ("/netlocal/s", "tmpfs", False),
        ("/mnt/données/x", "nfs4", True),
        ("/mnt/a\\b/x", "nfs", True),
    ],
)
def test_network_file_systems_are_told(path: str, kind: str, warned: bool) -> None:
    assert network.file_system(Path(path), MOUNTS) == kind
    assert network.is_network(kind) == warned


def test_a_store_on_a_network_is_warned_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.with_name("mounts")).write_text("22 1 8:1 / / rw - nfs server:/ rw\n")
    monkeypatch.setattr(network, "MOUNTS", path.with_name("mounts"))
    with pytest.warns(NetworkFileSystem, match=r"lies on a network file system \(nfs\): .* copy the directory"):
        Store.open(path)


def test_network_is_unknown_elsewhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "MOUNTS", path.with_name("none"))
    assert len(Store.open(path)) == 12


def test_what_is_added_is_stemmed_as_the_index_is(path: Path, capsys: Capture) -> None:
    assert command.main(["index", str(path), "--language", "english"]) == 0
    more = write(path.with_name("more.jsonl"), {"new": "rays discovered"})
    assert command.main(["add", str(path), more]) == 0
    tail = Tail()
    with Store.open(path) as store:
        index = open_index(store, tail)
        assert index is not None and index.search(["discovers"], 3)[0][0].tolist() == [12]
        assert store.manifest.options["language"] == "english"
    # The language that was given holds until another one is, though the index goes meanwhile.
    assert command.main(["delete", str(path), "p1"]) == 0
    assert command.main(["compact", str(path)]) == 0
    for given, by_stem in (([], ["new"]), (["--language", "none"], []), ([], [])):
        assert command.main(["index", str(path), *given]) == 0
        assert found(path, "discovers") == by_stem
    assert command.main(["index", str(path), "--language", "klingon"]) == 2
    assert "language is 'klingon'; use one of none, arabic" in capsys.readouterr().err
    assert found(path, "discovered") == ["new"]
