"""Exact match, F1 and bootstrap intervals."""

import pytest

from btr.metrics import bootstrap, exact_match, f1, mean, normalise


@pytest.mark.parametrize(
    ("text", "normal"),
    [("The  Nile.", "nile"), ("an Apple a day", "apple day"), ("U.S.A.", "usa"), ("Theatre", "theatre"), ("", "")],
)
def test_normalise_drops_case_punctuation_articles_and_space(text: str, normal: str) -> None:
    assert normalise(text) == normal


def test_exact_match_takes_any_accepted_answer() -> None:
    assert exact_match("the Nile", ["Congo", "Nile"]) == 1.0
    assert exact_match("Niles", ["Congo", "Nile"]) == 0.0
    assert exact_match("Nile", []) == 0.0


def test_f1_is_the_best_overlap_of_words() -> None:
    assert f1("Lake Victoria", ["Victoria"]) == pytest.approx(2 * 1 / 3)
    assert f1("Lake Victoria", ["Victoria", "the lake Victoria"]) == 1.0
    assert f1("red red blue", ["red"]) == pytest.approx(2 * 1 / 4)  # a word counts as often as both have it
    assert f1("green", ["red"]) == 0.0


def test_bootstrap_interval_holds_the_mean_and_narrows() -> None:
    few, many = [0.0, 1.0] * 10, [0.0, 1.0] * 1000
    low, high = bootstrap(few)
    assert low < mean(few) < high
    # The mean of n coin flips deviates by 0.5 / sqrt(n): 1.96 of these each way is the 95 % interval.
    narrow = bootstrap(many)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * 0.5 / 2000**0.5, rel=0.2)
    assert bootstrap([1.0] * 5) == (1.0, 1.0)
    assert bootstrap(few) == bootstrap(few)


def test_bootstrap_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no examples"):
        bootstrap([])
