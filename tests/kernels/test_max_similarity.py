"""Late interaction with stored signs: both back ends against a plain loop, exactly."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from btr import kernels

LENGTHS = (1, 3, 17)


def draw(
    D: int, T: int, lengths: tuple[int, ...] = LENGTHS
) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.int64]]:
    """A question of all values of an int8, the extremes among them; signs ±1; where passages begin and end."""
    random = np.random.default_rng(D * T)
    question = random.integers(-128, 128, (T, D)).astype(np.int8)
    question.flat[: min(2, question.size)] = (-128, 127)[: min(2, question.size)]
    signs = random.choice([-1, 1], (sum(lengths), D)).astype(np.int8)
    return question, signs, np.concatenate(([0], np.cumsum(lengths)))


def by_looping(
    question: NDArray[np.int8], signs: NDArray[np.int8], offsets: NDArray[np.int64], base: NDArray[np.int32]
) -> list[int]:
    """The definition, in Python's integers."""
    products = [[sum(int(a) * int(b) for a, b in zip(q, s, strict=True)) for q in question] for s in signs]
    scores = [[p + int(b) for p, b in zip(row, bases, strict=True)] for row, bases in zip(products, base, strict=True)]
    return [
        sum(max(scores[m][t] for m in range(first, end)) for t in range(len(question)))
        for first, end in pairwise(offsets.tolist())
    ]


@pytest.mark.parametrize("D", [1, 63, 64, 65, 120, 128, 768])
@pytest.mark.parametrize("T", [1, 7, 8, 33])
def test_score_is_the_sum_of_the_largest_products(back_end: str, D: int, T: int) -> None:
    question, signs, offsets = draw(D, T)
    base = np.random.default_rng(T).integers(-1000, 1000, (len(signs), T)).astype(np.int32)
    found = kernels.max_similarity(question, kernels.pack(signs), offsets, base)
    assert found.dtype == np.int64
    assert found.tolist() == by_looping(question, signs, offsets, base)
    plain = kernels.max_similarity(question, kernels.pack(signs), offsets)
    assert plain.tolist() == by_looping(question, signs, offsets, np.zeros_like(base))


def test_largest_numbers_are_exact(back_end: str) -> None:
    signs, D = np.ones((2, 4096), np.int8), 4096
    signs[1] = -1
    question, base = np.full((3, D), -128, np.int8), np.full((2, 3), 2**30 - 1, np.int32)
    offsets = np.array([0, 1, 2])
    expected = [3 * (2**30 - 1 - 128 * D), 3 * (2**30 - 1 + 128 * D)]
    assert kernels.max_similarity(question, kernels.pack(signs), offsets, base).tolist() == expected


def test_a_passage_scores_alone_as_among_others(back_end: str) -> None:
    question, signs, offsets = draw(120, 9, (5, 1, 40, 2))
    packed = kernels.pack(signs)
    together = kernels.max_similarity(question, packed, offsets)
    for n, (first, end) in enumerate(pairwise(offsets.tolist())):
        alone = kernels.max_similarity(question, packed[first:end], np.array([0, end - first]))
        assert alone.tolist() == [together[n]]


def test_no_passages_have_no_scores(back_end: str) -> None:
    assert kernels.max_similarity(np.ones((2, 9), np.int8), np.empty((0, 1), np.uint64), np.array([0])).shape == (0,)


def test_arrays_may_be_strided_and_read_only(back_end: str) -> None:
    question, signs, offsets = draw(65, 4)
    packed, base = kernels.pack(signs), np.ones((len(signs), 4), np.int32)
    wide = np.repeat(question, 2, 1)[:, ::2]
    packed.flags.writeable = False
    found = kernels.max_similarity(wide, packed, offsets, np.asfortranarray(base))
    assert np.array_equal(found, kernels.max_similarity(question, packed.copy(), offsets, base))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda q, p, o, b: (q.astype(np.int16), p, o, b), "question is int16"),
        (lambda q, p, o, b: (q[:0], p, o, b), "T and D at least 1"),
        (lambda q, p, o, b: (q, p.astype(np.int64), o, b), "packed has dtype int64"),
        (lambda q, p, o, b: (q[:, :64], p, o, b), "D = 64 needs 1"),
        (lambda q, p, o, b: (q, p, o[:-1], b), "offsets do not divide 21 tokens"),
        (lambda q, p, o, b: (q, p, np.insert(o, 1, 1), b), "of one or more"),
        (lambda q, p, o, b: (q, p, o, b[:, 1:]), r"base is int32 \(21, 3\), expected int32 \(21, 4\)"),
        (lambda q, p, o, b: (q, p, o, b.astype(float)), "base is float64"),
    ],
)
def test_wrong_arguments_are_refused(change: Callable[..., tuple[Any, ...]], said: str) -> None:
    question, signs, offsets = draw(120, 4)
    with pytest.raises(ValueError, match=said):
        kernels.max_similarity(*change(question, kernels.pack(signs), offsets, np.zeros((len(signs), 4), np.int32)))
