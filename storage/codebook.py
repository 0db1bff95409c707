"""Code what repeats in a shard: token ids by how common their types are, texts by a dictionary of phrases.

A shard has one codebook, learned from its first passages and kept beside its blocks. Signs have hardly any redundancy
left, scales come as their reader rounds them; neither is coded here.
"""

import struct
import threading
import zlib
from functools import cached_property
from typing import Self

import numpy as np
import zstandard

from .encoded import Encoded
from .errors import Corrupt

LEAST_COMMON = 64  # types that one byte stands for, at least
DICTIONARY = 1 << 16  # bytes, at most, and a tenth of what it is learned from
LEVEL = 9  # 12 gives 1 % fewer bytes in 1.6 times the time
MOST_TEXT = 1 << 20  # bytes of title and text; longer ones are kept as they are

_HEAD = struct.Struct("<III")  # CRC-32 of the rest, vocabulary, common types
_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS  # frames without magic number, size, checksum: a record has its own


class Codebook:
    """Hold what one byte stands for, and the dictionary of texts; threads may share it.

    A token id takes one lead byte and, unless its type is common, `low` bytes after all leads. With F common types,
    leads below F stand for them, lead F + h for the ids whose upper part is h.
    """

    def __init__(self, vocab_size: int, common: np.ndarray, dictionary: bytes) -> None:
        """Take the common types, uint32 (F,), and a dictionary of zstd's, or b"" for none.

        Raises:
            Corrupt: they are none of this vocabulary.
        """
        self.vocab_size, self.common, self.dictionary = vocab_size, common, dictionary
        self.low, most = room(vocab_size)
        F = len(common)
        if most < F or len(np.unique(common)) != F or (F and int(common.max()) >= vocab_size):
            raise Corrupt(f"{F} common types are not different ones of {vocab_size}, {most} at most")
        self._table = np.zeros(256, np.int64)  # lead -> id, without its low bytes
        self._table[:F] = common
        self._table[F:] = np.arange(256 - F) << 8 * self.low
        self._local = threading.local()  # zstd's contexts are for one thread each
        try:
            self._zstd = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        except zstandard.ZstdError as error:
            raise Corrupt(f"its dictionary is none: {error}") from None

    @classmethod
    def learn(cls, encoded: Encoded, vocab_size: int) -> Self:
        """Learn from some passages: their most common types, and what their texts have in common."""
        counts = np.bincount(encoded.token_ids, minlength=vocab_size)[:vocab_size]
        common = np.argsort(-counts, kind="stable")[: room(vocab_size)[1]]
        common = np.sort(common[counts[common] > 0]).astype(np.uint32)
        samples: list[bytes | bytearray | memoryview] = [
            blob
            for pair in zip(encoded.titles, encoded.texts, strict=True)
            if (blob := "".join(pair).encode(errors="replace"))  # what is not Unicode is refused with its record
        ]
        return cls(vocab_size, common, learn_dictionary(samples))

    def to_bytes(self) -> bytes:
        """Return it as it stands in a shard."""
        common = self.common.astype("<u4").tobytes()
        rest = _HEAD.pack(0, self.vocab_size, len(self.common))[4:] + common + self.dictionary
        return struct.pack("<I", zlib.crc32(rest)) + rest

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read it as `to_bytes` wrote it.

        Raises:
            Corrupt: it is damaged.
        """
        crc, vocab_size, count = _HEAD.unpack_from(content) if len(content) >= _HEAD.size else (0, 0, 0)
        end = _HEAD.size + 4 * count
        if zlib.crc32(content[4:]) != crc or end > len(content):
            raise Corrupt(f"its codebook of {len(content)} bytes is damaged")
        return cls(vocab_size, np.frombuffer(content[_HEAD.size : end], "<u4").astype(np.uint32), content[end:])

    @cached_property
    def _leads(self) -> np.ndarray:
        """Return the lead of every id, int64 (V,)."""
        leads = (np.arange(self.vocab_size) >> 8 * self.low) + len(self.common)
        leads[self.common] = np.arange(len(self.common))
        return leads

    def code_ids(self, ids: np.ndarray) -> bytes:
        """Code token ids (T,) below the size of the vocabulary."""
        leads = self._leads[ids]
        rest = ids[leads >= len(self.common)].astype("<u4").view(np.uint8).reshape(-1, 4)[:, : self.low]
        return leads.astype(np.uint8).tobytes() + rest.tobytes()

    def read_ids(self, view: memoryview, tokens: int) -> tuple[np.ndarray, int]:
        """Return the token ids uint32 (T,) that a view begins with, and how many bytes of it they take.

        Raises:
            Corrupt: it ends before they do, or one is outside the vocabulary.
        """
        leads = np.frombuffer(view[:tokens], np.uint8)
        rare = np.flatnonzero(leads >= len(self.common))
        size = tokens + self.low * len(rare)
        if len(view) < size:
            raise Corrupt(f"{len(view)} bytes are too few for {tokens} token ids")
        rest = np.zeros((len(rare), 4), np.uint8)
        rest[:, : self.low] = np.frombuffer(view[tokens:size], np.uint8).reshape(-1, self.low)
        ids = self._table[leads]
        ids[rare] += rest.view("<u4")[:, 0]
        if tokens and int(ids.max()) >= self.vocab_size:
            raise Corrupt(f"token id {ids.max()} is outside the vocabulary of {self.vocab_size}")
        return ids.astype(np.uint32), size

    def pack(self, text: bytes) -> bytes | None:
        """Return the text compressed; None where that gains nothing, or it is too long."""
        if len(text) > MOST_TEXT:
            return None
        if not hasattr(self._local, "compressor"):
            shape = {"source_size": 1024, "dict_size": len(self.dictionary)} if self.dictionary else {}
            parameters = zstandard.ZstdCompressionParameters.from_level(
                LEVEL, format=_FORMAT, write_content_size=0, write_checksum=0, write_dict_id=0, **shape
            )
            self._local.compressor = zstandard.ZstdCompressor(dict_data=self._zstd, compression_params=parameters)
        packed: bytes = self._local.compressor.compress(text)
        return packed if len(packed) < len(text) else None

    def unpack(self, packed: memoryview, length: int) -> bytes:
        """Return the text of so many bytes that was packed.

        Raises:
            Corrupt: it is not one.
        """
        if length > MOST_TEXT:
            raise Corrupt(f"a packed text of {length} bytes, {MOST_TEXT} at most are packed")
        if not hasattr(self._local, "decompressor"):
            self._local.decompressor = zstandard.ZstdDecompressor(dict_data=self._zstd, format=_FORMAT)
        try:
            if zstandard.get_frame_parameters(packed, format=_FORMAT).content_size != zstandard.CONTENTSIZE_UNKNOWN:
                raise Corrupt("its text is packed with a size of its own")  # which zstd would believe, and allocate
            text: bytes = self._local.decompressor.decompress(packed, max_output_size=length)
        except zstandard.ZstdError as error:
            raise Corrupt(f"its text cannot be unpacked: {error}") from None
        if len(text) != length:
            raise Corrupt(f"its text has {len(text)} bytes, its header says {length}")
        return text


def room(vocab_size: int) -> tuple[int, int]:
    """Return how many low bytes follow the leads of rare types, and how many common types there may be."""
    low = 1
    while 256 - LEAST_COMMON << 8 * low < vocab_size:
        low += 1
    return low, 256 - (((vocab_size - 1) >> 8 * low) + 1)


def learn_dictionary(samples: list[bytes | bytearray | memoryview]) -> bytes:
    """Return what these texts have in common as a dictionary for zstd, b"" if they are too few to tell."""
    size = min(DICTIONARY, sum(map(len, samples)) // 10)
    try:
        return zstandard.train_dictionary(size, samples).as_bytes() if size >= 1024 else b""
    except zstandard.ZstdError:
        return b""
