"""`btr bench` measures what it says: the asked numbers of tokens, the same answers in both implementations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from btr import bench, contenders
from btr.config import T5_SHAPES, BertConfig


@pytest.fixture(autouse=True)
def tiny_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contenders.T5_SHAPES, "base", T5_SHAPES["tiny"])
    monkeypatch.setitem(contenders.SPLIT, "base", 3)
    tiny = BertConfig(vocab_size=200, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96)
    monkeypatch.setitem(contenders.BERT_SHAPES, "minilm", tiny)


@pytest.mark.parametrize("shape", ["base", "minilm"])
def test_texts_have_the_asked_tokens(shape: str) -> None:
    reader = contenders.random_reader(shape, torch.float32)
    options = bench.parser().parse_args(["--questions", "2", "--passage-tokens", "30", "--question-tokens", "9"])
    questions, passages = contenders.make_texts(reader, options, 3)
    assert [len(reader.question_ids(question)) for question in questions] == [9, 9] and len(set(questions)) == 2
    ids, cut = reader.passage_ids([(p.title, p.text) for p in passages])
    assert [len(row) for row in ids] == [30, 30, 30] and cut == 0


SIZES = ["--passage-tokens", "12", "--question-tokens", "5", "--new-tokens", "3", "--runs", "1", "--dtype", "float32"]


def figures_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert bench.main([*SIZES, *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("questions", [1, 2])
def test_rows_and_their_sizes(capsys: pytest.CaptureFixture[str], questions: int) -> None:
    figures = figures_of(capsys, "--passages", "2,3", "--questions", str(questions))
    assert [size["passages"] for size in figures["sizes"]] == [2, 3] and figures["questions"] == questions
    assert figures["new_tokens"] == 3 and figures["row_tokens"] == 17
    rows, D = figures["sizes"][1]["rows"], T5_SHAPES["tiny"].d_model
    assert list(rows) == ["transformers", "full", "float", "binary", "merged"]
    sizes = {name: row["bytes_per_token"] for name, row in rows.items()}
    assert sizes == {"transformers": 0, "full": 0, "float": 4 * D, "binary": D // 8 + 2, "merged": D // 8 + 2}
    binary = rows["binary"]
    assert {"load", "expand", "encode", "decode"} <= set(binary["phases"])
    assert "merge" in rows["merged"]["phases"]
    assert sum(binary["phases"].values()) <= binary["most"] + 1e-3


def test_span_reader_has_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of(capsys, "--passages", "2", "--shape", "minilm", "--questions", "2")
    rows = figures["sizes"][0]["rows"]
    assert list(rows) == ["transformers", "full", "float", "binary", "pruned"] and figures["new_tokens"] == 0
    assert rows["binary"]["bytes_per_token"] == 64 // 8 + 2
    assert {"load", "expand", "encode", "decode"} <= set(rows["binary"]["phases"])


def test_some_rows_their_memory_and_a_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "bench.png"
    figures = figures_of(capsys, "--passages", "2", "--only", "full,binary", "--memory", "--plot", str(picture))
    rows = figures["sizes"][0]["rows"]
    assert list(rows) == ["full", "binary"] and rows["full"]["times_full"] == 1
    assert all(50 < row["peak_mib"] < 4096 for row in rows.values())  # Python and PyTorch alone take some hundred
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "peak MiB" in bench.table(figures)


def test_memory_is_that_of_this_process() -> None:
    before = bench.peak_memory()
    held = torch.ones(max(before, 2**26) // 4 + 2**24)
    assert bench.peak_memory() >= held.nbytes > 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--only", "binary,fast"], "--only fast: not known"),
        (["--only", "pruned"], "--only pruned: there is no such row of shape base"),
        (["--plot", "x.txt"], "x.txt: not a picture"),
        (["--questions", "0"], "--questions is 0; use 1 or more"),
        (["--runs", "0"], "--runs is 0; use 1 or more"),
    ],
)
def test_wrong_requests_are_refused(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([*SIZES, *arguments]) == 2
    assert error in capsys.readouterr().err
