"""Turn passages into bytes and back: record and block.  The README's section on the store has the same byte by byte.

All integers are little-endian.  Checksums are CRC-32 as in gzip and PNG (polynomial 0x04C11DB7, reflected).
"""

import hashlib
import struct
import typing
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, Self

import numpy as np

from .encoded import Encoded
from .errors import BadPassage, Corrupt

BLOCK_VERSION = 1
MAX_ID_BYTES = 511  # the longest key of LMDB
PAYLOAD = ("signs", "scalars", "token_ids", "text", "ids")  # the parts of a record

_MAGIC = b"BTRB"
_BLOCK = struct.Struct("<4sBBHI")  # magic, format version, bytes per token id, records, D
_OFFSET = struct.Struct("<I")
_SPAN = struct.Struct("<II")
_CRC = struct.Struct("<I")
_RECORD = struct.Struct("<IIIII")  # CRC-32 of the rest, T, bytes of the id, of the title, of the text


def check_fields(cls: type, data: Any) -> None:
    """Hold a parsed JSON object to the names and types of a dataclass.

    Raises:
        Corrupt: it is no object, or a key is missing, unknown, or of another type; a negative number is.
    """
    kinds = {f.name: typing.get_origin(f.type) or f.type for f in fields(cls)}
    if not isinstance(data, dict) or data.keys() != kinds.keys():
        differ = sorted(kinds.keys() ^ data.keys()) if isinstance(data, dict) else "no JSON object"
        raise Corrupt(f"missing or unknown keys: {differ}")
    wrong = sorted(name for name, kind in kinds.items() if not _is_a(data[name], kind))
    if wrong:
        raise Corrupt(f"values of the wrong type: {wrong}")


def _is_a(value: Any, kind: Any) -> bool:
    if kind is int:
        return type(value) is int and 0 <= value < 1 << 63
    if kind is str:
        return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)  # no half of a pair
    return isinstance(value, kind)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Say what a store is built from; all but the two names must be equal when a build is resumed."""

    fingerprint: str  # of the reader whose lower layers are stored
    tokenizer_hash: str
    k: int  # split layer
    D: int  # signs a token
    vocab_size: int
    max_passage_tokens: int
    corpus_hash: str
    width: int = 0  # of the model's states, for comparison; 0: D
    passages_per_block: int = 64
    shard_passages: int = 65_536  # passages of the corpus that one shard takes
    options: Mapping[str, int | str | bool | None] = field(default_factory=dict)  # e.g. limit, words per passage
    corpus: str = field(default="", compare=False)  # name or path, for messages
    reader: str = field(default="", compare=False)  # name or path, for messages

    def __post_init__(self) -> None:
        if not 1 <= self.D <= 0xFFFFFFFF or not 1 <= self.passages_per_block <= 0xFFFF:
            raise ValueError(f"D = {self.D} must be 1..2^32-1, passages_per_block = {self.passages_per_block} 1..65535")
        if self.shard_passages < 1:
            raise ValueError(f"shard_passages = {self.shard_passages} must be >= 1")

    @property
    def sign_bytes(self) -> int:
        """Return the bytes of one token's signs, ceil(D/8)."""
        return -(-self.D // 8)

    @property
    def token_width(self) -> int:
        """Return the bytes of one token id: 2 while all ids fit, else 4."""
        return 2 if self.vocab_size <= 0x10000 else 4

    def to_json(self) -> dict[str, Any]:
        """Return the fields as they stand in the JSON file."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Build from the parsed JSON file.

        Raises:
            Corrupt: a key is missing, unknown, or of another type.
        """
        check_fields(cls, data)
        try:
            return cls(**data)
        except ValueError as error:
            raise Corrupt(str(error)) from None


class Record(NamedTuple):
    """Point at one passage inside a block.  The views die with the transaction they were read in."""

    tokens: int
    id: str
    title: str
    text: str
    signs: memoryview  # uint8 (T * ceil(D/8))
    scale: memoryview  # float16 (T)
    token_ids: memoryview  # uint16 or uint32 (T)

    def part_bytes(self) -> dict[str, int]:
        """Return the bytes of each part, by the names of the manifest; the header of the record is not among them."""
        text = len(self.title.encode()) + len(self.text.encode())
        arrays = {"signs": len(self.signs), "scalars": len(self.scale), "token_ids": len(self.token_ids)}
        return {**arrays, "text": text, "ids": len(self.id.encode())}


def id_key(passage_id: str) -> bytes:
    """Return the id as a key of LMDB: its UTF-8 bytes.

    Raises:
        BadPassage: the id is empty, longer than 511 bytes, or not Unicode.
    """
    key = _utf8(passage_id, "id", passage_id)
    if not 1 <= len(key) <= MAX_ID_BYTES:
        raise BadPassage(
            f"passage id {passage_id[:60]!r} has {len(key)} bytes of UTF-8, 1 to {MAX_ID_BYTES} are allowed"
        )
    return key


def _utf8(text: str, what: str, passage_id: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadPassage(f"passage {passage_id[:60]!r}: its {what} is not Unicode ({error})") from None


def encode_records(encoded: Encoded, settings: Settings) -> list[bytes]:
    """Return one record per passage.

    Raises:
        BadPassage: an id, title or text cannot be stored.
        ValueError: no packed signs, another D, bits beyond D, or a token id outside the vocabulary.
    """
    signs = _sign_bytes(encoded, settings)
    if encoded.num_tokens and int(encoded.token_ids.max()) >= settings.vocab_size:
        raise ValueError(f"token id {encoded.token_ids.max()} is outside the vocabulary of {settings.vocab_size}")
    token_ids = encoded.token_ids.astype(f"<u{settings.token_width}")
    scale = encoded.scale.astype("<f2")
    offsets = encoded.offsets.tolist()
    records = []
    for i, passage_id in enumerate(encoded.ids):
        a, b = offsets[i], offsets[i + 1]
        title, text = (_utf8(s, n, passage_id) for s, n in ((encoded.titles[i], "title"), (encoded.texts[i], "text")))
        strings = (id_key(passage_id), title, text)
        arrays = (signs[a:b].tobytes(), scale[a:b].tobytes(), token_ids[a:b].tobytes())
        record = bytearray(_RECORD.pack(0, b - a, *map(len, strings)))
        record += b"".join(strings + arrays)
        _CRC.pack_into(record, 0, zlib.crc32(memoryview(record)[4:]))
        records.append(bytes(record))
    return records


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


def build_block(records: Sequence[bytes | memoryview], settings: Settings) -> bytes:
    """Join 1 to 65535 records behind a header that says where each begins."""
    head = bytearray(_BLOCK.pack(_MAGIC, BLOCK_VERSION, settings.token_width, len(records), settings.D))
    offset = header_bytes(len(records))
    for record in records:
        head += _OFFSET.pack(offset)
        offset += len(record)
    head += _OFFSET.pack(offset)
    head += _CRC.pack(zlib.crc32(head))
    return b"".join((head, *records))


def header_bytes(records: int) -> int:
    """Return the size of the header of a block of so many records."""
    return _BLOCK.size + _OFFSET.size * (records + 1) + _CRC.size


def header_total(passages: int, settings: Settings) -> int:
    """Return the bytes of all headers, of blocks and of records, in a store of so many passages."""
    full, rest = divmod(passages, settings.passages_per_block)
    blocks = full * header_bytes(settings.passages_per_block) + (header_bytes(rest) if rest else 0)
    return blocks + passages * _RECORD.size


def check_block(block: memoryview, settings: Settings) -> int:
    """Check the header of a block, and return how many records it holds.

    Raises:
        Corrupt: the header is not the one that was written, or belongs to another store.
    """
    if len(block) < header_bytes(0):
        raise Corrupt(f"{len(block)} bytes are too few for a block")
    magic, version, token_width, count, D = _BLOCK.unpack_from(block)
    size = header_bytes(count)
    if magic != _MAGIC or len(block) < size:
        raise Corrupt(f"not a block: it begins with {bytes(block[:12]).hex()}")
    stored = _CRC.unpack_from(block, size - _CRC.size)[0]
    _check_crc(zlib.crc32(block[: size - _CRC.size]), stored, "header")
    expected = (BLOCK_VERSION, settings.token_width, settings.D)
    if (version, token_width, D) != expected:
        raise Corrupt(f"(version, token id bytes, D) are {(version, token_width, D)}, the manifest says {expected}")
    end = _OFFSET.unpack_from(block, size - _CRC.size - _OFFSET.size)[0]
    if end != len(block):
        raise Corrupt(f"the block has {len(block)} bytes, its header says {end}")
    return int(count)


def record_view(block: memoryview, index: int) -> memoryview:
    """Return the bytes of one record of a checked block.

    Raises:
        Corrupt: the block has no record of this index.
    """
    count = _BLOCK.unpack_from(block)[3]
    if not 0 <= index < count:
        raise Corrupt(f"the block has only {count} records")
    start, end = _SPAN.unpack_from(block, _BLOCK.size + _OFFSET.size * index)
    return block[start:end]


def read_record(view: memoryview, settings: Settings) -> Record:
    """Check a record and point at its parts.

    Raises:
        Corrupt: the bytes are not the ones that were written.
    """
    if len(view) < _RECORD.size:
        raise Corrupt(f"{len(view)} bytes are too few for a record")
    crc, tokens, *strings = _RECORD.unpack_from(view)
    _check_crc(zlib.crc32(view[4:]), crc, "record")
    sizes = (*strings, tokens * settings.sign_bytes, tokens * 2, tokens * settings.token_width)
    if _RECORD.size + sum(sizes) != len(view):
        raise Corrupt(f"the record has {len(view)} bytes, its parts {_RECORD.size} + {sizes}")
    parts, start = [], _RECORD.size
    for size in sizes:
        parts.append(view[start : start + size])
        start += size
    try:
        passage_id, title, text = (str(part, "utf-8") for part in parts[:3])
    except UnicodeDecodeError as error:
        raise Corrupt(f"its id, title or text is not UTF-8 ({error.reason})") from None
    return Record(tokens, passage_id, title, text, *parts[3:])


def block_records(block: bytes, settings: Settings) -> list[bytes]:
    """Return the bytes of all records of a block.

    Raises:
        Corrupt: its header is damaged.
    """
    view = memoryview(block)
    return [bytes(record_view(view, i)) for i in range(check_block(view, settings))]


def _check_crc(computed: int, stored: int, what: str) -> None:
    if computed != stored:
        raise Corrupt(f"CRC-32 of the {what} is {computed:08x}, stored is {stored:08x}")


def decode_records(records: Sequence[Record], settings: Settings) -> Encoded:
    """Copy the records into flat arrays of their own, in one pass."""
    lengths = np.array([record.tokens for record in records], dtype=np.int32)
    total = int(lengths.sum())
    words = np.zeros((total, -(-settings.D // 64)), dtype="<u8")
    octets = words.view(np.uint8)[:, : settings.sign_bytes]
    scale = np.empty(total, dtype=np.float16)
    token_ids = np.empty(total, dtype=np.uint32)
    start = 0
    for record in records:
        end = start + record.tokens
        octets[start:end] = np.frombuffer(record.signs, np.uint8).reshape(record.tokens, settings.sign_bytes)
        scale[start:end] = np.frombuffer(record.scale, "<f2")
        token_ids[start:end] = np.frombuffer(record.token_ids, f"<u{settings.token_width}")
        start = end
    ids, titles, texts = (tuple(getattr(record, name) for record in records) for name in ("id", "title", "text"))
    packed = words.astype(np.uint64, copy=False)
    return Encoded(settings.fingerprint, settings.D, ids, titles, texts, lengths, token_ids, scale, packed)


def chain(digest: bytes, block: bytes | memoryview) -> bytes:
    """Return SHA-256(digest + block).

    The content hash is this chained over all blocks in order, from 32 zero bytes: unlike one long SHA-256, it can be
    carried from a killed run to the next in 32 bytes.
    """
    running = hashlib.sha256(digest)
    running.update(block)
    return running.digest()
