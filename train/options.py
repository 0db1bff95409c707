"""The command line of `btr train`: what it takes, and what it refuses."""

import argparse
import math
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

from btr import command
from btr.errors import InputError
from btr.model.config import CALIBRATIONS, MODES, T5_SHAPES, Mode
from btr.train.schedule import OPTIMISERS, RATES
from btr.train.stages import CHOICES, LOSSES, STAGES, Stage

COUNTS = (
    *("size", "limit", "top", "batch", "passages", "row_tokens", "question_tokens", "answer_tokens", "text_passages"),
    *("bits", "text_words", "accumulate", "dev_every", "dev_limit", "dev_passages"),
)
AMOUNTS = ("steps", "learning_rate", "warmup", "weight_decay", "save_every", "temperature", "decoder_layers")
LEAST = dict.fromkeys(COUNTS, 1) | dict.fromkeys(AMOUNTS, 0)
SHARES = (
    "blanks",
    "corruption",
    "text_share",
    "top_ratio",
    "floor",
    "unanswerable",
    "precision",
    "least_recall",
)  # options between 0 and 1


class Parser(command.Parser):
    """Raise InputError where argparse would leave."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see: {self.prog} --help")


class Formatter(argparse.HelpFormatter):
    """Leave short options room to have their help beside them."""

    def __init__(self, prog: str, **more: Any) -> None:
        super().__init__(prog, max_help_position=26, **more)


def count(group: argparse._ActionsContainer, name: str, default: int | None, about: str) -> None:
    """Add an option that is a whole number; its default stands behind the help."""
    shown = about if default is None else f"{about} (%(default)s)"
    group.add_argument(name, type=int, default=default, metavar="N", help=shown)


def amount(group: argparse._ActionsContainer, name: str, default: float | None, about: str) -> None:
    """Add an option that is a number; its default stands behind the help."""
    shown = about if default is None else f"{about} (%(default)s)"
    group.add_argument(name, type=float, default=default, metavar="X", help=shown)


def several(text: str) -> tuple[int, ...]:
    """Read '4', or '2,2,4'."""
    found = tuple(int(part) if part.isascii() and part.isdigit() else 0 for part in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0, or several as in 2,2,4")
    return found


def parser() -> Parser:
    """Describe the command line."""
    main = Parser(
        prog="btr train", description="Make a reader: in stages, or what comes before them.", formatter_class=Formatter
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_preparations(commands)
    add_encoders(commands)
    for name, stage in STAGES.items():
        about = f"train: modes {', '.join(mode for mode, _ in stage.modes)}; losses {', '.join(stage.losses)}"
        add_stage(add_command(commands, name, about, "--out RUN --steps N [option ...]"))
    about = "train the stages of a recipe in turn, each from the reader of the one before"
    add_stage(add_command(commands, "all", about, "--out RUN --config RECIPE [option ...]"))
    return main


def add_command(commands: Any, name: str, about: str, usage: str) -> argparse.ArgumentParser:
    """Add a command with its help."""
    usage = f"btr train {name} {usage}"
    added: Parser = commands.add_parser(name, help=about, description=about, usage=usage, formatter_class=Formatter)
    return added


def add_preparations(commands: Any) -> None:
    """Add the commands that come before training, and what comes after it."""
    usage = "--text TEXT --out FILE [option ...]"
    tokenizer = add_command(commands, "tokenizer", "learn a vocabulary from text", usage)
    tokenizer.add_argument("--text", required=True, help="passages or articles")
    count(tokenizer, "--passages", 100_000, "how many to learn from")
    count(tokenizer, "--size", 16384, "pieces")
    tokenizer.add_argument("--out", required=True, metavar="FILE", help="tokenizer.json to write")
    usage = "--reader READER --text TEXT --out FOLDER [option ...]"
    trim = add_command(commands, "vocabulary", "cut a BERT's vocabulary down to the pieces that a text uses", usage)
    trim.add_argument("--reader", required=True, help="folder or hub id")
    trim.add_argument("--text", required=True, help="passages or articles")
    count(trim, "--passages", 100_000, "how many to count pieces in")
    count(trim, "--size", 16384, "pieces to keep")
    trim.add_argument("--out", required=True, metavar="FOLDER", help="folder of the smaller one")
    about = "add BM25 neighbours to questions, as passages to tell the gold one from"
    near = add_command(commands, "neighbours", about, "--questions FILE ... --text TEXT --out FILE [option ...]")
    about = "files of questions, with gold passages or without"
    near.add_argument("--questions", nargs="+", required=True, metavar="FILE", help=about)
    near.add_argument("--text", required=True, help="passages or articles to find neighbours in")
    count(near, "--limit", None, "passages of --text to use; default: all")
    count(near, "--top", 20, "neighbours kept")
    near.add_argument("--out", required=True, metavar="FILE", help="FiD-style .jsonl to write")
    about = "fit what a trained reader needs to prune passages, and write it into its folder"
    skim = add_command(commands, "skim", about, "--reader READER --questions FILE ... [option ...]")
    skim.add_argument("--reader", required=True, metavar="FOLDER", help="folder of the reader")
    about = "files of questions with passages, taken in turn; answers are not used"
    skim.add_argument("--questions", nargs="+", required=True, metavar="FILE", help=about)
    count(skim, "--limit", 800, "questions to fit to")
    count(skim, "--passages", 20, "passages of a question")
    about = "fit the probability that a trained span reader gives of no passage answering, and write it into its folder"
    doubt = add_command(commands, "calibrate", about, "--reader READER --questions FILE ... [option ...]")
    doubt.add_argument("--reader", required=True, metavar="FOLDER", help="folder of the reader")
    about = "files of questions it was not trained on, with gold passages, taken in turn; those without answers too"
    doubt.add_argument("--questions", nargs="+", required=True, metavar="FILE", help=about)
    count(doubt, "--limit", 800, "questions, fitted to and held back in turn; those with answers are read twice")
    count(doubt, "--passages", None, "passages of a question; default: the reader's own number")
    about = "share of answers that are to be right: over the no_answer at which fewer are, none is; default: best F1"
    amount(doubt, "--precision", None, about)
    for added in (skim, doubt):
        command.add_computing(added.add_argument)


def add_encoders(commands: Any) -> None:
    """Add the commands that make a smaller encoder for retrieval."""
    usage = "--encoder ENCODER --questions FILE ... --steps N --out RUN [option ...]"
    about = "drop layers of an encoder and align its questions to the index it made, which stays as it is"
    kale = add_command(commands, "kale", about, usage)
    about = "distil an encoder into a smaller one, for questions and passages"
    leaf = add_command(commands, "leaf", about, usage)
    for added, rate in ((kale, 2e-4), (leaf, 3e-4)):
        added.add_argument("--encoder", required=True, metavar="E", help="the teacher: folder or hub id")
        about = "files of questions; answers and passages are not used"
        added.add_argument("--questions", nargs="*", default=[], metavar="FILE", help=about)
        about = "layers to keep: how many, spread from the first to the last, or which, from 0, as in 0,3 or 0,"
        added.add_argument("--layers", metavar="N[,N...]", help=about)
        added.add_argument("--out", required=True, metavar="RUN", help="folder of the run; the encoder is in encoder/")
        about = "questions to compare the two encoders on at the end; default: some of those it learns from"
        added.add_argument("--dev", metavar="FILE", help=about)
        about = "share of the teacher's 20 nearest texts that a student has to find again, or it is not written"
        amount(added, "--least-recall", 0.3, about)
        about = "folder for the teacher's vectors, which runs one after the other may share; default: RUN"
        added.add_argument("--embeddings", metavar="FOLDER", help=about)
        count(added, "--batch", 128, "texts of a step")
        count(added, "--steps", None, "steps")
        amount(added, "--learning-rate", rate, "at its peak")
        count(added, "--warmup", 50, "steps")
        count(added, "--seed", 0, "of the order of texts")
        amount(added, "--save-every", 120.0, "seconds between checkpoints")
        added.add_argument("--no-resume", action="store_true", help="start afresh even if the run has a checkpoint")
    amount(kale, "--temperature", 1.0, "of both softmaxes")
    about = "encoder to train, folder or hub id, all of it or --layers of it; default: layers of the teacher"
    leaf.add_argument("--student", metavar="S", help=about)
    leaf.add_argument("--text", help="passages or articles to learn from beside the questions")
    count(leaf, "--passages", 20_000, "passages of --text")


def add_stage(stage: argparse.ArgumentParser) -> None:
    """Add the options of a stage."""
    about = "folder of the run: checkpoint.pt, metrics.jsonl, metrics.png, the trained reader in reader/ and best/"
    stage.add_argument("--out", required=True, metavar="RUN", help=about)
    about = "options from a recipe: a .toml file, or the name of a shipped one; those given here go before it"
    stage.add_argument("--config", metavar="RECIPE", help=about)
    for add in (add_start, add_data, add_shape, add_losses, add_how, add_machine, add_dev):
        add(stage)


def add_start(stage: argparse.ArgumentParser) -> None:
    """Add the options that say what a stage starts from."""
    start = stage.add_argument_group("what to start from")
    about = "reader folder or hub id, T5 or BERT; without it a new T5 is made from --shape and --tokenizer"
    start.add_argument("--reader", help=about)
    start.add_argument("--shape", choices=sorted(T5_SHAPES), default="small", help="of a new T5 (%(default)s)")
    start.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json of a new T5")
    count(start, "--k", None, "lower encoder layers run apart; default: the reader's own, or 0")
    about = "how signs get their values; default: the reader's own, or channel"
    start.add_argument("--calibration", choices=CALIBRATIONS, help=about)
    count(start, "--bits", None, "signs a token, of --calibration predictive; default: the reader's, or D")
    about = "tokens, with blanks between, of which nothing is kept: layers k+1..n read passages without; BERT"
    start.add_argument("--unread", metavar="TOKENS", help=about)
    count(start, "--decoder-layers", 0, "give a span reader a new decoder of N layers, so that it writes its answers")
    about = "keep a BERT's lower layers, so that stores stay valid, or all of it as it is"
    start.add_argument("--freeze", choices=("lower", "encoder"), help=about)
    start.add_argument("--teacher", help="reader folder to distil from")
    about = "turn student and teacher by a random rotation, for signs in another basis; in one stage, not in each; T5"
    start.add_argument("--rotate", action=BooleanOptionalAction, default=False, help=about)


def add_data(stage: argparse.ArgumentParser) -> None:
    """Add the options that say what a stage learns from."""
    data = stage.add_argument_group("what to learn from")
    about = "files of questions, claims or multiple choice, with passages; FILE=3 is drawn three times as often as FILE"
    data.add_argument("--questions", nargs="*", default=[], metavar="FILE", help=about)
    about = "files of questions never to be trained on; case, punctuation and articles make no difference"
    data.add_argument("--exclude", nargs="*", default=[], metavar="FILE", help=about)
    amount(data, "--unanswerable", 0.0, "share of questions without their gold passages; BERT")
    data.add_argument("--text", help="passages or articles, for cloze questions")
    count(data, "--text-passages", 100_000, "passages of --text to use")
    count(data, "--text-words", 100, "words a passage is cropped to, around the sentence with the answer")
    amount(data, "--text-share", 0.5, "share of examples from --text when there are --questions too")
    amount(data, "--blanks", 0.0, "share of cloze questions that ask for a whole sentence; T5")
    amount(data, "--corruption", 0.0, "share of examples from --text that are span corruption, not cloze; T5")


def add_shape(stage: argparse.ArgumentParser) -> None:
    """Add the options that give the shape of a batch."""
    shape = stage.add_argument_group("shape of a batch")
    count(shape, "--batch", 16, "questions read at a time")
    count(shape, "--accumulate", 1, "times --batch questions to a step: as one larger batch, in less memory")
    about = "passages per question (4); 2,2,4: steps take turns, those of 4 with half as many questions"
    shape.add_argument("--passages", type=several, default=(4,), metavar="N[,N...]", help=about)
    count(shape, "--row-tokens", 192, "tokens of question and passage")
    count(shape, "--question-tokens", 32, "most tokens of a question")
    count(shape, "--answer-tokens", 12, "most tokens of an answer")


def add_losses(stage: argparse.ArgumentParser) -> None:
    """Add the options that change what a stage minimises."""
    losses = stage.add_argument_group("what to minimise")
    losses.add_argument("--modes", help="modes and shares of steps, as binary=3,full=1; default: the stage's own")
    about = f"weights to change, as recovery=0,answers=1; there are {', '.join(LOSSES)}"
    losses.add_argument("--losses", metavar="WEIGHTS", help=about)
    about = "passage tokens whose states are distilled: none, all, or the top ones by the teacher's attention (top)"
    losses.add_argument("--distill", choices=CHOICES["distill"], help=about)
    amount(losses, "--top-ratio", None, "share of passage tokens that are top ones (0.5)")
    about = "gradient of the sign: that of tanh, or of the line cut off at -1 and 1 (tanh)"
    losses.add_argument("--straight-through", choices=CHOICES["straight_through"], help=about)


def add_how(stage: argparse.ArgumentParser) -> None:
    """Add the options that say how long and how fast a stage learns."""
    how = stage.add_argument_group("how long and how fast")
    count(how, "--steps", None, "here or in the recipe")
    rates = ", ".join(f"{rate:g} with {name}" for name, rate in RATES.items())
    amount(how, "--learning-rate", None, f"at its peak; default: {rates}")
    count(how, "--warmup", 200, "steps")
    amount(how, "--floor", 0.0, "the learning rate at the end, as a share of its peak")
    amount(how, "--weight-decay", 0.01, "of matrices")
    about = "optimiser of the hidden matrices; default: adamw for a BERT, muon for a T5"
    how.add_argument("--matrices", choices=OPTIMISERS, help=about)
    count(how, "--seed", 0, "of batches, dropout and a new T5's weights")


def add_machine(stage: argparse.ArgumentParser) -> None:
    """Add the options that fit a run to a machine."""
    machine = stage.add_argument_group("on this machine")
    about = "compute encoder layers again in the backward pass: less memory, more time, the same gradients"
    machine.add_argument("--checkpointing", action=BooleanOptionalAction, default=False, help=about)
    about = "torch.compile the losses: a minute first, then faster steps"
    machine.add_argument("--compile", action=BooleanOptionalAction, default=False, help=about)
    about = "where it computes: cpu, cuda, cuda:1, mps or auto; default: cuda if it is there; accelerate chooses itself"
    machine.add_argument("--device", metavar="D", help=about)
    about = "run under accelerate, as `accelerate launch -m btr.train` does by itself for several GPUs"
    machine.add_argument("--accelerate", action=BooleanOptionalAction, default=False, help=about)
    amount(machine, "--save-every", 300.0, "seconds between checkpoints")
    machine.add_argument("--no-resume", action="store_true", help="start afresh even if the run has a checkpoint")


def add_dev(stage: argparse.ArgumentParser) -> None:
    """Add the options that say how a reader is measured while it learns, and how it will answer."""
    dev = stage.add_argument_group("what to measure, and how the trained reader answers")
    dev.add_argument("--dev", metavar="FILE", help="questions with passages to measure on; the best reader is kept")
    count(dev, "--dev-every", 500, "steps between, beside the last")
    count(dev, "--dev-limit", 500, "questions of --dev")
    count(dev, "--dev-passages", None, "passages per question; default: the most of --passages")
    about = "how the reader answers unless told; default: the first of --modes"
    dev.add_argument("--default-mode", choices=MODES, help=about)


def check(options: argparse.Namespace) -> None:
    """Raise InputError for a number out of range."""
    given = vars(options)
    for name, least in LEAST.items():
        if isinstance(given.get(name), int | float) and not least <= given[name] < math.inf:
            raise InputError(f"--{name.replace('_', '-')} is {given[name]}; give at least {least}")
    for name in SHARES:
        if given.get(name) is not None and not 0 <= given[name] <= 1:
            raise InputError(f"--{name.replace('_', '-')} is {given[name]}; give a share between 0 and 1")
    if options.command in (*STAGES, "kale", "leaf") and options.steps is None:
        raise InputError("how long? pass --steps, or --config with a recipe that has them")
    if "row_tokens" in given and options.question_tokens >= options.row_tokens:
        raise InputError(
            f"--question-tokens is {options.question_tokens} and --row-tokens {options.row_tokens}; "
            "leave a row room for the passage"
        )


def parse_modes(text: str) -> tuple[tuple[Mode, float], ...]:
    """Read 'binary=3,full=1'; a mode alone has a share of 1."""
    return tuple(parse_mode(part, text) for part in text.split(","))


def parse_mode(part: str, text: str) -> tuple[Mode, float]:
    """Read 'binary=3', or 'binary' for a share of 1; `text` is all that was given, for the error."""
    name, share = part.partition("=")[0], number(part.partition("=")[2] or "1")
    for mode in MODES:
        if mode == name and 0 < share < math.inf:
            return mode, share
    known = ", ".join(MODES)
    raise InputError(f"--modes {text!r}: {part!r} is not one of {known} with a share above 0, as in binary=3,full=1")


def parse_losses(text: str) -> dict[str, float]:
    """Read 'recovery=0,answers=1'."""
    found = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        if name not in LOSSES or not 0 <= number(weight) < math.inf:
            known = ", ".join(LOSSES)
            raise InputError(
                f"--losses {text!r}: {part!r} is not one of {known} with a weight, as in recovery=0,answers=1"
            )
        found[name] = number(weight)
    return found


def parse_share(text: str) -> tuple[str, float]:
    """Read 'FILE=3', or 'FILE' for a share of 1; what follows the last = of a name is part of it unless a number.

    Raises:
        InputError: a share that is none.
    """
    name, _, given = text.rpartition("=")
    share = number(given)
    if not name or math.isnan(share):
        return text, 1.0
    if not 0 < share < math.inf:
        raise InputError(f"--questions {text}: the share is {given}; give one above 0")
    return name, share


def number(text: str) -> float:
    """Read a number; not a number if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def build_stage(options: argparse.Namespace) -> Stage:
    """Return the stage asked for, with the modes, weights and switches asked for."""
    stage = STAGES[options.command]
    changes: dict[str, Any] = {name: getattr(options, name) for name in ("distill", "top_ratio", "straight_through")}
    if options.modes:
        changes["modes"] = parse_modes(options.modes)
    if options.losses:
        changes["weights"] = {**stage.weights, **parse_losses(options.losses)}
    stage = replace(stage, **{name: value for name, value in changes.items() if value is not None})
    if not stage.losses:
        raise InputError(
            f"stage {stage.name!r} has no loss left; give one of {', '.join(LOSSES)} a weight with --losses"
        )
    if stage.needs_teacher and not options.teacher:
        raise InputError(f"stage {stage.name!r} distils from a teacher; pass --teacher FOLDER")
    return stage


def stage_options() -> list[str]:
    """Return the names of the options of a stage, without dashes."""
    stage = Parser()
    add_stage(stage)
    return [name.replace("_", "-") for name in vars(stage.parse_args(["--out", "-"]))]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read a command line.

    Raises:
        InputError: an unknown option, or a value out of range.
    """
    options = parser().parse_args(list(argv))
    check(options)
    return options
