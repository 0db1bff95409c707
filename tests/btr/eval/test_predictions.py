"""Predictions on disk: what is there after a kill, and which files are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from btr.errors import InputError
from btr.eval.predictions import Prediction, Predictions, input_digest

SETTINGS = {"task": "nq", "reader": "91bc", "dtype": "float32"}


def make(number: int, mode: str = "full", passages: int = 5, input: str = "aa", **more: Any) -> Prediction:
    return {"reader": "91bc", "mode": mode, "passages": passages, "number": number, "id": f"q{number}", "input": input,
            "answer": "Grüße", **more}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with three predictions."""
    path = tmp_path / "predictions.jsonl"
    with Predictions(path, SETTINGS) as predictions:
        for number in range(3):
            predictions.add(make(number))
    return path


def test_a_prediction_is_a_line_as_soon_as_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    with Predictions(path, SETTINGS) as predictions:
        predictions.add(make(0))
        head, line = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(head) == {"btr_predictions": 1, **SETTINGS}
    assert json.loads(line) == make(0) and "Grüße" in line


def test_a_later_run_finds_them_and_adds_others(file: Path) -> None:
    before = file.read_bytes()
    with Predictions(file, SETTINGS) as predictions:
        assert len(predictions) == 3
        assert predictions.get(make(1, answer="not looked at")) == make(1)
        assert predictions.get(make(3)) is None
        assert predictions.get(make(1, mode="binary")) is None
        assert predictions.get(make(1, passages=20)) is None
        assert predictions.get(make(1) | {"reader": "another"}) is None
        predictions.add(make(1, mode="binary"))
    assert file.read_bytes().startswith(before)
    with Predictions(file, SETTINGS) as predictions:
        assert len(predictions) == 4


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_last_line_is_taken_back(file: Path, cut: int) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    with Predictions(file, SETTINGS) as predictions:
        assert len(predictions) == 2
        predictions.add(make(2))
    assert file.read_bytes() == whole


@pytest.mark.parametrize("kept", [0, 1, 10, 30])
def test_a_torn_first_line_begins_the_file_anew(file: Path, kept: int) -> None:
    head = file.read_bytes().splitlines(keepends=True)[0]
    file.write_bytes(head[:kept])
    with Predictions(file, SETTINGS) as predictions:
        assert len(predictions) == 0
    assert file.read_bytes() == head


@pytest.mark.parametrize("text", ["my notes", '{"id": "q0"}\n', "\n", "[1]\n" * 9])
def test_another_file_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=r"notes\.jsonl: not a file of predictions, and not overwritten"):
        Predictions(path, SETTINGS)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"task": "squad"}, "made with task nq, this run has squad"),
        ({"reader": "3f2a"}, "made with reader 91bc, this run has 3f2a"),
        ({"dtype": "bfloat16"}, "made with dtype float32, this run has bfloat16"),
        ({"store": "ab"}, "made with store None, this run has ab"),
    ],
)
def test_other_settings_are_refused_naming_both(file: Path, other: dict[str, str], message: str) -> None:
    before = file.read_bytes()
    with pytest.raises(InputError, match=message):
        Predictions(file, SETTINGS | other)
    assert file.read_bytes() == before


def test_a_later_format_is_refused(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8").replace('"btr_predictions": 1', '"btr_predictions": 2'))
    with pytest.raises(InputError, match="made with btr_predictions 2, this run has 1"):
        Predictions(file, SETTINGS)


def test_another_input_is_refused_naming_both(file: Path) -> None:
    with (
        Predictions(file, SETTINGS) as predictions,
        pytest.raises(InputError, match=r"question 'q1': .* from input aa, this run has bb"),
    ):
        predictions.get(make(1, input="bb"))


@pytest.mark.parametrize("line", [b"nonsense", b"[1]", b'{"id": "q7"}', b""])
def test_a_damaged_line_is_named(file: Path, line: bytes) -> None:
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]) + b"\n")
    with pytest.raises(InputError, match=r"predictions\.jsonl:3: damaged"):
        Predictions(file, SETTINGS)


def test_without_a_path_they_are_kept_in_memory() -> None:
    with Predictions(None, SETTINGS) as predictions:
        predictions.add(make(0))
        assert predictions.get(make(0)) == make(0)


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Predictions(tmp_path, SETTINGS)


def test_input_digest_depends_on_all_that_is_read() -> None:
    given = ("who?", ["a", "b"], [("T", "text"), ("", "other")])
    others = [
        ("who", ["a", "b"], given[2]),
        ("who?", ["a"], given[2]),
        ("who?", ["a", "b"], given[2][:1]),
        ("who?", ["a", "b"], given[2][::-1]),
        ("who?", ["a", "b"], [("", "Ttext"), ("", "other")]),
    ]
    assert input_digest(*given) == input_digest("who?", ("a", "b"), tuple(given[2]))
    assert len({input_digest(*given), *(input_digest(*other) for other in others)}) == 6
