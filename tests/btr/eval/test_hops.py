"""`btr eval --hops`: the row of several hops is what `answer_in_hops` answers, and stands apart from that of one."""

import json
from pathlib import Path

import pytest

from btr.corpus import Passage
from btr.eval.__main__ import main
from btr.hops import answer_in_hops
from btr.precompute import __main__ as precompute
from btr.reader import Reader
from btr.retrieve.fusion import open_retriever
from btr.storage import Store

ASKED = ("Who built the lighthouse of the harbour?", "What does a mule take over the hills?")


@pytest.fixture
def arguments(reader_folder: Path, tiny_passages: list[Passage], tmp_path: Path) -> list[str]:
    """A store of the tiny passages, and questions about it."""
    files = {name: tmp_path / name for name in ("p.jsonl", "q.jsonl", "s.btr")}
    rows = ({"id": p.id, "title": p.title, "text": p.text} for p in tiny_passages)
    files["p.jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows = ({"question": asked, "answers": ["mice"]} for asked in ASKED)  # type: ignore[assignment]
    files["q.jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    given = ["--reader", str(reader_folder), "--store", str(files["s.btr"])]
    assert precompute.main([str(files["p.jsonl"]), *given]) == 0
    return [str(files["q.jsonl"]), *given, "--passages", "2"]


@pytest.mark.parametrize("mode", ["binary", "full"])
def test_row_is_that_of_the_answers(
    arguments: list[str], mode: str, tiny_reader: Reader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    capsys.readouterr()
    assert main([*arguments, "--modes", mode, "--hops", "2", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["more"] == "2 hops"
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows[0]["hops"] == 2
    with Store.open(tmp_path / "s.btr") as store:
        index = open_retriever(store)
        for asked, row in zip(ASKED, rows[1:], strict=True):
            hopped = answer_in_hops(
                tiny_reader, store, index, asked, 2, 2,
                read=lambda found, kept, asked=asked: tiny_reader.answer(asked, found, mode, 16, kept=kept),  # type: ignore[misc]
            )  # fmt: skip
            assert hopped.answer is not None and hopped.passages is not None
            assert row["answer"] == hopped.answer.text
            assert row["found"] == float(any("mice" in text for text in hopped.passages.texts))
    assert main([*arguments, "--modes", mode, "--out", str(out)]) == 2
    assert "made with hops 2, this run has None" in capsys.readouterr().err


def test_hops_that_cannot_be_made_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, "--hops", "0"]) == 2
    assert "--hops is 0; use 1 or more" in capsys.readouterr().err
    assert main([arguments[0], *arguments[1:3], "--hops", "2"]) == 2
    assert "--hops is 2, and no --store says where to search; name one" in capsys.readouterr().err
