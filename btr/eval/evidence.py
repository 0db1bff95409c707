"""Find what each question of an evaluation is read with: its own passages, or the best of a store."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from btr.corpus import Passage, Question
from btr.corpus.questions import query
from btr.errors import InputError
from btr.hops import answer_in_hops
from btr.metrics import holds_answer
from btr.reader import Answer, Reader
from btr.reader.kept import KeptRows
from btr.retrieve.fusion import Retriever, open_retriever
from btr.storage import Encoded, Store


@dataclass(frozen=True)
class Evidence:
    """The passages that each question is read with: its own, or the best of a store, best first, `most` at the most.

    kind: what of a store's retrievers finds them; None: what the store is searched with. every: of its own, take all
        that are gold, since a claim may need several; else one, so that the others hide it.
    """

    questions: list[Question]
    most: int
    store: Store | None = None
    kind: str | None = None
    every: bool = False

    @cached_property
    def retriever(self) -> Retriever:
        """What the store is searched with."""
        assert self.store is not None
        return open_retriever(self.store, self.kind)

    @cached_property
    def ordinals(self) -> list[list[int]]:
        """Where the passages of each question stand in the store."""
        hits = self.retriever.search([query(q) for q in self.questions], self.most)
        return [[int(i) for i in ordinals] for ordinals, _ in hits]

    @cached_property
    def passages(self) -> list[list[Passage]]:
        """The passages of each question."""
        if self.store is None:
            return [own_passages(question, self.most, self.every) for question in self.questions]
        rows = map(self.store.at, self.ordinals)
        return [[Passage(*row) for row in zip(r.ids, r.titles, r.texts, strict=True)] for r in rows]

    def take(self, number: int, count: int) -> list[Passage]:
        """Return `count` passages of a question."""
        own = self.store is None
        return own_passages(self.questions[number], count, self.every) if own else self.passages[number][:count]

    def at(self, number: int, count: int) -> Encoded:
        """Return what the store keeps of `count` passages of a question."""
        assert self.store is not None
        return self.store.at(self.ordinals[number][:count])

    def ranks(self) -> list[int | None]:
        """Return, for each question, the place from 1 of the first passage that holds an answer."""
        return [
            next((place for place, p in enumerate(found, 1) if holds_answer(p.text, question.answers)), None)
            for question, found in zip(self.questions, self.passages, strict=True)
        ]

    def check(self) -> None:
        """Refuse questions that have nothing to read."""
        if self.store is None and not all(self.passages):
            lacking = next(q for q, found in zip(self.questions, self.passages, strict=True) if not found)
            raise InputError(f"question {lacking.id!r} has no passages to read; pass --store to retrieve some")

    def has_texts(self) -> bool:
        """Tell whether the passages can be read as text: a store may keep bits alone."""
        return all(passage.text for found in self.passages for passage in found)


def own_passages(question: Question, count: int, every: bool = False) -> list[Passage]:
    """Take a gold passage, or every one, and the first others, in an order that depends on the question alone."""
    marked = question.gold or (False,) * len(question.passages)
    ranked = sorted(zip(question.passages, marked, strict=True), key=lambda pair: not pair[1])
    gold = [p for p, is_gold in ranked if is_gold][: None if every else 1]
    chosen = (gold + [p for p, is_gold in ranked if not is_gold])[:count]
    random.Random(question.question).shuffle(chosen)
    return chosen


def hop(
    evidence: Evidence,
    number: int,
    answer: Callable[[Any, KeptRows], Answer],
    reader: Reader,
    hops: int,
    top: int,
    bits: bool,
) -> tuple[Answer, list[Passage]]:
    """Answer a question in several hops over the store, reading its bits or else texts; returns the passages too.

    What is searched for first is what `ordinals` are found by, so there are passages.
    """
    assert evidence.store is not None

    def texts(found: Encoded) -> list[Passage]:
        return list(map(Passage, found.ids, found.titles, found.texts))

    hopped = answer_in_hops(
        reader, evidence.store, evidence.retriever, query(evidence.questions[number]), hops, top,
        read=lambda found, kept: answer(found if bits else texts(found), kept),
    )  # fmt: skip
    assert hopped.answer is not None and hopped.passages is not None
    return hopped.answer, texts(hopped.passages)
