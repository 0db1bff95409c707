"""Questions given, piped and typed; errors in one line; nothing slow before they are known."""

import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from btr.ask import __main__ as command
from btr.hops import answer_in_hops
from btr.precompute import __main__ as precompute
from btr.reader import Reader
from btr.retrieve import HINT
from btr.retrieve.fusion import open_retriever
from btr.retrieve.indexed import StaleIndex
from btr.storage import Store

PASSAGES = [("harbour", "Vellin", "The harbour of Vellin was dug by hand."), ("salt", "", "Salt came on mules.")]


@pytest.fixture(scope="module")
def folder(span_reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold a reader, a corpus, and a store of them."""
    folder = tmp_path_factory.mktemp("ask")
    span_reader.save_pretrained(folder / "reader")
    rows = [{"id": name, "title": title, "text": text} for name, title, text in PASSAGES]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = [str(folder / "c.jsonl"), "--reader", str(folder / "reader"), "--store", str(folder / "s.btr")]
    assert precompute.main(made) == 0
    return folder


@pytest.fixture(autouse=True)
def unhushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the process as it was: warnings and logs are its own, and other tests'."""
    monkeypatch.setattr(command, "hush", lambda: None)


@pytest.fixture
def store(folder: Path) -> str:
    return str(folder / "s.btr")


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def feed(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return feed


def test_question_is_answered_from_the_store(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([store, "Who dug the harbour?", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["question"] == "Who dug the harbour?" and told["mode"] == "binary"
    [passage] = told["passages"]
    assert passage["id"] == "harbour" and passage["evidence"] == pytest.approx(1)
    [(start, end)] = passage["highlights"]
    assert passage["text"][start:end] == told["best_guess"] != ""
    assert told["answer"] == (told["best_guess"] if told["no_answer"] < 0.5 else "")


def test_question_may_stand_behind_options(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([store, "--json", "--passages", "1", "Who dug the harbour?"]) == 0
    assert json.loads(capsys.readouterr().out)["question"] == "Who dug the harbour?"


def test_people_see_the_passage(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([store, "Who dug the harbour?"]) == 0
    shown = capsys.readouterr().out
    assert "\n\n  Vellin - harbour:\n    " in shown and "[" in shown and "\x1b" not in shown


@pytest.mark.parametrize("mode", ["full", "float"])
def test_passages_are_read_in_another_mode(store: str, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([store, "harbour or salt?", "--mode", mode, "--json", "--passages", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["mode"] == mode and len(told["passages"]) == 1


def test_several_hops_show_what_each_searched_read_and_found(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    question, arguments = "Who dug the harbour?", ["--passages", "2"]
    assert command.main([store, question, "--json", "--hops", "3", *arguments]) == 0
    told = json.loads(capsys.readouterr().out)
    with Store.open(store) as opened:
        reader = Reader.from_pretrained(opened.manifest.reader)
        hopped = answer_in_hops(
            reader, opened, open_retriever(opened), question, 3, 2,
            read=lambda found, kept: reader.answer(question, found, "binary", kept=kept),
        )  # fmt: skip
    steps = [asdict(step.abstaining(0.5)) | {"ids": list(step.ids)} for step in hopped.steps]
    assert told["trace"] == steps and steps
    assert (told["answer"], told["best_guess"]) == (steps[-1]["answer"], steps[-1]["best_guess"] or steps[-1]["answer"])
    assert command.main([store, question, "--hops", "3", *arguments]) == 0
    shown = capsys.readouterr().out
    assert f"\n  1. {question}\n     harbour" in shown
    assert command.main([store, question, "--json", *arguments]) == 0
    assert "trace" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("dash", [[], ["-"]])
def test_piped_questions_are_answered_line_by_line(
    store: str, dash: list[str], pipe: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pipe("\ufeffharbour?\r\n\n  salt?\nzebra?".encode())
    assert command.main([store, *dash, "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["question"] for one in told] == ["harbour?", "salt?", "zebra?"]
    assert [[passage["id"] for passage in one["passages"]] for one in told] == [["harbour"], ["salt"], []]
    assert (told[2]["answer"], told[2]["no_answer"]) == ("", 1.0)


def test_piped_questions_stand_before_their_answers(
    store: str, pipe: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(b"zebra?\n\nquagga?\n")
    assert command.main([store]) == 0
    nothing = f"No passage answers this: none shares a word with the question.\n{HINT}"
    assert capsys.readouterr().out == f"> zebra?\n{nothing}\n\n> quagga?\n{nothing}\n\n"


def test_piped_bytes_that_are_no_text_are_named(
    store: str, pipe: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(b"\xff\xfe\n")
    assert command.main([store]) == 2
    assert capsys.readouterr().err.startswith("error: standard input: not UTF-8")


def test_typed_questions_until_the_end(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["", "zebra?", "   "])

    def ask(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", ask)
    assert command.main([store]) == 0
    nothing = "No passage answers this: none shares a word with the question."
    assert capsys.readouterr().out == f"{nothing}\n{HINT}\n\n\n"


def test_interrupt_while_typing_is_passed_on(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", interrupt)
    with pytest.raises(KeyboardInterrupt):
        command.main([store])


def test_long_question_is_read_from_its_end(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([store, "mules " * 2000 + "salt?", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cut"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s.btr", " "], "error: the question is blank; ask something"),
        (["s.btr", "a", "--hops", "0"], "error: --hops is 0; use 1 or more"),
        (["s.btr", "a", "--passages", "0"], "error: --passages is 0; use 1 or more"),
        (["none.btr", "a"], "error: none.btr: there is no such file; name a store, one folder, or files, and one "),
        (["s.btr", "a", "--reader", "nowhere/at/all"], "error: nowhere/at/all"),
        (["s.btr", "a", "--retriever", "dense"], "error: "),
    ],
)
def test_mistake_is_one_line(
    folder: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    assert command.main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err.startswith(message) and streams.err.count("\n") == 1


def test_store_without_texts_is_read_as_bits_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [str(folder / "c.jsonl"), "--reader", str(folder / "reader"), "--store", str(tmp_path / "s.btr")]
    assert precompute.main([*made, "--no-text"]) == 0
    capsys.readouterr()
    assert command.main([str(tmp_path / "s.btr"), "harbour"]) == 0
    assert "(the store keeps no texts)" in capsys.readouterr().out
    assert command.main([str(tmp_path / "s.btr"), "harbour", "--mode", "full"]) == 2
    assert "use mode binary" in capsys.readouterr().err


def test_reader_that_has_moved_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "reader", tmp_path / "reader")
    made = [str(folder / "c.jsonl"), "--reader", str(tmp_path / "reader"), "--store", str(tmp_path / "s.btr")]
    assert precompute.main(made) == 0
    shutil.rmtree(tmp_path / "reader")
    capsys.readouterr()
    assert command.main([str(tmp_path / "s.btr"), "harbour"]) == 2
    assert "say with --reader where it is now" in capsys.readouterr().err
    assert command.main([str(tmp_path / "s.btr"), "harbour", "--reader", str(folder / "reader")]) == 0


def test_mistake_is_known_before_torch_is_loaded() -> None:
    code = "import sys; from btr.ask.__main__ import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "none.btr", "a"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.startswith("error: none.btr")


def test_no_warning_but_our_own_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import warnings; from btr.ask.__main__ import hush; from btr.retrieve.indexed import StaleIndex; hush();"
        "warnings.warn('theirs'); warnings.warn('ours', StaleIndex)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stderr == "warning: ours\n"
    assert issubclass(StaleIndex, UserWarning) and warnings.showwarning is not command._warn
