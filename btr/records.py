"""Read numbered records from a file: JSON lines, one JSON array, or lines of text; plain, gzip, xz or zstd.

Both the compression and the form are told from the content, never from the name. Everything streams: memory holds one
chunk and one record, whatever the size of the file, and a bad record stops nothing before it.
"""

import codecs
import gzip
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import zstandard

from btr.errors import InputError, check_fetched

CHUNK = 1 << 20  # bytes asked of a plain file or a decompressor at a time
ZSTD_CHUNK = 1 << 13  # compressed bytes at a time: repetitive data grows ten thousandfold
ZSTD_WINDOW = 1 << 31  # bytes, the largest window the format allows (`zstd --long=31`)
BLANK = re.compile(r"[ \t\n\r]*")  # the white space of JSON
TRUNCATED = 16  # characters: an error this near the end of the text may only mean that there is more to read

Line = tuple[str, str]  # `file:line` and the text of the line

_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError)


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a file: `where` is `file:line`, `fields` its keys and values."""

    where: str
    fields: dict[str, Any]

    def fail(self, what: str, cure: str) -> NoReturn:
        """Raise InputError in the form `file:line: what; cure`."""
        raise InputError(f"{self.where}: {what}; {cure}")

    def text(self, name: str, default: str | None = None) -> str:
        """Return a field that holds text; a missing one, or null, is the default if there is one."""
        value = self.fields.get(name, default)
        if value is None and default is not None:
            return default
        if value is None and name not in self.fields:
            self.fail(f"no field {name!r} (it has {', '.join(self.fields) or 'none'})", f"give every record {name!r}")
        if not isinstance(value, str):
            self.fail(f"{name!r} is {_kind(value)}, not text", f"write {name!r} as a string")
        return self.whole(name, value)

    def whole(self, name: str, value: str) -> str:
        """Return text that UTF-8 can write; half of a surrogate pair (an escape such as \\ud800 alone) is refused."""
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(value[error.start]):04x}"
                self.fail(f"{name!r} holds {half}, half of a character", "write the character whole, in UTF-8")
        return value

    def identifier(self, name: str) -> str:
        """Return an id: text that is not blank, or an integer as text."""
        value = self.fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        text = self.text(name)
        if not text.strip():
            self.fail(f"{name!r} is blank", "give every record an id of its own")
        return text

    def flag(self, name: str) -> bool:
        """Return a field that holds true or false; a missing one is false."""
        value = self.fields.get(name, False)
        if not isinstance(value, bool):
            self.fail(f"{name!r} is {_kind(value)}, not a boolean", f"write {name!r} as true or false")
        return value

    def objects(self, name: str) -> "list[Record]":
        """Return a field that holds a list of objects, as records of the same place; a missing one is empty."""
        values = self.fields.get(name) or []
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            self.fail(f"{name!r} is not a list of objects", f"write {name!r} as [{{...}}, ...]")
        return [Record(self.where, value) for value in values]


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object")


def read_chunks(path: str) -> Iterator[bytes]:
    """Yield the content of a file as bytes, decompressed, without a byte order mark.

    Raises:
        InputError: the file cannot be read, or its compressed data is damaged or cut short.
    """
    try:
        chunks = _decompress(path)
        yield next(chunks, b"").removeprefix(codecs.BOM_UTF8)
        yield from chunks
    except _DAMAGED as error:
        cure = "fetch it again, or compress it again"
        raise InputError(f"{path}: the compressed data is damaged or cut short ({error}); {cure}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the name and rights") from error


def _decompress(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        head = file.peek(6)
        if head.startswith(b"(\xb5/\xfd"):
            yield from _decompress_zstd(file)
            return
        unpack: Callable[[BinaryIO], AbstractContextManager[BinaryIO | gzip.GzipFile | lzma.LZMAFile]] = nullcontext
        if head.startswith(b"\x1f\x8b"):
            unpack = gzip.open
        elif head.startswith(b"\xfd7zXZ\x00"):
            unpack = lzma.open
        with unpack(file) as stream:
            while chunk := stream.read(CHUNK):
                yield chunk


def _decompress_zstd(file: BinaryIO) -> Iterator[bytes]:
    # Not stream_reader: it takes a file cut short for one that has ended.
    frame = None
    while packed := file.read(ZSTD_CHUNK):
        while packed:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
            if chunk := frame.decompress(packed):
                yield chunk
            packed = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame has no end")


def open_records(path: str, from_lines: Callable[[Iterator[Line]], Iterator[Record]]) -> Iterator[Record]:
    """Open a file and return its records in order; `from_lines` makes them of the lines of a file that is not JSON.

    Raises (here or while iterating):
        InputError: unreadable, not UTF-8, or malformed JSON.
    """
    chunks, head = read_chunks(path), b""
    while not head.strip() and (chunk := next(chunks, None)) is not None:
        head += chunk
    check_fetched(path, head)
    whole = itertools.chain((head,), chunks)
    start = head.lstrip()
    if start.startswith(b"{"):
        return _object_lines(_lines(whole, path))
    # A tab-separated question may begin with a bracket too.
    if start.startswith(b"[") and b"\t" not in start.partition(b"\n")[0]:
        return _Array(path, _decode(whole, path)).elements()
    return from_lines(_lines(whole, path))


def _lines(chunks: Iterable[bytes], path: str) -> Iterator[Line]:
    """Yield `file:line` and the text of every line that is not blank."""
    for number, raw in enumerate(_split(chunks), 1):
        where = f"{path}:{number}"
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(where, error) from error
        if text and not text.isspace():
            yield where, text.removesuffix("\r")


def _split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # At \n alone: str.splitlines would also cut at characters that a JSON string may hold, such as U+2028.
    parts: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        parts.append(first)
        for other in others:
            yield b"".join(parts)
            parts = [other]
    yield b"".join(parts)


def _not_utf8(where: str, error: UnicodeDecodeError) -> InputError:
    byte = error.object[error.start]
    return InputError(f"{where}: not UTF-8 (byte 0x{byte:02x}: {error.reason}); convert the file to UTF-8")


def _object_lines(lines: Iterable[Line]) -> Iterator[Record]:
    for where, text in lines:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error}); write one object on each line") from error
        yield _record(where, value)


def _record(where: str, value: object) -> Record:
    if not isinstance(value, dict):
        raise InputError(f"{where}: {_kind(value)} in place of an object; write records as {{...}}")
    return Record(where, value)


def _decode(chunks: Iterable[bytes], path: str) -> Iterator[str]:
    """Yield the text of the chunks; what comes before a bad byte is still yielded."""
    decoder, line = codecs.getincrementaldecoder("utf-8")(), 1
    for chunk in chunks:
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            yield (good := error.object[: error.start].decode("utf-8"))
            raise _not_utf8(f"{path}:{line + good.count(chr(10))}", error) from error
        line += text.count("\n")
        yield text
    if decoder.getstate()[0]:
        raise InputError(f"{path}:{line}: not UTF-8 (it ends inside a character); fetch the file again")


class _Array:
    """Read one JSON array element by element, holding one element and one chunk."""

    def __init__(self, path: str, pieces: Iterator[str]) -> None:
        self.path, self.pieces = path, pieces
        self.buffer, self.start, self.line = "", 0, 1
        self.decoder = json.JSONDecoder()

    def elements(self) -> Iterator[Record]:
        """Yield the elements, each at the line where it begins."""
        self.take("[")
        if self.peek() != "]":
            yield self.element()
            while self.peek() == ",":
                self.take(",")
                yield self.element()
        self.take("]")

    def more(self) -> bool:
        """Read on until the unread text has doubled, so that a long element is tried few times; False at the end."""
        unread = self.buffer[self.start :]
        added, wanted = [], max(1, len(unread))
        while wanted > 0 and (piece := next(self.pieces, None)) is not None:
            added.append(piece)
            wanted -= len(piece)
        self.buffer, self.start = "".join((unread, *added)), 0
        return bool(added)

    def move(self, end: int) -> None:
        """Go on to a position of the buffer, counting lines."""
        self.line += self.buffer.count("\n", self.start, end)
        self.start = end

    def peek(self) -> str:
        """Return the next character that is not white space, or "" at the end of the file."""
        while True:
            self.move(BLANK.match(self.buffer, self.start).end())  # type: ignore[union-attr]  # it matches ""
            if self.start < len(self.buffer) or not self.more():
                return self.buffer[self.start : self.start + 1]

    def take(self, character: str) -> None:
        """Go past a character that has to come next."""
        if self.peek() != character:
            found = repr(self.peek()) if self.peek() else "the end of the file"
            self.fail(f"expected {character!r}, found {found}", self.line)
        self.move(self.start + 1)

    def element(self) -> Record:
        """Read one object."""
        self.peek()
        line = self.line
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.start)
                break
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(self.buffer) - TRUNCATED
                if not (unfinished and self.more()):
                    self.fail(error.msg, line + self.buffer.count("\n", self.start, error.pos))
            except (ValueError, RecursionError) as error:
                self.fail(str(error), line)
        self.move(end)
        return _record(f"{self.path}:{line}", value)

    def fail(self, what: str, line: int) -> NoReturn:
        """Raise InputError at a line."""
        raise InputError(
            f"{self.path}:{line}: not JSON ({what}); write the file as [{{...}}, ...] or one object a line"
        )
