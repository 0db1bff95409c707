"""What `btr eval` says on stderr while it works, beside its figures."""

import json
import re
from pathlib import Path

import pytest

from btr.eval.__main__ import main
from btr.precompute import __main__ as precompute
from btr.reader import Reader

CTXS = [
    {"id": "p1", "title": "", "text": "A cat sat on the mat."},
    {"id": "p2", "title": "", "text": "A dog."},
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Three questions with their passages."""
    rows = ({"id": f"q{n}", "question": "where is the cat", "answers": ["mat"], "ctxs": CTXS} for n in range(3))
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_stderr_says_how_far_each_row_is(
    questions: Path, reader_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [str(questions), "--modes", "full,binary", "--passages", "2", "--reader", str(reader_folder)]
    line += ["--out", str(tmp_path / "predictions.jsonl"), "--json"]
    assert main(line) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["rows"]) == 2
    full, binary = (line for line in err.splitlines() if "questions" in line)
    assert re.fullmatch(r"full, 2 passages: 3/3 questions  \S+/s  em \d+\.\d", full)
    assert re.fullmatch(r"binary, 2 passages: 3/3 questions  \S+/s  em \d+\.\d", binary)
    assert main(line) == 0
    again = [line for line in capsys.readouterr().err.splitlines() if "questions" in line]
    assert re.fullmatch(r"full, 2 passages: 3/3 questions  0/s  em \d+\.\d", again[0])  # an earlier run's are no rate


def test_store_of_another_reader_is_named_where_its_bits_are_not_read(
    questions: Path,
    tmp_path: Path,
    reader_folder: Path,
    tiny_readers: dict[str, Reader],
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus, store = tmp_path / "passages.jsonl", tmp_path / "s.btr"
    corpus.write_text("".join(json.dumps({"id": c["id"], "title": "", "text": c["text"]}) + "\n" for c in CTXS))
    assert precompute.main([str(corpus), "--reader", str(reader_folder), "--store", str(store)]) == 0
    tiny_readers["1.0"].save_pretrained(tmp_path / "other")
    for folder, modes, notes in ((tmp_path / "other", "binary", 1), (tmp_path / "other", "full,float", 0),
                                 (reader_folder, "binary", 0)):  # fmt: skip
        line = [str(questions), "--modes", modes, "--store", str(store), "--reader", str(folder), "--passages", "2"]
        assert main(line) == 0
        found = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
        assert len(found) == notes
        if found:
            made, reads = tiny_readers["1.1"].fingerprint, tiny_readers["1.0"].fingerprint
            assert f"made by reader {made} ({reader_folder}), and {folder} ({reads}) cannot read" in found[0]
            assert "encodes the texts anew for every question" in found[0]
