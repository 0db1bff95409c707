"""The documentation is true to the code: the table of settings, the errors that it quotes, where its links lead."""

import ast
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
ROOMS = ("btr", "storage", "train")
HOLE = "…"
LINK = re.compile(r"\[[^\]]*\]\((?!https?://|mailto:)<?([^)\s>]+)>?\)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def read(page: Path) -> str:
    """Return the text of a page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def slug(heading: str) -> str:
    """Name a heading as MkDocs and GitHub do."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(page: Path) -> set[str]:
    """Return what a page can be entered at."""
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)}


def find_dead(page: Path) -> list[str]:
    """Return the links of a page that lead to no file, or to no heading of one."""
    dead = []
    for link in LINK.findall(read(page)):
        name, _, anchor = link.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    assert find_dead(page) == []


def test_dead_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# One, `two`\n[a](#one-two) [b](#three) [c](a.md) [d](b.md) [e](a.md#one-two) [f](https://x.org)\n"
    )
    assert find_dead(page) == ["#three", "b.md"]


def test_every_page_is_in_the_menu() -> None:
    menu = re.findall(r"^ +- (?:\w+: )?([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(menu) == sorted(page.name for page in DOCS.glob("*.md"))


def test_table_of_settings_is_current() -> None:
    spec = importlib.util.spec_from_file_location("settings_table", DOCS / "settings_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (DOCS / "serve.md").read_text(encoding="utf-8")
    assert "| `--keys-file` |" in text and "| `--editable` | `false` |" in text
    assert module.fill(text) == text, "docs/serve.md is behind; run: python docs/settings_table.py"
    assert module.fill(text.replace("| `--keys-file` |", "| `--old` |")) == text


@pytest.mark.parametrize("room", ["btr", "btr.reader", "btr.corpus", "btr.storage", "btr.kernels", "btr.serve"])
def test_public_names_are_in_the_reference(room: str) -> None:
    listed = re.findall(r"^::: (.+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    found = [pkgutil.resolve_name(name) for name in listed]  # a module stands for all that it defines
    module = importlib.import_module(room)
    public = {name: getattr(module, name) for name in module.__all__ if name != "main"}
    defined = {name: what for name, what in public.items() if isinstance(what, type | FunctionType)}
    assert defined
    assert [name for name, what in defined.items() if what not in found and what.__module__ not in listed] == []


def read_literals(source: str) -> Iterator[str]:
    """Yield every text that stands in Python code, with a hole in place of what is put in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)


@cache
def literals() -> str:
    """Return the texts of all rooms, a line each."""
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    found = (text for file in files for text in read_literals(file.read_text(encoding="utf-8")))
    return "\n".join(text.replace("\n", " ") for text in found)


def quoted(text: str) -> list[str]:
    """Return the messages and codes that the first column of the tables quotes, but the exit codes."""
    rows = re.findall(r"^\| (`.+?) \|", text, re.MULTILINE)
    return [span for row in rows for span in re.findall(r"`([^`]+)`", row)]


def is_said(message: str, texts: str) -> bool:
    """Tell whether one of the texts, a line each, has the parts of a message in their order, from its beginning on."""
    parts = [re.escape(part) for part in message.rstrip(HOLE + " ").split(HOLE)]
    return re.search("^" + ".*?".join(parts), texts, re.MULTILINE) is not None


def test_errors_quoted_are_in_the_code() -> None:
    found = quoted((DOCS / "errors.md").read_text(encoding="utf-8"))
    assert len(found) > 60
    assert [message for message in found if not is_said(message, literals())] == []


def test_error_that_is_not_there_is_seen() -> None:
    source = 'raise E(f"store {a} has format {b}, this" f" reads up to {c}")'
    texts = "\n".join(read_literals(source))
    assert is_said("store … has format …, this reads", texts) and is_said("store …", texts)
    assert not is_said("has format …", texts)
    assert not is_said("store … has … formats", texts)
