"""Read the bytes of a file in chunks of bounded size: plain, gzip, bzip2, xz or zstd, told from the content."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import zstandard

from btr.errors import InputError

CHUNK = 1 << 20  # bytes yielded at a time, at most
ZSTD_CHUNK = 1 << 10  # compressed bytes at a time: repetitive data grows up to 32,768-fold (a block of 128 KiB takes 4)
ZSTD_WINDOW = 1 << 31  # bytes, the largest window the format allows (`zstd --long=31`)
GZIP = b"\x1f\x8b"

_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def read_chunks(path: str) -> Iterator[bytes]:
    """Yield the content of a file in chunks of 1 MiB at most, unpacked, without a byte order mark.

    Raises:
        InputError: the file cannot be read, or its compressed data is damaged or cut short.
    """
    try:
        chunks = _unpack(path)
        yield next(chunks, b"").removeprefix(codecs.BOM_UTF8)
        yield from chunks
    except _DAMAGED as error:
        cure = "fetch it again, or compress it again"
        raise InputError(f"{path}: the compressed data is damaged or cut short ({error}); {cure}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the name and rights") from error


def _unpack(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        head = file.peek(6)
        skippable = head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F  # pzstd and seekable files begin with one
        if head.startswith(b"(\xb5/\xfd") or skippable:
            yield from _unpack_zstd(file)
        elif head.startswith(GZIP):
            yield from _unpack_gzip(file)
        elif head.startswith(b"BZh"):
            with bz2.open(file) as stream:
                yield from _read(stream)
        elif head.startswith(b"\xfd7zXZ\x00"):
            with lzma.open(file) as unpacked:
                yield from _read(unpacked)
        else:
            yield from _read(file)


def _read(stream: BinaryIO | bz2.BZ2File | lzma.LZMAFile) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk


def _unpack_gzip(file: BinaryIO) -> Iterator[bytes]:
    """Unpack members one after the other, as the gzip command does: what follows the last one is passed over."""
    packed = file.read(CHUNK)
    while packed.startswith(GZIP):
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            packed = packed or file.read(CHUNK)
            if not packed:
                raise EOFError("the last member has no end")
            if chunk := member.decompress(packed, CHUNK):
                yield chunk
            packed = member.unconsumed_tail
        packed = member.unused_data or file.read(CHUNK)
        if len(packed) < len(GZIP):
            packed += file.read(CHUNK)


def _unpack_zstd(file: BinaryIO) -> Iterator[bytes]:
    # Not stream_reader: it takes a file cut short for one that has ended.
    frame = None
    while packed := file.read(ZSTD_CHUNK):
        while packed:
            frame = frame or zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
            found = frame.decompress(packed)
            yield from (found[first : first + CHUNK] for first in range(0, len(found), CHUNK))
            packed = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame has no end")
