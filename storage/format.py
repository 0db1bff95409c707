"""Say what a store is built from, and join records to blocks.  The README has the same byte by byte.

All integers are little-endian.  Checksums are CRC-32 as in gzip and PNG (polynomial 0x04C11DB7, reflected).
"""

import hashlib
import struct
import typing
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from .codebook import room
from .errors import BadPassage, Corrupt

BLOCK_VERSION = 2  # of shards with a codebook; 1 of those without
MAX_ID_BYTES = 511  # the longest key of LMDB
PAYLOAD = ("signs", "scalars", "token_ids", "text", "ids")  # the parts of a record

_MAGIC = b"BTRB"
_BLOCK = struct.Struct("<4sBBHI")  # magic, version, bytes of token ids, records, D
_OFFSET = struct.Struct("<I")
_SPAN = struct.Struct("<II")
_CRC = struct.Struct("<I")


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
    passages_per_block: int = 128
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
        """Return the bytes of one token id in shards without a codebook: 2 while all ids fit, else 4."""
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


def id_key(passage_id: str) -> bytes:
    """Return the id as a key of LMDB: its UTF-8 bytes.

    Raises:
        BadPassage: the id is empty, longer than 511 bytes, or not Unicode.
    """
    key = utf8(passage_id, "id", passage_id)
    if not 1 <= len(key) <= MAX_ID_BYTES:
        raise BadPassage(
            f"passage id {passage_id[:60]!r} has {len(key)} bytes of UTF-8, 1 to {MAX_ID_BYTES} are allowed"
        )
    return key


def new_key(passage_id: str) -> bytes:
    """Return the key of a passage that is to come in, as `id_key`; such ids as nobody could ask for are refused.

    Raises:
        BadPassage: as `id_key`, or there is a control character, as a line break is: no list of ids, one a line, nor an
            address could name it.
    """
    found = next((c for c in passage_id if unicodedata.category(c) == "Cc"), None)
    if found is not None:
        cure = "take it out, ids are one line"
        raise BadPassage(f"passage id {passage_id[:60]!r} has a control character, U+{ord(found):04X}; {cure}")
    return id_key(passage_id)


def utf8(text: str, what: str, passage_id: str) -> bytes:
    """Return a string of a passage as UTF-8.

    Raises:
        BadPassage: it is not Unicode.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadPassage(f"passage {passage_id[:60]!r}: its {what} is not Unicode ({error})") from None


def build_block(records: Sequence[bytes | memoryview], settings: Settings) -> bytes:
    """Join 1 to 65535 records behind a header that says where each begins."""
    head = bytearray(_BLOCK.pack(_MAGIC, BLOCK_VERSION, room(settings.vocab_size)[0], len(records), settings.D))
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


def header_total(records: int, settings: Settings) -> int:
    """Return the bytes of the headers of all blocks in a shard of so many records."""
    full, rest = divmod(records, settings.passages_per_block)
    return full * header_bytes(settings.passages_per_block) + (header_bytes(rest) if rest else 0)


def check_block(block: memoryview, settings: Settings, coded: bool = True) -> int:
    """Check the header of a block, of a shard with a codebook or without, and return how many records it holds.

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
    check_crc(zlib.crc32(block[: size - _CRC.size]), stored, "header")
    width = room(settings.vocab_size)[0] if coded else settings.token_width
    expected = (BLOCK_VERSION if coded else 1, width, settings.D)
    if (version, token_width, D) != expected:
        raise Corrupt(f"(version, bytes of token ids, D) are {(version, token_width, D)}, the manifest says {expected}")
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


def block_records(block: bytes, settings: Settings) -> list[bytes]:
    """Return the bytes of all records of a block.

    Raises:
        Corrupt: its header is damaged.
    """
    view = memoryview(block)
    return [bytes(record_view(view, i)) for i in range(check_block(view, settings))]


def check_crc(computed: int, stored: int, what: str) -> None:
    """Compare a checksum.

    Raises:
        Corrupt: it is another.
    """
    if computed != stored:
        raise Corrupt(f"CRC-32 of the {what} is {computed:08x}, stored is {stored:08x}")


def chain(digest: bytes, block: bytes | memoryview) -> bytes:
    """Return SHA-256(digest + block).

    The content hash is this chained over the codebook and all blocks in order, from 32 zero bytes: unlike one long
    SHA-256, it can be carried from a killed run to the next in 32 bytes.
    """
    running = hashlib.sha256(digest)
    running.update(block)
    return running.digest()
