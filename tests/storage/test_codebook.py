"""What repeats, coded: every bit comes back, and what is crafted is refused."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from btr.storage import Corrupt, Encoded
from btr.storage.codebook import MOST_TEXT, Codebook, room
from btr.storage.record import _code_scales, _read_scales

Make = Callable[..., Encoded]
WORDS = ["the", "of", "a", "river", "city", "and", "in", "was", "first", "king", "north", "line", "of", "the", "two"]


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 60)) + f" {number}" for number in range(count)]


def learned(passages: Make, count: int = 60) -> Codebook:
    """Return a codebook with a dictionary."""
    encoded = passages(range(count), tokens=(5, 9))
    return Codebook.learn(Encoded(**{**vars(encoded), "texts": tuple(texts(count))}), 32128)


@given(
    vocab_size=st.sampled_from([1, 255, 256, 257, 22400, 49152, 49153, 65536, 250_112, 1 << 24]),
    seed=st.integers(0, 99),
    T=st.integers(0, 40),
)
@given_settings(max_examples=80, deadline=None)
def test_token_ids_come_back(vocab_size: int, seed: int, T: int) -> None:
    rng = np.random.default_rng(seed)
    common = rng.permutation(min(vocab_size, 500))[: rng.integers(0, room(vocab_size)[1], endpoint=True)]
    codebook = Codebook(vocab_size, common.astype(np.uint32), b"")
    ids = np.where(rng.random(T) < 0.5, rng.integers(0, min(vocab_size, 500), T), rng.integers(0, vocab_size, T))
    coded = codebook.code_ids(ids.astype(np.uint32))
    assert len(coded) == T + codebook.low * int((~np.isin(ids, common)).sum())
    back, size = codebook.read_ids(memoryview(coded + b"more"), T)
    assert (size, back.dtype, back.tolist()) == (len(coded), np.uint32, ids.tolist())
    for cut in range(len(coded)):
        with pytest.raises(Corrupt, match="too few"):
            codebook.read_ids(memoryview(coded[:cut]), T)


def test_a_token_id_outside_the_vocabulary_is_refused() -> None:
    codebook = Codebook(300, np.array([7], np.uint32), b"")  # lead 2: ids from 256, of which there are 44
    assert codebook.read_ids(memoryview(bytes([2, 43])), 1)[0].tolist() == [299]
    with pytest.raises(Corrupt, match="300 is outside the vocabulary of 300"):
        codebook.read_ids(memoryview(bytes([2, 44])), 1)


@pytest.mark.parametrize("wrong", [[5, 5], [300], list(range(255))])
def test_common_types_that_lie_are_refused(wrong: list[int]) -> None:
    with pytest.raises(Corrupt, match="are not different ones of 300"):
        Codebook(300, np.array(wrong, np.uint32), b"")


def test_it_learns_what_is_common(passages: Make) -> None:
    codebook = learned(passages)
    encoded = passages(range(60), tokens=(5, 9))
    counts = np.bincount(encoded.token_ids)
    least = counts[codebook.common].min()
    assert len(codebook.common) == room(32128)[1] and (np.sort(counts)[::-1][: len(codebook.common)] >= least).all()
    text = texts(70)[-1].encode()
    packed, alone = codebook.pack(text), Codebook(32128, codebook.common, b"").pack(text)
    assert packed is not None and alone is not None and len(packed) < 0.9 * len(alone)
    assert codebook.unpack(memoryview(packed), len(text)) == text


def test_it_learns_from_passages_that_cannot_be_stored(passages: Make) -> None:
    encoded = passages(range(3), tokens=(5, 9))
    wrong = {"texts": ("\ud800", "a", "b"), "token_ids": encoded.token_ids + 32120}
    assert int(Codebook.learn(Encoded(**{**vars(encoded), **wrong}), 32128).common.max(initial=0)) < 32128


def test_it_comes_back_from_its_bytes(passages: Make) -> None:
    codebook = learned(passages)
    content = codebook.to_bytes()
    assert Codebook.from_bytes(content).to_bytes() == content
    for position in range(0, 8 * len(content), 97):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(Corrupt, match="damaged"):
            Codebook.from_bytes(bytes(damaged))
    for cut in (0, 11, 12, len(content) - 1):
        with pytest.raises(Corrupt):
            Codebook.from_bytes(content[:cut])


def test_a_text_that_does_not_shrink_or_is_long_is_not_packed() -> None:
    codebook = Codebook(32128, np.zeros(0, np.uint32), b"")
    assert codebook.pack(b"") is None and codebook.pack(b"abc") is None
    assert codebook.pack(b"a" * (MOST_TEXT + 1)) is None
    packed = codebook.pack(b"a" * MOST_TEXT)
    assert packed is not None and codebook.unpack(memoryview(packed), MOST_TEXT) == b"a" * MOST_TEXT


def test_a_packed_text_that_lies_is_refused() -> None:
    import zstandard

    codebook = Codebook(32128, np.zeros(0, np.uint32), b"")
    packed = codebook.pack(b"a" * 99) or b""
    for length in (98, 100, MOST_TEXT + 1, 1 << 32):
        with pytest.raises(Corrupt):
            codebook.unpack(memoryview(packed), length)
    with pytest.raises(Corrupt, match="cannot be unpacked"):
        codebook.unpack(memoryview(b"\xff" * 9), 99)
    form = zstandard.ZstdCompressionParameters(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    sized = zstandard.ZstdCompressor(compression_params=form).compress(b"a" * 99)  # zstd would allocate what it says
    with pytest.raises(Corrupt, match="a size of its own"):
        codebook.unpack(memoryview(sized), 99)


ONES, EIGHTHS = np.ones(5, np.float16), np.arange(1, 30, dtype=np.uint16) * 0x80


@pytest.mark.parametrize(
    ("scale", "kind", "size"),
    [
        (ONES, 0, 3),  # how many different ones, and the one
        (ONES[:0], 0, 1),
        (np.float16([1, 2, 2, 1, 2]), 0, 6),  # 1 bit each
        (np.float16([1, 2, 3, 4, -0.0]), 0, 14),  # 4 bits each
        (np.arange(16, dtype=np.float16), 0, 41),
        (EIGHTHS.view(np.float16), 1, 29),  # 3 bits of mantissa at most: a byte each
        (-EIGHTHS.view(np.float16), 2, 58),
        (np.arange(17, dtype=np.float16), 1, 17),
        (np.arange(17, dtype=np.float16) / 3, 2, 34),
    ],
)
def test_scales_come_back_to_the_bit(scale: np.ndarray, kind: int, size: int) -> None:
    found, coded = _code_scales(scale)
    assert (found, len(coded)) == (kind, size)
    back, taken = _read_scales(memoryview(coded + b"more"), len(scale), kind)
    assert (taken, back.dtype, back.tobytes()) == (size, np.float16, scale.tobytes())
    for cut in range(len(coded)):
        with pytest.raises(Corrupt):
            _read_scales(memoryview(coded[:cut]), len(scale), kind)


@pytest.mark.parametrize(
    ("coded", "T", "kind"), [(b"\x11" + bytes(99), 5, 0), (b"\0", 5, 0), (b"\1\0\0", 0, 0), (bytes(99), 5, 3)]
)
def test_scales_that_lie_are_refused(coded: bytes, T: int, kind: int) -> None:
    with pytest.raises(Corrupt, match="scales of"):
        _read_scales(memoryview(coded), T, kind)
