"""What signs leave: levels against Lloyd and Max's table, bits where variance is, codes there and back."""

import numpy as np
import pytest

from btr.retrieve.dense.residual import MOST_BITS, Residual, deal, error, levels


def test_levels_are_those_of_the_literature() -> None:
    # Max 1960, table I
    np.testing.assert_allclose(levels(1), [-0.7980, 0.7980], atol=2e-4)
    np.testing.assert_allclose(levels(2), [-1.510, -0.4528, 0.4528, 1.510], atol=1e-3)
    np.testing.assert_allclose(levels(3)[4:], [0.2451, 0.7560, 1.344, 2.152], atol=1e-3)
    expected = [1, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499]
    np.testing.assert_allclose([error(bits) for bits in range(6)], expected, rtol=5e-3)


def test_bits_go_where_they_take_most_error_off() -> None:
    assert deal(np.array([4.0, 1.0, 0.1]), 4).tolist() == [3, 1, 0]
    assert deal(np.array([1.0, 1.0, 1.0]), 3).tolist() == [1, 1, 1]
    assert deal(np.array([9.0, 0.0]), 8).tolist() == [MOST_BITS, 2]
    assert deal(np.array([0.0, 0.0]), 3).sum() == 3


@pytest.mark.parametrize("bits", [1, 60, 61, 150])
def test_codes_are_nearest_levels_along_the_directions(bits: int) -> None:
    rng = np.random.default_rng(bits)
    sample = (rng.standard_normal((400, 30)) * np.linspace(3, 0.05, 30) + 1).astype(np.float32)
    made = Residual.fit(sample, bits)
    assert made.bits.sum() == bits and made.bytes == -(-bits // 8)
    assert (np.diff(made.bits.astype(int)) <= 0).all() and made.bits.min() > 0
    codes = made.encode(sample)
    assert codes.dtype == np.uint8 and codes.shape == (400, made.bytes)
    along = (sample - made.mean) @ made.basis / made.spread
    for column, count in enumerate(made.bits.tolist()):
        nearest = np.abs(along[:, [column]] - levels(count)).argmin(1)
        expected = levels(count)[nearest] * made.spread[column]
        np.testing.assert_allclose(made.decode(codes)[:, column], expected, rtol=1e-5)
    assert made.decode(codes[:0]).shape == (0, len(made.bits)) and made.encode(sample[:0]).shape == (0, made.bytes)
    np.testing.assert_allclose(made.restore(codes), made.decode(codes) @ made.basis.T + made.mean)


def test_uneven_directions_are_coded_better_than_even_bits_would() -> None:
    rng = np.random.default_rng(3)
    turn = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    sample = (rng.standard_normal((4000, 40)) * 0.8 ** np.arange(40) @ turn).astype(np.float32)
    made = Residual.fit(sample, 40)
    left = ((sample - made.restore(made.encode(sample))) ** 2).sum() / (sample**2).sum()
    assert left < 0.06 < error(1)
    assert len(made.bits) < 20


def test_few_vectors_do_not_starve_the_directions_they_lack() -> None:
    sample = np.random.default_rng(4).standard_normal((5, 40)).astype(np.float32)
    others = np.random.default_rng(5).standard_normal((200, 40)).astype(np.float32)
    made = Residual.fit(sample, 40)
    assert len(made.bits) > 30
    left = ((others - made.restore(made.encode(others))) ** 2).sum() / (others**2).sum()
    assert left < 0.75
    same = Residual.fit(np.ones((3, 8), np.float32), 8)  # nothing is left
    np.testing.assert_allclose(same.restore(same.encode(np.ones((2, 8), np.float32))), 1)
