"""Measure a reader's answers: `python -m btr.eval QUESTIONS`, from the questions' own passages or over a store."""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from btr.config import MODES, Mode
from btr.corpus import Passage, Question, read_questions
from btr.errors import InputError
from btr.metrics import bootstrap, exact_match, f1, mean
from btr.reader import DTYPES, Reader
from btr.retrieve import BM25
from btr.storage import Store, StoreError


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    main = argparse.ArgumentParser(
        prog="btr eval", description="Exact match and F1 of a reader, with 95 %% bootstrap intervals."
    )
    main.add_argument("questions", metavar="QUESTIONS", help="a file of questions with answers, in any known format")
    main.add_argument("--reader", help="reader folder or hub id; default: the reader shipped with btr")
    main.add_argument("--modes", default="binary", help="comma-separated: full, float, binary (default %(default)s)")
    main.add_argument(
        "--store", help="retrieve passages from this store; without it a question's own passages are read"
    )
    main.add_argument("--passages", type=int, help="passages per question; default: the reader's own number")
    main.add_argument("--limit", type=int, help="questions to answer")
    main.add_argument("--max-new-tokens", type=int, default=16)
    main.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    main.add_argument("--out", help="write each prediction to this .jsonl file")
    main.add_argument("--json", action="store_true", help="print the figures as JSON")
    return main


def own_passages(question: Question, count: int) -> list[Passage]:
    """Take the gold passage and the first others, `count` in all, in an order that depends on the question alone."""
    marked = question.gold or (False,) * len(question.passages)
    ranked = sorted(zip(question.passages, marked, strict=True), key=lambda pair: not pair[1])
    gold = [p for p, is_gold in ranked if is_gold][:1]
    chosen = (gold + [p for p, is_gold in ranked if not is_gold])[:count]
    random.Random(question.question).shuffle(chosen)
    return chosen


def gather(questions: Sequence[Question], options: argparse.Namespace) -> list[list[Passage]]:
    """Find each question's passages: its own, or the store's best by BM25."""
    if not options.store:
        found = [own_passages(question, options.passages) for question in questions]
        if not all(found):
            lacking = next(q for q, passages in zip(questions, found, strict=True) if not passages)
            raise InputError(f"question {lacking.id!r} has no passages to read; pass --store to retrieve some")
        return found
    with Store.open(options.store) as store:
        index, found = BM25.open(Path(options.store) / "bm25"), []
        for ordinals, _ in index.search([q.question for q in questions], options.passages):
            kept = store.at([int(i) for i in ordinals])
            found.append([Passage(*row) for row in zip(kept.ids, kept.titles, kept.texts, strict=True)])
        return found


def predict(
    reader: Reader, questions: Sequence[Question], passages: Sequence[list[Passage]], mode: Mode, most: int
) -> Iterator[dict[str, Any]]:
    """Answer the questions one by one."""
    for question, read in zip(questions, passages, strict=True):
        try:
            answer = reader.answer(question.question, read, mode, most).text if read else ""
        except InputError as error:  # an over-long question is a wrong answer, not the end of the run
            answer = ""
            print(f"warning: question {question.id!r}: {error}", file=sys.stderr)
        yield {
            "id": question.id, "mode": mode, "question": question.question,
            "answer": answer, "answers": question.answers,
            "em": exact_match(answer, question.answers), "f1": f1(answer, question.answers),
            "found": float(any(a.lower() in p.text.lower() for a in question.answers for p in read)),
        }  # fmt: skip


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Answer everything in every mode; returns the figures, in per cent."""
    modes = [cast(Mode, mode) for mode in options.modes.split(",")]
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise InputError(f"--modes has {unknown[0]!r}; known: {', '.join(MODES)}")
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise InputError(f"--out {options.out}: no such folder; make it first")
    reader = Reader.from_pretrained(options.reader, dtype=options.dtype)
    options.passages = options.passages or reader.config.passages
    questions = [q for q in read_questions(options.questions, limit=options.limit) if q.answers]
    if not questions:
        raise InputError(f"{options.questions}: no question with answers; there is nothing to compare with")
    passages = gather(questions, options)
    rows: dict[str, list[dict[str, Any]]] = {}
    figures: dict[str, Any] = {"questions": len(questions), "passages": options.passages, "reader": reader.name}
    seconds = {}
    for mode in modes:
        began = time.monotonic()
        rows[mode] = list(reported(predict(reader, questions, passages, mode, options.max_new_tokens), len(questions)))
        seconds[mode] = round((time.monotonic() - began) / len(questions), 4)
    if options.out:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for found in rows.values() for row in found)
        Path(options.out).write_text("".join(lines), encoding="utf-8")
    ems = {mode: [row["em"] for row in found] for mode, found in rows.items()}
    figures["found"] = round(100 * mean([row["found"] for row in rows[modes[0]]]), 1)
    figures["modes"] = {}
    for mode in modes:
        figures["modes"][mode] = {"em": percent(ems[mode]), "f1": percent([row["f1"] for row in rows[mode]])}
        if "full" in ems:
            differences = [x - y for x, y in zip(ems[mode], ems["full"], strict=True)]
            figures["modes"][mode]["em_minus_full"] = percent(differences)
        figures["modes"][mode]["seconds_per_question"] = seconds[mode]
    return figures


def reported(rows: Iterator[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """Pass rows on, reporting every hundredth on stderr."""
    right = 0.0
    for count, row in enumerate(rows, 1):
        right += row["em"]
        if count % 100 == 0:
            print(f"{row['mode']}: {count}/{total}  EM {100 * right / count:.1f}", file=sys.stderr)
        yield row


def percent(values: Sequence[float]) -> list[float]:
    """Return [mean, low, high] in per cent: the mean and its 95 % bootstrap interval."""
    return [round(100 * value, 1) for value in (mean(values), *bootstrap(values))]


def main(argv: list[str] | None = None) -> int:
    """Run `btr eval`; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        figures = evaluate(options)
    except (InputError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures) if options.json else table(figures))
    return 0


def table(figures: dict[str, Any]) -> str:
    """Lay out the figures for people."""
    head = "{questions} questions, {passages} passages each, an answer among them for {found} %"
    lines = [head.format(**figures)]
    for mode, row in figures["modes"].items():
        cells = [f"{key} {v[0]} [{v[1]}, {v[2]}]" for key, v in row.items() if isinstance(v, list)]
        lines.append(f"{mode:7} {'  '.join(cells)}  {row['seconds_per_question']} s/question")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
