"""Where commands compute, and in which precision."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from btr import command
from btr.model.devices import PRECISIONS, settle
from btr.precompute.run import describe, load, parse
from btr.reader import Reader
from btr.serve import main as serve
from btr.storage.manifest import read_manifest

COMMANDS = {
    "precompute": "corpus.jsonl --store other.btr",
    "ask": "corpus.jsonl who? --cache cache",
    "eval": "questions.jsonl",
    "retrieve": "build corpus.jsonl --retriever none --out index",
    "store": "upsert made.btr corpus.jsonl",
    "train": "reader --out run --steps 1 --questions questions.jsonl",
    "mcp": "made.btr",
}


@pytest.fixture
def folder(tmp_path: Path, reader_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a corpus and its store, where torch sees no accelerator."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    (tmp_path / "corpus.jsonl").write_text('{"id": "1", "title": "Salt", "text": "Salt was carried on mules."}\n')
    (tmp_path / "questions.jsonl").write_text('{"question": "who?", "answers": ["mules"], "ctxs": []}\n')
    run("precompute", f"corpus.jsonl --store made.btr --reader {reader_folder}")
    return tmp_path


def run(name: str, words: str) -> int:
    main: Callable[[list[str]], int] = importlib.import_module(
        f"btr.{name}.__main__" if name != "train" else "btr.train.__main__"
    ).main
    return main(words.split())


def test_a_device_that_is_not_here_is_one_line_of_every_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    for name, words in COMMANDS.items():
        if name == "mcp" and importlib.util.find_spec("mcp") is None:
            continue
        capsys.readouterr()
        assert run(name, f"{words} --device cuda") == 2
        said = capsys.readouterr().err.splitlines()
        assert said[-1].startswith(f"error: torch {torch.__version__} sees no cuda device here"), name
    assert sorted(folder.rglob("*")) == before
    assert serve(["made.btr", "--device", "cuda", "--port", "0"]) == 2
    assert "sees no cuda device here" in capsys.readouterr().err


def test_what_auto_came_to_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr("btr.model.devices.PROCESSOR", tmp_path / "none")
    assert settle("auto", "auto") == ("float32", "cpu")
    assert capsys.readouterr().err == "computing in float32 on cpu\n"
    assert settle("bfloat16", "cpu") == ("bfloat16", "cpu")
    assert capsys.readouterr().err == ""
    assert command.PRECISIONS == PRECISIONS


def test_a_store_names_the_precision_that_auto_came_to(
    folder: Path, reader_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "cpuinfo").write_text("flags : avx512_bf16\n")
    monkeypatch.setattr("btr.model.devices.PROCESSOR", folder / "cpuinfo")
    assert run("precompute", f"corpus.jsonl --store auto.btr --reader {reader_folder} --dtype auto") == 0
    assert read_manifest(folder / "auto.btr").options["dtype"] == "bfloat16"
    assert read_manifest(folder / "made.btr").options["dtype"] == "float32"


def test_a_store_names_another_device_than_the_cpu(reader_folder: Path) -> None:
    options = parse(["corpus.jsonl", "--reader", str(reader_folder)])
    reader: Reader = load(options)
    assert "device" not in describe(options, reader, "").options
    options.device = "cuda:1"
    assert describe(options, reader, "").options["device"] == "cuda"
