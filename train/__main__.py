"""Make a reader: `python -m btr.train STAGE --out RUN`, and what comes before it: `tokenizer`, `neighbours`."""

import argparse
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from btr.checkpoint import load_reader, load_tokenizer, resolve, save_reader
from btr.config import MODES, T5_SHAPES, ConfigError, Mode, ReaderConfig
from btr.corpus import Question, read_passages, read_questions
from btr.errors import InputError
from btr.fid import FiD
from btr.storage.errors import StoreError
from btr.t5 import T5
from btr.train.cloze import ClozeSource
from btr.train.data import Batch, FileSource, Source, collate, end_of_sequence, from_questions
from btr.train.initialise import initialise
from btr.train.loop import Schedule, Trainer
from btr.train.neighbours import write_neighbours
from btr.train.stages import STAGES, Stage
from btr.train.tokenizer import open_tokenizer, train_tokenizer

CALIBRATION_BATCHES = 8
COUNTS = ("size", "limit", "top", "batch", "passages", "row_tokens", "question_tokens", "answer_tokens")
AMOUNTS = ("steps", "learning_rate", "warmup", "weight_decay", "save_every")
LEAST = dict.fromkeys((*COUNTS, "text_passages", "text_words"), 1) | dict.fromkeys(AMOUNTS, 0)
SHARES = ("blanks", "text_share", "top_ratio", "floor")  # options between 0 and 1


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    main = argparse.ArgumentParser(prog="btr train", description="Train a reader in three stages, or prepare for it.")
    commands = main.add_subparsers(dest="command", required=True)
    tokenizer = commands.add_parser("tokenizer", help="learn a vocabulary from text")
    tokenizer.add_argument("--text", required=True, help="passages or articles")
    tokenizer.add_argument("--passages", type=int, default=100_000, help="how many passages to learn from")
    tokenizer.add_argument("--size", type=int, default=16384, help="vocabulary size")
    tokenizer.add_argument("--out", required=True, help="tokenizer.json to write")
    about = "add BM25 neighbours to questions, as passages to tell the gold one from"
    near = commands.add_parser("neighbours", help=about)
    near.add_argument("--questions", nargs="+", required=True, help="files of questions, with gold passages or without")
    near.add_argument("--text", required=True, help="passages or articles to find neighbours in")
    near.add_argument("--limit", type=int, help="passages of --text to use")
    near.add_argument("--top", type=int, default=20, help="neighbours kept")
    near.add_argument("--out", required=True, help="FiD-style .jsonl to write")
    for name, stage in STAGES.items():
        added = commands.add_parser(name, help="train: modes " + ", ".join(mode for mode, _ in stage.modes))
        about = "folder of the run: checkpoint.pt, metrics.jsonl, and the trained reader in reader/"
        added.add_argument("--out", required=True, help=about)
        for add in (add_start, add_data, add_shape, add_how):
            add(added)
    return main


def add_start(stage: argparse.ArgumentParser) -> None:
    """Add the options that say what a stage starts from."""
    start = stage.add_argument_group("what to start from")
    about = "reader folder or hub id; without it a new T5 is made from --shape and --tokenizer"
    start.add_argument("--reader", help=about)
    start.add_argument("--shape", choices=sorted(T5_SHAPES), default="small")
    start.add_argument("--tokenizer", help="tokenizer.json of a new reader")
    start.add_argument("--k", type=int, help="lower encoder layers run apart; default: the reader's own, or 0")
    about = "how signs get their values; default: the reader's own, or channel"
    start.add_argument("--calibration", choices=["channel", "paper"], help=about)
    start.add_argument("--teacher", help="reader folder to distil from")


def add_data(stage: argparse.ArgumentParser) -> None:
    """Add the options that say what a stage learns from."""
    data = stage.add_argument_group("what to learn from")
    data.add_argument("--text", help="passages or articles for cloze questions")
    data.add_argument("--text-passages", type=int, default=100_000, help="passages of --text to use")
    about = "words a passage is cropped to, around the sentence with the answer"
    data.add_argument("--text-words", type=int, default=100, help=about)
    data.add_argument("--blanks", type=float, default=0.0, help="share of cloze examples that ask for a whole sentence")
    about = "share of cloze questions when there are --questions too"
    data.add_argument("--text-share", type=float, default=0.5, help=about)
    data.add_argument("--questions", nargs="*", default=[], help="files of questions with passages")
    data.add_argument("--exclude", nargs="*", default=[], help="files of questions never to be trained on")


def add_shape(stage: argparse.ArgumentParser) -> None:
    """Add the options that give the shape of a batch."""
    shape = stage.add_argument_group("shape of a batch")
    shape.add_argument("--batch", type=int, default=16, help="questions")
    shape.add_argument("--passages", type=int, default=4, help="passages per question")
    shape.add_argument("--row-tokens", type=int, default=192, help="tokens of question and passage")
    shape.add_argument("--question-tokens", type=int, default=32, help="most tokens of a question")
    shape.add_argument("--answer-tokens", type=int, default=12, help="tokens of an answer")


def add_how(stage: argparse.ArgumentParser) -> None:
    """Add the options that say how a stage is trained."""
    how = stage.add_argument_group("how")
    how.add_argument("--modes", help="modes and shares of steps, as binary=3,full=1; default: the stage's own")
    about = "how the trained reader answers unless told; default: the first of --modes"
    how.add_argument("--default-mode", choices=MODES, help=about)
    how.add_argument("--steps", type=int, required=True)
    how.add_argument("--learning-rate", type=float, default=1e-3)
    how.add_argument("--warmup", type=int, default=200, help="steps")
    how.add_argument("--floor", type=float, default=0.0, help="the learning rate at the end, as a share of its peak")
    how.add_argument("--weight-decay", type=float, default=0.01)
    how.add_argument("--matrices", choices=["muon", "adamw"], default="muon", help="optimiser of the hidden matrices")
    how.add_argument("--top-ratio", type=float, default=0.5, help="share of passage tokens distilled")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--save-every", type=float, default=300.0, help="seconds between checkpoints")
    about = "torch.compile the losses: a minute first, then faster steps"
    how.add_argument("--compile", action="store_true", help=about)
    about = "start afresh even if the run has a checkpoint"
    how.add_argument("--no-resume", action="store_true", help=about)


def check(options: argparse.Namespace) -> None:
    """Raise InputError for a number out of range."""
    given = vars(options)
    for name, least in LEAST.items():
        if given.get(name) is not None and not given[name] >= least:
            raise InputError(f"--{name.replace('_', '-')} is {given[name]}; give at least {least}")
    for name in SHARES:
        if name in given and not 0 <= given[name] <= 1:
            raise InputError(f"--{name.replace('_', '-')} is {given[name]}; give a share between 0 and 1")
    if "row_tokens" in given and options.question_tokens >= options.row_tokens:
        raise InputError(
            f"--question-tokens is {options.question_tokens} and --row-tokens {options.row_tokens}; "
            "leave a row room for the passage"
        )


def parse_modes(text: str) -> tuple[tuple[Mode, float], ...]:
    """Read 'binary=3,full=1'."""
    return tuple(parse_mode(part, text) for part in text.split(","))


def parse_mode(part: str, text: str) -> tuple[Mode, float]:
    """Read 'binary=3', or 'binary' for a share of 1; `text` is all that was given, for the error."""
    name, _, given = part.partition("=")
    try:
        share = float(given or 1)
    except ValueError:
        share = math.nan
    for mode in MODES:
        if mode == name and 0 < share < math.inf:
            return mode, share
    known = ", ".join(MODES)
    raise InputError(f"--modes {text!r}: {part!r} is not one of {known} with a share above 0, as in binary=3,full=1")


def build_stage(options: argparse.Namespace) -> Stage:
    """Return the stage asked for, with the modes asked for."""
    stage = STAGES[options.command]
    if stage.distillation and not options.teacher:
        raise InputError(f"stage {stage.name!r} distils from a teacher; pass --teacher FOLDER")
    return replace(stage, modes=parse_modes(options.modes)) if options.modes else stage


def build_student(options: argparse.Namespace) -> tuple[FiD, Tokenizer]:
    """Load the reader to go on with, or make a new one."""
    if options.reader:
        folder = resolve(options.reader)
        loaded, tokenizer = load_reader(folder, torch.float32, None), load_tokenizer(folder)
        asked = {"k": options.k, "calibration": options.calibration}
        config = replace(loaded.config, **{name: value for name, value in asked.items() if value is not None})
        return (loaded if config == loaded.config else split(loaded.t5, config)), tokenizer
    if not options.tokenizer:
        raise InputError(
            "a new reader needs --tokenizer tokenizer.json (python -m btr.train tokenizer makes one), or pass --reader"
        )
    tokenizer = open_tokenizer(Path(options.tokenizer))
    t5 = T5(replace(T5_SHAPES[options.shape], vocab_size=tokenizer.get_vocab_size()))
    initialise(t5, options.seed)
    return split(t5, ReaderConfig(k=options.k or 0, calibration=options.calibration or "channel")), tokenizer


def split(t5: T5, config: ReaderConfig) -> FiD:
    """Build a reader with a new binarizer; InputError if it has no layer k+1."""
    try:
        return FiD(t5, config)
    except ValueError as error:
        raise InputError(f"--k: {error}") from error


def check_modes(options: argparse.Namespace, stage: Stage, student: FiD) -> None:
    """Raise InputError if a mode to train or to answer in needs a split and the reader has none."""
    modes = [mode for mode, _ in stage.modes] + [options.default_mode or "full"]
    if any(mode != "full" for mode in modes) and not student.config.k:
        raise InputError(f"stage {stage.name!r} decomposes the encoder and the reader has k = 0; pass --k")


def load_teacher(options: argparse.Namespace, student: FiD, tokenizer: Tokenizer) -> FiD | None:
    """Load the reader to distil from, split where the student splits; None if there is none.

    Raises:
        InputError: its states or tokens are not those of the student.
    """
    if not options.teacher:
        return None
    folder = resolve(options.teacher)
    teacher = load_reader(folder, torch.float32, None)
    for name in ("d_model", "num_layers", "vocab_size"):
        theirs, ours = getattr(teacher.t5.config, name), getattr(student.t5.config, name)
        if theirs != ours:
            raise InputError(f"--teacher has {name} {theirs}, the student {ours}; distil from a reader of its shape")
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise InputError("--teacher has another vocabulary than the student; distil from a reader with its tokenizer")
    return FiD(teacher.t5, student.config).eval()


def build_sources(options: argparse.Namespace) -> list[tuple[Source, float]]:
    """Open what to learn from, with the share of examples each gives."""
    if not options.text and not options.questions:
        raise InputError("nothing to learn from; pass --text, --questions or both")
    sources: list[tuple[Source, float]] = []
    share = options.text_share if options.questions else 1.0
    if options.text:
        passages = list(read_passages(options.text, limit=options.text_passages))
        sources.append((ClozeSource(passages, options.passages, options.text_words, options.blanks), share))
    if options.questions:
        asked = from_questions(read_allowed(options.questions, options.exclude))
        if not asked:
            raise InputError(
                f"{', '.join(options.questions)}: no question that is not excluded has a passage holding an answer; "
                "add passages with: python -m btr.train neighbours"
            )
        source = FileSource(asked, options.passages, options.text_words)
        sources.append((source, 1 - share if options.text else 1.0))
    return sources


def read_allowed(paths: Sequence[str], exclude: Sequence[str]) -> list[Question]:
    """Read questions but those that files of excluded questions hold too, ignoring case."""
    excluded = {question.question.lower() for path in exclude for question in read_questions(path)}
    found = (question for path in paths for question in read_questions(path))
    return [question for question in found if question.question.lower() not in excluded]


def drawer(options: argparse.Namespace, tokenizer: Tokenizer) -> Callable[[int], Batch]:
    """Return what makes the batch of a step."""
    sources, shares = zip(*build_sources(options), strict=True)
    end_of_sequence(tokenizer)
    shape = (options.passages, options.row_tokens, options.question_tokens, options.answer_tokens)

    def draw(step: int) -> Batch:
        rng = random.Random(f"{options.seed}/{step}")
        chosen = rng.choices(sources, shares, k=options.batch)
        return collate([source.draw(rng) for source in chosen], tokenizer, *shape, rng)

    return draw


def build_schedule(options: argparse.Namespace) -> Schedule:
    """Take the schedule from the options."""
    return Schedule(
        steps=options.steps,
        learning_rate=options.learning_rate,
        warmup=options.warmup,
        weight_decay=options.weight_decay,
        matrices=options.matrices,
        top_ratio=options.top_ratio,
        seed=options.seed,
        save_every=options.save_every,
        floor=options.floor,
    )


def start(trainer: Trainer, draw: Callable[[int], Batch], resume: bool) -> bool:
    """Go on from the run's checkpoint if it has one and may, and return True; else calibrate what needs it."""
    if not resume:
        (trainer.out / "checkpoint.pt").unlink(missing_ok=True)  # a kill before the first save must not bring it back
    if trainer.resume():
        return True
    unset = trainer.student.config.calibration == "channel" and not trainer.student.binarizer.mean.any()
    if unset and any(mode == "binary" for mode, _ in trainer.stage.modes):
        trainer.calibrate([draw(-1 - i) for i in range(CALIBRATION_BATCHES)])
    return False


def train(options: argparse.Namespace) -> None:
    """Run one stage."""
    stage = build_stage(options)
    student, tokenizer = build_student(options)
    check_modes(options, stage, student)
    teacher, draw = load_teacher(options, student, tokenizer), drawer(options, tokenizer)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(student, stage, build_schedule(options), teacher, out, options.compile)
    resumed = start(trainer, draw, not options.no_resume)
    size = sum(p.numel() for p in student.t5.parameters())
    say(f"{f'resuming at step {trainer.step}' if resumed else 'starting'}: {stage.name}, {size:,} parameters")
    trainer.run(draw, say)
    student.config = replace(student.config, default_mode=options.default_mode or stage.modes[0][0])
    save_reader(student.eval(), tokenizer, out / "reader")
    say(f"wrote {out / 'reader'}")


def say(line: str) -> None:
    """Report progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def execute(options: argparse.Namespace) -> None:
    """Run the command that the options name."""
    check(options)
    if options.command == "tokenizer":
        train_tokenizer(read_passages(options.text, limit=options.passages), options.size, Path(options.out))
    elif options.command == "neighbours":
        write_neighbours(options.questions, options.text, options.limit, options.top, Path(options.out), say)
    else:
        train(options)


def main(argv: list[str] | None = None) -> int:
    """Run `btr train`; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        execute(options)
    except (InputError, ConfigError, StoreError, OSError, FloatingPointError) as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
