"""What a reader gives back: the text, how sure it is, where it looked, where the time went."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from btr.model.config import Mode
from btr.model.decoding import Generation
from btr.words import readable


@dataclass(frozen=True)
class Span:
    """Where an answer stands: characters start to end (exclusive) of the text of passage number `passage`, from 0."""

    passage: int
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer and where it came from.

    text: of a generative reader, as the passage with the most evidence that holds it writes it, else as decoded; of a
        span reader, a quotation; "" where it abstains.
    score: log-probability: of a generative reader, the mean per decoded token, end of sequence included; of a span
        reader, of the start plus of the end.
    timings: seconds by phase (tokenize, expand, look, encode, merge, decode); of the whole batch.
    tokens: the ids of the answer, without end of sequence.
    evidence: float32 (N,), the passages' shares, summing to 1: of the decoder's attention to passages, averaged over
        layers, heads and steps; of a span reader, of the probability of start and end.
    token_evidence: per passage, float32 (T,): the same for each of its tokens.
    span: where the answer, or the best guess, stands; None from a T5, where no passage holds what was written, or
        where the texts were not kept.
    no_answer: probability that no passage holds an answer; None from a generative reader.
    read: how many passages were read to the end; the others (`prune`) have no evidence.
    best_guess: what it would have said, where it abstains; None where it answers.
    choices: of the texts it had to choose from, in their order, the probability of each among them; else empty.
    """

    text: str
    score: float
    mode: Mode
    timings: dict[str, float]
    tokens: tuple[int, ...]
    evidence: np.ndarray
    token_evidence: tuple[np.ndarray, ...]
    span: Span | None = None
    no_answer: float | None = None
    read: int = 0
    best_guess: str | None = None
    choices: tuple[float, ...] = ()

    def abstaining(self, above: float | None) -> "Answer":
        """Return it with its text as no more than a guess, if `no_answer` is over a threshold; None: as it is."""
        if above is None or self.no_answer is None or self.no_answer <= above:
            return self
        return replace(self, text="", best_guess=self.text)


class Listener(Protocol):
    """Who hears of answers while they are made, in the thread that makes them; `b` is the number of the question."""

    def phase(self, name: str, seconds: float) -> None:
        """Hear that a phase was done, once more perhaps, and the seconds that it took in all until now."""

    def words(self, b: int, text: str) -> None:
        """Hear how answer b goes on, as it is decoded; of a span reader nothing."""

    def wanted(self, b: int) -> bool:
        """Tell whether answer b is to be gone on with; if not, it ends where it is."""


class Stopwatch:
    """Adds up seconds by phase."""

    def __init__(self, listener: Listener | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.listener = listener

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began
        if self.listener is not None:
            self.listener.phase(phase, self.seconds[phase])


def surface(text: str, passages: Sequence[tuple[str, str]], evidence: np.ndarray) -> str:
    """Return `text` as it is written in the (title, text) with the most evidence that holds it, else as it is.

    A reader with a lower-cased vocabulary cannot know how a name is written; the passage does.
    """
    if not text.strip():
        return text
    whole = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE)
    for n in np.argsort(-evidence, kind="stable"):
        found = whole.search(passages[n][1]) or whole.search(passages[n][0])
        if found:
            return found.group()
    return text


@dataclass(frozen=True)
class Memory:
    """What the rows of one question hold: the question's tokens Q, and of each row its length and its passage.

    A row of length 0 is that of a passage which was not read to the end.
    """

    question: int
    lengths: tuple[int, ...]
    passages: tuple[tuple[str, str], ...]  # (title, text) of each row
    ids: tuple[np.ndarray, ...]  # tokens of each passage
    seen: tuple[np.ndarray, ...]  # which of them a row has, bool

    @classmethod
    def whole(cls, question: int, passages: tuple[tuple[str, str], ...], ids: tuple[np.ndarray, ...]) -> "Memory":
        """Hold passages of which the rows have every token."""
        lengths = tuple(question + len(row) for row in ids)
        return cls(question, lengths, passages, ids, tuple(np.ones(len(row), bool) for row in ids))

    @property
    def read(self) -> int:
        """How many passages were read to the end."""
        return sum(length > 0 for length in self.lengths)

    def shares(self, attention: np.ndarray) -> tuple[np.ndarray, ...]:
        """Cut attention to the rows, end to end, into what the tokens of each passage have of it; else 0."""
        ends = np.cumsum(self.lengths)
        return tuple(
            attention[end - length + self.question : end] if length else np.zeros(len(ids), np.float32)
            for end, length, ids in zip(ends, self.lengths, self.ids, strict=True)
        )


def read_off(
    generation: Generation,
    b: int,
    memory: Memory,
    tokenizer: Tokenizer,
    eos: int,
    mode: Mode,
    timings: dict[str, float],
) -> Answer:
    """Cut answer b out of a batch's generation."""
    decoded = generation.tokens[b].tolist()
    tokens = tuple(decoded[: decoded.index(eos)] if eos in decoded else decoded)
    steps = min(len(tokens) + 1, len(decoded))
    token_evidence = memory.shares(generation.attention[b].cpu().numpy())
    evidence = np.array([part.sum() for part in token_evidence], np.float32)
    evidence /= max(float(evidence.sum()), 1e-12)
    read = [n for n, length in enumerate(memory.lengths) if length]
    texts = [(memory.passages[n], len(memory.ids[n])) for n in read]
    parts = [(readable(title, length), readable(text, length)) for (title, text), length in texts]
    text = surface(tokenizer.decode(list(tokens)), parts, evidence[read])
    score = float(generation.log_probability[b, :steps].mean())
    return Answer(text, score, mode, dict(timings), tokens, evidence, token_evidence, read=len(read))
