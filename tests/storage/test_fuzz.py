"""Bytes that lie: read or refused, never a crash nor a large allocation.  `fuzz.py` does the same for hours."""

import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from runpy import run_path
from typing import Any

from hypothesis import example, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

from btr.storage import Corrupt, StoreError

fuzz: dict[str, Any] = run_path(str(Path(__file__).with_name("fuzz.py")))
read_block: Callable[[bytes], None] = fuzz["read_block"]


def test_a_few_thousand_inputs_are_read_or_refused() -> None:
    tracemalloc.start()
    counts = fuzz["run"](6000, seed=7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts["read"] > 300 and counts["refused"] > 3000
    assert peak < 4 << 20


@example(at=[(40, 0xFF)])
@given(at=st.lists(st.tuples(st.integers(0, len(fuzz["BLOCK"]) - 1), st.integers(1, 255)), min_size=1, max_size=6))
@given_settings(max_examples=300)
def test_a_block_with_right_checksums_and_wrong_bytes(at: list[tuple[int, int]]) -> None:
    data = bytearray(fuzz["BLOCK"])
    for place, flip in at:
        data[place] ^= flip
    fuzz["mend"](data)
    try:
        read_block(bytes(data))
    except Corrupt as error:
        assert str(error)


@given(seed=st.integers(0, 1 << 30))
@given_settings(max_examples=100)
def test_manifests_that_lie(seed: int) -> None:
    try:
        fuzz["read_manifest"](random.Random(seed))
    except StoreError as error:
        assert "store" in str(error)
