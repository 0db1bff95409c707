"""Examples to learn reading from: cloze questions made from plain text, and questions with passages; batches as tensors.

An example is a question, one answer to write, and passages of which the first holds the answer (their order is shuffled in the batch).
Every batch is a function of (seed, step) alone, so a resumed run sees what an uninterrupted one would have seen.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from btr.corpus import Passage, Question

SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
YEAR = re.compile(r"^(1[0-9]|20)\d\d$")
NUMBER = re.compile(r"^[\d][\d,.]*$")
MONTH = re.compile(r"^(January|February|March|April|May|June|July|August|September|October|November|December)$")
STOPWORDS = frozenset(
    "a an the of in on at to for from by with and or as is was are were be been it its his her their he she they this that which who "
    "has had have also not but into after before during between about than then when where while over under".split()
)


@dataclass(frozen=True)
class Example:
    """One question, the answer to write, and passages: gold first, then distractors."""

    question: str
    answer: str
    passages: tuple[tuple[str, str], ...]
    task: str = "question"


def spans(words: Sequence[str]) -> list[tuple[int, int, str]]:
    """List (start, stop, kind) of answer candidates in a sentence's words: dates, numbers, names, some phrases."""
    found, i = [], 0
    while i < len(words):
        bare = words[i].strip(".,;:()\"'")
        j = i + 1
        if YEAR.match(bare):
            found.append((i, j, "year"))
        elif MONTH.match(bare) or (NUMBER.match(bare) and j < len(words) and MONTH.match(words[j].strip(".,"))):
            while (
                j < len(words)
                and j < i + 3
                and re.match(r"^\d|^[A-Z]", words[j])
                and not words[j - 1].endswith((".", ";"))
            ):
                j += 1
            found.append((i, j, "date"))
        elif NUMBER.match(bare):
            found.append((i, j, "number"))
        elif bare[:1].isupper() and bare.lower() not in STOPWORDS:
            while (
                j < len(words)
                and j < i + 4
                and words[j][:1].isupper()
                and not words[j - 1].endswith((",", ".", ";", ")", ":"))
            ):
                j += 1
            if i > 0 or j > i + 1:
                found.append((i, j, "name"))
        elif (
            i > 0
            and words[i - 1].lower() in ("a", "an", "the", "of", "as", "called", "for")
            and bare.islower()
            and bare not in STOPWORDS
        ):
            if (
                j < len(words)
                and words[j].strip(".,;").islower()
                and words[j].strip(".,;") not in STOPWORDS
                and not words[i].endswith((",", "."))
            ):
                j += 1
            found.append((i, j, "phrase"))
        i = j
    return found


def ask(kind: str, before: str, rng: random.Random) -> str:
    """Choose a question word for an answer of this kind; `before` is the word in front of it."""
    if kind in ("year", "date"):
        return rng.choice(
            ["when", "when", "what year", "in what year", "what date"]
            if kind == "year"
            else ["when", "what date", "on what day", "when"]
        )
    if kind == "number":
        return rng.choice(["how many", "how many", "how much", "what number of", "what"])
    if kind == "phrase":
        return rng.choice(["what", "what", "which", "what kind of", "what type of"])
    if before in ("in", "at", "from", "near", "to", "of"):
        return rng.choice(["where", "what", "which", "in which place", "what place"])
    return rng.choice(["who", "who", "what", "which", "who or what"])


def cloze(sentence: str, rng: random.Random) -> tuple[str, str] | None:
    """Turn a sentence into (question, answer): an answer span becomes a question word, some of the other words go away."""
    words = sentence.split()
    candidates = spans(words)
    if not 6 <= len(words) <= 45 or not candidates:
        return None
    phrases = [c for c in candidates if c[2] == "phrase"]
    others = [c for c in candidates if c[2] != "phrase"]
    start, stop, kind = rng.choice(phrases if not others or (phrases and rng.random() < 0.2) else others)
    answer = " ".join(words[start:stop]).strip(".,;:()\"' ")
    room = rng.randint(5, 14)
    left = max(0, start - rng.randint(room // 3, room))
    right = min(len(words), stop + max(2, room - (start - left)))
    stop_drop, drop = rng.choice([(0.0, 0.0), (0.0, 0.0), (0.3, 0.05), (0.6, 0.15), (0.9, 0.3)])
    kept = [
        [w.strip('.,;:()"') for w in part if rng.random() >= (stop_drop if w.lower() in STOPWORDS else drop)]
        for part in (words[left:start], words[stop:right])
    ]
    if len(kept[0]) + len(kept[1]) < 3 or answer.lower() in " ".join(kept[0] + kept[1]).lower():
        return None
    word = ask(kind, words[start - 1].lower() if start else "", rng)
    form = rng.random()
    parts = (
        [*kept[0], word, *kept[1]]
        if form < 0.5
        else [word, *kept[1], *kept[0]]
        if form < 0.7
        else [word, *kept[0], *kept[1]]
    )
    return " ".join(parts) + ("?" if rng.random() < 0.7 else ""), answer


def blank(sentence: str, rng: random.Random) -> tuple[str, str] | None:
    """Turn a sentence into (what is left of it, the whole sentence): runs of words become one "what", up to two thirds in all.

    Every word of the answer is in the passage: a dense lesson in finding a place by its words and copying from it.
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


def window(text: str, sentence: int, words: int, rng: random.Random) -> str:
    """Cut about `words` words of whole sentences of text around sentence number `sentence`."""
    sentences = SENTENCE.split(text)
    first, last, count = sentence, sentence + 1, len(sentences[sentence].split())
    while count < words and (first > 0 or last < len(sentences)):
        down = first > 0 and (last == len(sentences) or rng.random() < 0.5)
        nearest = sentences[first - 1] if down else sentences[last]
        count += len(nearest.split())
        if count > words * 1.15:
            break
        first, last = (first - 1, last) if down else (first, last + 1)
    return " ".join(sentences[first:last])


class Source(Protocol):
    """Anything that makes examples from random numbers."""

    def draw(self, rng: random.Random) -> Example:
        """Make one example."""


@dataclass(frozen=True)
class ClozeSource:
    """Cloze examples over passages (consecutive ones come from one article, so neighbours are hard distractors)."""

    passages: Sequence[Passage]
    passages_per_question: int = 1
    words: int = 100
    blanks: float = 0.0  # share of examples that ask for the whole sentence

    def draw(self, rng: random.Random) -> Example:
        """Make one example; tries passages until one has a usable sentence."""
        while True:
            at = rng.randrange(len(self.passages))
            passage = self.passages[at]
            sentences = SENTENCE.split(passage.text)
            choice = rng.randrange(len(sentences))
            dense = rng.random() < self.blanks
            made = blank(sentences[choice], rng) if dense else cloze(sentences[choice], rng)
            if made is None:
                continue
            gold = (passage.title, window(passage.text, choice, self.words, rng))
            others = (self.distractor(at, made[1], rng) for _ in range(self.passages_per_question - 1))
            return Example(*made, (gold, *others), "sentence" if dense else "question")

    def distractor(self, at: int, answer: str, rng: random.Random) -> tuple[str, str]:
        """Take a nearby passage without the answer, or any passage."""
        for reach in (2, 3, 5, len(self.passages) // 2):
            other = self.passages[(at + rng.choice((-1, 1)) * rng.randint(1, reach)) % len(self.passages)]
            if answer.lower() not in other.text.lower():
                break
        return other.title, window(other.text, rng.randrange(len(SENTENCE.split(other.text))), self.words, rng)


@dataclass(frozen=True)
class Asked:
    """A question with passages: gold ones hold an answer, others (nearest first) do not."""

    question: str
    answers: tuple[str, ...]
    gold: tuple[tuple[str, str], ...]
    others: tuple[tuple[str, str], ...]


def from_questions(questions: Iterable[Question]) -> list[Asked]:
    """Keep the questions that have a gold passage: one marked so, or else one that holds an answer."""
    kept = []
    for question in questions:
        answers = tuple(a for a in question.answers if a.strip())
        marked = question.gold if any(question.gold) else [holds(p.text, answers) for p in question.passages]
        gold = tuple((p.title, p.text) for p, good in zip(question.passages, marked, strict=True) if good)
        others = tuple((p.title, p.text) for p, good in zip(question.passages, marked, strict=True) if not good)
        if gold and answers:
            kept.append(Asked(question.question, answers, gold, others))
    return kept


def holds(text: str, answers: Iterable[str]) -> bool:
    """Tell whether a text holds one of the answers, ignoring case."""
    return any(answer.lower() in text.lower() for answer in answers)


@dataclass(frozen=True)
class FileSource:
    """Examples from questions with passages; passages longer than 1.15 * `words` are cropped to whole sentences."""

    questions: Sequence[Asked]
    passages_per_question: int
    words: int = 100

    def draw(self, rng: random.Random) -> Example:
        """Take a question, an answer that the chosen gold passage holds, and some of the nearest other passages."""
        asked = rng.choice(self.questions)
        title, text = rng.choice(asked.gold)
        answer = rng.choice([a for a in asked.answers if holds(text, [a])] or asked.answers)
        nearest = asked.others[: 2 * self.passages_per_question]
        others = rng.sample(nearest, min(len(nearest), self.passages_per_question - 1))
        gold = (title, self.crop(text, answer, rng))
        return Example(asked.question, answer, (gold, *((title, self.crop(text, "", rng)) for title, text in others)))

    def crop(self, text: str, answer: str, rng: random.Random) -> str:
        """Keep the sentences around one that holds the answer."""
        if len(text.split()) <= 1.15 * self.words:
            return text
        sentences = SENTENCE.split(text)
        holding = [i for i, sentence in enumerate(sentences) if holds(sentence, [answer])]
        return window(text, rng.choice(holding or range(len(sentences))), self.words, rng)


@dataclass(frozen=True)
class Batch:
    """Rows of a batch. ids int64 (R, T); lengths, question_lengths int64 (R,); labels int64 (B, S), -100 where padded; R = B * N."""

    ids: Tensor
    lengths: Tensor
    question_lengths: Tensor
    labels: Tensor


def passage_text(title: str, text: str) -> str:
    """Format a passage as FiD does."""
    return f"title: {title} context: {text}"


def collate(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    passages: int,
    row_tokens: int,
    question_tokens: int,
    answer_tokens: int,
    rng: random.Random,
) -> Batch:
    """Tokenize and pad to fixed shapes; a missing passage becomes a row that holds the question alone."""
    eos = tokenizer.token_to_id("</s>")
    if eos is None:
        raise ValueError(
            "the tokenizer has no </s> to end a sequence with; make one with: python -m btr.train tokenizer"
        )
    questions = tokenizer.encode_batch([f"{e.task}: {e.question}" for e in examples], add_special_tokens=False)
    answers = tokenizer.encode_batch([e.answer for e in examples], add_special_tokens=False)
    texts = tokenizer.encode_batch([passage_text(*p) for e in examples for p in e.passages], add_special_tokens=False)
    ids = np.zeros((len(examples), passages, row_tokens), np.int64)
    lengths = np.zeros((len(examples), passages), np.int64)
    question_lengths = np.zeros((len(examples), passages), np.int64)
    labels = np.full((len(examples), answer_tokens), -100, np.int64)
    taken = iter(texts)
    for b, example in enumerate(examples):
        asked = questions[b].ids[:question_tokens]
        read = [next(taken).ids for _ in example.passages]
        rng.shuffle(read)
        for n, passage in enumerate((read + [[]] * passages)[:passages]):
            row = [*asked, *passage][: row_tokens - 1] + [eos]
            ids[b, n, : len(row)] = row
            lengths[b, n], question_lengths[b, n] = len(row), len(asked)
        label = answers[b].ids[: answer_tokens - 1] + [eos]
        labels[b, : len(label)] = label
    flat = torch.from_numpy
    return Batch(flat(ids).flatten(0, 1), flat(lengths).flatten(), flat(question_lengths).flatten(), flat(labels))
