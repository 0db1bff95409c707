"""Parts of `btr precompute`, and the way from a folder of passages to an answer over HTTP."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from btr.corpus import statistics as survey
from btr.corpus.passages import read_passages
from btr.corpus.pieces import Passage
from btr.corpus.tally import Tally
from btr.precompute import __main__ as precompute
from btr.precompute import encode
from btr.precompute import run as making
from btr.reader import Reader

ROOT = Path(__file__).resolve().parents[3]
WAIT = 900  # seconds, for what takes seconds on a machine with nothing else to do


@pytest.mark.parametrize(
    ("corpus", "store"),
    [
        ("corpus", "corpus.btr"),
        ("./corpus/", "corpus.btr"),
        ("corpus/passages.jsonl", "passages.btr"),
        ("corpus/wiki.2018.tsv.zst", "wiki.2018.btr"),
        ("owner/name", "name.btr"),
    ],
)
def test_store_is_named_after_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str, store: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    for name in ("passages.jsonl", "wiki.2018.tsv.zst"):
        (tmp_path / "corpus" / name).touch()
    assert making.default_store(corpus) == Path(store)
    monkeypatch.chdir(tmp_path / "corpus")
    assert making.default_store(".") == Path("corpus.btr")


def test_interrupt_says_that_the_run_can_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(precompute, "precompute", interrupt)
    assert precompute.main(["corpus"]) == 130
    assert "the same command, without --no-resume, goes on from here" in capsys.readouterr().err


def test_memory_holds_a_few_chunks_whatever_the_corpus(
    tiny_reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = peak = 0

    class Counted(Passage):  # without slots, so that it can be referred to weakly
        pass

    def leave() -> None:
        nonlocal alive
        alive -= 1

    def read(path: str, *, limit: int | None, words: int, tally: Tally | None, fields: None) -> Iterator[Passage]:
        nonlocal alive, peak
        for number in range(limit or 400):
            passage = Counted(f"p{number}", "Heron", f"The heron number {number}.")
            weakref.finalize(passage, leave)
            alive += 1
            peak = max(peak, alive)
            yield passage

    monkeypatch.chdir(tmp_path)
    (tmp_path / "many").touch()
    monkeypatch.setattr(encode, "CHUNK", 8)
    monkeypatch.setattr(survey, "SAMPLE", 5)
    monkeypatch.setattr(survey, "read_passages", read)
    monkeypatch.setattr(making, "load", lambda options: tiny_reader)
    monkeypatch.setattr(making, "INDEXED", 8)
    assert precompute.main(["many", "--shard-passages", "150"]) == 0
    assert peak <= 2 * 8 + 2 * 5 + 2  # two chunks, the sample, and those on their way


# From a folder of passages to an answer


def start(folder: Path, module: str, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", module, *argv], cwd=folder, stdout=-1, stderr=-1, text=True)


def ask(url: str, question: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=WAIT)
    body = json.dumps({"question": question, "top_k": 3, "max_new_tokens": 8})
    connection.request("POST", "/v1/answer", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    found: dict[str, Any] = json.loads(response.read())
    connection.close()
    assert response.status == 200, found
    return found


def test_sample_corpus_is_precomputed_served_and_asked(reader_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "corpus", tmp_path / "corpus")
    with start(tmp_path, "btr.precompute", "corpus", "--reader", str(reader_folder)) as precomputing:
        out, err = precomputing.communicate(timeout=WAIT)
    assert precomputing.returncode == 0, err
    size = int(re.search(r"([\d,]+) bytes on disk", out)[1].replace(",", ""))  # type: ignore[index]
    expected = int(re.search(r"about ([\d,]+) bytes expected", err)[1].replace(",", ""))  # type: ignore[index]
    assert size / 1.2 < expected < size * 1.2
    with start(tmp_path, "btr.serve", "--reader", str(reader_folder), "--port", "0") as serving:
        assert serving.stdout is not None and serving.stderr is not None
        ready = serving.stdout.readline()
        assert ready.startswith("152 passages"), serving.stderr.read()
        found = ask(ready.split()[-1], "Which ship struck an iceberg on its first voyage?")
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(WAIT) == 0, serving.stderr.read()
    known = {passage.id: passage.text for passage in read_passages(ROOT / "corpus")}
    assert len(found["passages"]) == 3 and "answer" in found
    assert all(known[cited["id"]] == cited["text"] for cited in found["passages"])
    assert sum(cited["evidence"] for cited in found["passages"]) == pytest.approx(1)
