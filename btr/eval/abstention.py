"""Say how well a reader knows that no passage answers: SQuAD 2.0's figures (arXiv 1806.03822), with their intervals.

Arrays run along the questions. doubt: no_answer. right: F1 over RIGHT; a question without answers has no right one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from btr.eval.predictions import Prediction
from btr.metrics import interval_of, percent

RIGHT = 0.5  # F1 over which an answer is right
PRECISION = 0.9  # share of right answers among those given, at which coverage is told

Array = np.ndarray


def auroc(doubt: Array, answerable: Array) -> float:
    """Return how often a question without answers is doubted more than one with; equal doubts count half.

    Not a number if there are only such or only others.
    """
    others = np.sort(doubt[answerable])
    if len(others) in (0, len(doubt)):
        return float("nan")
    places = [np.searchsorted(others, doubt[~answerable], side) for side in ("left", "right")]
    return float((places[0] + places[1]).mean() / 2 / len(others))


def prefixes(doubt: Array, gained: Array) -> tuple[Array, Array]:
    """Return how many questions are answered, and the sum of `gained` over them, at each threshold from 'none' on."""
    order = np.argsort(doubt, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(doubt[order]) > 0, True)) + 1  # equal doubts are answered together
    sums = np.append(0.0, np.cumsum(gained[order]))
    return np.append(0, ends), sums[np.append(0, ends)]


def threshold(doubt: Array, count: int) -> float:
    """Return the doubt over which all but the `count` least doubted questions are: halfway to the next."""
    ordered = np.concatenate(([0.0], np.sort(doubt), [1.0]))
    return float((ordered[count] + ordered[count + 1]) / 2)


def answered_at(doubt: Array, right: Array, precision: float) -> int:
    """Return how many questions can be answered at most so that this share of the answers is right."""
    counts, sums = prefixes(doubt, right)
    return int(counts[sums >= precision * counts].max())


def coverage(doubt: Array, right: Array, precision: float) -> float:
    """Return the share of all questions that can be answered so that this share of the answers is right."""
    return answered_at(doubt, right, precision) / len(doubt)


def with_silence(doubt: Array, scores: Array, answerable: Array, above: float) -> Array:
    """Score each question where no answer is given over a threshold, which is right if it has none."""
    return np.where(doubt > above, 1.0 - answerable, scores * answerable)


def best_silence(doubt: Array, scores: Array, answerable: Array) -> int:
    """Return how many questions are answered at the threshold at which the mean of `with_silence` is greatest."""
    counts, sums = prefixes(doubt, np.where(answerable, scores, -1.0))
    return int(counts[sums.argmax()])


def doubt_of(row: Prediction) -> float:
    """Return the no_answer of a prediction: 1 where there was no passage, 0 where the question could not be read."""
    return 0.0 if "unread" in row else float(row.get("no_answer", 1.0))


def abstention(rows: Sequence[Prediction], unanswerable: Sequence[Prediction], above: float) -> dict[str, Any]:
    """Return the figures of predictions of questions with and without answers, in per cent but for the thresholds.

    A question that could not be read is one that was answered wrongly, without doubt. The best threshold is found on
    the same questions.
    """
    every = [*rows, *unanswerable]
    answerable = np.arange(len(every)) < len(rows)
    doubt = np.array([doubt_of(row) for row in every])
    em, f1 = (np.array([row[name] for row in every]) * answerable for name in ("em", "f1"))
    right = answerable & (f1 > RIGHT)
    best = threshold(doubt, best_silence(doubt, f1, answerable))
    figures: dict[str, Any] = {"above": above, "best_above": round(best, 4)}
    for prefix, at in (("", above), ("best_", best)):
        for name, scores in (("em", em), ("f1", f1)):
            figures[prefix + name] = percent(with_silence(doubt, scores, answerable, at).tolist())
    figures["auroc"] = percent_of(len(every), lambda drawn: auroc(doubt[drawn], answerable[drawn]))
    figures["coverage"] = percent_of(len(every), lambda drawn: coverage(doubt[drawn], right[drawn], PRECISION))
    return figures


def percent_of(n: int, statistic: Callable[[Array], float]) -> list[float]:
    """Return a statistic of which of n questions were drawn and its 95 % interval, in per cent."""
    return [round(100 * value, 2) for value in (statistic(np.arange(n)), *interval_of(statistic, n))]


def describe_abstention(figures: dict[str, Any]) -> str:
    """Say the figures in a line."""
    said = {name: f"{f[0]:.1f} [{f[1]:.1f}, {f[2]:.1f}]" for name, f in figures.items() if isinstance(f, list)}
    return (
        f"silent above {figures['above']:g}: EM {said['em']}, F1 {said['f1']}; "
        f"above {figures['best_above']:g}, the best here: EM {said['best_em']}, F1 {said['best_f1']}; "
        f"AUROC {said['auroc']}; answered with {100 * PRECISION:g} % right: {said['coverage']}"
    )
