"""README and docs do what they say: their marked blocks run, and the commands and flags they name exist.

A line before the fence says what becomes of a block of code:

    <!-- test -->           it is run, in the order of its page, in an empty folder of the page that has the sample
                            `corpus` in it. Python blocks share one namespace; in shell blocks commands of btr are run
                            in this process, the rest by bash
    <!-- test: server -->   a shell block is run against a server, in place of http://127.0.0.1:8080
    <!-- output -->         it is what the Python block before it prints
    <!-- not run: why -->   it is not
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from itertools import dropwhile, groupby
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn

from btr.__main__ import COMMANDS, main
from btr.serve import Dispatcher, Settings, create_app, load
from btr.serve.keys import Keys
from btr.serve.server import bind, make_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
ADDRESS = "http://127.0.0.1:8080"

FENCE = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\s*\n)?```(?P<kind>\w*)[^\n]*\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
MARKS = re.compile(r"test(: server)?|not run: .+")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SHELLS = {"sh", "bash", "shell", "console"}


class Block(NamedTuple):
    """A block of code, what its mark says, and the kind behind its fence."""

    mark: str
    kind: str
    body: str


def read_blocks(text: str) -> list[Block]:
    """Return every block of a page."""
    return [Block(fence["mark"] or "", fence["kind"], fence["body"]) for fence in FENCE.finditer(text)]


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
    """Return the help of a command, or of one of its own commands."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit, match="0"):
            main([command, *words, "--help"])
    return said.getvalue()


def find_missing(command: str, words: list[str], flags: list[str]) -> list[str]:
    """Return the flags of one use that its help does not list."""
    text = read_help(command)
    listed = [name for choices in re.findall(r"\{([a-z,-]+)\}", text) for name in choices.split(",")]
    listed += re.findall(r"^ {4}([a-z-]+)", text, re.MULTILINE)  # commands one to a line
    if words and words[0] in listed:
        text += read_help(command, words[0])
    return [flag for flag in flags if not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text)]


def run_shell(body: str) -> str:
    """Run a block; its lines that are a command of btr and nothing else are run here, where torch is imported.

    Not those of `btr ask`, which silences the process that it is run in.
    """
    said = ""
    lines = body.replace("\\\n", " ").splitlines(keepends=True)
    for plain, group in groupby(lines, key=lambda line: re.match(r"btr (?!ask)[^|<>&;$]*$", line) is not None):
        if not plain:
            call = ["bash", "-euo", "pipefail", "-c", "".join(group)]
            done = subprocess.run(call, capture_output=True, text=True)
            assert done.returncode == 0, f"{body}\n{done.stderr}"
            said += done.stdout
            continue
        for line in group:
            with warnings.catch_warnings():  # a command prints them
                warnings.simplefilter("ignore")
                assert main(shlex.split(line, comments=True)[1:]) == 0, line
    return said


def go_to(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in a folder with the sample corpus, where `btr` is found."""
    (folder / "corpus").symlink_to(ROOT / "corpus")
    patch.chdir(folder)
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


@contextlib.contextmanager
def serving(store: Path) -> Iterator[str]:
    """Serve a store, to be edited, from a thread; give the address."""
    dispatcher = Dispatcher(load(Settings(store=store, editable=True)), Keys.read(None))
    server = uvicorn.Server(make_config(dispatcher, create_app(dispatcher)))
    with bind("127.0.0.1", 0) as bound:
        bound.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if "<!-- test -->" in text])
def test_marked_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_to(tmp_path, monkeypatch)
    names: dict[str, Any] = {"__name__": page}
    said = io.StringIO()
    for mark, kind, body in read_blocks(TEXTS[page]):
        if mark == "output":
            assert said.getvalue() == body
        elif mark == "test" and kind == "python":
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile(body, page, "exec"), names)
        elif mark == "test":
            run_shell(body)


def test_blocks_for_a_server_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_to(tmp_path, monkeypatch)
    asked = [block.body for text in TEXTS.values() for block in read_blocks(text) if block.mark == "test: server"]
    assert asked and all(ADDRESS in body for body in asked)
    run_shell("btr precompute corpus --limit 12 --store corpus.btr\n")
    with serving(Path("corpus.btr")) as address:
        said = [run_shell(body.replace(ADDRESS, address)) for body in asked]
    assert [text for text in said if '"error"' in text or "{" not in text] == []


@pytest.mark.parametrize("page", TEXTS)
def test_every_block_of_code_says_whether_it_runs(page: str) -> None:
    code = [block for block in read_blocks(TEXTS[page]) if block.kind in {"python", *SHELLS}]
    assert [block.body for block in code if not MARKS.fullmatch(block.mark)] == []


def test_blocks_are_run_at_all() -> None:
    assert {"README.md", "quickstart.md"} <= {name for name, text in TEXTS.items() if "<!-- test -->" in text}


def test_commands_and_flags_exist() -> None:
    used = read_commands("\n".join(TEXTS.values()))
    assert used, "README.md names no command"
    assert sorted({command for command, _, _ in used} - set(COMMANDS)) == []
    assert {
        (command, *missing) for command, words, flags in used if (missing := find_missing(command, words, flags))
    } == set()


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    typed = [words for line in read_typed("\n".join(TEXTS.values())) for words in split_line(line)]
    assert {word for words in typed if words[:1] == ["make"] for word in words[1:] if "=" not in word} <= targets


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


def test_blocks_have_their_marks() -> None:
    assert [block for block in read_blocks(SAMPLE) if block.mark] == [("test", "python", "from btr import reader\n")]
    assert [block.kind for block in read_blocks(SAMPLE)] == ["text", "sh", "python"]


def test_flag_that_is_not_there_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    helps = {(): "usage: btr store {info,merge}", ("info",): "--json  --limit-all"}
    monkeypatch.setitem(globals(), "read_help", lambda command, *words: helps[words])
    assert find_missing("store", ["info"], ["--json", "--limit"]) == ["--limit"]
    assert find_missing("store", [], ["--json"]) == ["--json"]
