"""Fitting what a reader skims by, from the command line."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from btr.corpus import Passage
from btr.model.pruning import RIDGE
from btr.reader import Reader
from btr.train.__main__ import main

QUESTIONS = ["Who built the lighthouse?", "What do herons eat in hard winters?", "How far is salt carried?"]


def write(path: Path, questions: list[str], passages: list[Passage]) -> str:
    """Write questions with passages, one that is too long among them."""
    ctxs = [{"id": p.id, "title": p.title, "text": p.text} for p in passages]
    lines = [{"question": q, "answers": ["x"], "ctxs": ctxs} for q in [*questions, "far " * 200]]
    lines.append({"question": "What has no passages?", "answers": ["this"], "ctxs": []})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_fitted_reader_reads_first_what_it_would_have_quoted(
    span_reader: Reader, tiny_passages: list[Passage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    span_reader.save_pretrained(tmp_path / "reader")
    files = [write(tmp_path / f"{n}.jsonl", [question], tiny_passages) for n, question in enumerate(QUESTIONS)]
    given = ["skim", "--reader", str(tmp_path / "reader"), "--questions", *files]
    assert main(given) == 0
    assert f"wrote {tmp_path / 'reader' / 'skim.safetensors'}" in capsys.readouterr().err
    reader = Reader.from_pretrained(tmp_path / "reader")
    for question in QUESTIONS:  # 12 differences, 65 weights: what was fitted to is known, but for what the ridge takes
        scores = reader.pruning_samples(question, tiny_passages)[1]
        answer = reader.answer(question, tiny_passages, "binary", prune=1)
        assert answer.span is not None
        assert scores.max() - scores[answer.span.passage] <= RIDGE * (scores.max() - scores.min())
    before = load_file(tmp_path / "reader" / "skim.safetensors")["weight"]
    assert main([*given, "--limit", "3"]) == 0
    after = load_file(tmp_path / "reader" / "skim.safetensors")["weight"]
    assert after == pytest.approx(before, rel=1e-3, abs=1e-4)  # the first lines of three files are all that is read


def test_fitted_t5_reads_first_what_it_would_have_looked_at(
    tiny_reader: Reader, tiny_passages: list[Passage], tmp_path: Path
) -> None:
    tiny_reader.save_pretrained(tmp_path / "reader")
    questions = write(tmp_path / "q.jsonl", QUESTIONS, tiny_passages)
    assert main(["skim", "--reader", str(tmp_path / "reader"), "--questions", questions]) == 0
    reader = Reader.from_pretrained(tmp_path / "reader")
    for question in QUESTIONS:
        whole = reader.answer(question, tiny_passages, "binary", 16)
        scores = reader.pruning_samples(question, tiny_passages)[1]
        assert scores.exp().numpy() == pytest.approx(whole.evidence, rel=1e-5)
        [read] = [
            n for n, part in enumerate(reader.answer(question, tiny_passages, "binary", prune=1).evidence) if part
        ]
        assert scores.max() - scores[read] <= RIDGE * (scores.max() - scores.min())


def test_what_cannot_be_fitted_is_one_line(
    span_reader: Reader, tiny_passages: list[Passage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    span_reader.save_pretrained(tmp_path)
    questions = write(tmp_path / "q.jsonl", QUESTIONS, tiny_passages[:1])
    assert main(["skim", "--reader", str(tmp_path), "--questions", questions]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and "no question has two passages" in said
    assert not (tmp_path / "skim.safetensors").exists()
    assert main(["skim", "--reader", "no/such", "--questions", questions]) == 2
    assert "no/such: no such folder" in capsys.readouterr().err
