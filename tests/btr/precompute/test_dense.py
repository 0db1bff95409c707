"""`btr precompute --retriever`: the index that `btr retrieve build` writes, whenever the run was killed."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from btr.retrieve import __main__ as command
from btr.retrieve import indexed
from btr.retrieve.dense import writer
from btr.retrieve.fusion import Choice, open_retriever

Run = Callable[..., SimpleNamespace]

LINES = [json.dumps({"id": f"p{n}", "title": f"Pier {n}", "text": f"ship {n} salt {n % 7} mule"}) for n in range(90)]
LINES[20:20] = [LINES[3]]  # an id that is there already


@pytest.fixture(scope="module")
def run(reader_folder: Path, encoder_folder: Path) -> Iterator[Run]:
    """A function that runs the command in a folder, in a process of its own; see `precompute_and_die.py`."""
    script = str(Path(__file__).with_name("precompute_and_die.py"))
    words = ["made.jsonl", "--reader", str(reader_folder), "--retriever", str(encoder_folder)]
    with subprocess.Popen([sys.executable, script, str(reader_folder)], stdin=-1, stdout=-1, text=True) as server:
        assert server.stdin is not None and server.stdout is not None

        def run(cwd: Path, *argv: str, **how: Any) -> SimpleNamespace:
            (cwd / "made.jsonl").write_text("\n".join(LINES), encoding="utf-8")
            server.stdin.write(json.dumps({"argv": [*words, *argv], "cwd": str(cwd), **how}) + "\n")
            server.stdin.flush()
            return SimpleNamespace(**json.loads(server.stdout.readline()))

        yield run
        server.stdin.close()
        assert server.wait(900) == 0


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    result = run(folder)
    assert result.code == 0, result.err
    return folder / "made.btr"


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (store / "dense").iterdir()}


def test_index_is_that_of_retrieve_build(
    whole: Path, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexed, "BATCH", 16)
    monkeypatch.setattr(writer, "SAMPLE", 40)
    copy = tmp_path / "copy.btr"
    copy.mkdir()
    for entry in whole.iterdir():
        if entry.name != "dense":
            (copy / entry.name).symlink_to(entry)
    assert command.main(["build", str(copy), "--retriever", str(encoder_folder)]) == 0
    assert contents(copy) == contents(whole)


def test_store_is_searched_by_both(whole: Path) -> None:
    assert Choice.read(whole) == Choice("hybrid")
    retriever = open_retriever(whole)
    assert (retriever.name, len(retriever)) == ("BM25 and dense", 90)
    assert len(retriever.search(["ship 31"], 3)[0][0]) == 3


MOMENTS = [
    ("btr.retrieve.dense.writer:DenseWriter.append", 2),  # before the rotation is learned
    ("btr.retrieve.dense.writer:DenseWriter.append", 5),
    ("btr.retrieve.dense.writer:write", 2),  # rows on the disk that nothing knows of
    ("btr.retrieve.dense.writer:DenseWriter.finish", 1),
    ("btr.retrieve.fusion:Choice.write", 1),
    ("btr.storage:Building.finish", 1),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: "-".join(map(str, moment)))
def test_killed_run_goes_on_to_the_same_index(run: Run, whole: Path, tmp_path: Path, moment: tuple[str, int]) -> None:
    assert run(tmp_path, die=moment).code == -signal.SIGKILL
    assert not (tmp_path / "made.btr").exists()
    assert run(tmp_path).code == 0
    assert contents(tmp_path / "made.btr") == contents(whole)
    assert {path.name for path in (tmp_path / "made.btr").iterdir()} == {path.name for path in whole.iterdir()}


def test_what_was_embedded_otherwise_is_refused_and_dropped_where_none_is_wanted(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path, die=("btr.retrieve.dense.writer:DenseWriter.append", 6)).code == -signal.SIGKILL
    result = run(tmp_path, "--codes", "1")
    assert (result.code, result.out) == (2, "")
    assert "was begun with codes 2, now it is 1" in result.err.splitlines()[-1]
    result = run(tmp_path, "--scaled")
    assert (result.code, "was begun with scaled False, now it is True" in result.err) == (2, True)
    assert run(tmp_path, "--retriever", "").code == 0
    assert {path.name for path in (tmp_path / "made.btr").iterdir()} == {"bm25", "manifest.json", "shards"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--codes", "5"], "--codes is 5; use 1 to 4"),
        (["--retriever", "made.jsonl"], "made.jsonl"),
    ],
)
def test_mistakes_are_one_line(run: Run, tmp_path: Path, words: list[str], message: str) -> None:
    result = run(tmp_path, *words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ") and message in result.err and result.err.count("\n") == 1
    assert not (tmp_path / "made.btr.building").exists()


def test_full_disk_is_an_error_and_gone_on_from(run: Run, whole: Path, tmp_path: Path) -> None:
    result = run(tmp_path, fail=("btr.retrieve.dense.writer:write", 3))
    assert result.code == 2
    assert "dense: cannot be written (No space left on device); if the disk is full" in result.err.splitlines()[-1]
    assert run(tmp_path).code == 0
    assert contents(tmp_path / "made.btr") == contents(whole)
