"""Passages and stores for the tests of this room; `build_and_die.py` runs this file too."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from btr.storage import Encoded, Settings, Store, StoreWriter

FINGERPRINT = "3f2a" * 16


def make_settings(**changes: Any) -> Settings:
    """Return settings with D = 65, so that a token's signs end within a word and within a byte."""
    values: dict[str, Any] = {
        "fingerprint": FINGERPRINT,
        "tokenizer_hash": "77aa" * 16,
        "k": 9,
        "D": 65,
        "vocab_size": 32128,
        "max_passage_tokens": 320,
        "corpus_hash": "c0de" * 16,
        "passages_per_block": 8,
        "options": {"limit": None, "words": 100},
        "corpus": "my corpus",
        "reader": "readers/base",
    }
    return Settings(**{**values, **changes})


def make_encoded(numbers: range, D: int = 65, tokens: tuple[int, int] = (0, 9)) -> Encoded:
    """Return passages p0, p1, ...; each depends on its number alone, so that batches can be cut anywhere."""
    parts = [make_one(number, D, tokens) for number in numbers]
    return Encoded.concat(parts) if parts else make_one(0, D, tokens).select([])


def make_one(number: int, D: int, tokens: tuple[int, int]) -> Encoded:
    rng = np.random.default_rng([number, D])
    length = int(rng.integers(*tokens, endpoint=True))
    bits = np.zeros((length, -(-D // 64) * 64), np.uint8)
    bits[:, :D] = rng.integers(0, 2, (length, D))
    return Encoded(
        fingerprint=FINGERPRINT,
        D=D,
        ids=(f"p{number}",),
        titles=(f"Title {number}",),
        texts=("word " * (length * 3 // 4),),
        lengths=np.array([length], np.int32),
        token_ids=rng.integers(0, 32128, length).astype(np.uint32),
        scale=rng.random(length).astype(np.float16),
        packed=np.packbits(bits, axis=1, bitorder="little").view(np.uint64),
    )


def write_store(path: Path, count: int = 20, batch: int = 7, **changes: Any) -> Path:
    settings = make_settings(**changes)
    with StoreWriter.create_or_resume(path, settings) as writer:
        for first in range(writer.consumed, count, batch):
            last = min(first + batch, count)
            writer.append(make_encoded(range(first, last), settings.D), last)
        writer.finish("btr 0.0")
    return path


def assert_same(a: Encoded, b: Encoded) -> None:
    """Hold two batches of passages to be equal in everything but float states."""
    assert (a.fingerprint, a.D, a.ids, a.titles, a.texts) == (b.fingerprint, b.D, b.ids, b.titles, b.texts)
    for name in ("lengths", "token_ids", "scale", "packed"):
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)


# Tests cannot import this file (import mode importlib), so what it offers comes as fixtures.
@pytest.fixture(name="settings")
def _settings() -> Callable[..., Settings]:
    return make_settings


@pytest.fixture(name="passages")
def _passages() -> Callable[..., Encoded]:
    return make_encoded


@pytest.fixture(name="write", scope="session")
def _write() -> Callable[..., Path]:
    return write_store


@pytest.fixture(name="same")
def _same() -> Callable[[Encoded, Encoded], None]:
    return assert_same


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store of 20 passages in blocks of 8."""
    with Store.open(write_store(tmp_path / "store")) as opened:
        yield opened
