"""Documents of a folder: which are read, which passed over, in what order, and what cannot be read."""

import builtins
import gzip
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from btr.corpus import Passage, convert, read_passages
from btr.corpus.tally import Tally, complaints
from btr.errors import InputError

needs_markitdown = pytest.mark.skipif(
    importlib.util.find_spec("markitdown") is None, reason="needs pip install 'btr-reader[documents]'"
)


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(path: Path) -> tuple[list[tuple[str, str, str]], list[str], int]:
    tally = Tally()
    found = [(p.id, p.title, p.text) for p in read_passages(path, tally=tally)]
    return found, list(complaints(tally)), tally.empty


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert anew in every test, and by what is installed."""
    monkeypatch.setattr(convert, "_failed", {})
    convert._markitdown.cache_clear()


def test_folder_of_documents_is_read_in_the_order_of_paths(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "b.md": "# B\ntext b",
        "a/z.txt": "text z",
        "a.md": "text a",
        "a/deep/_index.MARKDOWN": "\ufefftext i\r\n",
        "c.rst": "Cats\n====\ntext c",
        "d.md.gz": gzip.compress(b"packed"),
        "e.txt": "wide".encode("utf-16"),
    }
    found, said, empty = read(write(tmp_path, files))
    assert found == [
        ("a/deep/_index.MARKDOWN", "_index.MARKDOWN", "text i"),
        ("a/z.txt", "z.txt", "text z"),
        ("a.md", "a.md", "text a"),
        ("b.md", "b.md > B", "text b"),
        ("c.rst", "c.rst > Cats", "text c"),
        ("d.md.gz", "d.md.gz", "packed"),
        ("e.txt", "e.txt", "wide"),
    ]
    assert (said, empty) == ([], 0)


def test_what_is_no_document_is_passed_over_and_counted(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "a.md": "a",
        "package.json": '{"name": "x",\n "id": 3}',
        "broken.json": "{nothing",
        "logo.png": b"\x89PNG\0",
        "Makefile": "all:",
        "run.py": "x = 1",
        ".hidden.md": "no",
        ".git/x.md": "no",
        "node_modules/y/README.md": "no",
        "env/pyvenv.cfg": "",
        "env/z.md": "no",
        "blank.md": " \n",
    }
    found, said, empty = read(write(tmp_path, files))
    assert [name for name, _, _ in found] == ["a.md"]
    assert said == ["5 files that are no documents were passed over (2 .json, 1 without a suffix, 1 .png, 1 .py)"]
    assert empty == 1


def test_records_beside_documents_are_read_too(tmp_path: Path) -> None:
    record = '{"id": "1", "title": "T", "text": "x"}\n'
    files: dict[str, str | bytes] = {"README.md": "about", "data/part.jsonl": record, "t.txt": "id\ttext\n2\ty\n"}
    found, said, _ = read(write(tmp_path, files))
    assert found == [("README.md", "README.md", "about"), ("1", "T", "x")]
    assert said == ["1 files that are no documents were passed over (1 .txt)"]
    write(tmp_path, {"data/part.jsonl": record + "{broken\n"})
    with pytest.raises(InputError, match=r"part.jsonl:2: not JSON"):
        read(tmp_path)


def test_what_cannot_be_read_is_named_and_ends_nothing(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "a.md": b"caf\xe9 au lait",
        "b.txt": b"\0\1\2",
        "c.md.gz": gzip.compress(b"x" * 99)[:20],
        "z.md": "z",
        "line\nbreak.md": "x",
    }
    write(tmp_path, files)
    (tmp_path / "gone.md").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    found, said, _ = read(tmp_path)
    assert [name for name, _, _ in found] == ["z.md"]
    assert said[0] == "not read: 'a.md': not UTF-8 (byte 0xe9: invalid continuation byte)"
    assert said[1] == "not read: 'b.txt': binary, no text"
    assert said[2].startswith("not read: 'c.md.gz': the compressed data is damaged")
    assert said[3].startswith("not read: 'gone.md': cannot be read (No such file or directory)")
    assert said[4].startswith("not read: 'line\\nbreak.md': its path cannot be an id")
    assert len(said) == 6


def test_many_faults_are_counted_beyond_the_first(tmp_path: Path) -> None:
    write(tmp_path, {f"{n:02}.md": b"\xff" for n in range(13)} | {"z.md": "z"})
    _, said, _ = read(tmp_path)
    assert len(said) == 11 and said[-1] == "and 3 more documents could not be read"


def test_document_named_alone_is_read_or_refused(tmp_path: Path) -> None:
    write(tmp_path, {"d/a.md": "# A\nx", "b.md": b"\xff", "c.md": ""})
    assert list(read_passages(tmp_path / "d" / "a.md")) == [Passage("a.md", "a.md > A", "x")]
    with pytest.raises(InputError, match=r"b.md: not UTF-8"):
        read(tmp_path / "b.md")
    with pytest.raises(InputError, match=r"no passage to read \(1 without text\)"):
        read(tmp_path / "c.md")


def test_text_may_be_a_table_or_json(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "id\ttext\n1\tx\n", "b.txt": '{"id": 2, "text": "y"}\n', "c.txt": "[draft] {x}"})
    assert list(read_passages(tmp_path / "a.txt")) == [Passage("1", "", "x")]
    assert list(read_passages(tmp_path / "b.txt")) == [Passage("2", "", "y")]
    assert list(read_passages(tmp_path / "c.txt")) == [Passage("c.txt", "c.txt", "[draft] {x}")]


def test_folder_where_nothing_can_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no passage to read \(0 without text; not read: 'a.md': not UTF-8"):
        read(write(tmp_path, {"a.md": b"\xff"}))


def test_document_that_is_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("btr.corpus.documents.LONGEST", 10)
    _, said, _ = read(write(tmp_path, {"a.md": "x" * 11, "b.md": "y"}))
    assert said == ["not read: 'a.md': more than 10 bytes"]


# What MarkItDown reads


def fake(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str | Exception]) -> list[str]:
    """Put a double in the place of MarkItDown; returns the names of what it converts."""
    asked: list[str] = []

    class MarkItDown:
        def __init__(self, **options: Any) -> None:
            assert options == {"enable_plugins": False}

        def convert_local(self, path: str) -> SimpleNamespace:
            asked.append(os.path.basename(path))
            answer = answers[asked[-1]]
            if isinstance(answer, Exception):
                raise answer
            return SimpleNamespace(text_content=answer)

    module = ModuleType("markitdown")
    module.MarkItDown = MarkItDown  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "markitdown", module)
    return asked


def test_converted_documents_are_divided_and_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = ValueError("File conversion failed:\n - PdfConverter threw PDFPasswordIncorrect with message:")
    damaged = ValueError("File conversion failed after 1 attempts:\n - DocxConverter threw BadZipFile with message: no")
    answers = {"a.pdf": "one\f\ntwo", "b.docx": "# H\ntext \ud800", "c.pdf": locked, "d.docx": damaged, "e.pdf": " "}
    asked = fake(monkeypatch, answers)
    write(tmp_path, dict.fromkeys(answers, b"x"))
    for _ in range(2):
        found, said, _ = read(tmp_path)
        assert found == [
            ("a.pdf:0", "a.pdf > page 1", "one"),
            ("a.pdf:1", "a.pdf > page 2", "two"),
            ("b.docx", "b.docx > H", "text ?"),
        ]
        assert said == [
            "not read: 'c.pdf': encrypted; save it without a password",
            "not read: 'd.docx': not to be converted (BadZipFile: no)",
            "not read: 'e.pdf': no text in it (scanned pages?)",
        ]
    assert asked == list(answers)
    (tmp_path / "a.pdf").write_bytes(b"xy")
    read(tmp_path)
    assert asked == [*answers, "a.pdf"]


def test_conversions_are_kept_where_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake(monkeypatch, {"a.pdf": "one"})
    write(tmp_path, {"in/a.pdf": b"x"})
    (tmp_path / "kept").mkdir()
    monkeypatch.setattr(convert, "_folder", None)
    convert.keep(tmp_path / "kept")
    read(tmp_path / "in")
    [kept] = (tmp_path / "kept").iterdir()
    assert kept.read_text() == "one" and asked == ["a.pdf"]


def test_without_markitdown_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "markitdown":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "markitdown", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    found, said, _ = read(write(tmp_path, {"a.html": "<p>x</p>", "b.md": "y"}))
    assert [name for name, _, _ in found] == ["b.md"]
    assert said == ["not read: 'a.html': needs pip install 'btr-reader[documents]'"]


@needs_markitdown
def test_html_is_converted(tmp_path: Path) -> None:
    page = "<html><body><script>x()</script><h1>Ferries</h1><p>The ferry <b>leaves</b> at 7.</p></body></html>"
    found, said, _ = read(write(tmp_path, {"ferry.html": page}))
    assert (found, said) == ([("ferry.html", "ferry.html > Ferries", "The ferry leaves at 7.")], [])


@needs_markitdown
def test_damaged_pdf_is_named(tmp_path: Path) -> None:
    _, said, _ = read(write(tmp_path, {"a.pdf": b"%PDF-1.4 nothing", "b.md": "y"}))
    assert len(said) == 1 and said[0].startswith("not read: 'a.pdf': ")
