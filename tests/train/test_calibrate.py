"""Calibrating no_answer: the line that is fitted, the table, and the command that writes it to a reader."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from btr.corpus import Passage
from btr.errors import InputError
from btr.reader import Reader
from btr.reader.answer import Answer
from btr.train.__main__ import main
from btr.train.calibrate import Reading, bins, choose, describe, describe_threshold, fit, gap


def odds(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_line_is_that_by_which_the_odds_are_off() -> None:
    said, answerable = [], []
    for x in (-3.0, -1.0, 0.0, 1.0, 2.0):
        silent = round(10_000 * odds(2 * x - 0.5))
        said += [odds(x)] * 10_000
        answerable += [False] * silent + [True] * (10_000 - silent)
    assert fit(said, answerable) == pytest.approx((2.0, -0.5), abs=0.01)


def test_readings_of_two_kinds_are_needed_and_doubt_that_tells_them_apart() -> None:
    with pytest.raises(InputError, match="with an answer and without are needed"):
        fit([0.1, 0.9], [True, True])
    with pytest.raises(InputError, match="no less than those that are not"):
        fit([0.9, 0.8, 0.1, 0.2], [True, True, False, False])
    slope, _ = fit([0.0, 0.1, 0.9, 1.0], [True, True, False, False])  # told apart entirely
    assert 1 < slope < 100


def test_bins_are_tenths() -> None:
    found = bins([0.0, 0.05, 0.25, 1.0], [True, False, True, False])
    assert [tuple(row) for row in found] == [(0.025, 0.5, 2), (0.25, 0.0, 1), (1.0, 1.0, 1)]
    assert gap(found) == pytest.approx((2 * 0.475 + 0.25) / 4)
    assert describe(found, found[:1]).splitlines()[-3:] == [
        "no_answer, calibrated: mean gap 0.475",
        "predicted  observed     n",
        "    0.025     0.500     2",
    ]


def test_threshold_gives_as_many_answers_as_may_be() -> None:
    readings = [Reading(0.0, True, 1.0), Reading(0.0, True, 0.9), Reading(0.0, False, 0.0), Reading(0.0, True, 1.0)]
    told = [0.1, 0.2, 0.4, 0.6]
    assert [choose(told, readings, share) for share in (0.75, 0.8, 1.0)] == [0.8, 0.3, 0.3]
    assert choose(told[::-1], [Reading(0.0, True, 0.5)] * 4, 0.1) is None
    said = describe_threshold(0.5, told, readings, 0.75)
    assert (
        said
        == "no_answer_above 0.5: 3 of the other 4 readings are answered, 66.7% of these answers are right (F1 over 0.5)"
    )


def write(path: Path, count: int) -> str:
    """Write questions whose gold passage is the one of their number, and as many that nothing answers."""
    lines = []
    for number in range(count):
        gold = {"text": f"Gold {number}.", "is_gold": True}
        others = [{"text": f"Other {number} {n}.", "is_gold": False} for n in range(3)]
        lines.append({"question": f"What is {number}?", "answers": [f"Gold {number}"], "ctxs": [gold, *others]})
        lines.append({"question": f"What is not {number}?", "answers": [], "ctxs": [gold, *others]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_reader_says_what_was_observed(
    span_reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "reader"
    span_reader.save_pretrained(folder)
    answer, read = Reader.answer, []

    def sure(self: Reader, question: str, passages: list[Passage], *args: Any) -> Answer:
        read.append((question, sum(p.text.startswith("Gold") for p in passages), len(passages)))
        assert self.config.no_answer_calibration is None
        silent = "not" in question or not read[-1][1]
        doubt = (0.4 if silent else 0.2) if len(read) % 4 else 0.3  # too sure that there is one
        return replace(answer(self, question, passages, *args), no_answer=doubt)

    monkeypatch.setattr(Reader, "answer", sure)
    given = ["calibrate", "--reader", str(folder), "--questions", write(tmp_path / "q.jsonl", 20), "--passages", "3"]
    assert main(given) == 0
    said = capsys.readouterr().err
    assert len(read) == 60 and {n for _, _, n in read} == {3}
    assert sorted({(gold, "not" in question) for question, gold, _ in read}) == [(0, False), (1, False), (1, True)]
    assert "no_answer, as the reader says" in said and "no_answer, calibrated" in said and "AUROC " in said
    config = json.loads((folder / "btr_config.json").read_text())
    line = config["no_answer_calibration"]
    assert line[0] > 1 and line[1] > 0
    assert config["no_answer_above"] is None and "no threshold makes 80% of the answers right" in said
    monkeypatch.undo()
    before, after = (reader.answer("Who?", [Passage("a", "", "It is so.")]) for reader in (span_reader, load(folder)))
    assert before.no_answer is not None and after.no_answer is not None
    odds_before, odds_after = (math.log(p / (1 - p)) for p in (before.no_answer, after.no_answer))
    assert odds_after == pytest.approx(line[0] * odds_before + line[1], abs=1e-6)
    assert (after.text, after.score) == (before.text, before.score)


def load(folder: Path) -> Reader:
    return Reader.from_pretrained(str(folder))


def test_what_has_no_doubt_is_refused(tiny_reader: Reader, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_reader.save_pretrained(tmp_path / "reader")
    questions = write(tmp_path / "q.jsonl", 2)
    assert main(["calibrate", "--reader", str(tmp_path / "reader"), "--questions", questions]) == 2
    assert "always answers, so there is no doubt to fit; give a span reader" in capsys.readouterr().err
    assert main(["calibrate", "--reader", "no/such", "--questions", questions]) == 2
    assert "no/such: no such folder" in capsys.readouterr().err
