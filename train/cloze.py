"""Cloze questions from plain text: a name, number, date or phrase of a sentence becomes a question word.

Every example is a function of the random numbers it is drawn with.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from btr.corpus import Passage
from btr.errors import InputError
from btr.train.data import SENTENCE, Example, window

YEAR = re.compile(r"^(1[0-9]|20)\d\d$")
NUMBER = re.compile(r"^[\d][\d,.]*$")
MONTH = re.compile(r"^(January|February|March|April|May|June|July|August|September|October|November|December)$")
DIGIT_OR_CAPITAL = re.compile(r"\d|[A-Z]")
FUNCTION_WORDS = """
a an the of in on at to for from by with and or as is was are were be been it its his her their he she they this that
which who has had have also not but into after before during between about than then when where while over under
"""
STOPWORDS = frozenset(FUNCTION_WORDS.split())
BEFORE_PHRASE = frozenset({"a", "an", "the", "of", "as", "called", "for"})
TRIES = 10_000  # sentences tried for one example before the text is given up


def spans(words: Sequence[str]) -> list[tuple[int, int, str]]:
    """List (start, stop, kind) of answer candidates in a sentence's words: dates, numbers, names, some phrases."""
    found, start = [], 0
    while start < len(words):
        stop, kind = span_at(words, start)
        if kind:
            found.append((start, stop, kind))
        start = stop
    return found


def span_at(words: Sequence[str], start: int) -> tuple[int, str]:
    """Return where the candidate that begins at word `start` stops, and its kind; (start + 1, "") if none does."""
    bare = words[start].strip(".,;:()\"'")
    following = words[start + 1].strip(".,") if start + 1 < len(words) else ""
    if YEAR.match(bare):
        return start + 1, "year"
    if MONTH.match(bare) or (NUMBER.match(bare) and MONTH.match(following)):
        return extend(words, start, 3, lambda word: bool(DIGIT_OR_CAPITAL.match(word)), (".", ";")), "date"
    if NUMBER.match(bare):
        return start + 1, "number"
    if bare[:1].isupper() and bare.lower() not in STOPWORDS:
        stop = extend(words, start, 4, lambda word: word[:1].isupper(), (",", ".", ";", ")", ":"))
        return stop, "name" if start > 0 or stop > start + 1 else ""  # any word at the start has a capital
    if start > 0 and words[start - 1].lower() in BEFORE_PHRASE and is_plain(bare):
        return extend(words, start, 2, lambda word: is_plain(word.strip(".,;")), (",", ".")), "phrase"
    return start + 1, ""


def is_plain(word: str) -> bool:
    """Tell whether a word is in lower case and means something by itself."""
    return word.islower() and word not in STOPWORDS


def extend(words: Sequence[str], start: int, most: int, belongs: Callable[[str], bool], ends: tuple[str, ...]) -> int:
    """Return the end of a run of at most `most` words from `start`, each of which belongs; a word in `ends` ends it."""
    stop = start + 1
    while stop < min(len(words), start + most) and belongs(words[stop]) and not words[stop - 1].endswith(ends):
        stop += 1
    return stop


def ask(kind: str, before: str, rng: random.Random) -> str:
    """Choose a question word for an answer of this kind; `before` is the word in front of it."""
    if kind == "year":
        return rng.choice(["when", "when", "what year", "in what year", "what date"])
    if kind == "date":
        return rng.choice(["when", "what date", "on what day", "when"])
    if kind == "number":
        return rng.choice(["how many", "how many", "how much", "what number of", "what"])
    if kind == "phrase":
        return rng.choice(["what", "what", "which", "what kind of", "what type of"])
    if before in ("in", "at", "from", "near", "to", "of"):
        return rng.choice(["where", "what", "which", "in which place", "what place"])
    return rng.choice(["who", "who", "what", "which", "who or what"])


def cloze(sentence: str, rng: random.Random) -> tuple[str, str] | None:
    """Turn a sentence into (question, answer): an answer becomes a question word, some of the other words go away.

    None if the sentence gives no question: too short, too long, without a candidate, or the rest gives the answer away.
    """
    words = sentence.split()
    candidates = spans(words)
    if not 6 <= len(words) <= 45 or not candidates:
        return None
    start, stop, kind = choose(candidates, rng)
    answer = " ".join(words[start:stop]).strip(".,;:()\"' ")
    left, right = keep_around(words, start, stop, rng)
    if len(left) + len(right) < 3 or answer.lower() in " ".join(left + right).lower():
        return None
    return arrange(left, ask(kind, words[start - 1].lower() if start else "", rng), right, rng), answer


def choose(candidates: Sequence[tuple[int, int, str]], rng: random.Random) -> tuple[int, int, str]:
    """Choose an answer: a phrase one time in five, and where there is nothing else."""
    phrases = [candidate for candidate in candidates if candidate[2] == "phrase"]
    others = [candidate for candidate in candidates if candidate[2] != "phrase"]
    return rng.choice(phrases if not others or (phrases and rng.random() < 0.2) else others)


def keep_around(words: Sequence[str], start: int, stop: int, rng: random.Random) -> tuple[list[str], list[str]]:
    """Choose the words to keep on both sides of words[start:stop]: 5 to 14 near ones, less some, stopwords first."""
    room = rng.randint(5, 14)
    first = max(0, start - rng.randint(room // 3, room))
    last = min(len(words), stop + max(2, room - (start - first)))
    stop_drop, drop = rng.choice([(0.0, 0.0), (0.0, 0.0), (0.3, 0.05), (0.6, 0.15), (0.9, 0.3)])

    def kept(part: Sequence[str]) -> list[str]:
        return [
            word.strip('.,;:()"') for word in part if rng.random() >= (stop_drop if word.lower() in STOPWORDS else drop)
        ]

    return kept(words[first:start]), kept(words[stop:last])


def arrange(left: list[str], word: str, right: list[str], rng: random.Random) -> str:
    """Put the question word in the answer's place, or first with what stood around the answer in either order."""
    form = rng.random()
    if form < 0.5:
        parts = [*left, word, *right]
    else:
        parts = [word, *right, *left] if form < 0.7 else [word, *left, *right]
    return " ".join(parts) + ("?" if rng.random() < 0.7 else "")


def blank(sentence: str, rng: random.Random) -> tuple[str, str] | None:
    """Turn a sentence into (what is left of it, the whole sentence): runs of words become one "what", up to two thirds.

    Every word of the answer is in the passage: a dense lesson in finding a place by its words and copying from it.
    None if the sentence is too short or too long, or too little is left of it.
    """
    words = sentence.split()
    if not 6 <= len(words) <= 22:
        return None
    kept: list[str] = []
    share, i = rng.uniform(0.2, 0.67), 0
    while i < len(words):
        run = rng.choice((1, 1, 2, 3, 4))
        if rng.random() < share:
            kept += ["what"] if not kept or kept[-1] != "what" else []
        else:
            kept += words[i : i + run]
        i += run
    return (" ".join(kept), sentence) if len(kept) >= 3 else None


@dataclass(frozen=True)
class ClozeSource:
    """Cloze examples over passages; consecutive ones come from one article, so neighbours are hard distractors."""

    passages: Sequence[Passage]
    passages_per_question: int = 1
    words: int = 100
    blanks: float = 0.0  # share of examples that ask for the whole sentence

    def draw(self, rng: random.Random) -> Example:
        """Make one example; tries passages until one has a usable sentence.

        Raises:
            InputError: none of 10,000 sentences gives a question.
        """
        for _ in range(TRIES):
            at = rng.randrange(len(self.passages))
            passage = self.passages[at]
            sentences = SENTENCE.split(passage.text)
            choice = rng.randrange(len(sentences))
            dense = rng.random() < self.blanks
            made = blank(sentences[choice], rng) if dense else cloze(sentences[choice], rng)
            if made is not None:
                gold = (passage.title, window(passage.text, choice, self.words, rng))
                others = (self.distractor(at, made[1], rng) for _ in range(self.passages_per_question - 1))
                return Example(*made, (gold, *others), "sentence" if dense else "question")
        raise InputError(
            f"no cloze question in {TRIES:,} sentences of {len(self.passages):,} passages: they need 6 to 45 words and "
            "a name, number, date or phrase to ask for; give another --text"
        )

    def distractor(self, at: int, answer: str, rng: random.Random) -> tuple[str, str]:
        """Take a nearby passage whose text does not hold the answer, or after four tries any passage."""
        for reach in (2, 3, 5, max(1, len(self.passages) // 2)):
            other = self.passages[(at + rng.choice((-1, 1)) * rng.randint(1, reach)) % len(self.passages)]
            if answer.lower() not in other.text.lower():
                break
        return other.title, window(other.text, rng.randrange(len(SENTENCE.split(other.text))), self.words, rng)
