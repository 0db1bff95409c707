"""The README does what it says: its marked blocks run, and the commands and flags it names exist.

Mark a block to be run with a line `<!-- test -->` before its fence. Python blocks share one namespace, shell blocks are
run by bash; all in the order of the README, in one empty folder that has the sample `corpus` in it.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import dropwhile, groupby
from pathlib import Path
from typing import Any

import pytest

from btr.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8") if README.exists() else ""
needs_readme = pytest.mark.skipif(not README.exists(), reason="README.md is not written yet")

FENCE = re.compile(
    r"^(?P<mark><!-- test -->\s*\n)?```(?P<kind>\w*)[^\n]*\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SHELLS = {"sh", "bash", "shell", "console"}


def read_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, body) of every marked block: kind is what stands behind the fence."""
    for fence in FENCE.finditer(text):
        if fence["mark"]:
            yield fence["kind"], fence["body"]


def read_typed(text: str) -> Iterator[str]:
    """Yield what a reader might type: each line of the shell fences, and each code span."""
    for fence in FENCE.finditer(text):
        if fence["kind"] in SHELLS:
            yield from fence["body"].replace("\\\n", " ").splitlines()
    spans = SPAN.findall(FENCE.sub("", text))
    yield from (span for span in spans if re.match(r"(btr|python3?|make|[A-Z_]+=\S+) ", span))


def split_line(line: str) -> Iterator[list[str]]:
    """Yield the words of every command in a line, without its prompt, its settings (`A=b`) and its comment."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for operator, words in groupby(lexer, key=lambda word: set(word) <= set("();<>|&")):
        if not operator:
            yield list(dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))


def read_commands(text: str) -> list[tuple[str, list[str], list[str]]]:
    """Return (command, words, flags) for every use of btr in the text, typed as `btr x` or `python -m btr.x`."""
    found = []
    for words in (words for line in read_typed(text) for words in split_line(line)):
        if words[:2] in (["python", "-m"], ["python3", "-m"]):
            words = [*words[2].split(".", 1), *words[3:]]
        if words[:1] == ["btr"] and len(words) > 1 and not words[1].startswith("-"):
            flags = [word.partition("=")[0] for word in words[2:] if word.startswith("-")]
            found.append((words[1], [word for word in words[2:] if not word.startswith("-")], flags))
    return found


@cache
def read_help(command: str, *words: str) -> str:
    """Return the help of a command, or of one of its own commands, from a process of its own."""
    call = [sys.executable, "-m", "btr", command, *words, "--help"]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def find_missing(command: str, words: list[str], flags: list[str]) -> list[str]:
    """Return the flags of one use that its help does not list."""
    text = read_help(command)
    listed = [name for choices in re.findall(r"\{([a-z,-]+)\}", text) for name in choices.split(",")]
    listed += re.findall(r"^ {4}([a-z-]+)", text, re.MULTILINE)  # commands one to a line
    if words and words[0] in listed:
        text += read_help(command, words[0])
    return [flag for flag in flags if not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text)]


@needs_readme
def test_marked_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = list(read_blocks(TEXT))
    assert blocks, "README.md marks no block with <!-- test -->"
    (tmp_path / "corpus").symlink_to(ROOT / "corpus")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    names: dict[str, Any] = {"__name__": "readme"}
    for kind, body in blocks:
        if kind == "python":
            exec(compile(body, str(README), "exec"), names)
        else:
            done = subprocess.run(["bash", "-euo", "pipefail", "-c", body], capture_output=True, text=True)
            assert done.returncode == 0, f"{body}\n{done.stderr}"


@needs_readme
def test_commands_and_flags_exist() -> None:
    used = read_commands(TEXT)
    assert used, "README.md names no command"
    assert sorted({command for command, _, _ in used} - set(COMMANDS)) == []
    assert {
        (command, *missing) for command, words, flags in used if (missing := find_missing(command, words, flags))
    } == set()


@needs_readme
def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    typed = [words for line in read_typed(TEXT) for words in split_line(line) if words[:1] == ["make"]]
    assert {word for words in typed for word in words[1:] if "=" not in word} <= targets


SAMPLE = """
Text with `btr serve --port 80`, `btr --version`, `corpus.btr`, `python -m btr`, `it's` and `make test`.

```text
btr reads the passage's text --once
```

```sh
$ BTR_KERNELS=numpy python -m btr.precompute corpus --limit 3 \\
      --output=x.btr && btr store info "x;y.btr" --json > out  # --not-this
```

<!-- test -->
```python
from btr import reader
```
"""


def test_commands_of_a_text_are_found() -> None:
    assert sorted(read_commands(SAMPLE)) == [
        ("precompute", ["corpus", "3"], ["--limit", "--output"]),
        ("serve", ["80"], ["--port"]),
        ("store", ["info", "x;y.btr"], ["--json"]),
    ]


def test_only_marked_blocks_are_taken() -> None:
    assert list(read_blocks(SAMPLE)) == [("python", "from btr import reader\n")]


def test_flag_that_is_not_there_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    helps = {(): "usage: btr store {info,merge}", ("info",): "--json  --limit-all"}
    monkeypatch.setitem(globals(), "read_help", lambda command, *words: helps[words])
    assert find_missing("store", ["info"], ["--json", "--limit"]) == ["--limit"]
    assert find_missing("store", [], ["--json"]) == ["--json"]
