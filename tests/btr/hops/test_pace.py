"""The stride: the rule against brute force, the estimate against what was simulated, and where it does not pay."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btr.hops.pace import LEAST_GAIN, MOST, Pace, accepted, best_stride, chance, gain, seconds

chances = st.floats(0.01, 0.99)
times = st.floats(0.01, 100)


@settings(max_examples=500, deadline=None)
@given(g=chances, a=times, b0=st.floats(0, 100), b1=st.floats(0, 20))
def test_stride_is_the_best_by_brute_force(g: float, a: float, b0: float, b1: float) -> None:
    rates = {s: accepted(g, s) / seconds(s, g, a, b0, b1) for s in range(1, MOST + 1)}
    assert rates[best_stride(g, a, b0, b1)] == pytest.approx(max(rates.values()), rel=1e-9)


@settings(max_examples=300, deadline=None)
@given(g=chances, a=times, more=times, b1=st.floats(0, 20), s=st.integers(1, MOST))
def test_where_searching_takes_longer_it_is_the_paper_s_formula(
    g: float, a: float, more: float, b1: float, s: int
) -> None:
    b = a + more + b1 * s
    theirs = (1 - g**s) / ((1 - g) * (g**s * ((s - 1) * a + max(a, b)) + (1 - g**s) * (s * a + b)))
    assert accepted(g, s) / seconds(s, g, a, a + more, b1) == pytest.approx(theirs, rel=1e-9)


@settings(max_examples=300, deadline=None)
@given(g=chances, a=times, b0=times, b1=st.floats(0, 20), s=st.integers(1, MOST))
def test_gain_is_never_more_than_hiding_the_search(g: float, a: float, b0: float, b1: float, s: int) -> None:
    assert gain(s, g, a, b0, b1) <= (1 + (b0 + b1) / a) * (1 + 1e-9)


@pytest.mark.parametrize("g", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("s", [1, 3, 8])
def test_simulated_rounds_are_estimated_within_three_sigma(g: float, s: int) -> None:
    rng, rounds = random.Random(s), []
    for _ in range(3000):
        right = 0
        while right < s and rng.random() < g:
            right += 1
        rounds.append((right, right < s))
    guesses = sum(right + wrong for right, wrong in rounds)
    sigma = (g * (1 - g) / guesses) ** 0.5
    assert abs(chance(rounds) - g) < 3 * sigma + 1 / guesses
    steps = sum(right + wrong for right, wrong in rounds) / len(rounds)
    assert steps == pytest.approx(accepted(g, s), rel=0.06)  # 4 sigma of 3,000 rounds


def simulate(g: float, a: float, b0: float, b1: float, steps: int) -> tuple[float, float]:
    """Return the seconds that so many steps take with a pace, and one after the other."""
    rng, pace, clock, done = random.Random(5), Pace(), 0.0, 0
    while done < steps:
        stride = pace.stride()
        pace.searched(max(stride, 1), b0 + b1 * max(stride, 1))
        pace.read(a)
        if stride == 0:
            clock, done = clock + a + b0 + b1, done + 1
            continue
        right = 0
        while right < stride and rng.random() < g:
            right += 1
        clock += (stride - 1) * a + max(a, b0 + b1 * stride) + (a if right < stride else 0)
        done += right + (right < stride)
        pace.ended(right, right < stride)
    return clock, done * (a + b0 + b1)


@pytest.mark.parametrize("b0", [0.0, 0.03, 0.5, 0.9, 1.0, 3.0])
@pytest.mark.parametrize("b1", [0.0, 0.02, 0.5])
def test_guesses_that_are_never_right_cost_little(b0: float, b1: float) -> None:
    took, plain = simulate(0.0, 1.0, b0, b1, 400)
    assert took <= 1.05 * plain


@pytest.mark.parametrize(("g", "b0", "b1"), [(0.9, 1.0, 0.0), (0.8, 3.0, 0.1), (0.95, 0.5, 0.0), (0.6, 2.0, 0.5)])
def test_simulated_gain_is_the_formulas(g: float, b0: float, b1: float) -> None:
    took, plain = simulate(g, 1.0, b0, b1, 4000)
    stride = best_stride(g, 1.0, b0, b1)
    assert plain / took == pytest.approx(gain(stride, g, 1.0, b0, b1), rel=0.15)
    assert plain / took > 1.2


def test_nothing_is_guessed_before_anything_is_known_nor_where_it_cannot_win() -> None:
    pace = Pace()
    assert pace.stride() == 0
    pace.read(1.0)
    assert pace.stride() == 0
    pace.searched(1, 0.01)  # a hundredth of reading: nothing to hide
    assert gain(1, pace.g, 1.0, 0.01, 0.0) < LEAST_GAIN
    assert [pace.stride() for _ in range(64)] == ([0] * 31 + [1]) * 2  # a look, now and then


def test_guesses_are_counted_by_outcome() -> None:
    pace = Pace()
    for _ in range(100):  # more rounds than the chance is estimated over
        pace.ended(2, True)
        pace.ended(3, False)
    assert pace.outcomes == {"accepted": 500, "rejected": 100}


def test_cost_of_a_search_is_fitted_by_least_squares() -> None:
    pace = Pace()
    for _ in range(50):
        pace.searched(2, 0.7)
    assert pace.b == pytest.approx((0.7, 0.0))
    for s in (1, 4, 2, 3) * 50:
        pace.searched(s, 0.5 + 0.1 * s)
    assert pace.b == pytest.approx((0.5, 0.1), rel=1e-3)
    for s in (1, 4) * 50:
        pace.searched(s, 1.0 - 0.1 * s)  # faster for more: not believed
    assert pace.b is not None and pace.b[1] == 0.0
