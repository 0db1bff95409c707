"""Score answers as the literature does, and say how sure a figure is.

Exact match and F1 are Fusion-in-Decoder's, with SQuAD's normalisation; whether a passage holds an answer is DPR's
question; intervals are 95 % percentile bootstrap over examples (Efron 1979), paired where two runs are compared.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
WORD = re.compile(r"\w+|[^\w\s]")
ROUNDS = 1000  # of the bootstrap
LOOKED_AT = 1 << 16  # characters of a text: more than a reader reads of one, or writes


def normalise(text: str) -> str:
    """Lower-case, drop ASCII punctuation and English articles, collapse white space (Rajpurkar et al. 2016).

    Beside what SQuAD does, letters are composed (NFC), and a text of which nothing would be left ("The The", "+") keeps
    articles and punctuation: else silence would be the right answer.
    """
    lower = unicodedata.normalize("NFC", text[:LOOKED_AT]).lower()
    return " ".join(ARTICLES.sub(" ", lower.translate(PUNCTUATION)).split()) or " ".join(lower.split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """Return 1.0 if the normalised answer equals an accepted one, else 0.0."""
    return float(any(normalise(answer) == normalise(other) for other in accepted))


def f1(answer: str, accepted: Sequence[str]) -> float:
    """Return the best harmonic mean of word precision and recall against an accepted answer."""
    return max((_f1(normalise(answer).split(), normalise(other).split()) for other in accepted), default=0.0)


def _f1(words: Sequence[str], wanted: Sequence[str]) -> float:
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted)) if common else float(words == wanted)


def holds_answer(text: str, accepted: Sequence[str]) -> bool:
    """Tell whether a text holds an accepted answer, word for word, whatever its case (DPR, arXiv 2004.04906)."""
    words = _words(text)
    return any(wanted in words for wanted in map(_words, accepted) if wanted.strip())


def _words(text: str) -> str:
    """Return the words and marks of a text, a space around each."""
    return " ".join(["", *WORD.findall(unicodedata.normalize("NFC", text[:LOOKED_AT]).lower()), ""])


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)


def bootstrap(values: Sequence[float], rounds: int = ROUNDS, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of values, one per example.

    Give the differences of two runs over the same examples for the interval of the paired difference.

    Raises:
        ValueError: no values.
    """
    return _interval(_resampled((values,), rounds, seed)[:, 0])


def percent(values: Sequence[float]) -> list[float]:
    """Return the mean of values and its 95 % interval, in per cent."""
    return [round(100 * value, 2) for value in (mean(values), *bootstrap(values))]


def retention(
    values: Sequence[float], base: Sequence[float], rounds: int = ROUNDS, seed: int = 0
) -> tuple[float, float, float]:
    """Return the mean of values over that of base, as (ratio, low, high) with its 95 % interval.

    The examples of both are drawn together: values[i] and base[i] are scores of the same example. A draw in which base
    scored nothing has no ratio and is left out.

    Raises:
        ValueError: no values, not as many as base, or a base of zeros alone.
    """
    if len(values) != len(base):
        raise ValueError(f"{len(values)} values, {len(base)} in base; score the same examples")
    if not any(base):
        raise ValueError("base scored nothing: there is nothing to retain")
    drawn = _resampled((values, base), rounds, seed)
    drawn = drawn[drawn[:, 1] > 0]
    return (sum(values) / sum(base), *_interval(drawn[:, 0] / drawn[:, 1]))


def interval_of(
    statistic: Callable[[np.ndarray], float], n: int, rounds: int = ROUNDS, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of a statistic of which of `n` examples were drawn, (n,) numbers from 0.

    A draw that has no such figure (not a number) is left out.

    Raises:
        ValueError: no examples.
    """
    if not n:
        raise ValueError("no examples to take an interval over; give at least one")
    drawn = np.random.RandomState(seed)
    found = np.array([statistic(drawn.randint(0, n, n)) for _ in range(rounds)])
    return _interval(found[~np.isnan(found)])


def _resampled(columns: Sequence[Sequence[float]], rounds: int, seed: int) -> np.ndarray:
    """Return the means (rounds, C) of C columns over examples drawn with replacement, the same for all columns."""
    scores = np.array(columns, dtype=np.float64)
    n = scores.shape[1]
    if not n:
        raise ValueError("no examples to take an interval over; give at least one")
    drawn = np.random.RandomState(seed)  # not default_rng: this stream is the same in every NumPy (NEP 19)
    return np.stack([scores[:, drawn.randint(0, n, n)].mean(1) for _ in range(rounds)])


def _interval(drawn: np.ndarray) -> tuple[float, float]:
    ordered = np.sort(drawn)
    return float(ordered[int(0.025 * len(ordered))]), float(ordered[min(int(0.975 * len(ordered)), len(ordered) - 1)])
