"""Every command of btr in the README and the documentation can be typed as it stands.

Each line of their shell blocks is read by the command's own parser: options, values, and what must not be missing.
Those that are quick on little data are then run, page by page and in order, in a folder with the sample corpus cut
short, tiny models, and small files by the names that the pages use. A line whose files are not there (another
machine's, or made by a line that takes hours) is passed over.
"""

import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from itertools import islice, pairwise
from pathlib import Path
from string import Template
from typing import Any

import pytest
import zstandard

from btr.__main__ import main
from btr.command import Parser
from btr.reader import loading

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?:sh|bash|shell|console)[^\n]*\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"([A-Z_]+)=(?:\"([^\"]*)\"|(\S+))\s*")
QUICK = {"precompute", "store", "retrieve", "eval", "serve", "train neighbours"}  # on little data
ELSEWHERE = {"--workers", "--engine"}  # other processes, other machines
MADE = {"--out", "--plot", "--store"}  # what an option's file is made by; --store by precompute alone
FILE = re.compile(r"[\w-]+(/[\w.-]+)+|[\w./-]+\.(jsonl|zst|btr|txt|toml)")
FEW = 12  # passages and questions


class Parsed(Exception):
    """A command line that was read."""


def read_lines(text: str) -> Iterator[list[str]]:
    """Yield the words after `btr` of every command in the shell blocks, with the shell's variables filled in."""
    for fence in FENCE.finditer(text):
        given: dict[str, str] = {}
        for line in fence["body"].replace("\\\n", " ").splitlines():
            line = Template(line.removeprefix("$ ")).safe_substitute(given)
            while setting := SETTING.match(line):
                given[setting[1]], line = setting[2] or setting[3], line[setting.end() :]
            words = re.sub(r"^python3? -m btr\.", "btr ", line)
            if words.startswith("btr ") and not words.startswith("btr -"):
                yield shlex.split(words, comments=True)[1:]


def parse(words: list[str]) -> str:
    """Let a command read its words, and do nothing; returns what it says against them."""
    said = io.StringIO()

    def stopping(read: Any) -> Any:
        def stop(parser: Parser, *given: Any) -> Any:
            found = read(parser, *given)
            if "btr" in parser.prog:
                raise Parsed
            return found  # a parser within

        return stop

    with pytest.MonkeyPatch.context() as patch, redirect_stderr(said):
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(Parser, name, stopping(getattr(Parser, name)))
        try:
            main(words)
        except (Parsed, SystemExit):
            return said.getvalue()
    return said.getvalue() or "it was not read"


def is_quick(words: list[str]) -> bool:
    """Tell whether a command can be run here: it takes no hours, and the files that it reads are there."""
    if not {words[0], " ".join(words[:2])} & QUICK or ELSEWHERE & set(words):
        return False
    made = MADE if words[0] == "precompute" else MADE - {"--store"}
    read = [word for before, word in pairwise(words) if before not in made]
    return all(Path(word).exists() for word in read if FILE.fullmatch(word))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.fixture
def desk(tmp_path: Path, bert_folder: Path, pruning_reader: Any, encoder_folder: Path, monkeypatch: Any) -> Path:
    """A folder with what the pages speak of, small; the shipped reader is a tiny one."""
    for name in ("passages", "questions"):
        with (ROOT / "corpus" / f"{name}.jsonl").open(encoding="utf-8") as lines:
            write(tmp_path / "corpus" / f"{name}.jsonl", "".join(islice(lines, FEW)))
    passages = (tmp_path / "corpus" / "passages.jsonl").read_text(encoding="utf-8")
    asked = [json.loads(line) for line in (tmp_path / "corpus" / "questions.jsonl").read_text("utf-8").splitlines()]
    rows = [{"question": one["question"], "answers": one["answers"], "ctxs": []} for one in asked]
    write(tmp_path / "my-passages.jsonl", passages)
    (tmp_path / "articles.jsonl.zst").write_bytes(zstandard.compress(passages.encode()))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("train-questions.jsonl", "train.jsonl", "squad/dev.jsonl", "nq/dev.jsonl", "triviaqa/dev.jsonl"):
        write(tmp_path / name, text)
    write(tmp_path / "notes" / "lighthouse.md", "# Lighthouse\n\nIt was built in 1847.\n")
    write(tmp_path / "keys.txt", "a-key-of-some-length\n")
    write(tmp_path / "serve.toml", "max_passages = 40\n")
    for name in ("shipped", "teacher", "base"):
        pruning_reader.save_pretrained(tmp_path / name)
    shutil.copytree(encoder_folder, tmp_path / "sentence-transformers" / "all-MiniLM-L6-v2")
    monkeypatch.setattr(loading, "DEFAULT_READER", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: list[str]) -> str:
    """Run a command; returns what it says if it fails. A server only looks at its settings and leaves."""
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        code = main([*words, *(["--dry-run"] if words[0] == "serve" else [])])
    return said.getvalue() if code else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_read_by_their_parsers(page: Path) -> None:
    lines = list(read_lines(page.read_text(encoding="utf-8")))
    assert {" ".join(words): said for words in lines if (said := parse(words))} == {}


def test_quick_commands_run_in_their_order(desk: Path) -> None:
    done = set()
    for page in PAGES:
        folder = desk / "pages" / page.stem
        shutil.copytree(desk, folder, ignore=shutil.ignore_patterns("pages"))
        os.chdir(folder)
        for words in read_lines(page.read_text(encoding="utf-8")):
            if is_quick(words):
                assert (said := run(words)) == "", f"{page.name}: {' '.join(words)}\n{said}"
                done.add(" ".join(words[: 2 if words[0] in ("store", "retrieve", "train") else 1]))
    assert done >= {"precompute", "store info", "store verify", "retrieve search", "serve", "eval", "train neighbours"}


def test_python_that_is_typed_finds_what_it_imports() -> None:
    code = [
        source
        for page in PAGES
        for fence in FENCE.finditer(page.read_text(encoding="utf-8"))
        for source in re.findall(r"^python3? -c '([^']+)'", fence["body"], re.MULTILINE)
    ]
    for imports in re.findall(r"from btr[\w.]* import \w+", "\n".join(code)):
        exec(imports, {})


TEXT = """
```sh
Q="--limit 3 --no-text"
$ BTR_X=1 python -m btr.precompute corpus $Q \\
    --store 'my s.btr'    # --not-this
btr --version
make serve
```

```python
btr x
```
"""


def test_lines_of_a_text_are_found() -> None:
    assert list(read_lines(TEXT)) == [["precompute", "corpus", "--limit", "3", "--no-text", "--store", "my s.btr"]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("precompute corpus", ""),
        ("precompute", "required: CORPUS"),
        ("precompute corpus --limit many", "invalid int value"),
        ("precompute corpus --new", "unrecognized arguments: --new"),
        ("store info", "required: STORE"),
        ("train joint --out a --matrices newton", "invalid choice"),
        ("train all --out a --config default", ""),
        ("train joint --out a --config nowhere", "nowhere"),
        ("serve s.btr --port 0", ""),
    ],
)
def test_mistake_in_a_line_is_seen(line: str, said: str) -> None:
    found = parse(line.split())
    assert said in found if said else found == ""


def test_line_without_its_files_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", "")
    assert is_quick(["precompute", "a.jsonl", "--store", "new.btr"]) and not is_quick(["precompute", "b.jsonl"])
    assert not is_quick(["store", "info", "new.btr"]) and not is_quick(["eval", "a.jsonl", "--store", "new.btr"])
    assert not is_quick(["bench", "--runs", "1"]) and not is_quick(["precompute", "a.jsonl", "--workers", "8"])
