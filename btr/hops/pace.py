"""Tell how many steps to guess before one search verifies them.

a: seconds of reading a step; b(s) = b0 + b1 s: of a search for s queries, beside which the last is read; g: the chance
of a right guess. A round of s guesses accepts those before the first wrong one and, read again, that step:

    accepted(s) = 1 + g + ... + g^(s-1) = (1 - g^s) / (1 - g)
    seconds(s)  = (s - 1) a + max(a, b(s)) + (1 - g^s) a

This is RaLMSpec's way (arXiv 2401.14021), which counts (s - 1) a + max(a, b) for a round that is right and s a + b for
another: the same where b >= a. Where b < a, a wrong guess is read to its end all the same.
"""

from collections import deque
from collections.abc import Iterable

MOST = 16  # steps ahead
LEAST_GAIN = 1.02  # times as soon as one step after the other; below it, that is what is done
LOOK_AGAIN = 32  # steps without a guess after which one is tried
ROUNDS = 32  # that the chance is estimated over
FORGET = 0.9  # what a measurement still counts when the next one comes


def accepted(g: float, s: int) -> float:
    """Return how many steps a round of s guesses accepts on average."""
    return float(s) if g == 1 else (1 - g**s) / (1 - g)


def seconds(s: int, g: float, a: float, b0: float, b1: float) -> float:
    """Return how long a round of s guesses takes on average."""
    return (s - 1) * a + max(a, b0 + b1 * s) + (1 - g**s) * a


def best_stride(g: float, a: float, b0: float, b1: float, most: int = MOST) -> int:
    """Return the s, 1 to `most`, that accepts most steps a second.

    With r = (b0 - a) / (a + b1), one more guess pays while g^s (1 + (1 - g) (s + r)) >= 1: where b >= a, a round takes
    (a + b1) (s + r) and a for each step it accepts, and (1 - g^s) / (s + r) has one maximum. Where b < a it is 1, and
    so says the rule, whose r is then negative.
    """
    r, s = (b0 - a) / (a + b1), 1
    while s < most and g**s * (1 + (1 - g) * (s + r)) >= 1:
        s += 1
    return s


def gain(s: int, g: float, a: float, b0: float, b1: float) -> float:
    """Return how many times as soon steps are taken as one after the other."""
    return (a + b0 + b1) * accepted(g, s) / seconds(s, g, a, b0, b1)


def chance(rounds: Iterable[tuple[int, bool]]) -> float:
    """Estimate g from rounds (guesses that were right, whether a wrong one ended it), and one right and one wrong more.

    Of a guess after a wrong one it is not known whether it was right.
    """
    told = list(rounds)
    right, wrong = sum(matched for matched, _ in told), sum(ended for _, ended in told)
    return (right + 1) / (right + wrong + 2)


class Pace:
    """Keep what steps of earlier requests took, and choose the stride of the next round."""

    def __init__(self) -> None:
        self.a: float | None = None
        self._rounds: deque[tuple[int, bool]] = deque(maxlen=ROUNDS)
        self._sums = [0.0] * 5  # of searches, weighted: 1, s, s^2, seconds, s * seconds
        self._since = 0  # steps without a guess
        self.outcomes = {"accepted": 0, "rejected": 0}  # guesses of all rounds, as far as searches told

    @property
    def g(self) -> float:
        """The chance of a right guess."""
        return chance(self._rounds)

    @property
    def b(self) -> tuple[float, float] | None:
        """(b0, b1), by least squares; while all searches were for as many queries, more are taken to cost nothing."""
        n, s, squares, t, products = self._sums
        if not n:
            return None
        spread = n * squares - s * s
        b1 = (n * products - s * t) / spread if spread > 1e-9 * n * n else 0.0
        b1 = min(max(b1, 0.0), t / s)
        return (t - b1 * s) / n, b1

    def read(self, took: float) -> None:
        """Learn what reading took."""
        self.a = took if self.a is None else FORGET * self.a + (1 - FORGET) * took

    def searched(self, s: int, took: float) -> None:
        """Learn what a search for s queries took."""
        new = (1.0, s, s * s, took, s * took)
        self._sums = [FORGET * old + one for old, one in zip(self._sums, new, strict=True)]

    def ended(self, matched: int, wrong: bool) -> None:
        """Learn how many guesses of a round were right, and whether a wrong one ended it."""
        self._rounds.append((matched, wrong))
        self.outcomes["accepted"] += matched
        self.outcomes["rejected"] += wrong

    def stride(self) -> int:
        """Return how many steps to guess; 0: none, as it would not pay, or is not known to."""
        if self.a is None or self.b is None:
            return 0
        known = (self.g, self.a, *self.b)
        s = best_stride(*known)
        if gain(s, *known) >= LEAST_GAIN:
            self._since = 0
            return s
        self._since += 1
        if self._since >= LOOK_AGAIN:
            self._since = 0
            return 1
        return 0
