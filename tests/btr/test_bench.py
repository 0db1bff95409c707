"""`btr bench` measures what it says: the asked numbers of tokens, the same answers in both implementations."""

import json

import pytest
import torch

from btr import bench
from btr.config import T5_SHAPES, BertConfig


@pytest.fixture(autouse=True)
def tiny_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.T5_SHAPES, "base", T5_SHAPES["tiny"])
    monkeypatch.setitem(bench.SPLIT, "base", 3)
    tiny = BertConfig(vocab_size=200, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96)
    monkeypatch.setitem(bench.BERT_SHAPES, "minilm", tiny)


@pytest.mark.parametrize("shape", ["base", "minilm"])
def test_texts_have_the_asked_tokens(shape: str) -> None:
    reader = bench.random_reader(shape, torch.float32)
    options = bench.parser().parse_args(["--passages", "3", "--passage-tokens", "30", "--question-tokens", "9"])
    question, passages = bench.make_texts(reader, options)
    assert len(reader.question_ids(question)) == 9
    ids, cut = reader.passage_ids([(p.title, p.text) for p in passages])
    assert [len(row) for row in ids] == [30, 30, 30] and cut == 0


def test_rows_and_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--passages",
        "2",
        "--passage-tokens",
        "12",
        "--question-tokens",
        "5",
        "--new-tokens",
        "3",
        "--runs",
        "1",
    ]
    assert bench.main([*arguments, "--dtype", "float32", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["rows"]) == ["transformers", "full", "float", "binary", "merged"]
    assert figures["new_tokens"] == 3 and figures["row_tokens"] == 17
    D = T5_SHAPES["tiny"].d_model
    sizes = {name: row["bytes_per_token"] for name, row in figures["rows"].items()}
    assert sizes == {"transformers": 0, "full": 0, "float": 4 * D, "binary": D // 8 + 2, "merged": D // 8 + 2}
    binary = figures["rows"]["binary"]
    assert {"load", "expand", "encode", "project", "decode"} <= set(binary["phases"])
    assert sum(binary["phases"].values()) <= binary["most"] + 1e-3


def test_span_reader_has_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--passages", "2", "--passage-tokens", "12", "--question-tokens", "5"]
    assert bench.main([*sizes, "--runs", "1", "--dtype", "float32", "--shape", "minilm", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures["rows"]) == ["transformers", "full", "float", "binary", "pruned"] and figures["new_tokens"] == 0
    assert figures["rows"]["binary"]["bytes_per_token"] == 64 // 8 + 2
    assert {"load", "expand", "encode", "decode"} <= set(figures["rows"]["binary"]["phases"])
