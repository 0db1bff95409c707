"""Answer a question over a store in several hops.

The first query is the question. The next is the question, and the sentence with the most evidence of the step before,
with its title: a passage about what it names is then found by its words. It goes on until the reader is sure, until
a query or its passages come again, or for so many hops. What the reader is asked is always the question itself, and
what it reads the passages of the step alone; the answer is that of the last step.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from btr.errors import InputError
from btr.hops.pace import Pace
from btr.hops.speculation import speculate
from btr.hops.steps import Search, take_steps
from btr.reader import Answer, Reader
from btr.reader.kept import NOTHING, KeptRows
from btr.reader.sentences import best_sentence
from btr.retrieve.bm25 import Hits
from btr.retrieve.indexed import Preparing
from btr.storage import Encoded, Store

SURE = 0.1  # `no_answer` at or below which no further passages are looked for

Read = Callable[[Encoded, KeptRows], Answer]  # answers the question from passages, of which some were read before


@dataclass(frozen=True)
class Step:
    """Tell what a step asked for, read (ids, best first) and found.

    answer: "" where the reader abstained; `best_guess` is then what it would have said, else None.
    sentence: the one with the most evidence, `title` its passage's title: what the next query takes along; "" if there
        is none.
    """

    query: str
    ids: tuple[str, ...]
    answer: str
    no_answer: float | None
    title: str = ""
    sentence: str = ""
    best_guess: str | None = None

    def abstaining(self, above: float | None) -> "Step":
        """Return it with its answer as no more than a guess, if `no_answer` is over a threshold; None: as it is."""
        if above is None or self.no_answer is None or self.no_answer <= above or self.best_guess is not None:
            return self
        return replace(self, answer="", best_guess=self.answer)


@dataclass(frozen=True)
class State:
    """Hold what is known after some steps: the last answer, the passages it was read from, where they stand."""

    steps: tuple[Step, ...] = ()
    read: tuple[tuple[int, ...], ...] = ()
    answer: Answer | None = None
    passages: Encoded | None = None
    done: bool = False
    rows: KeptRows = NOTHING  # of what was read, for the next step


@dataclass(frozen=True)
class Hopped:
    """Hold an answer in hops: of the last step, None where nothing was found; what it was read from; and the trace.

    scores: the retriever's, of the passages.
    """

    answer: Answer | None
    passages: Encoded | None
    scores: np.ndarray
    steps: tuple[Step, ...]


class Hopping:
    """The steps of one question (`steps.Work`)."""

    def __init__(
        self,
        question: str,
        read: Read,
        load: Callable[[list[int]], Encoded],
        learn: Callable[[Answer, Encoded], tuple[str, str]],
        hops: int,
        sure: float = SURE,
    ) -> None:
        """Read passages by `load` and `read`; `learn` gives title and sentence of the most evidence, "" for none."""
        self.question, self.read_passages, self.load, self.learn = question, read, load, learn
        self.hops, self.sure = hops, sure

    def query(self, state: State) -> str | None:
        """Return the question, or that with what the last step found; None where it ends."""
        if state.done or len(state.steps) >= self.hops:
            return None
        if not state.steps:
            return self.question
        last = state.steps[-1]
        if not last.sentence:
            return None
        if last.no_answer is not None and last.no_answer <= self.sure:
            return None
        query = " ".join(filter(None, (self.question, last.title, last.sentence)))
        return None if any(query == step.query for step in state.steps) else query

    def read(self, state: State, ordinals: list[int]) -> State:
        """Answer from these passages; the same as in an earlier step tell nothing new, and it ends."""
        query, found = self.query(state) or self.question, tuple(ordinals)
        if not found or found in state.read:
            return replace(state, done=True)
        passages = self.load(ordinals)
        rows = state.rows.copy()
        answer = self.read_passages(passages, rows)
        title, sentence = self.learn(answer, passages)
        step = Step(query, passages.ids, answer.text, answer.no_answer, title, sentence, answer.best_guess)
        return State((*state.steps, step), (*state.read, found), answer, passages, rows=rows)

    def run(self, index: Search | Preparing, top: int, pace: Pace | None = None) -> tuple[State, list[Hits]]:
        """Take the steps, with guesses if there is a pace."""
        start = State(rows=KeptRows() if self.hops > 1 else NOTHING)
        if pace is None:
            return take_steps(self, index, top, start)
        return speculate(self, cast(Preparing, index), top, start, pace, self.hops)

    def finish(self, state: State, found: list[Hits]) -> Hopped:
        """Return the answer of the last state; found: for each query."""
        scores = found[len(state.steps) - 1][1] if state.steps else np.zeros(0, np.float32)
        return Hopped(state.answer, state.passages, scores, state.steps)


def learner(reader: Reader) -> Callable[[Answer, Encoded], tuple[str, str]]:
    """Return what tells title and sentence of the most evidence for an answer of this reader."""

    def learn(answer: Answer, passages: Encoded) -> tuple[str, str]:
        span = best_sentence(reader, answer, passages)
        if span is None:
            return "", ""
        return passages.titles[span.passage], passages.texts[span.passage][span.start : span.end]

    return learn


def check_hops(hops: int, store: Store) -> None:
    """Refuse numbers of steps that cannot be taken.

    Raises:
        InputError: none at all, or several over a store without texts.
    """
    if hops < 1:
        raise InputError(f"hops is {hops}; use 1 or more")
    if hops > 1 and store.manifest.options.get("text") is False:
        raise InputError(f"store {store.path} keeps no texts, of which further queries are made; use 1 hop")


def answer_in_hops(
    reader: Reader,
    store: Store,
    index: Preparing,
    question: str,
    hops: int = 3,
    top: int = 0,
    *,
    sure: float = SURE,
    read: Read | None = None,
    pace: Pace | None = None,
) -> Hopped:
    """Answer a question over a store in at most so many hops.

    index: what the store is searched with, such as `open_retriever(store)`. top: passages a step; 0: the reader's own
    number. sure: the `no_answer` of a span reader at or below which it ends; -1: never. read: how to answer from
    passages, given the rows that are kept (`Reader.answer`); by default in the reader's own mode, with nothing merged
    and all of them read to the end. pace: with one,
    kept from question to question, steps are read with guesses where that is sooner; what comes out is the same.

    Raises:
        InputError: a blank or over-long question, a number of hops or passages that cannot be, a store of another
            reader, or one without texts.
    """
    check_hops(hops, store)
    if not question.strip():
        raise InputError("the question is blank; ask something")
    by_reader = read or (lambda passages, kept: reader.answer(question, passages, kept=kept))
    hopping = Hopping(question, by_reader, store.at, learner(reader), hops, sure)
    return hopping.finish(*hopping.run(index, top or reader.config.passages, pace))
