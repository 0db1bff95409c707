"""Fit what a span reader says of its doubt: `no_answer` as a probability, on questions with and without their answer.

Each question that has a gold passage is read with it and without it; one without answers, with what it was asked of.
The log-odds of `no_answer` get a slope and an intercept (Platt 1999), fitted to half of the questions; the others tell
how well that holds.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from btr.corpus import Passage, read_questions
from btr.errors import InputError
from btr.eval.abstention import RIGHT, answered_at, auroc, best_silence, threshold, with_silence
from btr.metrics import f1
from btr.model.checkpoint import save_config
from btr.reader import Reader
from btr.reader.extractive import calibrated
from btr.train.data import TrainingQuestion, from_questions, holds
from btr.train.plot import Bin, draw_reliability
from btr.train.pruning import EVERY, in_turn

BINS = 10
STEPS = 100  # of Newton's method, of which it takes some ten
LEAST = 1e-12  # distance of a probability from 0 and 1 where log-odds are taken

Line = tuple[float, float]  # slope and intercept


@dataclass(frozen=True)
class Reading:
    """One reading of a question: the no_answer of the reader, whether a gold passage was there, the answer's F1."""

    no_answer: float
    answerable: bool
    f1: float


def calibrate(
    path: str,
    questions: Sequence[str],
    limit: int,
    passages: int | None,
    precision: float | None,
    dtype: str,
    device: str,
    say: Callable[[str], None],
) -> None:
    """Fit to `limit` questions, taken from the files in turn, tell how well that holds, and write it to the reader.

    So is the threshold over which no answer is given: that of the best SQuAD 2.0 F1, or the greatest at which
    `precision` of the answers that are given are right.

    Raises:
        InputError: no folder, a reader that writes, or questions of one kind alone.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"--reader {path}: no such folder; give that of a reader, whose settings are to be written")
    reader = Reader.from_pretrained(path, dtype=dtype, device=device)
    if reader.family != "extractive":
        raise InputError(f"--reader {path}: always answers, so there is no doubt to fit; give a span reader")
    reader.model.config = replace(reader.config, no_answer_calibration=None)
    chosen = from_questions(itertools.islice(in_turn([read_questions(name) for name in questions]), limit), False)
    random.Random(0).shuffle(chosen)  # or the halves would be of different files
    readings = [list(read(reader, question, passages or reader.config.passages)) for question in report(chosen, say)]
    fitted_to, checked = ([found for row in readings[half::2] for found in row] for half in (0, 1))
    line = fit([found.no_answer for found in fitted_to], [found.answerable for found in fitted_to])
    told = [calibrated(found.no_answer, line) for found in checked]
    answerable = [found.answerable for found in checked]
    before, after = (bins(values, answerable) for values in ([found.no_answer for found in checked], told))
    say(describe(before, after))
    say(f"AUROC {auroc(np.array(told), np.array(answerable)):.3f}, of {len(checked)} readings that were not fitted to")
    above = choose([calibrated(found.no_answer, line) for found in fitted_to], fitted_to, precision)
    say(describe_threshold(above, told, checked))
    save_config(replace(reader.config, no_answer_calibration=line, no_answer_above=above), folder)
    say(f"wrote {folder / 'btr_config.json'}: no_answer_calibration [{line[0]:.4f}, {line[1]:.4f}]")
    try:
        draw_reliability(before, after, folder / "no_answer.png")
    except InputError as error:
        say(f"note: {error}")


def report(questions: Sequence[TrainingQuestion], say: Callable[[str], None]) -> Iterator[TrainingQuestion]:
    """Yield the questions, telling how far it is."""
    for number, question in enumerate(questions, 1):
        yield question
        if number % EVERY == 0:
            say(f"{number:,} of {len(questions):,} questions")


def read(reader: Reader, question: TrainingQuestion, count: int) -> Iterator[Reading]:
    """Read a question with a gold passage among `count`, and, if it has answers, without any that holds one."""
    silent = [passage for passage in question.others if not holds(passage[1], question.answers)]
    ways = [(True, [*question.gold[:1], *question.others][:count])]
    ways += [(False, silent[:count])] if question.answers and silent else []
    for shown, chosen in ways:
        random.Random(question.question).shuffle(chosen)
        passages = [Passage(str(number), *pair) for number, pair in enumerate(chosen)]
        try:
            answer = reader.answer(question.question, passages)
        except InputError:  # too long, or a passage without text
            continue
        assert answer.no_answer is not None
        answerable = shown and bool(question.answers)
        yield Reading(answer.no_answer, answerable, f1(answer.text, question.answers) if answerable else 0.0)


def fit(no_answer: Sequence[float], answerable: Sequence[bool]) -> Line:
    """Fit slope and intercept of the log-odds by logistic regression (Newton's method, from the identity).

    Raises:
        InputError: all questions have their answer, or none, or doubt tells nothing of it.
    """
    if len(set(answerable)) < 2:
        raise InputError("readings with an answer and without are needed; give questions with gold passages and others")
    p = np.clip(np.array(no_answer), LEAST, 1 - LEAST)
    inputs = np.stack((np.log(p) - np.log1p(-p), np.ones(len(p))), 1)
    unanswerable, weights = 1.0 - np.array(answerable), np.array([1.0, 0.0])
    for _ in range(STEPS):
        found = 1 / (1 + np.exp(-inputs @ weights))
        slopes = inputs.T @ (found - unanswerable) + 1e-3 * (
            weights - [1.0, 0.0]
        )  # separable readings have a bound, so
        curve = (inputs.T * (found * (1 - found))) @ inputs + 1e-3 * np.eye(2)
        step = np.linalg.solve(curve, slopes)
        weights = weights - step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-9:
            break
    slope, intercept = weights.tolist()
    if not (slope > 0 and math.isfinite(intercept)):
        raise InputError("this reader doubts answers that are there no less than those that are not; train it first")
    return slope, intercept


def bins(no_answer: Sequence[float], answerable: Sequence[bool]) -> list[Bin]:
    """Return, for each tenth of probabilities that has any, the mean of them, how often nothing answered, how many."""
    p, unanswerable = np.array(no_answer), 1.0 - np.array(answerable)
    places = np.minimum((p * BINS).astype(int), BINS - 1)
    some = [places == place for place in range(BINS) if (places == place).any()]
    return [(float(p[mine].mean()), float(unanswerable[mine].mean()), int(mine.sum())) for mine in some]


def gap(found: Sequence[Bin]) -> float:
    """Return the mean difference between predicted and observed, over all readings (expected calibration error)."""
    return sum(abs(predicted - observed) * n for predicted, observed, n in found) / sum(n for *_, n in found)


def choose(told: Sequence[float], readings: Sequence[Reading], precision: float | None) -> float | None:
    """Return the threshold of the best F1, or the greatest at which this share of the answers is right."""
    doubt, scores = np.array(told), np.array([found.f1 for found in readings])
    if precision is not None:
        count = answered_at(doubt, scores > RIGHT, precision)
    else:
        count = best_silence(doubt, scores, np.array([found.answerable for found in readings]))
    return round(threshold(doubt, count), 4) if count else None


def describe_threshold(above: float | None, told: Sequence[float], readings: Sequence[Reading]) -> str:
    """Say what comes of a threshold on readings that it was not chosen on."""
    if above is None:
        return "silence is best throughout, or no threshold has that share right; no_answer_above is left out"
    doubt, scores = np.array(told), np.array([found.f1 for found in readings])
    answerable, given = np.array([found.answerable for found in readings]), doubt <= above
    scored = with_silence(doubt, scores, answerable, above).mean()
    right = f"{(scores[given] > RIGHT).mean():.1%} of these answers right; " if given.any() else ""
    return (
        f"no_answer_above {above:g}, on readings that it was not chosen on: {given.sum()} of {len(given)} answered, "
        f"{right}SQuAD 2.0 F1 {scored:.1%}"
    )


def describe(before: Sequence[Bin], after: Sequence[Bin]) -> str:
    """Lay out predicted and observed shares as a table."""
    lines = []
    for name, found in (("as the reader says", before), ("calibrated", after)):
        lines += [f"no_answer, {name}: mean gap {gap(found):.3f}", "predicted  observed     n"]
        lines += [f"{predicted:9.3f}  {observed:8.3f}  {n:4d}" for predicted, observed, n in found]
    return "\n".join(lines)
