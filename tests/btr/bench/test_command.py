"""`btr bench` measures what it says: the asked numbers of tokens, the same answers in both implementations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from btr.bench import __main__ as bench
from btr.bench import baselines, contenders, flatness
from btr.bench import kernels as kernel_bench
from btr.bench.__main__ import main
from btr.model.config import T5_SHAPES, BertConfig, MPNetConfig
from btr.model.devices import choose_device, choose_dtype
from btr.model.span_head import SpanReader
from btr.reader import Reader

SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@pytest.fixture(autouse=True)
def tiny_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contenders.T5_SHAPES, "base", T5_SHAPES["tiny"])
    monkeypatch.setitem(contenders.SPLIT, "base", 3)
    tiny = BertConfig(vocab_size=200, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=96)
    monkeypatch.setitem(contenders.BERT_SHAPES, "minilm", tiny)
    mpnet = MPNetConfig(**{name: getattr(tiny, name) for name in SHAPE})
    monkeypatch.setitem(contenders.BERT_SHAPES, "mpnet-base", mpnet)
    monkeypatch.setitem(contenders.SPLIT, "mpnet-base", 3)


@pytest.mark.parametrize("shape", ["base", "minilm", "mpnet-base"])
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
    out, err = capsys.readouterr()
    found: dict[str, Any] = json.loads(out)
    for size in found["sizes"]:  # runs: one, and one that is not counted
        answers = 2 * len(size["rows"])
        assert f"{size['passages']} passages: {answers}/{answers} answers  " in err
    return found


def test_split_and_bits_are_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of(capsys, "--passages", "2", "--shape", "mpnet-base", "--split", "2", "--bits", "24")
    assert figures["k"] == 2
    rows = figures["sizes"][0]["rows"]
    assert list(rows) == ["transformers", "full", "float", "binary", "pruned", "reread"]
    assert rows["binary"]["bytes_per_token"] == 8 + 2  # whole words
    for wrong, message in ((("--split", "4"), "k is 4, the encoder has 4 layers"), (("--bits", "65"), "64 wide")):
        assert main([*SIZES, "--shape", "mpnet-base", *wrong]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("questions", [1, 2])
def test_rows_and_their_sizes(capsys: pytest.CaptureFixture[str], questions: int) -> None:
    figures = figures_of(capsys, "--passages", "2,3", "--questions", str(questions))
    assert [size["passages"] for size in figures["sizes"]] == [2, 3] and figures["questions"] == questions
    assert figures["new_tokens"] == 3 and figures["row_tokens"] == 17
    rows, D = figures["sizes"][1]["rows"], T5_SHAPES["tiny"].d_model
    assert list(rows) == ["transformers", "full", "float", "binary", "pruned", "reread", "merged"]
    sizes = {name: row["bytes_per_token"] for name, row in rows.items()}
    assert [sizes.pop(name) for name in ("transformers", "full", "float")] == [0, 0, 4 * D]
    assert sizes == dict.fromkeys(("binary", "pruned", "reread", "merged"), D // 8 + 2)
    binary = rows["binary"]
    assert binary["bytes_read"] == 3 * 12 * (D // 8 + 2) and rows["full"]["bytes_read"] == 0
    written = figures["sizes"][1]["written"]
    assert written["tokens"] == 3 * 12 and written["bytes"] > binary["bytes_read"] and written["seconds"] > 0
    assert {"load", "expand", "encode", "decode"} <= set(binary["phases"])
    assert "merge" in rows["merged"]["phases"]
    assert sum(binary["phases"].values()) <= binary["most"] + 1e-3


def test_span_reader_has_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of(capsys, "--passages", "2", "--shape", "minilm", "--questions", "2")
    rows = figures["sizes"][0]["rows"]
    assert list(rows) == ["transformers", "full", "float", "binary", "pruned", "reread"] and figures["new_tokens"] == 0
    assert rows["binary"]["bytes_per_token"] == 64 // 8 + 2
    assert {"load", "expand", "encode", "decode"} <= set(rows["binary"]["phases"])


def test_some_rows_their_memory_and_a_plot(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "bench.png"
    figures = figures_of(capsys, "--passages", "2", "--only", "full,binary", "--memory", "--plot", str(picture))
    rows = figures["sizes"][0]["rows"]
    assert list(rows) == ["full", "binary"] and rows["full"]["times_full"] == 1
    assert all(50 < row["peak_mib"] < 4096 for row in rows.values())  # Python and PyTorch alone take some hundred
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "peak MiB" in bench.table(figures)


def test_figures_of_a_file_say_what_made_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = [*SIZES, "--passages", "2", "--only", "full", "--json", str(file)]
    assert bench.main(arguments) == 0
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert capsys.readouterr().out == bench.table(figures) + "\n"
    assert figures["command"] == " ".join(["python", "-m", "btr.bench", *arguments])
    assert figures["torch"] == torch.__version__ and figures["machine"].strip()
    assert bench.main([*SIZES, "--json", str(tmp_path / "no" / "figures.json")]) == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["base", "minilm"])
def test_onnx_runtime_reads_the_same_rows(shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not baselines.possible("onnx"):
        pytest.skip("needs pip install 'btr-reader[bench]'")
    figures = figures_of(capsys, "--shape", shape, "--passages", "2", "--only", "onnx,onnx-int8,binary", "--memory")
    rows = figures["sizes"][0]["rows"]
    assert list(rows) == ["onnx", "onnx-int8", "binary"] and rows["onnx"]["times_onnx"] == 1
    import onnxruntime

    reader = contenders.random_reader(shape, torch.float32)
    model, generator = reader.model, torch.Generator().manual_seed(3)
    ids = torch.randint(5, model.vocab_size, (3, 10), generator=generator)
    inputs = {"ids": ids}
    if isinstance(model, SpanReader):
        places = torch.arange(10)[None].expand(3, -1)
        inputs |= {"positions": places, "segments": (places > 4).long()}
    path = baselines.export(reader, inputs, tmp_path / "whole.onnx", False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: values.numpy() for name, values in inputs.items()})
    with torch.no_grad():
        if isinstance(model, SpanReader):
            expected = model.point(model.bert(model.bert.embed(*inputs.values()), None))
        else:
            expected = (model.t5.encode(ids, torch.ones_like(ids, dtype=torch.bool)),)  # type: ignore[union-attr]
    for ours, theirs in zip(expected, found, strict=True):
        # sums of at most 96 products in another order, in each of five products of each of the layers
        assert theirs == pytest.approx(ours.numpy(), abs=96 * 5 * 4 * 2**-23 * float(ours.abs().max()))


@pytest.mark.parametrize("shape", ["base", "minilm"])
def test_transformers_in_other_ways_are_rows_of_their_own(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of(capsys, "--shape", shape, "--passages", "2", "--only", "eager,transformers,full")
    assert list(figures["sizes"][0]["rows"]) == ["transformers", "eager", "full"]


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(baselines, "PACKAGES", ("onnx_of_another_world",))
    arguments = [*SIZES, "--passages", "2", "--only", "onnx,onnx-int8,full", "--json"]
    assert bench.main(arguments) == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)["sizes"][0]["rows"]) == ["full"]
    assert "left out: onnx, onnx-int8: not installed; pip install 'btr-reader[bench]'" in err


def test_memory_is_that_of_this_process() -> None:
    before = bench.peak_memory()
    held = torch.ones(max(before, 2**26) // 4 + 2**24)
    assert bench.peak_memory() >= held.nbytes > 0


def test_device_and_precision_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of(capsys, "--passages", "2", "--only", "full", "--device", "auto", "--dtype", "auto")
    device = choose_device("auto")
    assert figures["device"].startswith(str(device)) and figures["dtype"] == choose_dtype("auto", device)
    assert f"{figures['dtype']} on {figures['device']}, " in bench.table(figures)


def test_what_the_cpu_alone_does_is_not_measured_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "choose_device", torch.device)
    assert bench.main([*SIZES, "--device", "cuda", "--only", "full,int8,onnx", "--memory"]) == 2
    assert "error: int8, onnx, --memory: measured on the CPU alone; leave that out, or --device cuda" in (
        capsys.readouterr().err
    )


@pytest.mark.cuda
@pytest.mark.parametrize("shape", ["base", "minilm"])
def test_rows_are_timed_on_a_gpu(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of(capsys, "--shape", shape, "--passages", "2", "--device", "cuda")
    assert figures["device"].startswith("cuda") and "binary" in figures["sizes"][0]["rows"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--only", "binary,fast"], "--only fast: not known"),
        (["--only", "merged", "--merge", "none"], "--only merged: there is no such row of shape base"),
        (["--plot", "x.txt"], "x.txt: not a picture"),
        (["--questions", "0"], "--questions is 0; use 1 or more"),
        (["--runs", "0"], "--runs is 0; use 1 or more"),
        (["--device", "abacus"], "device is 'abacus', which torch does not know"),
    ],
)
def test_wrong_requests_are_refused(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    assert bench.main([*SIZES, *arguments]) == 2
    assert error in capsys.readouterr().err


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROWS", 70), ("TOKENS", 50), ("MATRIX", (96, 64))):
        monkeypatch.setattr(kernel_bench, name, value)


@pytest.mark.usefixtures("small")
def test_all_who_are_timed_do_the_same_work() -> None:
    for kernel, _, amount, who in kernel_bench.jobs(64):
        results = {name: work() for name, work in who.items()}
        assert next(iter(who)) == "btr" and amount > 0
        if kernel.startswith("hamming"):
            found = [np.asarray(value).astype(np.int64) for value in results.values()]
            assert found[0].shape == (70, 70) and all(np.array_equal(found[0], other) for other in found)
        if kernel.startswith("expand"):
            assert np.asarray(results["btr"]).nbytes == np.asarray(results["roof"]).nbytes
        if kernel.startswith("int8"):
            assert np.asarray(results["btr"]).shape == (96,) and np.isfinite(np.asarray(results["btr"])).all()


@pytest.mark.usefixtures("small")
def test_kernels_have_a_table_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kernels", "64", "--runs", "1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert all(row["D"] == 64 and row["rates"]["btr"] > 0 for row in figures["rows"])
    assert {row["threads"] for row in figures["rows"] if "hamming" in row["kernel"]} >= {1}
    assert main(["--kernels", "64", "--runs", "1"]) == 0
    assert "hamming, all pairs" in capsys.readouterr().out
    assert main(["--kernels", "4"]) == 2
    assert "use widths of 8 or more" in capsys.readouterr().err


def test_new_combinations_stand_beside_one_read_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flatness, "POOL", 12)
    read: list[tuple[str, ...]] = []
    answer = Reader.answer
    monkeypatch.setattr(Reader, "answer", lambda self, question, encoded, *rest: (
        read.append(tuple(encoded.ids)), answer(self, question, encoded, *rest))[1])  # fmt: skip
    assert main([*SIZES, "--passages", "3", "--combinations", "60", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["questions"] for row in rows] == list(range(6, 61, 6))
    assert all(row["new"] > 0 and row["again"] > 0 for row in rows)
    again = read.count(read[0])
    assert again == 5 + 12 and len(read) == again + 60 and len(set(read)) == 61
    assert flatness.table(rows).count("\n") == 10
    for wrong in (["--combinations", "9"], ["--combinations", "60", "--passages", "13"]):
        assert main([*SIZES, "--passages", "3", *wrong]) == 2
        assert "use 50 or more, and at most 12 passages" in capsys.readouterr().err
    assert main([*SIZES, "--combinations", "60", "--passages", "3", "--passage-tokens", "0"]) == 2
    assert "--passage-tokens is 0; use 1 or more" in capsys.readouterr().err
    assert main([*SIZES, "--combinations", "60", "--passages", "2,3"]) == 2
    assert "of one number of passages" in capsys.readouterr().err


@pytest.mark.int8
@pytest.mark.parametrize("shape", ["base", "minilm"])
def test_int8_has_rows_of_its_own(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["binary", "int8", "pruned-int8", "int8-decoder"]
    rows = figures_of(capsys, "--shape", shape, "--passages", "2", "--prune", "1", "--only", ",".join(names))
    assert set(rows["sizes"][0]["rows"]) == set(names[: 3 + (shape == "base")])
