"""Questions without answers in an evaluation: right where a span reader gives none."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from btr.eval.__main__ import main
from btr.reader import Reader
from btr.reader.answer import Answer

SURE = {"who built it": 0.1, "what was dug": 0.9, "who sank": 0.9, "who sang": 0.2}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two questions with answers and two without; the last has no passages either."""
    ctxs = [{"text": "Ada Berg built the lighthouse."}]
    answers: list[list[str]] = [["Ada Berg"], ["a harbour"], [], []]
    rows = [{"question": q, "answers": a, "ctxs": ctxs} for q, a in zip(SURE, answers, strict=True)]
    rows.append({"question": "who else", "answers": []})
    (tmp_path / "squad2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "squad2.jsonl"


def evaluate(file: Path, reader: Reader, *more: str) -> int:
    reader.save_pretrained(file.parent / "reader")
    return main([str(file), "--reader", str(file.parent / "reader"), "--modes", "full", "--passages", "1", *more])


def test_silence_is_right_where_there_is_no_answer(
    file: Path, span_reader: Reader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = Reader.answer

    def doubting(self: Reader, question: str, *args: Any, **settings: Any) -> Answer:
        return replace(answer(self, question, *args, **settings), text="Ada Berg", no_answer=SURE[question])

    monkeypatch.setattr(Reader, "answer", doubting)
    assert evaluate(file, span_reader, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["questions"], figures["unanswerable"], figures["left_out"]) == (2, 2, 1)
    (row,) = figures["rows"]
    assert (row["questions"], row["em"][0], row["found"][0]) == (2, 50.0, 50.0)
    assert (row["no_answer"][0], row["refused"][0]) == (50.0, 50.0)
    known = row["abstention"]
    assert (known["above"], known["best_above"], known["em"][0], known["best_em"][0]) == (0.5, 0.15, 50.0, 75.0)
    assert (known["auroc"][0], known["coverage"][0]) == (62.5, 25.0)
    assert evaluate(file, span_reader, "--out", str(file.parent / "out.jsonl")) == 0
    out = capsys.readouterr().out
    assert "2 questions of" in out and "none of 2 questions without answers" in out and "no passages: 1" in out
    assert "full, silent above 0.5: EM 50.0 [" in out and "; AUROC 62.5 [" in out
    kept = [json.loads(line) for line in (file.parent / "out.jsonl").read_text().splitlines()[1:]]
    assert [(row["question"], row["em"]) for row in kept] == list(zip(SURE, (1.0, 0.0, 1.0, 0.0), strict=True))


def test_reader_that_always_answers_is_not_asked(
    file: Path, tiny_reader: Reader, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(file, tiny_reader) == 0
    out = capsys.readouterr().out
    assert "2 questions of" in out and "this reader always answers or they have no passages: 3" in out
    assert "no answer:" not in out


def test_best_guess_is_scored_whatever_the_reader_abstains_from(file: Path, span_reader: Reader) -> None:
    shy = copy.deepcopy(span_reader)
    shy.model.config = replace(shy.model.config, no_answer_above=0.0)
    found = []
    for reader in (span_reader, shy):
        out = file.parent / f"{reader.no_answer_above}.jsonl"
        assert evaluate(file, reader, "--out", str(out)) == 0
        rows = [json.loads(line) for line in out.read_text().splitlines()[1:]]
        answered = [row for row in rows if row["question"] in ("who built it", "what was dug")]
        found.append([(row["answer"], row["em"], row["f1"]) for row in answered])
    assert len(found[0]) == 2 and found[0] == found[1] and all(answer for answer, _, _ in found[0])
