"""Make a reader: `python -m btr.train STAGE --out RUN`; before it come `tokenizer`, `vocabulary` and `neighbours`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from btr.command import check_file, run_command
from btr.corpus import read_passages
from btr.errors import InputError
from btr.model.bert_fid import BertFiD
from btr.model.checkpoint import save_reader
from btr.model.config import ConfigError
from btr.model.devices import settle
from btr.model.span_head import SpanReader
from btr.model.split import SplitBert
from btr.model.weights import resolve
from btr.storage.errors import StoreError
from btr.train import written
from btr.train.calibrate import calibrate
from btr.train.data import collate
from btr.train.encoders import train_encoder
from btr.train.folder import RunFolder
from btr.train.loop import Tensors, Trainer
from btr.train.neighbours import write_neighbours
from btr.train.options import build_stage, parse
from btr.train.pieces import recompute_layers
from btr.train.plot import draw_curves
from btr.train.processes import join_processes
from btr.train.pruning import fit_pruner
from btr.train.recipe import expand, read_recipe, stages_of
from btr.train.schedule import RATES, Schedule
from btr.train.sources import drawer, open_dev, settings
from btr.train.start import build_student, load_teacher
from btr.train.tokenizer import train_tokenizer
from btr.train.vocabulary import trim

CALIBRATION_BATCHES = 8


def build_schedule(options: argparse.Namespace, bert: bool) -> Schedule:
    """Take the schedule from the options, and what they leave open from the family of the reader."""
    matrices = options.matrices or ("adamw" if bert else "muon")
    rate = RATES[matrices] if options.learning_rate is None else options.learning_rate
    names = ("steps", "warmup", "weight_decay", "seed", "floor")
    return Schedule(**{name: getattr(options, name) for name in names}, learning_rate=rate, matrices=matrices)


def start(trainer: Trainer, draw: Callable[[int], Tensors], resume: bool) -> bool:
    """Go on from the run's checkpoint if it has one and may, and return True; else calibrate what needs it."""
    if not resume and trainer.processes.index == 0:
        trainer.folder.forget()  # a kill before the first save must not bring it back
    trainer.processes.wait()
    if trainer.resume():
        return True
    unset = trainer.student.config.calibration != "paper" and not trainer.student.binarizer.mean.any()
    if unset and any(mode == "binary" for mode, _ in trainer.stage.modes):
        trainer.calibrate([draw(-1 - i) for i in range(CALIBRATION_BATCHES)])
    return False


def train(options: argparse.Namespace) -> None:
    """Run one stage."""
    stage = build_stage(options)
    RunFolder(Path(options.out)).check()
    processes = join_processes(options.accelerate, options.device)
    tell = say if processes.index == 0 else silent
    student, tokenizer = build_student(options, stage)
    extractive = isinstance(student, SpanReader)
    teacher = load_teacher(options, student, tokenizer)
    lay = written.collate if isinstance(student, BertFiD) else collate
    draw, dev = drawer(options, tokenizer, extractive, processes.count, lay), open_dev(options, tokenizer)
    if options.checkpointing:
        recompute_layers(student)
    trainer = Trainer(
        student, stage, build_schedule(options, isinstance(student, SplitBert)), teacher, Path(options.out),
        accumulate=options.accumulate, compiled=options.compile, processes=processes,
        settings=settings(options, student, teacher, tokenizer),
    )  # fmt: skip
    trainer.folder.create()
    resumed = start(trainer, draw, not options.no_resume)
    size = sum(p.numel() for p in student.parameters())
    tell(f"{f'resuming at step {trainer.step}' if resumed else 'starting'}: {stage.name}, {size:,} parameters")
    trainer.run(draw, tell, dev, options.save_every)
    if processes.index == 0:
        finish(trainer, lambda folder: save_reader(student.eval(), tokenizer, folder))
    processes.wait()


def finish(trainer: Trainer, write: Callable[[Path], None]) -> None:
    """Write the reader of the last step, and draw the curves."""
    folder = trainer.folder.path
    write(folder / "reader")
    say(f"wrote {folder / 'reader'}")
    if trainer.best is not None:
        say(f"wrote {folder / 'best'}, of step {trainer.best['step']}")
    try:
        draw_curves(trainer.folder.metrics, folder / "metrics.png", f"{folder.name}: {trainer.stage.name}")
    except InputError as error:
        say(f"note: {error}")


def train_all(options: argparse.Namespace, argv: Sequence[str]) -> None:
    """Run the stages of a recipe, each from the best reader of the one before, the first of which teaches the rest."""
    if not options.config:
        raise InputError("all trains the stages of a recipe; pass --config RECIPE")
    stages = stages_of(read_recipe(options.config))
    if not stages:
        raise InputError(f"--config {options.config}: has no stages; give it tables, as [reader]")
    reader, teacher = options.reader, options.teacher
    for stage in stages:
        out = Path(options.out) / stage
        given = {"out": out, "reader": reader, "teacher": teacher}
        more = [f"--{name}={value}" for name, value in given.items() if value]
        train(parse(expand([stage, *argv[1:], *more])))
        reader = next(str(out / name) for name in ("best", "reader") if (out / name).exists())
        teacher = teacher or reader


def say(line: str) -> None:
    """Report progress on stderr."""
    print(line, file=sys.stderr, flush=True)


def silent(line: str) -> None:
    """Report nothing: another process does."""


def execute(argv: Sequence[str]) -> None:
    """Run the command that a command line names."""
    options = parse(expand(argv))
    if options.command in ("tokenizer", "neighbours"):
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        check_file("--out", options.out)
    if options.command == "tokenizer":
        train_tokenizer(read_passages(options.text, limit=options.passages), options.size, Path(options.out))
    elif options.command == "vocabulary":
        texts = (f"{p.title} {p.text}" for p in read_passages(options.text, limit=options.passages))
        share = trim(resolve(options.reader), texts, options.size, Path(options.out))
        say(f"wrote {options.out}: {options.size:,} pieces, which are {100 * share:.2f} % of the text")
    elif options.command == "neighbours":
        write_neighbours(options.questions, options.text, options.limit, options.top, Path(options.out), say)
    elif options.command == "skim":
        how = settle(options.dtype, options.device)
        fit_pruner(options.reader, options.questions, options.limit, options.passages, *how, say)
    elif options.command == "calibrate":
        shape = (options.limit, options.passages, options.precision)
        calibrate(options.reader, options.questions, *shape, *settle(options.dtype, options.device), say)
    elif options.command in ("kale", "leaf"):
        train_encoder(options, say)
    elif options.command == "all":
        train_all(options, argv)
    else:
        train(options)


def main(argv: list[str] | None = None) -> int:
    """Run `btr train`; returns the exit code."""
    try:
        execute(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        raise  # the reader of a pipe has had enough
    except (InputError, ConfigError, StoreError, OSError, FloatingPointError) as error:
        say(f"error: {error}")
        return 2
    except torch.OutOfMemoryError:
        say("error: out of memory; halve --batch and double --accumulate, which is the same, or pass --checkpointing")
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint")
        return 130
    return 0


if __name__ == "__main__":
    run_command(main)
