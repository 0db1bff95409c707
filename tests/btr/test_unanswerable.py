"""Questions without answers in an evaluation."""

import json
from pathlib import Path

import pytest

from btr.eval import main
from btr.reader import Reader


def test_questions_without_answers_are_told(
    span_reader: Reader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    span_reader.save_pretrained(tmp_path / "reader")
    row = {"question": "who built the lighthouse", "ctxs": [{"text": "Ada Berg built the lighthouse."}]}
    rows = [row | {"answers": answers} for answers in (["Ada Berg"], [], [])]
    (tmp_path / "squad2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--reader", str(tmp_path / "reader"), "--modes", "full"]
    assert main([str(tmp_path / "squad2.jsonl"), *arguments]) == 0
    out = capsys.readouterr().out
    assert "1 questions of" in out and "(unanswerable, or not labelled), left out: 2" in out
