"""Turn predictions into figures, each with its interval and its number of questions, and lay them out as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from btr.corpus import Question
from btr.corpus.questions import Kind
from btr.corpus.tasks import fever_label, mmlu_letter, yes_or_no
from btr.eval.abstention import abstention, describe_abstention, doubt_of
from btr.eval.predictions import Prediction
from btr.metrics import exact_match, f1, mean, percent, retention
from btr.model.config import Mode

# kind of a task: what it is scored by, the first of which is compared
METRICS = {"question": ("em", "f1")} | dict.fromkeys(("claim", "choice", "yes/no"), ("accuracy",))
NO_ANSWER = 0.5  # a span reader that is surer than this that no passage answers has given no answer
RECALL_AT = (1, 5, 20, 40)  # passages
TITLES = {"em": "EM", "f1": "F1", "accuracy": "accuracy"}

Percent = list[float]  # [value, low, high], in per cent or points of it


def score(answer: str, question: Question, kind: Kind) -> dict[str, float]:
    """Score an answer in the metrics of its kind."""
    if kind == "question":
        return {"em": exact_match(answer, question.answers), "f1": f1(answer, question.answers)}
    if kind == "claim":
        return {"accuracy": float(fever_label(answer) == fever_label(question.answers[0]))}
    if kind == "yes/no":
        return {"accuracy": float(yes_or_no(answer) == yes_or_no(question.answers[0]))}
    return {"accuracy": float(mmlu_letter(answer, question.options) == question.answers[0])}


@dataclass(frozen=True)
class Run:
    """The predictions of one setting.

    kept is in bytes per stored token, None where nothing is stored; prune passages were read to the end, 0: all.
    """

    reader: str
    weights: str
    mode: Mode
    passages: int
    kept: float | None
    predictions: list[Prediction]
    prune: int = 0
    more: str = ""  # what else was done to be sooner: 'merge 0.2', 'int8'
    unanswerable: Sequence[Prediction] = ()  # of questions without answers
    above: float = NO_ANSWER  # no_answer over which none has been given


def recall(ranks: Sequence[int | None], counts: Sequence[int]) -> dict[str, Percent]:
    """Return, for the usual numbers of passages and those read, how often one of so many holds an answer."""
    shown = sorted({*counts, *(k for k in RECALL_AT if k <= max(counts))})
    return {str(k): percent([float(rank is not None and rank <= k) for rank in ranks]) for k in shown}


def describe(runs: Sequence[Run], metrics: Sequence[str], base: tuple[str, Mode] | None) -> list[dict[str, Any]]:
    """Return a row of figures for each run, held against that of `base` (weights, mode) with as many passages."""
    held = {run.passages: run for run in runs if (run.weights, run.mode) == base and not run.prune}
    return [describe_run(run, metrics) | compare(run, held.get(run.passages), metrics[0]) for run in runs]


def describe_run(run: Run, metrics: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a run by itself."""
    rows = run.predictions
    seconds = [row["seconds"] for row in (*rows, *run.unanswerable) if "seconds" in row]
    figures: dict[str, Any] = {
        "reader": run.reader, "mode": run.mode, "passages": run.passages, "prune": run.prune, "more": run.more,
        "passages_read": round(mean([row["read"] for row in rows]), 2), "questions": len(rows),
        **{metric: percent([row[metric] for row in rows]) for metric in metrics},
    }  # fmt: skip
    if all("found" in row for row in rows):
        figures["found"] = percent([row["found"] for row in rows])
    if run.unanswerable:
        silent = [[float(doubt_of(row) > run.above) for row in of] for of in (run.unanswerable, rows)]
        figures["no_answer"], figures["refused"] = map(percent, silent)
        figures["abstention"] = abstention(rows, run.unanswerable, run.above)
    return figures | {
        "cut": sum("cut" in row for row in (*rows, *run.unanswerable)),
        "questions_per_second": round(len(seconds) / sum(seconds), 4) if seconds else None,
        "bytes_per_token": run.kept and round(run.kept, 2),
    }


def compare(run: Run, base: Run | None, metric: str) -> dict[str, Any]:
    """Return what a run has more than its base, in points, and how much of it in per cent, over the same questions."""
    if base is None or base is run:
        return {}
    values, against = ([row[metric] for row in r.predictions] for r in (run, base))
    differences = [x - y for x, y in zip(values, against, strict=True)]
    retained = [round(100 * value, 2) for value in retention(values, against)] if any(against) else None
    name = base.mode if base.reader == run.reader else f"{base.mode} of {base.reader}"
    return {"against": name, "difference": percent(differences), "retention": retained}


def table(figures: dict[str, Any]) -> str:
    """Lay out the figures for people."""
    head = "{task}: {questions} questions of {source}, passages: {passages_from}; {dtype}, {threads} threads"
    lines = [head.format(**figures)]
    if figures["recall"]:
        found = (f"@{k} {value(v)}" for k, v in figures["recall"].items())
        lines.append("an answer among the passages retrieved, %: " + "  ".join(found))
    if guess := figures.get("guess"):
        lines.append(f"without reading ({guess['by']}), %: {value(guess['accuracy'])}")
    rows = figures["rows"]
    readers = len({row["reader"] for row in rows}) > 1
    cells = [cells_of(row, readers) for row in rows]
    names = [name for name in cells[0] if any(row[name] for row in cells)]
    widths = {name: max(len(name), *(len(row[name]) for row in cells)) for name in names}
    lines += ["", "  ".join(name.ljust(widths[name]) for name in names).rstrip()]
    lines += ["  ".join(row[name].ljust(widths[name]) for name in names).rstrip() for row in cells]
    silent = [(way(row), row["abstention"]) for row in rows if "abstention" in row]
    lines += ["", *(f"{name}, {describe_abstention(found)}" for name, found in silent)] if silent else []
    against = next((row["against"] for row in rows if "against" in row), None)
    notes = [
        "[95 % bootstrap interval]",
        "q/s: one question at a time, without retrieval and what precompute does before",
    ]
    notes += [f"difference (points) and retention (%) against {against}"] if against else []
    cut = [f"{row['cut']} in {row['mode']}" for row in rows if row["cut"]]
    if count := figures.get("unanswerable"):
        notes += [f"no answer: given none of {count} questions without answers, which is right; refused: to the others"]
    if left := figures.get("left_out"):
        notes += [f"questions without answers left out, as this reader always answers or they have no passages: {left}"]
    notes += [f"questions too long, of which the last words alone were read: {', '.join(cut)}"] if cut else []
    return "\n".join([*lines, "", "; ".join(notes)])


def cells_of(row: dict[str, Any], reader: bool) -> dict[str, str]:
    """Return the cells of a row by the name of their column."""
    cells = {"reader": row["reader"]} if reader else {}
    read = "" if row["passages_read"] == row["passages"] else f" (read {row['passages_read']:g})"
    cells |= {"mode": way(row), "passages": f"{row['passages']}{read}"}
    cells |= {title: value(row[metric]) for metric, title in TITLES.items() if metric in row}
    cells["found"] = f"{row['found'][0]:.1f}" if "found" in row else ""
    cells["no answer"] = value(row["no_answer"]) if "no_answer" in row else ""
    cells["refused"] = f"{row['refused'][0]:.1f}" if "refused" in row else ""
    cells["difference"] = value(row["difference"], sign="+") if "difference" in row else ""
    cells["retention"] = value(row["retention"]) if row.get("retention") else ""
    cells["q/s"] = f"{row['questions_per_second']:.3g}" if row["questions_per_second"] else ""
    cells["bytes/token"] = f"{row['bytes_per_token']:g}" if row["bytes_per_token"] else ""
    return cells


def way(row: dict[str, Any]) -> str:
    """Return how the passages of a row were read: the mode, how many of them to the end, and what else."""
    prune = f"prune {row['prune']}" if row.get("prune") else ""
    return ", ".join(filter(None, (row["mode"], prune, row.get("more"))))


def value(figure: Percent, sign: str = "") -> str:
    """Write a figure and its interval."""
    return f"{figure[0]:{sign}.1f} [{figure[1]:.1f}, {figure[2]:.1f}]"
