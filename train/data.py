"""Examples to learn reading from, and batches of them as tensors.

An example is a question, one answer to write, and passages of which the first holds the answer (the batch shuffles
them). Every batch is a function of (seed, step) alone, so a resumed run sees what an uninterrupted one would have seen.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from btr.corpus import Question
from btr.errors import InputError
from btr.train.places import holds as holds

SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


@dataclass(frozen=True)
class Example:
    """One question, the answer to write, and passages as (title, text): gold first, then distractors."""

    question: str
    answer: str
    passages: tuple[tuple[str, str], ...]
    task: str = "question"


class Source(Protocol):
    """Anything that makes examples from random numbers."""

    def draw(self, rng: random.Random) -> Example:
        """Make one example."""


def window(text: str, sentence: int, words: int, rng: random.Random) -> str:
    """Cut about `words` words of whole sentences of text around sentence number `sentence`, which is always in."""
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


@dataclass(frozen=True)
class TrainingQuestion:
    """A question with passages as (title, text): the gold ones, and the others, nearest first."""

    question: str
    answers: tuple[str, ...]
    gold: tuple[tuple[str, str], ...]
    others: tuple[tuple[str, str], ...]


def from_questions(questions: Iterable[Question], answerable: bool = True) -> list[TrainingQuestion]:
    """Take the questions that have a gold passage: one marked so, or else one that holds an answer.

    Questions without answers are left out if they are to be `answerable`; else they are taken where a passage is
    marked: the one that was read to ask the question, and does not answer it.
    """
    kept = []
    for question in questions:
        answers = tuple(a for a in question.answers if a.strip())
        marked = question.gold if any(question.gold) else [holds(p.text, answers) for p in question.passages]
        pairs = [((p.title, p.text), good) for p, good in zip(question.passages, marked, strict=True)]
        gold = tuple(passage for passage, good in pairs if good)
        if gold and (answers or not answerable):
            others = tuple(passage for passage, good in pairs if not good)
            kept.append(TrainingQuestion(question.question, answers, gold, others))
    return kept


def crop(text: str, answers: Sequence[str], words: int, rng: random.Random) -> str:
    """Crop a text of more than 1.15 * `words` words to whole sentences, around one that holds an answer if any does."""
    if len(text.split()) <= 1.15 * words:
        return text
    sentences = SENTENCE.split(text)
    holding = [i for i, sentence in enumerate(sentences) if holds(sentence, answers)]
    return window(text, rng.choice(holding or range(len(sentences))), words, rng)


@dataclass(frozen=True)
class FileSource:
    """Examples from questions with gold passages; passages longer than 1.15 * `words` words are cropped."""

    questions: Sequence[TrainingQuestion]
    passages_per_question: int
    words: int = 100

    def draw(self, rng: random.Random) -> Example:
        """Take a question, an answer that the chosen gold passage holds, and some of the nearest other passages."""
        question = rng.choice(self.questions)
        title, text = rng.choice(question.gold)
        answer = rng.choice([a for a in question.answers if holds(text, [a])] or question.answers)
        nearest = question.others[: 2 * self.passages_per_question]
        others = rng.sample(nearest, min(len(nearest), self.passages_per_question - 1))
        gold = (title, crop(text, [answer], self.words, rng))
        return Example(
            question.question, answer, (gold, *((title, crop(text, [], self.words, rng)) for title, text in others))
        )


@dataclass(frozen=True)
class Batch:
    """Rows of a batch, R = B * N, rows of a question adjacent; all int64.

    ids (R, T), 0 where padded; lengths, question_lengths (R,); labels (B, S), -100 where padded.
    """

    ids: Tensor
    lengths: Tensor
    question_lengths: Tensor
    labels: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return ids, lengths, question_lengths, labels."""
        return self.ids, self.lengths, self.question_lengths, self.labels


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
    """Tokenize and pad to fixed shapes; a missing passage becomes a row that holds the question alone.

    Rows and answers are cut to fit and always end with the end of sequence; question_tokens < row_tokens.

    Raises:
        InputError: a tokenizer without an end of sequence.
    """
    eos = end_of_sequence(tokenizer)
    questions = encode(tokenizer, [f"{e.task}: {e.question}" for e in examples])
    answers = encode(tokenizer, [e.answer for e in examples])
    texts = iter(encode(tokenizer, [passage_text(*p) for e in examples for p in e.passages]))
    rows, question_lengths = [], []
    for example, question in zip(examples, questions, strict=True):
        read = [next(texts) for _ in example.passages]
        rng.shuffle(read)
        for passage in (read + [[]] * passages)[:passages]:
            rows.append([*[*question[:question_tokens], *passage][: row_tokens - 1], eos])
            question_lengths.append(min(len(question), question_tokens))
    labels = [[*answer[: answer_tokens - 1], eos] for answer in answers]
    lengths = torch.tensor([len(row) for row in rows])
    return Batch(pad(rows, row_tokens, 0), lengths, torch.tensor(question_lengths), pad(labels, answer_tokens, -100))


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Tokenize texts without an end of sequence."""
    return [found.ids for found in tokenizer.encode_batch(texts, add_special_tokens=False)]


def end_of_sequence(tokenizer: Tokenizer) -> int:
    """Return the id of </s>; InputError if the tokenizer has none."""
    eos = tokenizer.token_to_id("</s>")
    if eos is None:
        raise InputError(
            "the tokenizer has no </s> to end a sequence with; make one with: python -m btr.train tokenizer"
        )
    return eos


def pad(rows: Sequence[Sequence[int]], width: int, value: int) -> Tensor:
    """Lay rows of at most `width` ids in an int64 (len(rows), width), filled up with `value`."""
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
