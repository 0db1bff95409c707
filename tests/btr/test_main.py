"""The one entry point: what it prints, what it hands on, and what it leaves alone."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from btr import __version__
from btr.__main__ import COMMANDS, main
from btr.command import run_command


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"btr {__version__}\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_gives_each_command_one_line(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, purpose) in COMMANDS.items():
        assert [line.split(maxsplit=1) for line in lines].count([name, purpose]) == 1


def test_no_command_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err.startswith("usage: btr ")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("serv", "did you mean 'serve'?"), ("xyzzy", f"there are: {', '.join(COMMANDS)}")],
)
def test_unknown_command_is_bad_input(typed: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([typed]) == 2
    streams = capsys.readouterr()
    assert streams.out == "" and streams.err == f"error: unknown command {typed!r}; {hint}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_command_gets_the_rest_and_gives_the_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[list[str]] = []
    module = ModuleType(COMMANDS[name][0])
    module.main = lambda argv: received.append(argv) or 2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert main([name, "corpus", "--limit", "3"]) == 2
    assert received == [["corpus", "--limit", "3"]]


def test_process_takes_its_arguments_and_exits_with_the_code() -> None:
    done = subprocess.run([sys.executable, "-m", "btr", "serv"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'serve'?" in done.stderr


def test_help_loads_no_tensor_library() -> None:
    code = "import sys; from btr.__main__ import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_command_names_itself_in_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec(COMMANDS[name][0]) is None:
        pytest.skip(f"{COMMANDS[name][0]} is not written yet")
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    assert re.match(rf"usage: (btr |python -m btr\.){name} ", capsys.readouterr().out)


def test_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m btr --help | true"], capture_output=True, text=True
    )
    assert done.stderr == "" and done.returncode in (0, 141)  # 0: all was written before the pipe closed


def test_pipe_that_closes_amid_the_work_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: object, *_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("btr.storage.Store.open", closed)
    with pytest.raises(BrokenPipeError):
        main(["store", "info", "s.btr"])


def test_interrupt_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def stop() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as left:
        run_command(stop)
    assert left.value.code == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("call", ["-m btr", "-m btr.store", "-m btr.precompute", "-m btr.bench", "-c import\tbtr"])
def test_system_without_flock_is_told_in_one_line(call: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['fcntl'] = None\n")
    line = [sys.executable, *(word.replace("\t", " ") for word in call.split(" ")), "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(line, capture_output=True, text=True, env=environment, cwd=tmp_path)
    cause = "btr needs Linux or macOS: its stores use flock; on Windows use WSL\n"
    if call.startswith("-m"):
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {cause}")
    else:  # a library does not end the process
        assert done.stderr.endswith(f"\nImportError: {cause}")
