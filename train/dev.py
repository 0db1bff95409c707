"""Measure a student on dev questions while it learns, through the reader that would be shipped."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from btr.corpus import Question
from btr.corpus.questions import QuestionSet, prompt
from btr.errors import InputError
from btr.eval.evidence import own_passages
from btr.eval.figures import METRICS, score
from btr.metrics import mean
from btr.model.config import Mode
from btr.model.kinds import Model
from btr.reader import Reader
from btr.reader.truncation import shorten


@dataclass(frozen=True)
class Dev:
    """Questions to measure on, every so many steps, with `passages` passages and answers of at most `most` tokens."""

    question_set: QuestionSet
    tokenizer: Tokenizer
    passages: int
    most: int
    every: int

    def due(self, step: int, last: int) -> bool:
        """Tell whether to measure after this step, of `last`."""
        return step % self.every == 0 or step == last

    def settings(self) -> dict[str, Any]:
        """Return what figures must share to be compared."""
        count = len(self.question_set.questions)
        return {"questions": self.question_set.task, "n": count, "passages": self.passages, "tokens": self.most}

    def measure(self, student: Model, mode: Mode) -> dict[str, Any]:
        """Answer all questions; returns the figures in per cent (em and f1, or accuracy), their n, and the mode.

        Of an over-long question the end is read; without passages it is wrong. The student is left in training.
        """
        on_cpu = next(student.parameters()).device.type == "cpu"
        reader = Reader(student if on_cpu else copy.deepcopy(student).cpu(), self.tokenizer)
        questions, kind = self.question_set.questions, self.question_set.kind
        scores = [score(self.answer(reader, question, mode), question, kind) for question in questions]
        student.train()
        figures = {name: 100 * mean([row[name] for row in scores]) for name in METRICS[kind]}
        return {**figures, "n": len(scores), "mode": mode}

    def answer(self, reader: Reader, question: Question, mode: Mode) -> str:
        """Answer a question from its own passages; nothing if it has none to read."""
        try:
            passages = own_passages(question, self.passages, self.question_set.kind == "claim")
            shortened = shorten(prompt(question, self.question_set.kind), reader)
            choices = self.question_set.choices(question)
            return reader.answer(shortened, passages, mode, self.most, no_answer_above=1.0, choices=choices).text
        except InputError:
            return ""


def better(found: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    """Tell whether figures are better than the best so far: by the first of them, then by the second."""
    return best is None or figures_of(found) > figures_of(best)


def figures_of(found: Mapping[str, Any]) -> list[float]:
    """Return the figures among what was found, in their order."""
    return [found[name] for name in ("em", "f1", "accuracy") if name in found]


def describe(found: Mapping[str, Any]) -> str:
    """Say what was found."""
    figures = "  ".join(f"{name} {found[name]:.1f}" for name in ("em", "f1", "accuracy") if name in found)
    return f"dev {figures}  (n = {found['n']}, {found['mode']})"
