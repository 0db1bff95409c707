"""Examples of two tasks for generative readers: claims to judge (FEVER) and multiple choice (MMLU).

The wording is that of `btr.corpus.tasks`, which evaluation uses too. Questions come from `btr.corpus.read_questions`,
evidence and all; a claim or a question without passages is read by itself.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from btr.corpus import Question
from btr.corpus.tasks import FEVER_LABELS, fever_label, fever_question, mmlu_letter, mmlu_question
from btr.errors import InputError
from btr.train.data import Example, crop


@dataclass(frozen=True)
class ClaimSource:
    """Claims with the label as their answer. Passages longer than 1.15 * `words` words are cropped."""

    claims: Sequence[Question]
    passages_per_question: int
    words: int = 100

    def draw(self, rng: random.Random) -> Example:
        """Take a claim, all of its gold evidence that there is room for, and the first of the other passages."""
        claim = rng.choice(self.claims)
        label = fever_label(claim.answers[0]) or ""
        return Example(fever_question(claim.question), label, read(claim, self.passages_per_question, self.words, rng))


@dataclass(frozen=True)
class ChoiceSource:
    """Questions with options, which change places each time they are drawn; the answer is the letter."""

    questions: Sequence[Question]
    passages_per_question: int
    words: int = 100

    def draw(self, rng: random.Random) -> Example:
        """Take a question and give its options' texts to its letters at random."""
        question = rng.choice(self.questions)
        letters = [letter for letter, _ in question.options]
        order = rng.sample(range(len(letters)), len(letters))
        options = [(letter, question.options[n][1]) for letter, n in zip(letters, order, strict=True)]
        right = letters.index(mmlu_letter(question.answers[0], question.options) or "")
        passages = read(question, self.passages_per_question, self.words, rng)
        return Example(mmlu_question(question.question, options), letters[order.index(right)], passages)


def read(question: Question, count: int, words: int, rng: random.Random) -> tuple[tuple[str, str], ...]:
    """Take `count` of the passages that came with a question, gold ones first, each cropped."""
    marked = question.gold or (False,) * len(question.passages)
    ranked = sorted(zip(marked, question.passages, strict=True), key=lambda pair: not pair[0])
    return tuple((passage.title, crop(passage.text, [], words, rng)) for _, passage in ranked[:count])


def from_claims(questions: Iterable[Question]) -> list[Question]:
    """Take the claims that have a label.

    Raises:
        InputError: a label that is none of FEVER's, or no claim with a label.
    """
    kept = [question for question in questions if question.answers]
    for question in kept:
        if fever_label(question.answers[0]) is None:
            known = ", ".join(FEVER_LABELS)
            raise InputError(f"claim {question.id!r} has the label {question.answers[0]!r}; known: {known}")
    if not kept:
        raise InputError("no claim with a label; give records of 'claim' and 'label'")
    return kept


def from_choices(questions: Iterable[Question]) -> list[Question]:
    """Take the questions that have options and an answer among them.

    Raises:
        InputError: there is none.
    """
    kept = [question for question in questions if question.options and question.answers]
    if not kept:
        raise InputError("no question with options and an answer; give records of 'question', 'options' and 'answer'")
    return kept
