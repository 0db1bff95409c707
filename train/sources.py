"""What a run learns from and is measured on: sources by name, the batch of a step, dev questions."""

import argparse
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from btr.corpus import read_passages, read_questions
from btr.corpus.questions import find_questions, prompt
from btr.errors import InputError
from btr.metrics import normalise
from btr.model.checkpoint import digest
from btr.model.kinds import Model
from btr.train.cloze import ClozeSource
from btr.train.corruption import CorruptionSource, sentinels
from btr.train.data import FileSource, collate, end_of_sequence, from_questions
from btr.train.dev import Dev
from btr.train.loop import Tensors
from btr.train.options import parse_share
from btr.train.spans import SpanExample, SpanSource, collate_spans
from btr.train.tasks import ChoiceSource, ClaimSource, from_choices, from_claims

Lay = Callable[..., Tensors]
KINDS = {"claim": "claims to judge", "choice": "multiple choice", "yes/no": "questions of yes or no"}
DECIDING = (  # options that decide the batches, beside the tokenizer and the files
    *("batch", "passages", "row_tokens", "question_tokens", "answer_tokens", "unanswerable"),
    *("text_passages", "text_words", "text_share", "blanks", "corruption"),
)


def build_sources(options: argparse.Namespace, tokenizer: Tokenizer, extractive: bool) -> list[tuple[Any, float]]:
    """Open what to learn from, with the share of examples each gives.

    Raises:
        InputError: nothing to learn from, or what this family of readers cannot learn.
    """
    if not options.text and not options.questions:
        raise InputError("nothing to learn from; pass --text, --questions or both")
    for name, family in (("unanswerable", True), ("blanks", False), ("corruption", False)):
        if getattr(options, name) and family != extractive:
            raise InputError(f"--{name} is for readers that {'quote' if family else 'write'}; leave it out")
    excluded = {normalise(question.question) for path in options.exclude for question in read_questions(path)}
    paths = map(parse_share, options.questions)
    files = [(open_file(path, excluded, options, extractive), share) for path, share in paths]
    part = 0.0 if not options.text else options.text_share if files else 1.0
    whole = sum(share for _, share in files)
    text = open_text(options, tokenizer, extractive, part) if options.text else []
    return [*text, *((file, (1 - part) * share / whole) for file, share in files)]


def open_text(
    options: argparse.Namespace, tokenizer: Tokenizer, extractive: bool, part: float
) -> list[tuple[Any, float]]:
    """Open --text as cloze questions and, for some of its part of the examples, as span corruption."""
    passages = list(read_passages(options.text, limit=options.text_passages))
    cloze = ClozeSource(passages, 1, options.text_words, options.blanks)
    opened: list[tuple[Any, float]] = [(ClozeSpans(cloze) if extractive else cloze, part * (1 - options.corruption))]
    if options.corruption:
        corrupted = CorruptionSource(passages, sentinels(tokenizer), options.text_words)
        opened.append((corrupted, part * options.corruption))
    return opened


@dataclass(frozen=True)
class ClozeSpans:
    """Cloze questions for span readers: the answer stands in the first passage, before they change places."""

    source: ClozeSource

    def draw(self, rng: random.Random) -> SpanExample:
        """Make one example."""
        made = self.source.draw(rng)
        passages = [(title, text, number == 0) for number, (title, text) in enumerate(made.passages)]
        rng.shuffle(passages)
        return SpanExample(made.question, (made.answer,), tuple(passages))


def open_file(path: str, excluded: set[str], options: argparse.Namespace, extractive: bool) -> Any:
    """Open a file of questions, claims or multiple choice, without those that are excluded (as answers are compared).

    Raises:
        InputError: there is nothing in it to learn from, or nothing that a span reader can point at.
    """
    found = find_questions(path, answerless=extractive)
    if extractive and found.kind != "question":
        raise InputError(f"{path}: holds {KINDS[found.kind]}, which only readers that write learn; leave it out")
    asked = [*found.questions, *(found.unanswerable if extractive else ())]
    kept = [question for question in asked if normalise(question.question) not in excluded]
    words = options.text_words
    if found.kind == "claim":
        return ClaimSource(from_claims(kept), 1, words)
    if found.kind == "choice":
        return ChoiceSource(from_choices(kept), 1, words)
    asked = [replace(question, question=prompt(question, found.kind)) for question in kept]
    read = from_questions(asked, answerable=not extractive)
    if not read:
        raise InputError(
            f"{path}: no question that is not excluded has a passage holding an answer; "
            "add passages with: python -m btr.train neighbours"
        )
    return SpanSource(read, 1, options.unanswerable, words) if extractive else FileSource(read, 1, words)


def reading(source: Any, passages: int) -> Any:
    """Return the same source with another number of passages to a question."""
    if isinstance(source, ClozeSpans):
        return ClozeSpans(reading(source.source, passages))
    return source if isinstance(source, CorruptionSource) else replace(source, passages_per_question=passages)


def drawer(
    options: argparse.Namespace, tokenizer: Tokenizer, extractive: bool, processes: int, lay: Lay = collate
) -> Callable[[int], Tensors]:
    """Return what makes the batch of a step: a function of (seed, step), whatever pieces it will be read in.

    lay: how the examples of a reader that writes become tensors.
    """
    sources, shares = zip(*build_sources(options, tokenizer, extractive), strict=True)
    if not extractive and lay is collate:
        end_of_sequence(tokenizer)
    shape, rows = (options.row_tokens, options.question_tokens), options.batch * options.passages[0]
    turns = [(n, max(rows // n, 1), [reading(source, n) for source in sources]) for n in options.passages]

    def draw(step: int) -> Tensors:
        rng = random.Random(f"{options.seed}/{step}")
        passages, questions, opened = turns[step % len(turns)]
        count = questions * options.accumulate * processes
        chosen = [source.draw(rng) for source in rng.choices(opened, shares, k=count)]
        if extractive:
            return collate_spans(chosen, tokenizer, passages, *shape)
        return lay(chosen, tokenizer, passages, *shape, options.answer_tokens, rng)

    return draw


def open_dev(options: argparse.Namespace, tokenizer: Tokenizer) -> Dev | None:
    """Open the questions to measure on; None if there are none.

    Raises:
        InputError: they have no answers, or one has no passages.
    """
    if not options.dev:
        return None
    asked = find_questions(options.dev, None, options.dev_limit)
    if lacking := [question for question in asked.questions if not question.passages]:
        raise InputError(
            f"--dev {options.dev}: question {lacking[0].id!r} has no passages to read; "
            "add some with: python -m btr.train neighbours"
        )
    passages = options.dev_passages or max(options.passages)
    return Dev(asked, tokenizer, passages, options.answer_tokens, options.dev_every)


def settings(
    options: argparse.Namespace, student: Model, teacher: Model | None, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return what the losses depend on beside the stage and the schedule; readers by a digest of their weights."""
    free = ("default_mode", "passages", "no_answer_above")
    reader = {name: value for name, value in asdict(student.config).items() if name not in free}
    return {
        **{name: getattr(options, name) for name in DECIDING},
        **({"freeze": options.freeze} if options.freeze else {}),
        "text": describe(options.text) if options.text else None,
        "questions": ["=".join((describe(path), f"{share:g}")) for path, share in map(parse_share, options.questions)],
        "exclude": sorted(map(describe, options.exclude)),
        "tokenizer": digest([], tokenizer.to_str()),
        **reader,
        "reader": digest(student.state_dict().items()),
        "teacher": digest(teacher.state_dict().items()) if teacher is not None else None,
    }  # fmt: skip


def describe(path: str) -> str:
    """Name what is read from: a file or folder by its name and size, so that it may move; a hub id as it was given."""
    place = Path(path)
    if not place.exists():
        return path
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.is_file()]
    return f"{place.resolve().name} of {sum(file.stat().st_size for file in files)} bytes"
