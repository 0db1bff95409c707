"""Where commands compute, and in which precision."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from btr import command
from btr.model.devices import DTYPES, settle
from btr.precompute.encode import threads_of
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
    assert ("auto", *sorted(DTYPES)) == command.PRECISIONS


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


V1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"cpu.max": "300000 100000\n"}, 3),
        ({"cpu.max": "250000 100000\n"}, 2),  # a third thread would be held back
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "900000 100000\n"}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "what?\n"}, 8),
        (dict(zip(V1, ("200000\n", "100000\n"), strict=True)), 2),
        (dict(zip(V1, ("-1\n", "100000\n"), strict=True)), 8),
        ({}, 8),
    ],
)
def test_cores_are_those_of_the_container(
    files: dict[str, str], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(command, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert command.cores() == wanted
    assert threads_of(3) == max(1, wanted // 3)


@pytest.mark.parametrize(
    ("asked", "said", "taken"),
    [(None, "", 2), (None, "OMP_NUM_THREADS", None), (None, "MKL_NUM_THREADS", None), (5, "", 5)],
)
def test_threads_are_as_many_as_cores_unless_told(
    asked: int | None, said: str, taken: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[int] = []
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    if said:
        monkeypatch.setenv(said, "64")
    monkeypatch.setattr("btr.model.devices.cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    settle("float32", "cpu", asked)
    assert set_to == ([] if taken is None else [taken])


def test_threads_below_the_cores_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: pytest.fail("there are cores for them"))
    settle("float32", "cpu")
