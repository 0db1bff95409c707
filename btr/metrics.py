"""Exact match and F1 as Fusion-in-Decoder computes them, and bootstrap intervals."""

import random
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower-case, drop ASCII punctuation and English articles, collapse white space (Rajpurkar et al. 2016)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """Return 1.0 if the normalised answer equals an accepted one, else 0.0."""
    return float(any(normalise(answer) == normalise(other) for other in accepted))


def f1(answer: str, accepted: Sequence[str]) -> float:
    """Return the best harmonic mean of word precision and recall against an accepted answer."""
    return max((_f1(normalise(answer).split(), normalise(other).split()) for other in accepted), default=0.0)


def _f1(words: Sequence[str], wanted: Sequence[str]) -> float:
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted)) if common else float(words == wanted)


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] | None = None,
    rounds: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a statistic (default: the mean) of values, one per example.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no examples to take an interval over; give at least one")
    rng, measure = random.Random(seed), statistic or mean
    found = sorted(measure(rng.choices(values, k=len(values))) for _ in range(rounds))
    return found[int(0.025 * rounds)], found[min(int(0.975 * rounds), rounds - 1)]


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return sum(values) / len(values)
