"""What a store is expected to take is what it takes: on corpora that are all sample, and on those that are not."""

import json
import os
import random
import re
from pathlib import Path

import pytest

from btr.corpus import statistics
from btr.precompute import __main__ as precompute


def write_corpus(path: Path, passages: int) -> None:
    """Write passages whose words are as common as those of a language: the r-th one with a chance of about 1 / r."""
    drawn = random.Random(passages)
    lines = []
    for number in range(passages):
        words = [f"word{int(20_000 ** drawn.random())}" for _ in range(30)]
        lines.append(json.dumps({"id": f"p{number}", "title": words[0], "text": " ".join(words)}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def on_disk(store: Path) -> int:
    """Bytes that files and folders take, as `du` counts them."""
    return sum(os.stat(path).st_blocks * 512 for path in (store, *store.rglob("*")))


@pytest.mark.parametrize(
    ("passages", "more"),
    [
        (3, []),
        (3, ["--no-index", "--no-text"]),
        (20, ["--shard-passages", "7"]),
        (20, ["--retriever", "encoder"]),
        (400, []),
        (400, ["--no-text", "--shard-passages", "150"]),
    ],
)
def test_expected_bytes_are_those_that_come(
    passages: int, more: list[str], reader_folder: Path, encoder_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(statistics, "SAMPLE", 20)  # of 400 passages, 25 tell
    write_corpus(tmp_path / "corpus.jsonl", passages)
    store = tmp_path / "made.btr"
    line = [str(tmp_path / "corpus.jsonl"), "--reader", str(reader_folder), "--store", str(store)]
    line += [str(encoder_folder) if word == "encoder" else word for word in more]
    assert precompute.main([*line, "--dry-run", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["bytes"]
    assert not store.exists()
    assert precompute.main(line) == 0
    found = re.search(r"about ([\d,]+) bytes expected", capsys.readouterr().err)
    assert found is not None and int(found[1].replace(",", "")) == expected
    taken = on_disk(store)
    assert taken / 1.5 < expected < taken * 1.5
