"""`btr eval` where the answer is one of a few: chosen by likelihood, and what a guess would score beside it."""

import json
from pathlib import Path

import pytest

from btr.corpus import Passage
from btr.corpus.questions import find_questions
from btr.eval.__main__ import main
from btr.eval.evidence import own_passages
from btr.reader import Reader


def test_yes_and_no_are_chosen_by_likelihood(
    tiny_reader: Reader,
    tiny_passages: list[Passage],
    reader_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ctxs = [{"title": p.title, "text": p.text} for p in tiny_passages]
    asked = {"is it salt": "yes", "is it a bridge": "no", "is it a heron": "Yes."}
    file, out, figures = (tmp_path / name for name in ("q.jsonl", "out.jsonl", "figures.json"))
    rows = ({"question": question, "answers": [answer], "ctxs": ctxs} for question, answer in asked.items())
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [str(file), "--reader", str(reader_folder), "--passages", "3", "--out", str(out), "--json"]
    assert main([*arguments, str(figures)]) == 0
    assert "without reading (always 'yes'), %: 66.7 [" in capsys.readouterr().out
    found = json.loads(figures.read_text())
    assert found["guess"]["by"] == "always 'yes'" and found["guess"]["accuracy"][0] == 66.67
    predictions = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    for row, question in zip(predictions, find_questions(str(file)).questions, strict=True):
        given = own_passages(question, 3)
        answer = tiny_reader.answer(f"yes or no: {question.question}", given, "binary", choices=("yes", "no"))
        assert row["answer"] == answer.text and row["choices"] == pytest.approx(answer.choices, abs=1e-5)
        assert row["accuracy"] == float(answer.text == question.answers[0].lower().strip("."))
