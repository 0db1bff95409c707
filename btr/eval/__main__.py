"""Measure a reader's answers: `python -m btr.eval TASK`, a named task or a file, from its own passages or over a store.

Every combination of `--modes` and `--passages` is a row: exact match and F1, or accuracy; the difference from the mode
it is held against and how much of that one's score it retains; questions a second; bytes per stored token. With `--out`
predictions are kept as they come, and the same command goes on after a kill.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from btr.command import Parser, add_computing, add_threads, run_command
from btr.corpus import Passage, Question
from btr.corpus.questions import TASKS, QuestionSet, find_questions, prompt
from btr.errors import InputError
from btr.eval import plots
from btr.eval.abstention import doubt_of
from btr.eval.evidence import Evidence, hop
from btr.eval.figures import METRICS, NO_ANSWER, Run, describe, recall, score, table
from btr.eval.options import check_outputs, read_counts, read_modes
from btr.eval.predictions import Prediction, Predictions, input_digest
from btr.hops.answer import check_hops
from btr.metrics import holds_answer, percent
from btr.model.checkpoint import digest
from btr.model.config import MODES, Mode
from btr.model.devices import settle
from btr.progress import Progress, say
from btr.reader import Reader
from btr.reader.answer import Answer
from btr.reader.kept import NOTHING, KeptRows
from btr.reader.refusals import check_prune
from btr.reader.truncation import shorten
from btr.retrieve.fusion import KINDS
from btr.storage import Store, StoreError


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    main = Parser(
        prog="btr eval",
        description="Score a reader's answers, with 95 % bootstrap intervals.",
        epilog="Example: btr eval my-questions.jsonl --store my.btr --modes full,binary --limit 200",
    )
    about = f"{', '.join(TASKS)}, sample; or a file of questions with answers, in any known format"
    main.add_argument("task", metavar="TASK", help=about)
    add = main.add_argument_group("what is asked").add_argument
    add("--data", metavar="PATH", help="a named task's file, or a folder of tasks; default: the Hugging Face hub")
    add("--limit", type=int, metavar="N", help="questions to answer")
    add = main.add_argument_group("what is read").add_argument
    add("--store", metavar="S", help="read the best passages of this store; without it, those a question comes with")
    add("--retriever", choices=KINDS, help="what finds passages in the store; default: what it is searched with")
    add("--passages", metavar="N", help="passages a question, comma-separated; default: the reader's own number")
    about = "searches a question, each by what the last found (default %(default)s)"
    add("--hops", type=int, default=1, metavar="H", help=about)
    add = main.add_argument_group("how it is read").add_argument
    add("--reader", metavar="R", help="reader folder or hub id; default: the reader shipped with btr")
    add("--modes", default="binary", help="comma-separated: full, float, binary (default %(default)s)")
    about = "passages read to the end, of those, comma-separated; 0: all (default)"
    add("--prune", default="0", metavar="N", help=about)
    about = "share of tokens merged in the upper layers and before the decoder's, but in mode full; default: none"
    add("--merge", type=float, default=0.0, metavar="RATIO", help=about)
    about = "write the answers with the decoder rounded to int8, but for those of --against-reader"
    add("--round-decoder", action="store_true", help=about)
    add("--max-new-tokens", type=int, default=16, metavar="N", help="longest answer (default %(default)s)")
    add_computing(add, answers=True)
    add_threads(add)
    add = main.add_argument_group("what comes of it").add_argument
    about = "mode to compare with; default: full, if it is evaluated, else with --prune 0,N the first"
    add("--against", metavar="MODE", choices=MODES, help=about)
    add("--against-reader", metavar="R", help="compare with this reader (its mode full, or --against)")
    add("--out", metavar="FILE.jsonl", help="keep each prediction there, and go on from those that are there")
    add("--json", nargs="?", const="-", metavar="FILE", help="write the figures as JSON; without FILE, print them so")
    add("--plot", metavar="FILE.png", help="draw accuracy against speed and bytes, and the sweep over --passages")
    return main


@dataclass(frozen=True)
class Setting:
    """How one row is made."""

    reader: Reader
    weights: str  # what tells this reader from others
    mode: Mode
    passages: int
    prune: int = 0
    merge: float = 0.0
    rounded: bool = False
    hops: int = 1

    @property
    def above(self) -> float:
        """The no_answer over which no answer is given."""
        above = self.reader.config.no_answer_above
        return NO_ANSWER if above is None else above

    @property
    def more(self) -> str:
        """Name what is done to be sooner, beside pruning."""
        return ", ".join(
            [f"merge {self.merge:g}"] * bool(self.merge)
            + ["int8"] * self.rounded
            + [f"{self.hops} hops"] * (self.hops > 1)
        )


def identify(reader: Reader) -> str:
    """Return 16 hexadecimal digits over all that a reader's answers depend on."""
    config = replace(reader.config, default_mode="full", passages=1)
    return digest(sorted(reader.model.state_dict().items()), reader.fingerprint, repr(config))


class Evaluation:
    """Answers the questions of a task, setting by setting."""

    def __init__(self, asked: QuestionSet, evidence: Evidence, predictions: Predictions, max_new_tokens: int) -> None:
        self.asked, self.evidence, self.predictions = asked, evidence, predictions
        self.max_new_tokens = max_new_tokens
        self._warm: set[tuple[str, Mode]] = set()

    def run(self, setting: Setting) -> Iterator[Prediction]:
        """Yield the prediction of every question, answering those that are not in the file."""
        for number, question in enumerate(self.asked.questions):
            passages = self.evidence.take(number, setting.passages)
            wanted = {
                "reader": setting.weights, "mode": setting.mode, "passages": setting.passages, "number": number,
                "id": question.id, "input": self._input(question, passages), "prune": setting.prune,
            }  # fmt: skip
            found = self.predictions.get(wanted)
            if found is None:
                found = wanted | self._answer(setting, number, passages)
                self.predictions.add(found)
            yield found

    def _input(self, question: Question, passages: list[Passage]) -> str:
        texts = [(p.title, p.text or p.id) for p in passages]
        return input_digest(prompt(question, self.asked.kind), question.answers, texts)

    def _answer(self, setting: Setting, number: int, passages: list[Passage]) -> dict[str, Any]:
        question, kind = self.asked.questions[number], self.asked.kind
        passages = list(passages)
        whole = prompt(question, kind)
        asked = shorten(whole, setting.reader)  # as the server does
        row = self._read(setting, question, number, asked, passages) if passages else {}
        text = row.pop("text", "")
        if len(asked) < len(whole):
            row["cut"] = asked
        row |= {"question": question.question, "answer": text, "answers": list(question.answers), "read": len(passages)}
        if kind == "question" and question.answers:
            row["found"] = float(any(holds_answer(p.text, question.answers) for p in passages))
        if not question.answers:  # right if none is given, as in SQuAD 2.0
            right = float(doubt_of(row) > setting.above)
            return row | {"em": right, "f1": right}
        return row | score(text, question, kind)

    def _read(
        self, setting: Setting, question: Question, number: int, asked: str, passages: list[Passage]
    ) -> dict[str, Any]:
        """Answer one question; what can be done before it is asked is not timed, reading stored bits is.

        In several hops their searches are timed too, and `passages` is made those of the last.
        """
        reader, mode = setting.reader, setting.mode
        bits, kept = uses_store(setting, self.evidence.store), kept_mode(setting, len(passages))
        ready = passages if kept is None or bits else reader.encode_passages(passages, kept)
        merge = reader.schedule("algorithm", setting.merge) if setting.merge else None

        def read(given: Any, rows: KeptRows = NOTHING, *, most: int) -> Answer:
            more = (merge, setting.prune, 1.0, self.asked.choices(question), rows)  # 1: its best guess
            return reader.answer(asked, given, mode, most, *more)

        def answer(most: int) -> Answer:
            if setting.hops > 1:
                again = partial(read, most=most)
                found, passages[:] = hop(self.evidence, number, again, reader, setting.hops, setting.passages, bits)
                return found
            return read(self.evidence.at(number, setting.passages) if bits else ready, most=most)

        if (setting.weights, mode) not in self._warm:  # the first time, kernels are compiled
            answer(1)
            self._warm.add((setting.weights, mode))
        began = perf_counter()
        found = answer(self.max_new_tokens)
        row: dict[str, Any] = {"text": found.text, "seconds": round(perf_counter() - began, 6)}
        if found.choices:
            row["choices"] = [round(likely, 6) for likely in found.choices]
        if found.no_answer is not None:
            row["no_answer"] = round(found.no_answer, 6)
        if found.span is not None:
            span = found.span
            row["span"] = {"id": passages[span.passage].id, "start": span.start, "end": span.end}
        return row


def kept_mode(setting: Setting, passages: int) -> Mode | None:
    """Return in which mode what is kept of so many passages was made; None: nothing is kept."""
    if setting.mode != "full":
        return setting.mode
    return "binary" if 0 < setting.prune < passages else None


def uses_store(setting: Setting, store: Store | None) -> bool:
    """Tell whether a setting reads the bits of the store itself, rather than encode its texts anew."""
    bits = kept_mode(setting, setting.passages) == "binary"
    return store is not None and bits and store.manifest.fingerprint == setting.reader.fingerprint


def read_anew(settings: list[Setting], store: Store) -> str:
    """Say that a store's bits are of another reader than one that would read them, and what that costs; or nothing."""
    made = f"reader {store.manifest.fingerprint} ({store.manifest.reader or 'shipped with btr'})"
    for reader in [s.reader for s in settings if kept_mode(s, s.passages) == "binary" and not uses_store(s, store)]:
        return (
            f"store {store.path} was made by {made}, and {reader.name} ({reader.fingerprint}) cannot read its bits: it "
            "encodes the texts anew for every question, which takes longer and is not counted in questions a second"
        )
    return ""


def bytes_per_token(setting: Setting, store: Store | None) -> float | None:
    """Return what is kept of a token, signs and scalar or float states: on disk where the store is read; None: nothing.

    In the memory of the reader signs come in words of 64 bits.
    """
    reader = setting.reader
    kept = kept_mode(setting, setting.passages)
    if kept is None:
        return None
    if kept == "float":
        return float(reader.D * reader.model.dtype.itemsize)
    if store is not None and uses_store(setting, store):
        parts = store.manifest.part_bytes
        return (parts["signs"] + parts["scalars"]) / max(store.manifest.tokens, 1)
    return 8.0 * -(-reader.bits // 64) + 2


def check_readers(settings: list[Setting], asked: QuestionSet, evidence: Evidence) -> None:
    """Refuse settings that a reader cannot answer in."""
    for setting in settings:
        reader, mode = setting.reader, setting.mode
        if mode != "full" and not reader.config.k:
            raise InputError(f"reader {reader.name} has no split layer, so it knows mode 'full' alone, not {mode!r}")
        check_prune(reader.model, setting.prune, reader.name)
        if asked.kind != "question" and reader.family == "extractive":
            cure = "evaluate a generative reader, or another task"
            raise InputError(f"{asked.task} gives choices, and reader {reader.name} quotes passages; {cure}")
        if not uses_store(setting, evidence.store) and not evidence.has_texts():
            cure = "evaluate mode 'binary' of the store's reader, or keep the texts (precompute without --no-text)"
            raise InputError(f"the store keeps no texts, and mode {mode!r} of reader {reader.name} reads them; {cure}")


def plan(options: argparse.Namespace, reader: Reader, weights: str) -> tuple[list[Setting], tuple[str, Mode] | None]:
    """Return the rows in order, and (weights, mode) of those that the others are held against, which prune nothing."""
    modes, prunes = read_modes(options.modes), read_counts("--prune", options.prune, 0)
    counts = read_counts("--passages", options.passages, 1) or [reader.config.passages]
    against: Mode | None = options.against or ("full" if options.against_reader or "full" in modes else None)
    if against is None and any(prunes) and 0 in prunes:
        against = modes[0]
    own = [(reader, weights, mode) for mode in modes]
    if against is None:
        return settings_of(own, counts, prunes, None), None
    other, base = reader, (weights, against)
    if options.against_reader:
        other = Reader.from_pretrained(options.against_reader, dtype=options.dtype, device=options.device)
        base = (identify(other), against)
    if base not in [row[1:] for row in own]:
        own = [(other, *base), *own]
    return settings_of(own, counts, prunes, base), base


def settings_of(
    rows: list[tuple[Reader, str, Mode]], counts: list[int], prunes: list[int], base: tuple[str, Mode] | None
) -> list[Setting]:
    """Return the rows for all numbers of passages and of those read to the end.

    The reader compared with (the first row, then) reads all; so does the base, whatever else it does.
    """
    found = []
    for count, row in itertools.product(counts, rows):
        alone = row[1] != rows[-1][1]
        chosen = {0} if alone else {*prunes, *([0] if row[1:] == base else [])}
        found += [Setting(*row, count, prune) for prune in sorted(chosen)]
    return found


def compressed(setting: Setting, options: argparse.Namespace) -> Setting:
    """Return a setting of the reader that is merged or rounded."""
    merge = options.merge if setting.mode != "full" else 0.0
    return replace(setting, merge=merge, rounded=options.round_decoder, hops=options.hops)


def run_all(evaluation: Evaluation, settings: list[Setting]) -> list[Run]:
    """Answer everything, reporting on stderr how far it is."""
    runs, total, metric = [], len(evaluation.asked.questions), METRICS[evaluation.asked.kind][0]
    for s in settings:
        rows: list[Prediction] = []
        read, right = f"{s.passages} passages" + (f", {s.prune} to the end" if s.prune else ""), 0.0
        report, known = Progress(f"{s.mode}, {read}:", 0, total, "questions"), len(evaluation.predictions)
        for row in evaluation.run(s):
            rows.append(row)
            right, made = right + row[metric], len(evaluation.predictions)
            report.first += made == known  # a prediction of an earlier run tells nothing of the rate
            report.more, known = f"{metric} {100 * right / len(rows):.1f}", made
            report(1)
        report.show(last=True)
        kept = bytes_per_token(s, evaluation.evidence.store)
        answered, rest = ([r for r in rows if bool(r["answers"]) is has] for has in (True, False))
        runs.append(Run(s.reader.name, s.weights, s.mode, s.passages, kept, answered, s.prune, s.more, rest, s.above))
    return runs


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Answer everything in every setting; returns the figures.

    Raises:
        InputError, StoreError: something that was asked for cannot be had; said before the first answer.
    """
    check_outputs(options)
    options.dtype, options.device = settle(options.dtype, options.device, options.threads)
    asked = find_questions(options.task, options.data, options.limit)
    reader = Reader.from_pretrained(options.reader, dtype=options.dtype, device=options.device)
    weights = identify(reader)
    if options.round_decoder:
        reader.round_decoder()
        weights += "-int8"
    if options.merge:
        reader.schedule("algorithm", options.merge)  # or an error
        weights += f"-merged{options.merge:g}"
    settings, base = plan(options, reader, weights)
    settings = [compressed(s, options) if s.weights == weights else s for s in settings]
    if options.merge and not any(s.merge for s in settings):
        raise InputError("--merge is for the modes float and binary, and neither is evaluated; name one in --modes")
    counts = sorted({setting.passages for setting in settings})
    with ExitStack() as stack:
        store = stack.enter_context(Store.open(options.store)) if options.store else None
        refuse = asked.kind == "question" and all(setting.reader.family == "extractive" for setting in settings)
        unanswerable = [q for q in asked.unanswerable if refuse and (q.passages or store is not None)]
        whole = replace(asked, questions=[*asked.questions, *unanswerable])
        evidence = Evidence(whole.questions, counts[-1], store, options.retriever, asked.kind == "claim")
        evidence.check()
        if store is not None:
            check_hops(options.hops, store)
        check_readers(settings, asked, evidence)
        if store is not None and (note := read_anew(settings, store)):
            say(f"note: {note}")
        shared = {
            "task": asked.task, "dtype": options.dtype, "max_new_tokens": options.max_new_tokens, "reader": weights,
            "store": None if store is None else store.manifest.content_hash[:16],
        }  # fmt: skip
        shared |= {"hops": options.hops} if options.hops > 1 else {}
        shared |= {} if options.device == "cpu" else {"device": options.device}
        predictions = stack.enter_context(Predictions(Path(options.out) if options.out else None, shared))
        if len(predictions):
            say(f"{options.out}: going on after {len(predictions)} predictions")
        runs = run_all(Evaluation(whole, evidence, predictions, options.max_new_tokens), settings)
        ranks = evidence.ranks() if store is not None and asked.kind == "question" and evidence.has_texts() else None
    guess = asked.guess()
    return {
        "task": asked.task, "questions": len(asked.questions), "source": asked.source,
        "guess": {"by": guess[0], "accuracy": percent(guess[1])} if guess else None,
        "unanswerable": len(unanswerable), "left_out": len(asked.unanswerable) - len(unanswerable),
        "passages_from": f"{options.store} by {evidence.retriever.name}" if options.store else "the questions' own",
        "dtype": options.dtype, "device": options.device, "max_new_tokens": options.max_new_tokens,
        "threads": torch.get_num_threads(),
        "recall": recall(ranks[: len(asked.questions)], counts) if ranks else None,
        "rows": describe(runs, METRICS[asked.kind], base),
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run `btr eval`; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        figures = evaluate(options)
    except (InputError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures) if options.json == "-" else table(figures))
    try:
        if options.json not in (None, "-"):
            Path(options.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        if options.plot:
            plots.draw(figures, options.plot)
    except OSError as error:  # what could be written before the work, and cannot after it; the figures are printed
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    run_command(main)
