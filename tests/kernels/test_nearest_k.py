"""The k nearest rows: both back ends against a plain sort, exactly, ties by index."""

import numpy as np
import pytest
from numpy.typing import NDArray

from btr import kernels

TILE = 1024  # rows of b that the Numba back end compares at a time


def words(seed: int, rows: int, W: int, bits: int = 64) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**bits - 1, (rows, W), np.uint64, endpoint=True)


def by_sorting(a: NDArray[np.uint64], b: NDArray[np.uint64], k: int) -> list[list[tuple[int, int]]]:
    """The definition, in Python: (distance, index) pairs sorted."""
    return [
        sorted((sum((int(x) ^ int(y)).bit_count() for x, y in zip(row, other, strict=True)), p) for p, other in
               enumerate(b))[:k]
        for row in a
    ]  # fmt: skip


@pytest.mark.parametrize(("P", "k"), [(1, 1), (63, 5), (64, 64), (65, 20), (300, 300)])
@pytest.mark.parametrize(("W", "bits"), [(1, 3), (2, 64)])  # 3 bits: nearly all distances tie
def test_nearest_k_is_the_sorted_list(back_end: str, P: int, k: int, W: int, bits: int) -> None:
    a, b = words(1, 3, W, bits), words(2, P, W, bits)
    index, distance = kernels.nearest_k(a, b, k)
    assert (index.dtype, distance.dtype) == (np.int64, np.int32)
    found = [list(zip(d.tolist(), i.tolist(), strict=True)) for i, d in zip(index, distance, strict=True)]
    assert found == by_sorting(a, b, k)


@pytest.mark.parametrize("P", [TILE - 1, TILE, TILE + 1, 3 * TILE + 17])
def test_nearest_k_across_tiles(back_end: str, P: int) -> None:
    a, b = words(3, 5, 2, 6), words(4, P, 2, 6)
    index, distance = kernels.nearest_k(a, b, 50)
    full = kernels.hamming(a, b)
    order = np.argsort(full, axis=1, kind="stable")[:, :50]
    assert np.array_equal(index, order)
    assert np.array_equal(distance, np.take_along_axis(full, order, 1))


def test_nearest_k_of_one_is_nearest(back_end: str) -> None:
    a, b = words(5, 70, 3), words(6, 200, 3)
    for found, expected in zip(kernels.nearest_k(a, b, 1), kernels.nearest(a, b), strict=True):
        assert np.array_equal(found[:, 0], expected)


def test_nearest_k_in_parallel_is_the_same() -> None:
    kernels.use("numba")
    a, b = words(7, 200, 64), words(8, 90_000, 64)  # more than the 1e9 words from which rows are shared out
    index, distance = kernels.nearest_k(a, b, 9)
    for m in (0, 63, 64, 199):
        alone = kernels.nearest_k(a[m : m + 1], b, 9)
        assert np.array_equal(index[m], alone[0][0]) and np.array_equal(distance[m], alone[1][0])


def test_nearest_k_of_no_rows(back_end: str) -> None:
    index, distance = kernels.nearest_k(words(1, 0, 2), words(1, 9, 2), 4)
    assert index.shape == distance.shape == (0, 4)


@pytest.mark.parametrize("k", [0, -1, 10])
def test_nearest_k_wants_a_k_that_is_there(back_end: str, k: int) -> None:
    with pytest.raises(ValueError, match=rf"k is {k}, b has 9 rows"):
        kernels.nearest_k(words(1, 2, 2), words(1, 9, 2), k)
