"""Span corruption, as T5 is pre-trained (Raffel et al. 2020, arXiv 1910.10683, §3.1.4): runs of words become sentinels.

    The Nile<extra_id_0> Egypt. It feeds a delta<extra_id_1>  ->  <extra_id_0> ends in<extra_id_1> north of
    Cairo.<extra_id_2>

15 % of the words are asked for, in runs of 3 on average. Whole words are taken instead of pieces, so that an example is
text like any other; without a space before a sentinel, the pieces around it are those of T5's own examples.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tokenizers import Tokenizer

from btr.corpus import Passage
from btr.errors import InputError
from btr.train.data import SENTENCE, Example, window

SHARE = 0.15  # of the words are taken out
RUN = 3.0  # words on average of a run that is taken out
LEAST = 4  # words of a passage


def sentinels(tokenizer: Tokenizer) -> list[str]:
    """Return the sentinels that a tokenizer has, <extra_id_0> first.

    Raises:
        InputError: it has fewer than two.
    """
    found: list[str] = []
    while tokenizer.token_to_id(f"<extra_id_{len(found)}>") is not None:
        found.append(f"<extra_id_{len(found)}>")
    if len(found) < 2:
        raise InputError(
            f"the tokenizer has {len(found)} sentinels (<extra_id_0>, ...) and span corruption needs 2 or more; take a "
            "T5's, or make one with: python -m btr.train tokenizer"
        )
    return found


@dataclass(frozen=True)
class CorruptionSource:
    """Passages with runs of words taken out; one passage an example, of about `words` words."""

    passages: Sequence[Passage]
    marks: Sequence[str]  # from `sentinels`
    words: int = 100

    def __post_init__(self) -> None:
        if not any(len(passage.text.split()) >= LEAST for passage in self.passages):
            raise InputError(f"no passage of {LEAST} words or more to learn from; give another --text")

    def draw(self, rng: random.Random) -> Example:
        """Make one example; its question is empty."""
        while True:
            passage = rng.choice(self.passages)
            text = window(passage.text, rng.randrange(len(SENTENCE.split(passage.text))), self.words, rng)
            if len(text.split()) >= LEAST:
                corrupted, answer = corrupt(text.split(), self.marks, rng)
                return Example("", answer, ((passage.title, corrupted),), "fill")


def corrupt(words: Sequence[str], marks: Sequence[str], rng: random.Random) -> tuple[str, str]:
    """Take runs of words out; returns what is left with sentinels, and what was taken, each run after its sentinel.

    As in T5, the text begins with words and the answer ends with one more sentinel.
    """
    taken = min(max(round(len(words) * SHARE), 1), len(words) - 1)
    runs = min(max(round(taken / RUN), 1), len(words) - taken, len(marks) - 1)
    left: list[str] = []
    answer: list[str] = []
    at = 0
    for mark, keep, take in zip(marks, cut(len(words) - taken, runs, rng), cut(taken, runs, rng), strict=False):
        left.append(" ".join(words[at : at + keep]) + mark)
        answer.append(" ".join([mark, *words[at + keep : at + keep + take]]))
        at += keep + take
    return " ".join(left), "".join([*answer, marks[runs]])


def cut(total: int, parts: int, rng: random.Random) -> list[int]:
    """Cut a number into `parts` positive ones, every way being equally likely; parts <= total."""
    ends = [0, *sorted(rng.sample(range(1, total), parts - 1)), total]
    return [end - start for start, end in pairwise(ends)]
