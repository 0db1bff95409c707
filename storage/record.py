"""Turn passages into records and back.  The README's section on the store has the same byte by byte.

All integers are little-endian; the checksum is CRC-32 as in gzip and PNG.
"""

import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .codebook import Codebook
from .encoded import Encoded
from .errors import Corrupt
from .format import PAYLOAD, Settings, check_crc, id_key, utf8

SCALES, PACKED, LONG, GAPS = 3, 4, 8, 16  # bits of the byte that says how a record is coded
PALETTE, BYTES, HALVES = 0, 1, 2  # scales: few different ones; upper 8 bits below the sign of a float16; float16
MOST_COLOURS = 16

_CRC = struct.Struct("<I")
_HEAD = struct.Struct("<IB")  # CRC-32 of the rest, how it is coded
_LENGTHS = (struct.Struct("<HHHH"), struct.Struct("<IIII"))  # T, bytes of the id, of the title, of the text
_FIRST = struct.Struct("<IIIII")  # version 1: CRC-32 of the rest, and the same four


class Record(NamedTuple):
    """Hold one passage of a block.  The views die with the transaction they were read in."""

    tokens: int
    id: str
    title: str
    text: str
    kept: np.ndarray | None  # bool (T,): K tokens that signs and scale are of, all 0 of the others; None: all
    signs: memoryview  # uint8 (K * ceil(D/8))
    scale: np.ndarray  # float16 (K,)
    token_ids: np.ndarray  # uint32 (T,)
    part_bytes: dict[str, int]  # by the names of the manifest; the header of the record among `block_headers`


def encode_records(encoded: Encoded, settings: Settings, codebook: Codebook) -> list[bytes]:
    """Return one record per passage.

    Raises:
        BadPassage: an id, title or text cannot be stored.
        ValueError: no packed signs, another D, bits beyond D, or a token id outside the vocabulary.
    """
    signs, offsets = _sign_bytes(encoded, settings), encoded.offsets.tolist()
    if encoded.num_tokens and int(encoded.token_ids.max()) >= settings.vocab_size:
        raise ValueError(f"token id {encoded.token_ids.max()} is outside the vocabulary of {settings.vocab_size}")
    return [_encode(encoded, i, slice(a, b), signs[a:b], codebook) for i, (a, b) in enumerate(pairwise(offsets))]


def _encode(encoded: Encoded, i: int, rows: slice, signs: np.ndarray, codebook: Codebook) -> bytes:
    passage_id = encoded.ids[i]
    title, text = (utf8(s, n, passage_id) for s, n in ((encoded.titles[i], "title"), (encoded.texts[i], "text")))
    key, token_ids = id_key(passage_id), encoded.token_ids[rows]
    scale = encoded.scale[rows]
    kept = signs.any(1) | (scale.view(np.uint16) != 0)
    gaps = bool(signs.size) and (len(kept) - kept.sum()) * signs.shape[1] > -(-len(kept) // 8)
    places = np.packbits(kept, bitorder="little").tobytes() if gaps else b""
    if gaps:
        signs, scale = signs[kept], scale[kept]
    kind, scales = _code_scales(scale)
    packed = codebook.pack(title + text)
    lengths = (len(token_ids), len(key), len(title), len(text))
    long = max(lengths) > 0xFFFF
    coding = kind | (0 if packed is None else PACKED) | (LONG if long else 0) | (GAPS if gaps else 0)
    strings = title + text if packed is None else packed
    rest = (_LENGTHS[long].pack(*lengths), key, places, signs.tobytes(), scales, codebook.code_ids(token_ids), strings)
    record = bytearray(_HEAD.pack(0, coding)) + b"".join(rest)
    _CRC.pack_into(record, 0, zlib.crc32(memoryview(record)[4:]))
    return bytes(record)


def _code_scales(scale: np.ndarray) -> tuple[int, bytes]:
    """Return how the scales (T,) of a record are coded, and coded, without the loss of a bit."""
    bits = scale.astype("<f2").view("<u2")
    palette, index = np.unique(bits, return_inverse=True)
    if len(palette) <= MOST_COLOURS:
        width = _index_bits(len(palette))
        octets = np.packbits(np.unpackbits(index.astype(np.uint8)[:, None], axis=1)[:, 8 - width :])
        return PALETTE, bytes([len(palette)]) + palette.tobytes() + octets.tobytes()
    if not (bits & 0x807F).any():
        return BYTES, (bits >> 7).astype(np.uint8).tobytes()
    return HALVES, bits.tobytes()


def _index_bits(colours: int) -> int:
    return next(bits for bits in (0, 1, 2, 4) if 1 << bits >= colours)


def _read_scales(view: memoryview, T: int, kind: int) -> tuple[np.ndarray, int]:
    """Return the scales (T,) that a view begins with, and how many bytes of it they take.

    Raises:
        Corrupt: it ends before they do, or is not so coded.
    """
    colours = view[0] if kind == PALETTE and len(view) else 0
    if colours > MOST_COLOURS or kind > HALVES or (kind == PALETTE and bool(colours) != bool(T)):
        raise Corrupt(f"scales of {T} tokens coded {kind}, with {colours} different ones")
    begin, width = 1 + 2 * colours, _index_bits(colours)
    size = begin + -(-T * width // 8) if kind == PALETTE else T * kind
    if size > len(view):
        raise Corrupt(f"{len(view)} bytes are too few for the scales of {T} tokens")
    if kind == BYTES:
        return (np.frombuffer(view[:T], np.uint8).astype(np.uint16) << 7).view(np.float16), size
    if kind == HALVES:
        return np.frombuffer(view[:size], "<f2"), size
    palette = np.zeros(max(1 << width, 1), np.float16)
    palette[:colours] = np.frombuffer(view[1:begin], "<f2")
    bits = np.unpackbits(np.frombuffer(view[begin:size], np.uint8), count=T * width).reshape(T, width)
    return palette[bits @ (1 << np.arange(width)[::-1])], size


def _sign_bytes(encoded: Encoded, settings: Settings) -> np.ndarray:
    """Return uint8 (M, ceil(D/8)), the low bytes of the words; those above hold no bit below D."""
    if encoded.fingerprint != settings.fingerprint:
        raise ValueError(f"passages encoded by reader {encoded.fingerprint}, the store is of {settings.fingerprint}")
    if encoded.packed is None or encoded.D != settings.D:
        kind = "no packed signs" if encoded.packed is None else f"D = {encoded.D}"
        raise ValueError(f"a store of packed signs with D = {settings.D} cannot hold passages with {kind}")
    octets = np.ascontiguousarray(encoded.packed, "<u8").view(np.uint8)
    if octets[:, settings.sign_bytes :].any():
        raise ValueError(f"packed words have bits set beyond D = {settings.D}")
    return octets[:, : settings.sign_bytes]


def read_record(view: memoryview, settings: Settings, codebook: Codebook | None) -> Record:
    """Check a record of a shard with this codebook, or of one without, and point at its parts.

    Raises:
        Corrupt: the bytes are not the ones that were written.
    """
    if codebook is None:
        return _read_first(view, settings)
    crc, coding = _HEAD.unpack_from(view) if len(view) >= _HEAD.size else (0, 0)
    check_crc(zlib.crc32(view[4:]), crc, "record")
    kind, lengths = coding & SCALES, _LENGTHS[bool(coding & LONG)]
    header = _HEAD.size + lengths.size
    if len(view) < header:
        raise Corrupt(f"{len(view)} bytes are too few for a record")
    T, a, b, c = lengths.unpack_from(view, _HEAD.size)
    begin = header + a + (-(-T // 8) if coding & GAPS else 0)
    kept = (
        np.unpackbits(np.frombuffer(view[header + a : begin], np.uint8), bitorder="little") if coding & GAPS else None
    )
    K = T if kept is None else int(kept[:T].sum())
    at = begin + K * settings.sign_bytes
    if coding > (SCALES | PACKED | LONG | GAPS) or at > len(view) or (kept is not None and len(kept) < T):
        raise Corrupt(f"a record of {len(view)} bytes, coded {coding}, cannot have {T} tokens and {a} bytes of id")
    passage_id, signs, rest = view[header : header + a], view[begin:at], view[at:]
    scale, scale_bytes = _read_scales(rest, K, kind)
    token_ids, id_bytes = codebook.read_ids(rest[scale_bytes:], T)
    strings = rest[scale_bytes + id_bytes :]
    text = codebook.unpack(strings, b + c) if coding & PACKED else strings
    if len(text) != b + c:
        raise Corrupt(f"the record has {len(text)} bytes of title and text, its header says {b} + {c}")
    sizes = (at - header - a, scale_bytes, id_bytes, len(strings), a, header)
    parts = dict(zip((*PAYLOAD, "block_headers"), sizes, strict=True))
    key, title, body = _decode(passage_id, text[:b], text[b:])
    places = None if kept is None else kept[:T].astype(bool)
    return Record(T, key, title, body, places, signs, scale, token_ids, parts)


def _decode(*parts: memoryview | bytes) -> list[str]:
    try:
        return [str(part, "utf-8") for part in parts]
    except UnicodeDecodeError as error:
        raise Corrupt(f"its id, title or text is not UTF-8 ({error.reason})") from None


def _read_first(view: memoryview, settings: Settings) -> Record:
    """Read a record of a block of version 1: nothing in it is coded."""
    if len(view) < _FIRST.size:
        raise Corrupt(f"{len(view)} bytes are too few for a record")
    crc, T, *strings = _FIRST.unpack_from(view)
    check_crc(zlib.crc32(view[4:]), crc, "record")
    sizes = (_FIRST.size, *strings, T * settings.sign_bytes, T * 2, T * settings.token_width)
    if sum(sizes) != len(view):
        raise Corrupt(f"the record has {len(view)} bytes, its parts {sizes}")
    ends = np.cumsum(sizes).tolist()
    parts = [view[start:end] for start, end in pairwise(ends)]
    names = ("block_headers", "ids", "title", "text", "signs", "scalars", "token_ids")
    part_bytes = dict(zip(names, sizes, strict=True))
    part_bytes["text"] += part_bytes.pop("title")
    token_ids = np.frombuffer(parts[5], f"<u{settings.token_width}").astype(np.uint32)
    key, title, body = _decode(*parts[:3])
    return Record(T, key, title, body, None, parts[3], np.frombuffer(parts[4], "<f2"), token_ids, part_bytes)


def decode_records(records: Sequence[Record], settings: Settings) -> Encoded:
    """Copy the records into flat arrays of their own, in one pass."""
    lengths = np.array([record.tokens for record in records], dtype=np.int32)
    total = int(lengths.sum())
    words = np.zeros((total, -(-settings.D // 64)), dtype="<u8")
    octets = words.view(np.uint8)[:, : settings.sign_bytes]
    scale = np.zeros(total, dtype=np.float16)
    token_ids = np.empty(total, dtype=np.uint32)
    start = 0
    for record in records:
        end = start + record.tokens
        rows = slice(start, end) if record.kept is None else start + np.flatnonzero(record.kept)
        octets[rows] = np.frombuffer(record.signs, np.uint8).reshape(-1, settings.sign_bytes)
        scale[rows], token_ids[start:end] = record.scale, record.token_ids
        start = end
    ids, titles, texts = (tuple(getattr(record, name) for record in records) for name in ("id", "title", "text"))
    packed = words.astype(np.uint64, copy=False)
    return Encoded(settings.fingerprint, settings.D, ids, titles, texts, lengths, token_ids, scale, packed)
