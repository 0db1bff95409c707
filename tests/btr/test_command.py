"""What all command lines hold to: no abbreviations, and files and numbers checked before any work."""

import argparse
import ast
from pathlib import Path

import pytest

from btr.__main__ import COMMANDS, main
from btr.command import Parser, check_file, check_least
from btr.errors import InputError
from btr.eval import __main__ as evaluation

ROOT = Path(__file__).resolve().parents[2]
ABBREVIATED = (
    "precompute corpus.jsonl --lim 1",
    "serve s.btr --por 0",
    "mcp s.btr --read x",
    "ask s.btr who --pass 1",
    "store latency s.btr --pass 1",
    "train reader --out run --steps 1 --conf default",
    "train tokenizer --text t --out o --siz 9",
    "retrieve search s.btr salt --to 1",
    "eval q.jsonl --lim 1",
    "bench --run 1",
)


def test_every_command_is_tried() -> None:
    assert {line.split()[0] for line in ABBREVIATED} == set(COMMANDS)


@pytest.mark.parametrize("line", ABBREVIATED)
def test_abbreviated_option_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe or the environment knows an option by its name alone: one that is cut short would go past them."""
    try:
        code: object = main(line.split())
    except SystemExit as left:
        code = left.code
    assert code == 2 and "unrecognized arguments: --" in capsys.readouterr().err


@pytest.mark.parametrize("room", ["btr", "kernels", "storage", "train"])
def test_parsers_are_of_one_class(room: str) -> None:
    makers = [
        path
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser")
    ]
    assert makers == []


def test_parsers_of_subcommands_take_whole_names_too() -> None:
    made = Parser()
    made.add_subparsers().add_parser("one").add_argument("--limit")
    with pytest.raises(SystemExit):
        made.parse_args(["one", "--lim", "1"])


def test_home_is_found_where_no_shell_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    made = Parser()
    added = made.add_subparsers().add_parser("one")
    for name in ("path", "--store", "--out", "--word"):
        added.add_argument(name)
    found = made.parse_args(["one", "~/a.jsonl", "--store=~/s.btr", "--out", "~", "--word=a~/b"])
    assert vars(found) == {"path": "/home/ada/a.jsonl", "store": "/home/ada/s.btr", "out": "/home/ada", "word": "a~/b"}
    assert Parser().parse_known_args(["~ada/x", "x=~/y"])[1] == ["~ada/x", "x=~/y"]


def test_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--json .*: is a folder; give the name of a file"):
        check_file("--json", str(tmp_path))
    with pytest.raises(InputError, match=r"--json : is a folder"):
        check_file("--json", "")
    with pytest.raises(InputError, match=r"--json .*/none/a.json: no such folder; make it first"):
        check_file("--json", str(tmp_path / "none" / "a.json"))


def test_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    check_file("--json", str(path))
    assert list(tmp_path.iterdir()) == []
    path.write_text("kept", encoding="utf-8")
    check_file("--json", str(path))
    assert path.read_text(encoding="utf-8") == "kept" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_number_below_the_least_is_refused(value: float) -> None:
    check_least(argparse.Namespace(dev_limit=1, limit=None), 1, "dev_limit", "limit", "absent")
    with pytest.raises(InputError, match=f"--dev-limit is {value}; use 1 or more"):
        check_least(argparse.Namespace(dev_limit=value), 1, "dev_limit")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("eval none.jsonl --json {}", "--json {}: is a folder"),
        ("eval none.jsonl --plot {}", "--plot {}: is a folder"),
        ("eval none.jsonl --out {}", "--out {}: is a folder"),
        ("eval none.jsonl --limit -1", "--limit is -1; use 1 or more"),
        ("eval none.jsonl --max-new-tokens 0", "--max-new-tokens is 0; use 1 or more"),
        ("bench --plot {}", "--plot {}: is a folder"),
        ("bench --prune -1", "--prune is -1; use 0 or more"),
        ("train tokenizer --text none.jsonl --out {}", "--out {}: is a folder"),
        ("train neighbours --questions none.jsonl --text none.jsonl --out {}", "--out {}: is a folder"),
    ],
)
def test_mistake_is_said_before_any_file_is_read(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.format(tmp_path).split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {said.format(tmp_path)}")


def test_figures_are_printed_before_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What could be written when the work began may not be at its end: a full disk, or here a folder of that name."""
    path = tmp_path / "figures.json"
    monkeypatch.setattr(evaluation, "evaluate", lambda options: path.mkdir() or {"em": 50})
    monkeypatch.setattr(evaluation, "table", str)
    assert evaluation.main(["nq", "--json", str(path)]) == 2
    streams = capsys.readouterr()
    assert streams.out == "{'em': 50}\n" and streams.err.startswith("error: ") and str(path) in streams.err
