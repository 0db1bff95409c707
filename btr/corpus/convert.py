"""Turn documents of other programs into Markdown, by MarkItDown: pip install 'btr-reader[documents]'.

What was converted is kept until the process ends, since a corpus is read more than once; or, if `keep` names a folder,
in that folder.
"""

import contextlib
import logging
import os
import re
import tempfile
import warnings
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

CONVERTED = (".html", ".htm", ".xhtml", ".pdf", ".docx", ".pptx", ".xlsx", ".xls", ".epub", ".ipynb", ".msg")
INSTALL = "pip install 'btr-reader[documents]'"
VERSION = 1  # of what is kept

_failed: dict[str, str] = {}
_folder: Path | None = None


class Unreadable(Exception):
    """Say why a document cannot be read, in a few words."""


def keep(folder: Path | None) -> None:
    """Keep from now on what is converted in a folder, which must exist; None: until the process ends."""
    global _folder
    _folder = folder


@cache
def _own_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="btr-documents-")


def convert(path: str) -> str:
    """Return a document as Markdown; the pages of a PDF are parted by form feeds.

    Raises:
        Unreadable: encrypted, damaged, without text, or MarkItDown is not installed.
    """
    try:
        state = os.stat(path)
    except OSError as error:
        raise Unreadable(str(error.strerror)) from error
    told = f"{VERSION}\0{os.path.realpath(path)}\0{state.st_size}\0{state.st_mtime_ns}"
    key = sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    kept = (_folder or Path(_own_folder().name)) / f"{key}.md"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return kept.read_bytes().decode()
    if key in _failed:
        raise Unreadable(_failed[key])
    try:
        text = _convert(path)
    except Unreadable as error:
        _failed[key] = str(error)
        raise
    part = kept.with_suffix(f".{os.getpid()}")
    part.write_bytes(text.encode())
    os.replace(part, kept)
    return text


def _convert(path: str) -> str:
    try:
        text = str(_markitdown().convert_local(path).text_content or "")
    except Unreadable:
        raise
    except Exception as error:  # as many kinds as there are formats and libraries for them
        raise Unreadable(_reason(error)) from error
    text = text.encode("utf-8", "replace").decode()  # half surrogates, which PDFs have
    if text.startswith(("%PDF-", "PK\x03\x04")):  # MarkItDown takes for text what it cannot read
        raise Unreadable("damaged, or not what its name says")
    if not text.strip():
        raise Unreadable("no text in it (scanned pages?)")
    return text


@cache
def _markitdown() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from markitdown import MarkItDown
    except ImportError as error:
        raise Unreadable(f"needs {INSTALL}") from error
    logging.getLogger("pdfminer").setLevel(logging.ERROR)
    return MarkItDown(enable_plugins=False)


def _reason(error: Exception) -> str:
    """Say in a few words what MarkItDown says in several lines."""
    said = " ".join(str(error).split())
    if re.search("password|encrypt", said, re.IGNORECASE):
        return "encrypted; save it without a password"
    if "dependencies needed to read" in said:
        return f"needs {INSTALL}"
    found = re.search(r"- \w+ threw (\w+) with message: ?(.*)", said)
    return f"not to be converted ({': '.join(filter(None, found.groups())) if found else said})"[:200]
