"""Giving a span reader a decoder: the rows that it learns from, what stays as it is, what is refused."""

import json
import random
from pathlib import Path

import pytest
import torch

from btr.corpus import Passage
from btr.reader import Reader
from btr.train.__main__ import main
from btr.train.data import Example
from btr.train.written import collate

SHAPE = ["--batch", "2", "--passages", "2", "--row-tokens", "64", "--question-tokens", "16", "--answer-tokens", "8"]
QUICK = [*SHAPE, "--steps", "2", "--warmup", "1", "--matrices", "adamw", "--losses", "task=1,copying=0.3"]


@pytest.fixture
def asked(tmp_path: Path) -> str:
    ctxs = [{"title": "Herons", "text": f"The grey heron number {n} eats {n} fish."} for n in range(3)]
    record = {"question": "How many fish eats heron 2?", "answers": ["2 fish"], "ctxs": ctxs}
    (tmp_path / "q.jsonl").write_text(json.dumps(record))
    return str(tmp_path / "q.jsonl")


@pytest.fixture
def span_folder(span_reader: Reader, tmp_path: Path) -> Path:
    span_reader.save_pretrained(tmp_path / "span")
    return tmp_path / "span"


def test_rows_and_answers_are_those_of_the_reader(writing_reader: Reader, tiny_passages: list[Passage]) -> None:
    told = [(p.title, p.text) for p in tiny_passages[:2]]
    example = Example("Who built the mill?", "Ada Berg", (told[0], told[1]))
    batch = collate([example], writing_reader.tokenizer, 3, 320, 64, 8, random.Random(0))
    asked = writing_reader.question_ids(example.question)
    expected = sorted([*(asked + ids for ids in writing_reader.passage_ids(told)[0]), asked])
    rows = zip(batch.ids.tolist(), batch.lengths.tolist(), strict=True)
    assert sorted(row[:length] for row, length in rows) == expected
    assert batch.question_lengths.tolist() == [len(asked)] * 3
    answer = writing_reader.tokenizer.encode("Ada Berg", add_special_tokens=False).ids
    sep = writing_reader.tokenizer.token_to_id("[SEP]")
    assert [token for token in batch.labels[0].tolist() if token != -100] == [*answer[:7], sep]


@pytest.mark.parametrize("part", ["lower", "encoder"])
def test_frozen_part_stays_and_so_does_the_store(
    span_reader: Reader, span_folder: Path, asked: str, tmp_path: Path, part: str
) -> None:
    given = ["--reader", str(span_folder), "--decoder-layers", "1", "--freeze", part, "--questions", asked, *QUICK]
    assert main(["binarized", "--out", str(tmp_path / "run"), *given]) == 0
    found = Reader.from_pretrained(tmp_path / "run" / "reader")
    assert found.family == "generative" and found.config.default_mode == "binary"
    assert found.fingerprint == span_reader.fingerprint
    before, after = span_reader.model.state_dict(), found.model.state_dict()
    same = {name for name in before if name in after and torch.equal(before[name], after[name])}
    upper = {
        name for name in before if name.startswith(("bert.layers.2.", "bert.layers.3.")) and name.endswith("weight")
    }
    assert {name for name in before if not name.startswith(("head.", "bert.layers.2.", "bert.layers.3."))} <= same
    assert upper <= same if part == "encoder" else not upper & same
    answer = found.answer(
        "How many fish?", span_reader.encode_passages([Passage("0", "", "two fish")]), max_new_tokens=3
    )
    assert answer.mode == "binary" and len(answer.tokens) <= 3
    more = ["--reader", str(tmp_path / "run" / "reader"), "--questions", asked, *QUICK]
    assert main(["reader", "--out", str(tmp_path / "more"), *more]) == 0  # goes on without


def test_it_learns_from_a_teacher_that_writes(span_folder: Path, asked: str, tmp_path: Path) -> None:
    first = ["--reader", str(span_folder), "--decoder-layers", "1", "--questions", asked, *QUICK]
    assert main(["reader", "--out", str(tmp_path / "first"), *first]) == 0
    made = str(tmp_path / "first" / "reader")
    second = ["--reader", made, "--teacher", made, "--questions", asked, *SHAPE, "--steps", "1"]
    assert main(["joint", "--out", str(tmp_path / "second"), *second]) == 0
    line = json.loads((tmp_path / "second" / "metrics.jsonl").read_text())
    assert line["distillation"] > 0 and line["answers"] > 0


def test_what_would_be_dropped_is_refused(
    span_folder: Path, tokenizer_file: Path, asked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--decoder-layers", "1", "--questions", asked, *SHAPE, "--steps", "1", "--out", str(tmp_path / "run")]
    for given, message in (
        (["--reader", str(span_folder), "--unread", "the"], "a reader that writes leaves no token unread"),
        (["--shape", "tiny", "--tokenizer", str(tokenizer_file)], "pass that reader with --reader"),
        (["--reader", str(span_folder), "--unanswerable", "0.1"], "--unanswerable is for readers that quote"),
    ):
        assert main(["reader", *more, *given]) == 2
        assert message in capsys.readouterr().err


def test_going_on_with_another_part_frozen_is_refused(
    span_folder: Path, asked: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--reader", str(span_folder), "--decoder-layers", "1", "--questions", asked, *QUICK]
    out = ["--out", str(tmp_path / "run")]
    assert main(["binarized", *out, *given, "--freeze", "encoder"]) == 0
    assert main(["binarized", *out, *given, "--freeze", "lower"]) == 2
    assert "freeze" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--decoder-layers", "1"], "--decoder-layers gives a span reader a decoder, this reader has one"),
        (["--freeze", "lower"], "--freeze is for readers with a BERT"),
    ],
)
def test_t5_is_refused(
    tiny_folders: dict[str, Path],
    asked: str,
    tmp_path: Path,
    given: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--reader", str(tiny_folders["1.1"]), "--questions", asked, *SHAPE, "--steps", "1", *given]
    assert main(["reader", "--out", str(tmp_path / "run"), *words]) == 2
    assert message in capsys.readouterr().err
