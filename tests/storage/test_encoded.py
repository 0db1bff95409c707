"""Encoded passages in memory."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from btr.storage import Encoded

Make = Callable[..., Encoded]


def test_counts(passages: Make) -> None:
    batch = passages(range(5))
    assert len(batch) == 5
    assert batch.num_tokens == batch.lengths.sum() == batch.offsets[-1]
    np.testing.assert_array_equal(np.diff(batch.offsets), batch.lengths)


def test_select_keeps_order_and_repeats(passages: Make, same: Callable[..., None]) -> None:
    batch = passages(range(6))
    chosen = batch.select([4, 0, 4, -1])
    same(chosen, Encoded.concat([passages(range(i, i + 1)) for i in (4, 0, 4, 5)]))


def test_select_nothing(passages: Make) -> None:
    nothing = passages(range(6)).select([])
    assert len(nothing) == nothing.num_tokens == 0
    assert nothing.packed is not None and nothing.packed.shape == (0, 2)


def test_select_takes_states_along(passages: Make) -> None:
    binary = passages(range(3))
    states = np.arange(binary.num_tokens * 65, dtype=np.float32).reshape(-1, 65)
    floats = replace(binary, packed=None, states=states)
    chosen = floats.select([2])
    assert chosen.packed is None
    np.testing.assert_array_equal(chosen.states, states[binary.offsets[2] :])


def test_concat_refuses_mixtures(passages: Make) -> None:
    batch = passages(range(3))
    for other in (replace(batch, fingerprint="91bc"), replace(batch, packed=None), passages(range(3), D=66)):
        with pytest.raises(ValueError, match="one kind"):
            Encoded.concat([batch, other])
    with pytest.raises(ValueError, match="one kind"):
        Encoded.concat([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titles": ()}, "titles has 0, ids 3"),
        ({"lengths": np.zeros(3, np.int32)}, "token_ids is "),
        ({"packed": np.zeros((1, 2), np.uint64)}, "packed is (1, 2), expected "),
        ({"states": np.zeros((1, 65), np.float32)}, "states is (1, 65), expected "),
    ],
)
def test_refuses_shapes_that_disagree(passages: Make, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        replace(passages(range(3), tokens=(2, 9)), **change)
    assert message in str(caught.value)
