"""Records: compression, lines and arrays, UTF-8, places in error messages, streaming."""

import bz2
import gzip
import json
import lzma
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from btr.corpus import compressed as packed
from btr.corpus import records
from btr.corpus.records import Line, Record, open_records
from btr.errors import InputError

PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress}


def as_lines(lines: Iterator[Line]) -> Iterator[Record]:
    return (Record(where, {"line": text}) for where, text in lines)


def read(path: Path) -> list[tuple[str, object]]:
    return [(record.where.removeprefix(f"{path}:"), record.fields) for record in open_records(str(path), as_lines)]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK.keys())
def test_records_packed_equal_plain(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    content = "".join(json.dumps({"n": n, "é": "\u2028" * n}, ensure_ascii=False) + "\n" for n in range(99)).encode()
    plain = read(write(tmp_path / "file", content))
    assert [fields["n"] for _, fields in plain] == list(range(99))
    # The name says nothing, the content all; several members or frames are one stream.
    assert read(write(tmp_path / "file", pack(content))) == plain
    assert read(write(tmp_path / "file", pack(content[:500]) + pack(content[500:]))) == plain


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK.keys())
def test_records_cut_short_are_refused(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(b'{"a": 1}\n' * 1000)
    with pytest.raises(InputError, match=r"file: the compressed data is damaged or cut short .*; fetch it again"):
        read(write(tmp_path / "file", packed[:-5]))


@pytest.mark.parametrize("name", ["xz", "zst"])
def test_records_damage_is_refused(tmp_path: Path, name: str) -> None:
    packed = bytearray(PACK[name](bytes(range(256)) * 9))
    packed[len(packed) // 2] ^= 0xFF
    packed[8] ^= 0xFF
    with pytest.raises(InputError, match="damaged or cut short"):
        read(write(tmp_path / "file", bytes(packed)))


def test_records_of_a_pointer_of_git_lfs_are_refused(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    with pytest.raises(InputError, match=r"file: a Git LFS pointer, .*; fetch it with: git lfs pull"):
        read(write(tmp_path / "file", pointer))


def test_records_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: cannot be read \(No such file"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
def test_records_do_not_depend_on_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(packed, "CHUNK", chunk)
    values = [{"k": 'a "quoted" \\ é€😀 line\n', "v": [1, {"w": None}]}, {}, {"n": -1.5e3, "t": [True, "]}"]}]
    for text in (json.dumps(values), json.dumps(values, indent=2, ensure_ascii=False), "[]", " [ ] "):
        expected = json.loads(text)
        assert [fields for _, fields in read(write(tmp_path / "array", text))] == expected
    lines = "\n\r\n" + "\r\n".join(json.dumps(value, ensure_ascii=False) for value in values)
    assert read(write(tmp_path / "lines", lines)) == [(str(n), value) for n, value in enumerate(values, 3)]
    assert read(write(tmp_path / "text", "é\tb\n\n c \r\n")) == [("1", {"line": "é\tb"}), ("3", {"line": " c "})]


def test_records_array_gives_lines(tmp_path: Path) -> None:
    text = '[\n  {"a": 1},\n  {"b":\n 2}\n,{"c": "d"} ]\n'
    assert [where for where, _ in read(write(tmp_path / "array", text))] == ["2", "3", "5"]


def test_records_byte_order_mark_goes(tmp_path: Path) -> None:
    assert read(write(tmp_path / "file", b'\xef\xbb\xbf{"a": "\xef\xbb\xbfb"}')) == [("1", {"a": "\ufeffb"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": "\xff"}\n', r"file:2: not UTF-8 \(byte 0xff.*; convert"),
        (b'{"a": 1}\n\n{"a": 1\n', r"file:3: not JSON .*; write one object on each line"),
        (b'{"a": 1}\n[1]\n', r"file:2: a list in place of an object; "),
        (b'{"a": 1}\nnull\n', r"file:2: null in place of an object; "),
        (b'{"a": ' + b"[" * 100_000 + b"\n", r"file:1: not JSON \("),
        (b'[{"a": 1},\n{"a" 2}]', r"file:2: not JSON \(Expecting ':' delimiter\); "),
        (b'[{"a": 1}\n{"a": 2}]', r"file:2: not JSON \(expected '\]', found '\{'\); "),
        (b'[{"a": 1},\n\n', r"file:3: not JSON \(Expecting value\); "),
        (b'[{"a": 1},\n{"a": "b', r"file:2: not JSON \(Unterminated string starting at\); "),
        (b'[{"a": 1}\n', r"file:2: not JSON \(expected '\]', found the end of the file\); "),
        (b'[\n{"a": 1},\n7]', r"file:3: a number in place of an object; "),
        (b'[{"a": "b"},\n{"a": "\xe9"}]', r"file:2: not UTF-8 \(byte 0xe9"),
        (b'[{"a": "b"},\n{"a": "\xc3', r"file:2: not UTF-8 \(it ends inside a character\); "),
    ],
)
def test_records_malformed(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(str(tmp_path)) + "/" + message):
        read(write(tmp_path / "file", content))


@pytest.mark.parametrize(("begin", "between", "chunk"), [(b"", b"\n", 1 << 20), (b"[", b",\n", 512)])
def test_records_before_a_bad_one_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: bytes, between: bytes, chunk: int
) -> None:
    monkeypatch.setattr(packed, "CHUNK", chunk)
    good = between.join(b'{"n": %d}' % n for n in range(999))
    path = write(tmp_path / "file", begin + good + between + b'{"n": "\xff"}' + between + b"{}")
    stream = open_records(str(path), as_lines)
    assert [next(stream).fields["n"] for _ in range(999)] == list(range(999))
    with pytest.raises(InputError, match="file:1000: not UTF-8"):
        next(stream)


@pytest.mark.parametrize("form", ["lines", "array", "zst"])
def test_records_hold_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(packed, "CHUNK", 1 << 16)
    rows = [json.dumps({"n": n, "text": str(n**40)}) for n in range(30_000)]
    content = (f"[{', '.join(rows)}]" if form == "array" else "\n".join(rows)).encode()
    assert len(content) > 5_000_000
    write(tmp_path / "file", PACK["zst"](content) if form == "zst" else content)
    del rows, content
    tracemalloc.start()
    count = sum(1 for _ in open_records(str(tmp_path / "file"), as_lines))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_000
    assert peak < 1_500_000  # bytes


def test_records_fields_name_the_fault() -> None:
    record = Record("file:7", {"n": 3, "none": None, "flag": True, "half": "x\ud83dy", "blank": " ", "list": [{}, 1]})
    faults = {
        r"no field 'text' \(it has n, none, .*\); give every record 'text'": lambda: record.text("text"),
        "'none' is null, not text; ": lambda: record.text("none"),
        r"'half' holds \\ud83d, half of a character; ": lambda: record.text("half"),
        "'flag' is a boolean, not text; ": lambda: record.identifier("flag"),
        "'blank' is blank; ": lambda: record.identifier("blank"),
        "'n' is a number, not a boolean; ": lambda: record.flag("n"),
        "'list' is not a list of objects; ": lambda: record.objects("list"),
    }
    for message, act in faults.items():
        with pytest.raises(InputError, match=f"^file:7: {message}"):
            act()
    assert record.identifier("n") == record.text("n") == "3"
    assert record.text("none", "") == record.text("absent", "") == ""
    assert record.objects("absent") == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (3.0, "3"), (1984.5, "1984.5"), (10**18, str(10**18)), ({"$oid": "5f"}, "5f")],
)
def test_numbers_and_what_mongodb_writes_are_ids(value: object, text: str) -> None:
    assert Record("file:1", {"id": value}).identifier("id") == text


def test_nan_is_missing() -> None:
    record = Record("file:1", {"title": float("nan")})
    assert record.text("title", "") == "" and record.get("title") is None


def test_objects_over_several_lines_are_read_where_they_begin(tmp_path: Path) -> None:
    values = [{"a": 1, "b": {"c": "x\ny"}}, {"d": []}]
    text = "\n\n" + "\n".join(json.dumps(value, indent=1) for value in values)
    assert read(write(tmp_path / "file", text)) == [("3", values[0]), ("9", values[1])]
    with pytest.raises(InputError, match="file:2: not JSON"):
        read(write(tmp_path / "file", '{\n "a" 1}\n'))


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0size"


@pytest.mark.parametrize(
    "pack",
    [
        lambda data: SKIPPABLE + PACK["zst"](data) + SKIPPABLE,
        lambda data: PACK["zst"](data[:9]) + SKIPPABLE + PACK["zst"](data[9:]),
        lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]) + b"\r\n",
        lambda data: gzip.compress(data) + bytes(512),
        lambda data: bz2.compress(data[:9]) + bz2.compress(data[9:]),
    ],
)
def test_files_of_several_parts_and_with_a_tail(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    assert read(write(tmp_path / "file", pack(b'{"a": 1}\n{"a": 2}\n'))) == [("1", {"a": 1}), ("2", {"a": 2})]


def test_parquet(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    rows = [{"id": n, "text": None if n == 1 else f"text {n}"} for n in range(3)]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "file")
    assert read(tmp_path / "file") == [(str(n), row) for n, row in enumerate(rows, 1)]
    with pytest.raises(InputError, match="file: not readable as Parquet"):
        read(write(tmp_path / "file", b"PAR1 and no more"))


@pytest.mark.parametrize("pack", ["gz", "zst"])
@pytest.mark.parametrize("blank", [b"\n", b"  \r\n"])
def test_blanks_that_unpack_to_much_take_no_memory(tmp_path: Path, pack: str, blank: bytes) -> None:
    """Pack 64 MB of blanks; what follows is read, with its line."""
    times = (64 << 20) // len(blank)
    path = write(tmp_path / "file", PACK[pack](blank * times + b'{"a": 1}\n' + blank * times))
    tracemalloc.start()
    found = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(str(1 + blank.count(b"\n") * times), {"a": 1})]
    assert peak < 80 << 20  # bytes: what one read of a zstd frame may give, and some chunks


@pytest.mark.parametrize("begin", [b'{"a": "', b'[{"a": "', b'{\n"a": "', b"words "])
def test_record_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    monkeypatch.setattr(records, "LONGEST", 1 << 20)
    with pytest.raises(InputError, match=r"file:[12]: a record of more than 1,048,576 bytes; write one"):
        read(write(tmp_path / "file", PACK["zst"](begin + b"x" * (8 << 20))))
