"""Read documents, and find them in a folder: Markdown and plain text here, others by `convert`.

The id of a document is its path below the folder that was named, with slashes; of a file named alone, its name.
"""

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from btr.corpus.compressed import read_chunks
from btr.corpus.convert import CONVERTED, Unreadable, convert
from btr.corpus.records import LONGEST
from btr.errors import InputError
from btr.storage.format import new_key

Form = Literal["markdown", "rst", "plain", "pages"]

FORMS: dict[str, Form] = {
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mkd", ".mdx"), "markdown"),
    **dict.fromkeys((".txt", ".text", ".adoc", ".asciidoc", ".org"), "plain"),
    ".rst": "rst",
    ".pdf": "pages",
}
PACKED = (".gz", ".bz2", ".xz", ".zst")
RECORDS = (".jsonl", ".ndjson", ".json", ".tsv", ".csv", ".parquet", ".arrow")
# folders of what others made, which nobody asks about
PASSED = {"node_modules", "bower_components", "site-packages", "__pycache__", "venv", "_build", "_site"}
LAST = ":999999"  # what the ids of pieces have more than that of their document
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True, slots=True)
class Document:
    """A whole document: its id, the name of its file, its text, and how headings are told in it."""

    id: str
    name: str
    text: str
    form: Form


def suffix_of(path: str) -> str:
    """Return the last part of a file's name that says what it is, in lower case, whether it is packed or not."""
    name = PurePath(path.lower())
    return PurePath(name.stem).suffix if name.suffix in PACKED else name.suffix


def is_document(path: str) -> bool:
    """Tell by its name whether a file is a document; of `.txt`, which may be a table or JSON, by how it begins."""
    suffix = suffix_of(path)
    if suffix not in FORMS and suffix not in CONVERTED:
        return False
    return suffix not in (".txt", ".text") or not _holds_records(path)


def _holds_records(path: str) -> bool:
    try:
        head = next(read_chunks(path), b"").lstrip()[: 1 << 16]
    except InputError:
        return False
    line, _, _ = head.partition(b"\n")
    columns = line.rstrip(b"\r").split(b"\t")
    opened = head[:1] == b"[" and head[1:].lstrip()[:1] == b"{"
    named = head[:1] == b"{" and head[1:].lstrip()[:1] in (b'"', b"}")
    return opened or named or {b"id", b"text"} <= {column.strip(b'"') for column in columns}


def list_files(folder: str) -> list[str]:
    """Return all files below a folder, sorted by their paths, but what is hidden or was made by package managers."""
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and name not in PASSED and not _is_venv(place, name)]
        found += [os.path.join(place, file) for file in files if file[0] != "."]
    return sorted(found, key=lambda path: PurePath(path).parts)


def _is_venv(place: str, name: str) -> bool:
    return os.path.exists(os.path.join(place, name, "pyvenv.cfg"))


def read_document(path: str, folder: str | None = None) -> Document:
    """Read a document, of a folder or named alone.

    Raises:
        Unreadable: binary, not UTF-8, encrypted, damaged, too long, of a path that is no id, or without its reader.
    """
    name = os.path.relpath(path, folder) if folder is not None else os.path.basename(path)
    passage_id = PurePath(name).as_posix()
    try:
        new_key(passage_id + LAST)
    except Exception as error:  # names of files may hold any byte
        raise Unreadable("its path cannot be an id: over 500 bytes, not UTF-8, or with line breaks") from error
    suffix = suffix_of(path)
    text = convert(path) if suffix in CONVERTED else _decode(path)
    return Document(passage_id, PurePath(passage_id).name, text, FORMS.get(suffix, "markdown"))


def _decode(path: str) -> str:
    content = bytearray()
    try:
        for chunk in read_chunks(path):
            content += chunk
            if len(content) > LONGEST:
                raise Unreadable(f"more than {LONGEST:,} bytes")
    except InputError as error:
        raise Unreadable(str(error).removeprefix(f"{path}: ")) from error
    try:
        text = content.decode("utf-16" if content.startswith(UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"not UTF-8 (byte 0x{content[error.start]:02x}: {error.reason})") from error
    if "\0" in text:
        raise Unreadable("binary, no text")
    return text


def list_documents(name: str) -> Iterator[str]:
    """Yield the documents that a path names: itself, or those below it."""
    yield from filter(is_document, [name] if os.path.isfile(name) else list_files(name))
