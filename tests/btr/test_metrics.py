"""Exact match, F1, answers in passages; intervals, retention."""

import pytest

from btr import metrics
from btr.metrics import LOOKED_AT, bootstrap, exact_match, f1, holds_answer, mean, normalise, retention


@pytest.mark.parametrize(
    ("text", "normal"),
    [("The  Nile.", "nile"), ("an Apple a day", "apple day"), ("U.S.A.", "usa"), ("Theatre", "theatre"), ("", ""),
     ("The The", "the the"), (" A ", "a"), ("+", "+"), ("Rene\u0301e", "ren\u00e9e")],
)  # fmt: skip
def test_normalise_drops_case_punctuation_articles_and_space(text: str, normal: str) -> None:
    assert normalise(text) == normal


def test_no_more_is_looked_at_than_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    made = metrics.unicodedata.normalize
    monkeypatch.setattr(metrics.unicodedata, "normalize", lambda form, text: seen.append(len(text)) or made(form, text))
    text = "salt and " * 200_000
    assert exact_match("salt", [text]) == 0.0 and f1(text, ["salt"]) < 0.01
    assert holds_answer(text, ["and salt"]) and not holds_answer(text + "pepper", ["pepper"])
    assert max(seen) == LOOKED_AT


def test_exact_match_takes_any_accepted_answer() -> None:
    assert exact_match("the Nile", ["Congo", "Nile"]) == 1.0
    assert exact_match("Niles", ["Congo", "Nile"]) == 0.0
    assert exact_match("Nile", []) == 0.0


@pytest.mark.parametrize("accepted", ["A", "The The", "+", "\u4e0a"])
def test_silence_is_no_right_answer(accepted: str) -> None:
    assert exact_match(accepted, [accepted]) == f1(accepted, [accepted]) == 1.0
    for silence in ("", " ", "an"):
        assert exact_match(silence, [accepted]) == f1(silence, [accepted]) == 0.0


def test_letters_are_the_same_composed_or_not() -> None:
    assert exact_match("Rene\u0301e Zoe\u0301", ["Ren\u00e9e Zo\u00e9"]) == 1.0
    assert f1("Ren\u00e9e", ["Rene\u0301e"]) == 1.0


def test_f1_is_the_best_overlap_of_words() -> None:
    assert f1("Lake Victoria", ["Victoria"]) == pytest.approx(2 * 1 / 3)
    assert f1("Lake Victoria", ["Victoria", "the lake Victoria"]) == 1.0
    assert f1("red red blue", ["red"]) == pytest.approx(2 * 1 / 4)  # a word counts as often as both have it
    assert f1("green", ["red"]) == 0.0


@pytest.mark.parametrize(
    ("text", "answers", "held"),
    [
        ("It rises in LAKE Victoria.", ["lake victoria"], True),
        ("It rises in Lake  \n Victoria.", ["Lake Victoria"], True),
        ("the cat sat", ["at"], False),  # words, not letters
        ("in 1905", ["1905", "1906"], True),
        ("in 19051", ["1905"], False),
        ("a U.S. ship", ["U.S."], True),
        ("Caf\u00e9 de Flore", ["cafe\u0301"], True),  # the same letter, written in two ways
        ("anything", [], False),
        ("anything", ["", " "], False),
        ("", ["x"], False),
    ],
)
def test_passage_holds_an_answer_word_for_word(text: str, answers: list[str], held: bool) -> None:
    assert holds_answer(text, answers) is held


def test_bootstrap_interval_holds_the_mean_and_narrows() -> None:
    few, many = [0.0, 1.0] * 10, [0.0, 1.0] * 1000
    low, high = bootstrap(few)
    assert low < mean(few) < high
    # The mean of n coin flips deviates by 0.5 / sqrt(n): 1.96 of these each way is the 95 % interval.
    narrow = bootstrap(many)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 1.96 * 0.5 / 2000**0.5, rel=0.2)
    assert bootstrap([1.0] * 5) == (1.0, 1.0)


def test_bootstrap_is_the_same_everywhere() -> None:
    # Published figures carry these. The mean of 100 even steps deviates by 0.29 / 10: 1.96 of these is 0.057.
    values = [i / 99 for i in range(100)]
    assert bootstrap(values) == bootstrap(values) == pytest.approx((0.4455555555555556, 0.5594949494949495), abs=1e-12)
    assert bootstrap(values, seed=1) == pytest.approx((0.4428282828282828, 0.5581818181818181), abs=1e-12)


def test_bootstrap_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no examples"):
        bootstrap([])


def test_retention_is_a_ratio_over_the_same_examples() -> None:
    base = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert retention(base, base) == (1.0, 1.0, 1.0)  # paired: two runs alike retain all, in every draw
    lost = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    ratio, low, high = retention(lost, base)
    assert ratio == 0.75
    assert low < 0.75 < high == 1.0  # never more than all: what base has not, this has not either
    gained = [*base[:9], 1.0]
    assert retention(gained, base)[0] == 1.25
    assert retention(gained, base)[1] == 1.0


def test_retention_leaves_out_draws_without_a_base() -> None:
    # One in two draws of two examples takes an example twice, one in four the wrong one: those have no ratio.
    ratio, low, high = retention([1.0, 0.0], [1.0, 0.0])
    assert (ratio, low, high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "base", "message"),
    [([1.0], [1.0, 0.0], "1 values, 2 in base"), ([1.0, 1.0], [0.0, 0.0], "nothing to retain")],
)
def test_retention_of_what_cannot_be_compared(values: list[float], base: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retention(values, base)
