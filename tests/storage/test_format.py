"""The bytes of records, blocks and the manifest."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from btr.storage import BadPassage, Corrupt, Encoded, Settings
from btr.storage.codebook import Codebook
from btr.storage.format import block_records, build_block, chain, check_block, header_total, record_view
from btr.storage.record import decode_records, encode_records, read_record

Make = Callable[..., Encoded]

# Two passages, D = 9: "a" with two tokens, "bc" with none; token id 5 is the one common type.
GOLDEN_BLOCK = bytes.fromhex(
    "42545242 02 01 0200 09000000"  # "BTRB", version 2, 1 byte after the lead of a rare token id, 2 records, D = 9
    "1c000000 3a000000 4a000000"  # they begin at 28 and 58, and end at 74
    "e7ea3b29"  # CRC-32 of the 24 bytes before
    "64bb05aa"  # CRC-32 of the 26 bytes after
    "00 0200 0100 0100 0200"  # not packed, lengths of 2 bytes: 2 tokens; id, title and text of 1, 1 and 2 bytes
    "61"  # "a"
    "0101 ff00"  # signs: channels 0 and 8; channels 0 to 7
    "02 0038 003c 80"  # two different scales, 0.5 and 1.0; 1 bit a token: the second, the first
    "00 02 02"  # token ids: common type 0; 1 + 1 for the upper byte 1 of 258; the lower byte of 258
    "54 c3a9"  # "T", "e" with an acute accent
    "c3c9a050"  # CRC-32 of the 12 bytes after
    "00 0000 0200 0000 0000"  # no token; id of 2 bytes, no title, no text
    "6263"  # "bc"
    "00"  # no scale
)

# The same as the first version of blocks had them.
FIRST_BLOCK = bytes.fromhex(
    "42545242 01 02 0200 09000000"  # "BTRB", format 1, 2 bytes per token id, 2 records, D = 9
    "1c000000 40000000 56000000"  # they begin at 28 and 64, and end at 86
    "fb449b02"  # CRC-32 of the 24 bytes before
    "77a866e5"  # CRC-32 of the 32 bytes after
    "02000000 01000000 01000000 02000000"  # 2 tokens; id, title and text of 1, 1 and 2 bytes
    "61 54 c3a9"  # "a", "T", "e" with an acute accent
    "0101 ff00"  # signs: channels 0 and 8; channels 0 to 7
    "003c 0038"  # scales 1.0 and 0.5
    "0500 0201"  # token ids 5 and 258
    "27320505"  # CRC-32 of the 18 bytes after
    "00000000 02000000 00000000 00000000"  # no token; id of 2 bytes, no title, no text
    "6263"  # "bc"
)


def two_passages() -> Encoded:
    return Encoded(
        fingerprint="3f2a",
        D=9,
        ids=("a", "bc"),
        titles=("T", ""),
        texts=("\u00e9", ""),
        lengths=np.array([2, 0], np.int32),
        token_ids=np.array([5, 258], np.uint32),
        scale=np.array([1.0, 0.5], np.float16),
        packed=np.array([[0b1_0000_0001], [0b1111_1111]], np.uint64),
    )


@pytest.fixture
def nine(settings: Callable[..., Settings]) -> Settings:
    return settings(fingerprint="3f2a", D=9)


CODEBOOK = Codebook(32128, np.array([5], np.uint32), b"")


def read_all(block: bytes, settings: Settings, codebook: Codebook | None = CODEBOOK) -> Encoded:
    view = memoryview(block)
    count = check_block(view, settings, codebook is not None)
    return decode_records([read_record(record_view(view, i), settings, codebook) for i in range(count)], settings)


def test_golden_block(nine: Settings, same: Callable[..., None]) -> None:
    assert build_block(encode_records(two_passages(), nine, CODEBOOK), nine) == GOLDEN_BLOCK
    same(read_all(GOLDEN_BLOCK, nine), two_passages())


def test_blocks_of_the_first_version_are_read(nine: Settings, same: Callable[..., None]) -> None:
    same(read_all(FIRST_BLOCK, nine, None), two_passages())
    for block, codebook in ((FIRST_BLOCK, CODEBOOK), (GOLDEN_BLOCK, None)):
        with pytest.raises(Corrupt, match="manifest says"):
            read_all(block, nine, codebook)


def test_token_ids_take_two_bytes_while_they_fit(settings: Callable[..., Settings]) -> None:
    assert [settings(vocab_size=size).token_width for size in (65535, 65536, 65537)] == [2, 2, 4]


def test_chain_is_sha256_of_digest_and_block() -> None:
    digest = chain(bytes(32), b"")  # SHA-256 of 32 zero bytes
    assert digest.hex() == "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"
    assert chain(digest, b"ab") != chain(chain(digest, b"a"), b"b")


@pytest.mark.parametrize(("block", "codebook"), [(GOLDEN_BLOCK, CODEBOOK), (FIRST_BLOCK, None)], ids=["2", "1"])
def test_every_bit_of_a_block_is_covered(nine: Settings, block: bytes, codebook: Codebook | None) -> None:
    for position in range(8 * len(block)):
        damaged = bytearray(block)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(Corrupt):
            read_all(bytes(damaged), nine, codebook)


def test_every_cut_of_a_block_is_noticed(nine: Settings) -> None:
    for length in range(len(GOLDEN_BLOCK)):
        with pytest.raises(Corrupt):
            read_all(GOLDEN_BLOCK[:length], nine)
    with pytest.raises(Corrupt, match=r"has 75 bytes, its header says 74"):
        read_all(GOLDEN_BLOCK + b"\0", nine)


def test_a_record_is_read_without_the_rest_of_its_block(nine: Settings) -> None:
    block = bytearray(GOLDEN_BLOCK)
    block[58:] = bytes(16)
    assert read_record(record_view(memoryview(block), 0), nine, CODEBOOK).id == "a"
    with pytest.raises(Corrupt):
        read_record(record_view(memoryview(block), 1), nine, CODEBOOK)
    with pytest.raises(Corrupt, match="only 2 records"):
        record_view(memoryview(block), 2)


def test_a_block_of_other_settings_is_refused(nine: Settings) -> None:
    for change in ({"D": 10}, {"vocab_size": 65537}):  # of which 2 bytes follow a lead
        with pytest.raises(Corrupt, match="manifest says"):
            check_block(memoryview(GOLDEN_BLOCK), replace(nine, **change))


text = st.text("a\0\u00e9\u6f22\U0001f600", max_size=5)


@example(D=64, vocab_size=65536, passages=[], empty=0.0)
@example(D=64, vocab_size=65536, passages=[(5, "a", "", "")], empty=1.0)
@given(
    D=st.sampled_from([1, 63, 64, 65, 768]),
    vocab_size=st.sampled_from([65536, 65537]),
    passages=st.lists(st.tuples(st.integers(0, 5), text.filter(bool), text, text), max_size=6),
    empty=st.sampled_from([0.0, 0.7, 1.0]),
)
@given_settings(max_examples=60)
def test_round_trip(D: int, vocab_size: int, passages: list[tuple[int, str, str, str]], empty: float) -> None:
    lengths, ids, titles, texts = zip(*passages, strict=True) if passages else ((), (), (), ())
    n, m = len(lengths), sum(lengths)
    settings = Settings(
        fingerprint="3f2a", tokenizer_hash="", k=1, D=D, vocab_size=vocab_size, max_passage_tokens=9, corpus_hash=""
    )
    rng = np.random.default_rng(n + m)
    bits = np.zeros((m, -(-D // 64) * 64), np.uint8)
    bits[:, :D] = rng.integers(0, 2, (m, D))
    scale, gone = rng.standard_normal(m).astype(np.float16), rng.random(m) < empty
    bits[gone], scale[gone & (rng.random(m) < 0.8)] = (
        0,
        0,
    )  # without signs, most without a scale too: these are left out
    batch = Encoded(
        fingerprint="3f2a",
        D=D,
        ids=ids,
        titles=titles,
        texts=texts,
        lengths=np.array(lengths, np.int32),
        token_ids=rng.integers(0, vocab_size, m).astype(np.uint32),
        scale=scale,
        packed=np.packbits(bits, axis=1, bitorder="little").view(np.uint64),
    )
    codebook = Codebook.learn(batch.select(range(n // 2)), vocab_size)
    records = encode_records(batch, settings, codebook)
    block = build_block(records, settings)
    assert block_records(block, settings) == records
    back = read_all(block, settings, codebook)
    assert (back.ids, back.titles, back.texts) == (batch.ids, batch.titles, batch.texts)
    for name in ("lengths", "token_ids", "scale", "packed"):
        assert getattr(back, name).dtype == getattr(batch, name).dtype
        assert getattr(back, name).tobytes() == getattr(batch, name).tobytes(), name
    parts = [sum(read_record(memoryview(r), settings, codebook).part_bytes.values()) for r in records]
    assert n == 0 or len(block) == sum(parts) + header_total(n, settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ("", "bc")}, "'' has 0 bytes of UTF-8, 1 to 511"),
        ({"ids": ("\u00e9" * 256, "bc")}, "has 512 bytes of UTF-8, 1 to 511"),
        ({"titles": ("\ud800", "")}, "passage 'a': its title is not Unicode"),
        ({"texts": ("\ud800", "")}, "passage 'a': its text is not Unicode"),
    ],
)
def test_refuses_passages_it_cannot_hold(nine: Settings, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadPassage) as caught:
        encode_records(replace(two_passages(), **change), nine, CODEBOOK)
    assert message in str(caught.value)


def test_an_id_of_511_bytes_is_kept(nine: Settings) -> None:
    longest = "x" + "\u00e9" * 255
    records = encode_records(replace(two_passages(), ids=(longest, "bc")), nine, CODEBOOK)
    assert read_record(memoryview(records[0]), nine, CODEBOOK).id == longest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "91bc"}, "91bc"),
        ({"D": 10}, "D = 9 cannot hold passages with D = 10"),
        ({"packed": None}, "no packed signs"),
        ({"packed": np.array([[1 << 16], [0]], np.uint64)}, "bits set beyond D = 9"),
        ({"token_ids": np.array([5, 32128], np.uint32)}, "token id 32128"),
    ],
)
def test_refuses_passages_of_another_kind(nine: Settings, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_records(replace(two_passages(), **change), nine, CODEBOOK)
