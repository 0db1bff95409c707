"""Read numbered records from a file: JSON lines, JSON objects, one JSON array, Parquet, Arrow, or lines of text.

The form is told from the content, never from the name. Everything streams: memory holds one chunk and one record,
whatever the size of the file, and a bad record stops nothing before it.
"""

import codecs
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from btr.corpus.compressed import read_chunks
from btr.errors import InputError, check_fetched

LONGEST = 1 << 26  # bytes of one record; SQuAD's training file, one object, has 30 MB
# The end of a line with the blank lines after it, or what stands in a line.
LINES = re.compile(rb"\n(?:[ \t\r]*+\n)*+|[^\n]+")
BLANK = re.compile(r"[ \t\n\r]*")  # the white space of JSON
ARROW_FILE, ARROW_STREAM = b"ARROW1", b"\xff\xff\xff\xff"  # how the two forms of IPC begin
TRUNCATED = 16  # characters: an error this near the end of the text may only mean that there is more to read

Line = tuple[str, str]  # `file:line` and the text of the line


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a file: `where` is `file:line`, `fields` its keys and values."""

    where: str
    fields: dict[str, Any]

    def fail(self, what: str, cure: str) -> NoReturn:
        """Raise InputError in the form `file:line: what; cure`."""
        raise InputError(f"{self.where}: {what}; {cure}")

    def get(self, name: str) -> Any:
        """Return a field; null and NaN, which is how pandas writes a missing value, are none."""
        value = self.fields.get(name)
        return None if value != value else value

    def text(self, name: str, default: str | None = None) -> str:
        """Return a field that holds text, or a number as text; a missing one is the default if there is one."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if value is None and name not in self.fields:
            self.fail(f"no field {name!r} (it has {', '.join(self.fields) or 'none'})", f"give every record {name!r}")
        if not isinstance(value, str):
            if (number := number_text(value)) is not None:
                return number
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
        """Return an id: text that is not blank, a number as text, or what MongoDB writes, {"$oid": text}."""
        value = self.get(name)
        text = Record(self.where, value).text("$oid") if isinstance(value, dict) else self.text(name)
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
        values = self.get(name) or []
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            self.fail(f"{name!r} is not a list of objects", f"write {name!r} as [{{...}}, ...]")
        return [Record(self.where, value) for value in values]


def number_text(value: object) -> str | None:
    """Write a number as text, whole ones without a point (pandas makes floats of ids); None for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object")


def open_records(path: str, from_lines: Callable[[Iterator[Line]], Iterator[Record]]) -> Iterator[Record]:
    """Open a file and return its records in order; `from_lines` makes them of the lines of a file that is not JSON.

    Raises (here or while iterating):
        InputError: unreadable, not UTF-8, or malformed JSON.
    """
    chunks, head, line = read_chunks(path), b"", 1
    while not head.strip() and (chunk := next(chunks, None)) is not None:
        line += head.count(b"\n")
        head = chunk
    check_fetched(path, head)
    if head.startswith(b"PAR1"):
        return _parquet(path)
    if head.startswith((ARROW_FILE, ARROW_STREAM)):
        return _arrow(path, head.startswith(ARROW_FILE))
    whole = itertools.chain((head,), chunks)
    first, ended, _ = head.lstrip().partition(b"\n")
    if first.startswith(b"{"):
        if ended and _goes_on(first):
            return _Stream(path, _decode(whole, path, line), line).objects()
        return _object_lines(_lines(whole, path, line))
    # A tab-separated question may begin with a bracket too.
    if first.startswith(b"[") and b"\t" not in first:
        return _Stream(path, _decode(whole, path, line), line).array()
    return from_lines(_lines(whole, path, line))


def _goes_on(line: bytes) -> bool:
    """Tell whether a line begins a JSON object that goes on in the next: nothing is wrong but that it ends."""
    text = line.decode("utf-8", "replace").rstrip()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except (ValueError, RecursionError):
        return False
    return False


def _parquet(path: str) -> Iterator[Record]:
    from pyarrow import ArrowException, parquet

    try:
        batches = parquet.ParquetFile(path).iter_batches(1024)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, row in enumerate(rows, 1):
            yield Record(f"{path}:{number}", row)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet ({error}); fetch it again") from error


def _arrow(path: str, is_file: bool) -> Iterator[Record]:
    from pyarrow import ArrowException, ipc, memory_map

    try:
        with memory_map(path) as mapped:
            if is_file:
                opened = ipc.open_file(mapped)
                batches = (opened.get_batch(n) for n in range(opened.num_record_batches))
            else:
                batches = iter(ipc.open_stream(mapped))
            for number, row in enumerate(itertools.chain.from_iterable(batch.to_pylist() for batch in batches), 1):
                yield Record(f"{path}:{number}", row)
    except (ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Arrow ({error}); fetch it again") from error


def _lines(chunks: Iterable[bytes], path: str, first: int) -> Iterator[Line]:
    """Yield `file:line` and the text of every line that is not blank; the first has the number `first`."""
    for number, raw in _split(chunks, path, first):
        where = f"{path}:{number}"
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(where, error) from error
        if not text.isspace():
            yield where, text.removesuffix("\r")


def _split(chunks: Iterable[bytes], path: str, number: int) -> Iterator[tuple[int, bytes]]:
    # At \n alone: str.splitlines would also cut at characters that a JSON string may hold, such as U+2028.
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        for match in LINES.finditer(chunk):
            piece = match[0]
            if not piece.startswith(b"\n"):
                parts.append(piece)
                size += len(piece)
                _check_length(size, path, number)
                continue
            if parts:
                yield number, b"".join(parts)
            parts, size = [], 0
            number += piece.count(b"\n")
    if parts:
        yield number, b"".join(parts)


def _check_length(size: int, path: str, line: int) -> None:
    if size > LONGEST:
        cure = "write one object, or one row, on each line"
        raise InputError(f"{path}:{line}: a record of more than {LONGEST:,} bytes; {cure}")


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


def _decode(chunks: Iterable[bytes], path: str, line: int) -> Iterator[str]:
    """Yield the text of the chunks, which begin at a line; what comes before a bad byte is still yielded."""
    decoder = codecs.getincrementaldecoder("utf-8")()
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


class _Stream:
    """Read JSON objects one by one, of an array or one after the other, holding one object and one chunk."""

    def __init__(self, path: str, pieces: Iterator[str], line: int) -> None:
        self.path, self.pieces = path, pieces
        self.buffer, self.start, self.line = "", 0, line
        self.decoder = json.JSONDecoder()

    def objects(self) -> Iterator[Record]:
        """Yield objects that follow each other, each at the line where it begins."""
        while self.peek():
            yield self.element()

    def array(self) -> Iterator[Record]:
        """Yield the elements of an array, each at the line where it begins."""
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
        _check_length(len(unread), self.path, self.line)
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
