"""`btr eval` on a tiny reader: figures come from its answers, passages from the question or a store."""

import json
from pathlib import Path

import pytest

from btr.corpus import Passage, Question
from btr.eval import main, own_passages
from btr.reader import Reader

CORPUS = Path(__file__).resolve().parents[2] / "corpus"


@pytest.fixture
def questions(tiny_reader: Reader, tmp_path: Path) -> Path:
    """Three questions; the accepted answer of the first is what the reader will write in mode full."""
    passages = [Passage("1", "A", "A cat sat on the mat."), Passage("2", "B", "The dog lay in the sun.")]
    question = Question("q0", "where is the cat", ("the mat",), tuple(passages), (True, False))
    written = tiny_reader.answer(question.question, own_passages(question, 2), "full", 16).text
    ctxs = [{"title": p.title, "text": p.text, "is_gold": p.id == "1"} for p in passages]
    rows = [
        {"id": f"q{i}", "question": "where is the cat", "answers": [a], "ctxs": ctxs}
        for i, a in enumerate((written, "zzz", "the mat"))
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_figures_count_the_readers_own_answers(
    reader_folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "predictions.jsonl"
    arguments = [str(questions), "--reader", str(reader_folder), "--modes", "full,binary", "--passages", "2"]
    assert main([*arguments, "--out", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["id"], row["mode"]) for row in rows] == [
        (f"q{i}", mode) for mode in ("full", "binary") for i in range(3)
    ]
    full = [row["em"] for row in rows if row["mode"] == "full"]
    assert full[0] == 1.0 and full[1] == 0.0
    assert figures["modes"]["full"]["em"][0] == pytest.approx(100 * sum(full) / 3, abs=0.05)
    assert figures["modes"]["full"]["em_minus_full"] == [0.0, 0.0, 0.0]
    assert figures["questions"] == 3


def test_own_passages_keep_the_gold_one_in_an_order_of_the_question_alone() -> None:
    passages = tuple(Passage(str(i), "", f"text {i}") for i in range(8))
    question = Question("q", "what", ("x",), passages, (False,) * 5 + (True,) + (False,) * 2)
    chosen = own_passages(question, 3)
    assert {p.id for p in chosen} == {"5", "0", "1"}
    assert chosen == own_passages(question, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        ([str(CORPUS / "questions.jsonl"), "--modes", "half"], "'half'"),
        ([str(CORPUS / "questions.jsonl")], "pass --store"),
        ([str(CORPUS / "questions.jsonl"), "--out", "no/such/folder/x.jsonl"], "no such folder"),
    ],
)
def test_mistakes_end_in_one_line(
    reader_folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--reader", str(reader_folder)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
