"""Make a reader: `python -m btr.train STAGE --out RUN`, and what comes before it: `tokenizer`, `neighbours`."""

import argparse
import random
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from btr.checkpoint import load_reader, load_tokenizer, resolve, save_reader
from btr.config import MODES, T5_SHAPES, ReaderConfig
from btr.corpus import read_passages, read_questions
from btr.errors import InputError
from btr.fid import FiD
from btr.t5 import T5
from btr.train.data import Batch, ClozeSource, FileSource, Source, collate, from_questions
from btr.train.initialise import initialise
from btr.train.loop import Schedule, Trainer
from btr.train.neighbours import write_neighbours
from btr.train.stages import STAGES, Stage
from btr.train.tokenizer import train_tokenizer


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    main = argparse.ArgumentParser(prog="btr train", description="Train a reader in three stages, or prepare for it.")
    commands = main.add_subparsers(dest="command", required=True)
    tokenizer = commands.add_parser("tokenizer", help="learn a vocabulary from text")
    tokenizer.add_argument("--text", required=True, help="passages or articles")
    tokenizer.add_argument("--passages", type=int, default=100_000, help="how many passages to learn from")
    tokenizer.add_argument("--size", type=int, default=16384, help="vocabulary size")
    tokenizer.add_argument("--out", required=True, help="tokenizer.json to write")
    near = commands.add_parser(
        "neighbours", help="add BM25 neighbours to questions, as passages to tell the gold one from"
    )
    near.add_argument("--questions", nargs="+", required=True, help="files of questions, with gold passages or without")
    near.add_argument("--text", required=True, help="passages or articles to find neighbours in")
    near.add_argument("--limit", type=int, help="passages of --text to use")
    near.add_argument("--top", type=int, default=20, help="neighbours kept")
    near.add_argument("--out", required=True, help="FiD-style .jsonl to write")
    for name, stage in STAGES.items():
        add_stage(commands.add_parser(name, help="train: modes " + ", ".join(mode for mode, _ in stage.modes)))
    return main


def add_stage(stage: argparse.ArgumentParser) -> None:
    """Add the options of a training stage."""
    stage.add_argument(
        "--out",
        required=True,
        help="folder of the run: checkpoint.pt, metrics.jsonl, and the trained reader in reader/",
    )
    start = stage.add_argument_group("what to start from")
    start.add_argument(
        "--reader", help="reader folder or hub id; without it a new T5 is made from --shape and --tokenizer"
    )
    start.add_argument("--shape", choices=sorted(T5_SHAPES), default="small")
    start.add_argument("--tokenizer", help="tokenizer.json of a new reader")
    start.add_argument("--k", type=int, help="lower encoder layers run apart")
    start.add_argument("--calibration", choices=["channel", "paper"], default="channel")
    start.add_argument("--teacher", help="reader folder to distil from")
    data = stage.add_argument_group("what to learn from")
    data.add_argument("--text", help="passages or articles for cloze questions")
    data.add_argument("--text-passages", type=int, default=100_000, help="passages of --text to use")
    data.add_argument("--text-words", type=int, default=100, help="words a passage is cropped to, around the sentence with the answer")
    data.add_argument("--blanks", type=float, default=0.0, help="share of cloze examples that ask for a whole sentence")
    data.add_argument(
        "--text-share", type=float, default=0.5, help="share of cloze questions when there are --questions too"
    )
    data.add_argument("--questions", nargs="*", default=[], help="files of questions with passages")
    data.add_argument("--exclude", nargs="*", default=[], help="files of questions never to be trained on")
    shape = stage.add_argument_group("shape of a batch")
    for flag, value, text in (
        ("batch", 16, "questions"),
        ("passages", 4, "passages per question"),
        ("row-tokens", 192, "tokens of question and passage"),
        ("question-tokens", 32, "most tokens of a question"),
        ("answer-tokens", 12, "tokens of an answer"),
    ):
        shape.add_argument(f"--{flag}", type=int, default=value, help=text)
    how = stage.add_argument_group("how")
    how.add_argument("--modes", help="modes and shares of steps, as binary=3,full=1; default: the stage's own")
    how.add_argument(
        "--default-mode",
        choices=MODES,
        help="how the trained reader answers unless told; default: the first of --modes",
    )
    how.add_argument("--steps", type=int, required=True)
    how.add_argument("--learning-rate", type=float, default=1e-3)
    how.add_argument("--warmup", type=int, default=200, help="steps")
    how.add_argument("--floor", type=float, default=0.0, help="the learning rate at the end, as a share of its peak")
    how.add_argument("--weight-decay", type=float, default=0.01)
    how.add_argument("--matrices", choices=["muon", "adamw"], default="muon", help="optimiser of the hidden matrices")
    how.add_argument("--top-ratio", type=float, default=0.5, help="share of passage tokens distilled")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--save-every", type=float, default=300.0, help="seconds between checkpoints")
    how.add_argument(
        "--compile", action="store_true", help="torch.compile the losses: a minute first, then faster steps"
    )
    how.add_argument("--no-resume", action="store_true", help="start afresh even if the run has a checkpoint")


def parse_modes(text: str) -> tuple[tuple[str, float], ...]:
    """Read 'binary=3,full=1'."""
    pairs = []
    for part in text.split(","):
        mode, _, share = part.partition("=")
        try:
            pairs.append((mode, float(share or 1)))
        except ValueError:
            pairs.append((mode, -1.0))
        if mode not in MODES or pairs[-1][1] <= 0:
            raise InputError(
                f"--modes {text!r}: {part!r} is not one of {', '.join(MODES)} with a share above 0, as in binary=3,full=1"
            )
    return tuple(pairs)


def build_student(options: argparse.Namespace) -> tuple[FiD, Tokenizer]:
    """Load the reader to go on with, or make a new one."""
    if options.reader:
        folder = resolve(options.reader)
        loaded, tokenizer = load_reader(folder, torch.float32, None), load_tokenizer(folder)
        k = loaded.config.k if options.k is None else options.k
        if k == loaded.config.k:
            return loaded, tokenizer
        return FiD(loaded.t5, ReaderConfig(k=k, calibration=options.calibration)), tokenizer
    if not options.tokenizer:
        raise InputError(
            "a new reader needs --tokenizer tokenizer.json (python -m btr.train tokenizer makes one), or pass --reader"
        )
    tokenizer = load_tokenizer(Path(options.tokenizer).parent)
    t5 = T5(replace(T5_SHAPES[options.shape], vocab_size=tokenizer.get_vocab_size()))
    initialise(t5, options.seed)
    return FiD(t5, ReaderConfig(k=options.k or 0, calibration=options.calibration)), tokenizer


def build_sources(options: argparse.Namespace) -> list[tuple[Source, float]]:
    """Open what to learn from, with the share of examples each gives."""
    sources: list[tuple[Source, float]] = []
    share = options.text_share if options.questions else 1.0
    if options.text:
        passages = list(read_passages(options.text, limit=options.text_passages))
        sources.append((ClozeSource(passages, options.passages, options.text_words, options.blanks), share))
    if options.questions:
        excluded = {q.question.lower() for path in options.exclude for q in read_questions(path)}
        asked = [q for path in options.questions for q in read_questions(path) if q.question.lower() not in excluded]
        sources.append((FileSource(from_questions(asked), options.passages, options.text_words), 1 - share if options.text else 1.0))
    if not sources:
        raise InputError("nothing to learn from; pass --text, --questions or both")
    return sources


def train(options: argparse.Namespace) -> int:
    """Run one stage."""
    stage = STAGES[options.command]
    if options.modes:
        stage = Stage(stage.name, parse_modes(options.modes), stage.distillation, stage.recovery)  # type: ignore[arg-type]
    student, tokenizer = build_student(options)
    if any(mode != "full" for mode, _ in stage.modes) and not student.config.k:
        raise InputError(f"stage {stage.name!r} decomposes the encoder and the reader has k = 0; pass --k")
    teacher = load_reader(resolve(options.teacher), torch.float32, None) if options.teacher else None
    if stage.distillation and teacher is None:
        raise InputError(f"stage {stage.name!r} distils from a teacher; pass --teacher FOLDER")
    if teacher is not None:
        teacher = FiD(teacher.t5, student.config).eval()  # split where the student splits
    sources = build_sources(options)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    schedule = Schedule(
        options.steps,
        options.learning_rate,
        options.warmup,
        options.weight_decay,
        options.matrices,
        options.top_ratio,
        seed=options.seed,
        save_every=options.save_every,
        floor=options.floor,
    )

    def draw(step: int) -> Batch:
        rng = random.Random(f"{options.seed}/{step}")
        chosen = rng.choices([s for s, _ in sources], [share for _, share in sources], k=options.batch)
        return collate(
            [source.draw(rng) for source in chosen],
            tokenizer,
            options.passages,
            options.row_tokens,
            options.question_tokens,
            options.answer_tokens,
            rng,
        )

    trainer = Trainer(student, stage, schedule, teacher, out, options.compile)
    resumed = not options.no_resume and trainer.resume()
    if not resumed and any(mode == "binary" for mode, _ in stage.modes):
        trainer.calibrate([draw(-1 - i) for i in range(8)])
    say(
        f"{'resuming at step ' + str(trainer.step) if resumed else 'starting'}: {options.command}, {sum(p.numel() for p in student.t5.parameters()):,} parameters"
    )
    trainer.run(draw, say)
    student.config = replace(student.config, default_mode=options.default_mode or stage.modes[0][0])
    save_reader(student.eval(), tokenizer, out / "reader")
    say(f"wrote {out / 'reader'}")
    return 0


def say(line: str) -> None:
    """Report progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run `btr train`; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        if options.command == "tokenizer":
            train_tokenizer(read_passages(options.text, limit=options.passages), options.size, Path(options.out))
            return 0
        if options.command == "neighbours":
            write_neighbours(options.questions, options.text, options.limit, options.top, Path(options.out), say)
            return 0
        return train(options)
    except (InputError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
