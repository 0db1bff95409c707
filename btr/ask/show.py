"""Print an answer: the words, how sure, and the passage that says so with the words marked; or a JSON object."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from btr.hops import Step

from btr.retrieve import HINT

SURE = ((0.95, "very sure"), (0.8, "sure"), (0.5, "fairly sure"), (0.0, "not sure"))
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"

_CONTROL = re.compile(r"[^\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a document may not do to a terminal


@dataclass(frozen=True)
class Read:
    """A passage that was read: its share of the evidence, its score in the search, and where the answer stands."""

    id: str
    title: str
    text: str
    evidence: float
    retrieval_score: float
    highlights: list[tuple[int, int]]


@dataclass(frozen=True)
class Told:
    """What is known of a question.

    answer: "" where no passage answers it; `best_guess` is then what the reader would have said.
    no_answer: probability that no passage holds an answer; None from a generative reader.
    score: log-probability, as `btr.reader.answer.Answer` has it.
    passages: those that were read; the one that is cited comes first, then by evidence.
    cut: the question was too long, and its last words were read.
    trace: the steps of a question in several hops.
    """

    question: str
    answer: str
    best_guess: str
    no_answer: float | None
    score: float
    mode: str
    seconds: float
    passages: Sequence[Read]
    cut: bool = False
    trace: Sequence["Step"] = ()

    @property
    def sure(self) -> float:
        """How sure the answer is, 0 to 1: that a passage holds one, or the mean probability of the words written."""
        return math.exp(min(self.score, 0.0)) if self.no_answer is None else 1 - self.no_answer

    def to_json(self) -> dict[str, object]:
        """Return what a program is told."""
        found = asdict(self)
        passages, trace = list(found.pop("passages")), list(found.pop("trace"))
        return found | {"sure": self.sure, "passages": passages} | ({"trace": trace} if trace else {})


def mark(text: str, spans: Sequence[tuple[int, int]], marks: tuple[str, str]) -> str:
    """Return a text with `marks` around each span; spans do not overlap and stand in order."""
    made, last = [], 0
    for start, end in spans:
        made += [text[last:start], marks[0], text[start:end], marks[1]]
        last = end
    return "".join([*made, text[last:]])


def clean(text: str) -> str:
    """Return a text, as long as it was, that cannot move a terminal's cursor or change its colours."""
    return _CONTROL.sub(" ", text)


def describe(told: Told, terminal: bool) -> str:
    """Return the lines for people: bold in a terminal, brackets elsewhere."""
    words = next(words for least, words in SURE if told.sure >= least)
    answer = f"{BOLD}{_line(told.answer)}{PLAIN}" if terminal else _line(told.answer)
    if not told.passages:
        lines = ["No passage answers this: none shares a word with the question.", HINT]
    elif not told.answer.strip():
        guess = f" Best guess: {_line(told.best_guess)}" if told.best_guess.strip() else ""
        lines = [f"No passage answers this.{guess}  ({told.sure:.0%} sure that one does)"]
    else:
        lines = [f"{answer}  ({words}: {told.sure:.0%})"]
    if told.cut:
        lines.append("(the question is too long; its last words were read)")
    if told.passages:
        lines += ["", *_cite(told.passages[0], terminal)]
    if told.trace:
        times = "once" if len(told.trace) == 1 else f"{len(told.trace)} times"
        lines += ["", f"Searched {times}:", *(line for n, step in enumerate(told.trace, 1) for line in _trace(n, step))]
    return "\n".join(lines)


def _trace(number: int, step: "Step") -> list[str]:
    """Return the lines of a step: what was searched for, what was read, and what was found there."""
    guess = f"no answer (best guess: {_line(step.best_guess)})" if step.best_guess else "no answer"
    told = [", ".join(map(_line, step.ids)), _line(step.answer) or guess]
    if step.sentence:
        told.append(": ".join(filter(None, (_line(step.title), _line(step.sentence)))))
    return [f"  {number}. {_line(step.query)}", *(f"     {line}" for line in told)]


def _line(text: str) -> str:
    """Return a text on one line."""
    return " ".join(clean(text).split())


def _cite(passage: Read, terminal: bool) -> list[str]:
    """Return the lines of a passage: its title, its id, its text with the answer marked."""
    name = " - ".join(_line(part) for part in (passage.title, passage.id) if part.strip())
    text = mark(clean(passage.text), passage.highlights, (BOLD, PLAIN) if terminal else ("[", "]"))
    if not passage.text:
        text = "(the store keeps no texts)"
    return [f"  {name}:", *(f"    {line}".rstrip() for line in text.split("\n"))]
