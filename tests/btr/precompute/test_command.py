"""`btr precompute` as a user meets it: killed anywhere, fed anything, and then served from."""

import filecmp
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from btr.corpus import read_passages
from btr.corpus import statistics as survey
from btr.precompute import __main__ as precompute
from btr.precompute import run as making
from btr.reader import Reader
from btr.retrieve.bm25 import BM25
from btr.storage import Store

ROOT = Path(__file__).resolve().parents[3]
WORDS = (
    *("harbour", "lighthouse", "salt", "mule", "heron", "reed", "bridge", "mill", "lamp", "ship", "frog", "winter"),
    *("hill", "kilo", "eagle", "ferry", "anchor", "pine", "copper", "violin", "saddle", "quarry", "orchard", "bell"),
    *("tunnel", "comet", "turnip", "glacier", "basket", "walnut"),
)
WAIT = 900  # seconds, for what takes seconds on a machine with nothing else to do

Run = Callable[..., SimpleNamespace]


def make_line(number: int) -> str:
    """Write passage p0, p1, ...: four words of which each meets some others, and one of its own."""
    words = [WORDS[number * step % len(WORDS)] for step in (1, 7, 11, 13)]
    text = " ".join([*words, f"mark{number}"] * (1 + number % 3))
    return json.dumps({"id": f"p{number}", "title": words[0].title(), "text": text})


def write_corpus(path: Path) -> None:
    """Write 90 passages to keep and, among them, 3 whose id is there already, 2 without text, and 1 to be cut."""
    lines = [make_line(number) for number in range(90)]
    lines[70] = json.dumps({"id": "p70", "title": "Long", "text": "walnut-basket mark70 " * 75})
    again = json.dumps({"id": "p3", "title": "Again", "text": "another text with mark3"})
    blank = json.dumps({"id": "blank", "title": "Blank", "text": " \n"})
    lines[85:85] = [again, blank]
    lines[40:40] = [again]
    lines[5:5] = [again, blank]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def manifest(store: Path) -> dict[str, Any]:
    """Read what must not depend on how often a run was interrupted: LMDB alone may lay its pages out otherwise."""
    found: dict[str, Any] = json.loads((store / "manifest.json").read_text())
    for shard in found["shards"]:
        del shard["data_hash"], shard["data_bytes"]
    return found


def assert_same(store: Path, other: Path) -> None:
    assert manifest(store) == manifest(other)
    assert tree(store) == tree(other)
    names = [name for name in tree(store / "bm25") if (store / "bm25" / name).is_file()]
    _, differ, missing = filecmp.cmpfiles(store / "bm25", other / "bm25", names, shallow=False)
    assert (differ, missing) == ([], [])
    with Store.open(store) as opened:
        assert list(opened.verify()) == []


def assert_refused(result: SimpleNamespace, message: str) -> None:
    """Hold a run to one line of error, after any lines of progress."""
    lines = result.err.splitlines()
    assert (result.code, result.out) == (2, ""), result.err
    assert lines[-1].startswith("error: ") and message in lines[-1], lines
    assert sum(line.startswith("error") for line in lines) == 1 and "Traceback" not in result.err, lines


@pytest.fixture(scope="module")
def forks(reader_folder: Path) -> Iterator[Run]:
    """A function that runs the command in a process of its own; see `precompute_and_die.py`."""
    script = str(Path(__file__).with_name("precompute_and_die.py"))
    command = [sys.executable, script, str(reader_folder)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as server:
        assert server.stdin is not None and server.stdout is not None

        def run(cwd: Path, *argv: str, **how: Any) -> SimpleNamespace:
            server.stdin.write(json.dumps({"argv": argv, "cwd": str(cwd), **how}) + "\n")
            server.stdin.flush()
            return SimpleNamespace(**json.loads(server.stdout.readline()))

        yield run
        server.stdin.close()
        assert server.wait(WAIT) == 0


@pytest.fixture
def run(forks: Run, reader_folder: Path, tmp_path: Path) -> Run:
    """A function that runs the command on `made.jsonl`, unless another corpus is named, in a folder that holds it."""
    write_corpus(tmp_path / "made.jsonl")

    def run(*flags: str, corpus: str = "made.jsonl", reader: Path = reader_folder, **how: Any) -> SimpleNamespace:
        return forks(tmp_path, corpus, "--reader", str(reader), *flags, **how)

    return run


@pytest.fixture(scope="module")
def whole(forks: Run, reader_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """An uninterrupted run, its result beside the path of its store."""
    folder = tmp_path_factory.mktemp("whole")
    write_corpus(folder / "made.jsonl")
    result = forks(folder, "made.jsonl", "--reader", str(reader_folder), "--json")
    return SimpleNamespace(**vars(result), store=folder / "made.btr")


# What comes out


def test_summary_and_warnings(whole: SimpleNamespace) -> None:
    summary = json.loads(whole.out)
    assert whole.code == 0
    assert (summary["store"], summary["passages"]) == ("made.btr", 90)
    assert summary["tokens"] == sum(shard["tokens"] for shard in manifest(whole.store)["shards"])
    disk = sum(path.stat().st_blocks * 512 for path in whole.store.rglob("*") if path.is_file())
    assert summary["bytes"] == disk
    assert [line for line in whole.err.splitlines() if line.startswith("warning")] == [
        "warning: 2 passages without text were skipped",
        "warning: 1 passages of more than 320 tokens were cut to 320",
        "warning: 3 passages had the id of an earlier one and were skipped; ids must be unique",
    ]


def test_progress_is_plain_lines(whole: SimpleNamespace) -> None:
    assert "\r" not in whole.err and "\x1b" not in whole.err
    assert re.search(r"^encoded 93/93 passages  \S+/s  \S+ tokens/s$", whole.err, re.MULTILINE)
    assert re.search(r"^indexed 90/90 passages  \S+/s$", whole.err, re.MULTILINE)


def test_store_holds_the_first_passage_of_each_id(whole: SimpleNamespace) -> None:
    with Store.open(whole.store) as store:
        assert list(store.ids()) == [f"p{number}" for number in range(90)]
        kept = store.get(["p3", "p70"])
    assert kept.texts[0] == json.loads(make_line(3))["text"]
    assert kept.titles == ("Mule", "Long") and kept.lengths[1] == 320


def test_bits_are_those_of_the_reader(whole: SimpleNamespace, tiny_reader: Reader) -> None:
    passages = [passage for passage in read_passages(whole.store.with_name("made.jsonl")) if passage.title != "Again"]
    with Store.open(whole.store, tiny_reader.fingerprint) as store:
        found = store.at(range(90))
    expected = tiny_reader.encode_passages(passages)
    for name in ("lengths", "token_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.packed is not None and expected.packed is not None
    # Other batches, so other rounding: a value next to the threshold may fall on its other side.
    assert np.bitwise_count(found.packed ^ expected.packed).sum() <= 1e-4 * found.num_tokens * tiny_reader.D
    np.testing.assert_allclose(found.scale, expected.scale, rtol=2e-3)


def test_ordinals_of_index_and_store_agree(whole: SimpleNamespace) -> None:
    index = BM25.open(whole.store / "bm25")
    assert len(index) == 90
    for number, (ordinals, _) in enumerate(index.search([f"mark{number}" for number in range(90)], 5)):
        assert ordinals.tolist() == [number]


def test_limit_text_and_index_can_be_left_out(run: Run, tmp_path: Path) -> None:
    assert run("--limit", "20", "--no-text", "--no-index", "--store", "small").code == 0
    assert not (tmp_path / "small" / "bm25").exists()
    with Store.open(tmp_path / "small") as store:
        assert store.manifest.duplicates == 1 and len(store) == 19
        assert set(store.at(range(19)).texts) == {""}


# Interrupted

MOMENTS = [
    ("btr.storage.manifest:os.replace", 1),  # before there is anything
    ("btr.storage.shard:ShardWriter.append", 1),
    ("btr.storage.shard:ShardWriter.append", 4),  # the first of the second shard
    ("btr.storage.shard:build_block", 5),  # inside a transaction
    ("btr.precompute.encode:encode_chunk", 6),
    ("btr.storage.shard:ShardWriter.finish", 1),
    ("btr.storage.shard:ShardWriter._close_data", 2),
    ("btr.storage.shard:write_json", 2),  # a shard that is whole, but does not say so
    ("btr.retrieve.bm25:BM25Writer.append", 1),
    ("btr.retrieve.bm25:_publish", 1),  # a shard on the disk, without its name
    ("btr.retrieve.bm25:BM25Writer.append", 4),
    ("btr.retrieve.bm25:_publish", 4),
    ("btr.retrieve.bm25:BM25Writer.finish", 1),
    ("btr.retrieve.bm25:_publish", 6),  # the list of shards
    ("btr.storage:Building.finish", 1),
    ("btr.storage.writer:_replace_directory", 1),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: "-".join(map(str, moment)))
def test_killed_run_goes_on_to_the_same_store(
    run: Run, whole: SimpleNamespace, tmp_path: Path, moment: tuple[str, int]
) -> None:
    assert run(die=moment).code == -signal.SIGKILL
    assert not (tmp_path / "made.btr").exists()
    assert run().code == 0
    assert_same(tmp_path / "made.btr", whole.store)
    assert tree(tmp_path) - {f"made.btr/{name}" for name in tree(whole.store)} == {"made.btr", "made.jsonl"}


def test_run_killed_again_and_again_goes_on(run: Run, whole: SimpleNamespace, tmp_path: Path) -> None:
    for function, number in (
        ("btr.storage.shard:ShardWriter.append", 3),
        ("btr.storage.shard:ShardWriter.append", 2),
        ("btr.precompute.encode:encode_chunk", 2),
        ("btr.retrieve.bm25:_publish", 3),
        ("btr.retrieve.bm25:_publish", 2),
        ("btr.storage.writer:_replace_directory", 1),
    ):
        assert run(die=(function, number)).code == -signal.SIGKILL
    assert run().code == 0
    assert_same(tmp_path / "made.btr", whole.store)


def test_nothing_is_encoded_twice(run: Run) -> None:
    assert run(die=("btr.storage.shard:ShardWriter.append", 6)).code == -signal.SIGKILL
    result = run()
    assert "going on after 40 passages in 1 whole shards\n" in result.err
    assert "\nencoded 93/93 passages" in result.err
    assert run("--overwrite", die=("btr.retrieve.bm25:_publish", 1)).code == -signal.SIGKILL
    assert run("--overwrite", die=("btr.precompute.encode:encode_chunk", 1)).code == 0


def test_other_settings_are_refused_and_no_resume_starts_afresh(run: Run, tmp_path: Path) -> None:
    assert run(die=("btr.storage.shard:ShardWriter.append", 3)).code == -signal.SIGKILL
    begun = tree(tmp_path)
    assert_refused(run("--dtype", "bfloat16"), "was begun with options {")
    (tmp_path / "made.jsonl").write_text(make_line(1), encoding="utf-8")
    assert_refused(run(), "was begun with corpus_hash")
    assert tree(tmp_path) == begun
    assert run("--no-resume").code == 0
    with Store.open(tmp_path / "made.btr") as store:
        assert list(store.ids()) == ["p1"]


def test_half_an_index_goes_when_none_is_wanted(run: Run, tmp_path: Path) -> None:
    assert run(die=("btr.retrieve.bm25:_publish", 2)).code == -signal.SIGKILL
    assert run("--no-index").code == 0
    assert {path.name for path in (tmp_path / "made.btr").iterdir()} == {"manifest.json", "shards"}


def test_old_store_stays_until_the_new_one_is_whole(run: Run, whole: SimpleNamespace, tmp_path: Path) -> None:
    assert run("--limit", "9").code == 0
    old = manifest(tmp_path / "made.btr")
    assert_refused(run(), "btr.store upsert")
    assert run("--overwrite", die=("btr.storage:Building.finish", 1)).code == -signal.SIGKILL
    assert manifest(tmp_path / "made.btr") == old
    assert run("--overwrite").code == 0
    assert_same(tmp_path / "made.btr", whole.store)


def test_corpus_that_changes_while_it_is_read_is_refused(
    tiny_reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "made.jsonl")
    counts = iter((None, None, 90, None))  # to look whether it is there, survey, encode, index
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(making, "load", lambda options: tiny_reader)
    monkeypatch.setattr(
        survey, "read_passages", lambda path, **how: read_passages(path, **(how | {"limit": next(counts)}))
    )
    assert precompute.main(["made.jsonl"]) == 2
    assert "error: 90 of 93 passages were read: the corpus changed" in capsys.readouterr().err
    counts = iter((None, None, None, 40))
    assert precompute.main(["made.jsonl", "--no-resume"]) == 2
    assert "error: 39 of 90 passages could be indexed: the corpus changed" in capsys.readouterr().err


# A disk that is full


def test_full_disk_while_encoding(run: Run, whole: SimpleNamespace, tmp_path: Path) -> None:
    assert_refused(run(file_limit=60_000), "run the same command again")
    assert run().code == 0
    assert_same(tmp_path / "made.btr", whole.store)


def test_full_disk_while_indexing(run: Run, whole: SimpleNamespace, tmp_path: Path) -> None:
    assert_refused(run(fail=("numpy:save", 9)), "bm25: the index cannot be written (No space left on device)")
    assert run().code == 0
    assert_same(tmp_path / "made.btr", whole.store)


def test_disk_without_the_room_is_refused_before_the_start(run: Run, tmp_path: Path) -> None:
    assert_refused(run(free=9_000), f"{tmp_path} has 9,000 free; make room, or give another --store")
    assert tree(tmp_path) == {"made.jsonl"}


# Bad input

CORPORA = {
    "empty.jsonl": b"",
    "blank.jsonl": b'{"id": "a", "title": "A", "text": " "}\n',
    "latin.jsonl": make_line(1).encode() + b'\n{"id": "b", "title": "", "text": "caf\xe9"}\n',
    "broken.jsonl": f'{make_line(1)}\n\n{make_line(2)}\n{{"id": "c", "text"'.encode(),
    "long_id.jsonl": json.dumps({"id": "x" * 512, "title": "", "text": "word"}).encode(),
    "notes.tsv": b"no table\n",
}


@pytest.mark.parametrize(
    ("corpus", "flags", "message"),
    [
        ("empty.jsonl", [], "no passage to read (0 without text)"),
        ("blank.jsonl", [], "no passage to read (1 without text)"),
        ("latin.jsonl", [], "latin.jsonl:2: not UTF-8 (byte 0xe9"),
        ("broken.jsonl", [], "broken.jsonl:4: not JSON"),
        ("long_id.jsonl", [], "has 512 bytes of UTF-8"),
        ("notes.tsv", [], "notes.tsv:1: neither JSON nor a table"),
        ("folder", [], "a folder without a file"),
        ("pipe", [], "neither a file nor a folder"),
        ("no such corpus", [], "No such file or directory"),
        ("nobody/nothing", [], "no such file, and "),
        ("made.jsonl", ["--limit", "0"], "--limit is 0; use 1 or more"),
        ("made.jsonl", ["--words", "-1"], "--words is -1; use 1 or more"),
        ("made.jsonl", ["--k", "3"], "k is 2 in btr_config.json and 3 was asked for"),
        ("made.jsonl", ["--store", "no/such/folder.btr"], "there is no folder no/such"),
        ("made.jsonl", ["--store", "folder"], "folder exists and is not a store"),
        ("made.jsonl", ["--store", "folder", "--overwrite"], "folder exists and is not a store"),
        ("made.jsonl", ["--store", "pipe"], "pipe exists and is not a store"),
        ("made.jsonl", ["--store", "x" * 250], "File name too long"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    run: Run, tmp_path: Path, corpus: str, flags: list[str], message: str
) -> None:
    for name, content in CORPORA.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = tree(tmp_path)
    assert_refused(run(*flags, corpus=corpus), message)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ({"config.json"}, "no config.json"),
        ({"model.safetensors"}, "no model.safetensors"),
        ({"tokenizer.json"}, "no tokenizer.json"),
        ({"btr.safetensors"}, "btr.safetensors is missing"),
        ({"btr_config.json", "btr.safetensors"}, "has no split layer"),  # a plain T5
    ],
)
def test_broken_reader_is_refused_in_one_line(
    run: Run, reader_folder: Path, tmp_path: Path, missing: set[str], message: str
) -> None:
    shutil.copytree(reader_folder, tmp_path / "tiny", ignore=lambda folder, names: missing)
    before = tree(tmp_path)
    assert_refused(run(reader=tmp_path / "tiny"), message)
    assert_refused(run(reader=tmp_path / "none"), "none: no such folder")
    assert tree(tmp_path) == before


def test_folder_that_takes_no_files_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.access(closed, os.W_OK):  # nothing is closed to root but what the kernel keeps
        closed = Path("/proc")
    assert_refused(run("--store", str(closed / "new.btr")), f"new.btr: cannot write to {closed}")


def test_plain_t5_with_k_is_enough(run: Run, reader_folder: Path, tmp_path: Path) -> None:
    bits = {"btr_config.json", "btr.safetensors"}
    shutil.copytree(reader_folder, tmp_path / "plain", ignore=lambda folder, names: bits)
    assert run("--k", "1", "--limit", "3", reader=tmp_path / "plain").code == 0
    assert manifest(tmp_path / "made.btr")["k"] == 1
