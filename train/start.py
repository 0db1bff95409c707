"""What a run starts from: the student, as loaded or made anew, and its teacher."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from btr.errors import InputError
from btr.model.checkpoint import configured, load_reader, load_tokenizer
from btr.model.config import T5_SHAPES, ReaderConfig
from btr.model.fid import FiD
from btr.model.kinds import Model
from btr.model.span_head import SpanReader
from btr.model.split import SplitBert
from btr.model.t5 import T5
from btr.model.weights import resolve
from btr.reader import Reader
from btr.train.initialise import initialise
from btr.train.rotation import rotate
from btr.train.stages import Stage
from btr.train.tokenizer import open_tokenizer
from btr.train.written import with_decoder


def build_student(options: argparse.Namespace, stage: Stage) -> tuple[Model, Tokenizer]:
    """Load the reader to go on with, or make a new one.

    Raises:
        InputError: nothing to start from, a k that the encoder has no layer for, or a mode that needs a k.
    """
    student, tokenizer = load_student(options) if options.reader else new_student(options)
    if options.rotate:
        student = turned(student, options.seed)
    Reader(student, tokenizer)  # sets the tokenizer as it will be when the reader answers
    mode = options.default_mode or stage.modes[0][0]
    if any(mode != "full" for mode in (mode, *(mode for mode, _ in stage.modes))) and not student.config.k:
        raise InputError(f"stage {stage.name!r} decomposes the encoder and the reader has k = 0; pass --k")
    student = configure(student, default_mode=mode)
    freeze(student, options.freeze)
    return student, tokenizer


def freeze(student: Model, part: str | None) -> None:
    """Keep a BERT as it is: 'lower', all that a store depends on, or the whole 'encoder'.

    Raises:
        InputError: a T5.
    """
    if part is None:
        return
    if isinstance(student, FiD):
        raise InputError("--freeze is for readers with a BERT; leave it out")
    bert, end = student.bert, student.config.k if part == "lower" else None
    for module in (*bert.below(end), student.binarizer):
        module.requires_grad_(False)


def load_student(options: argparse.Namespace) -> tuple[Model, Tokenizer]:
    """Load a reader, or a checkpoint that is to become one.

    Raises:
        InputError: rows or questions longer than the reader has room for.
    """
    folder = resolve(options.reader)
    loaded, tokenizer = load_reader(folder, torch.float32, None, new_head=True), load_tokenizer(folder)
    overrides: dict[str, Any] = {"k": options.k, "calibration": options.calibration, "bits": options.bits}
    if options.calibration not in (None, "predictive") and options.bits is None:
        overrides["bits"] = 0  # and not those of a predictive reader
    if options.unread is not None:
        overrides["unread"] = token_ids(tokenizer, options.unread.split())
    if not (folder / "btr_config.json").exists():
        overrides["max_question_tokens"] = max(options.question_tokens, loaded.config.max_question_tokens)
    changes = {name: value for name, value in overrides.items() if value is not None}
    changes |= {"no_answer_calibration": None, "no_answer_above": None}  # which fit the weights as they are
    student = configure(loaded, **changes)
    if options.decoder_layers:
        if not isinstance(student, SpanReader):
            raise InputError("--decoder-layers gives a span reader a decoder, this reader has one; leave it out")
        if student.config.unread:
            raise InputError(
                "a reader that writes leaves no token unread, and stores of one that does would not fit it; pass "
                "--unread '' to begin such a reader, with a store of its own"
            )
        student = with_decoder(student, tokenizer, options.decoder_layers, options.seed)
    most = student.config.max_question_tokens
    if options.question_tokens > most:
        raise InputError(
            f"--question-tokens is {options.question_tokens}, this reader reads {most}; pass {most} or fewer"
        )
    if isinstance(student, SplitBert) and most + options.row_tokens > (room := student.bert.config.room):
        raise InputError(
            f"--row-tokens is {options.row_tokens}, this BERT has {room} positions and passages begin at {most}; "
            f"pass {room - most} or fewer"
        )
    return student, tokenizer


def token_ids(tokenizer: Tokenizer, tokens: Sequence[str]) -> tuple[int, ...]:
    """Return the ids of tokens; InputError if the tokenizer has none of that name."""
    found = [tokenizer.token_to_id(token) for token in tokens]
    if None in found:
        raise InputError(f"--unread: {tokens[found.index(None)]!r} is no token of this reader; leave it out")
    return tuple(number for number in found if number is not None)


def new_student(options: argparse.Namespace) -> tuple[Model, Tokenizer]:
    """Make a T5 of the shape asked for."""
    if options.decoder_layers:
        raise InputError("--decoder-layers gives a span reader a decoder; pass that reader with --reader")
    if not options.tokenizer:
        raise InputError(
            "a new reader needs --tokenizer tokenizer.json (python -m btr.train tokenizer makes one), or pass --reader"
        )
    tokenizer = open_tokenizer(Path(options.tokenizer))
    t5 = T5(replace(T5_SHAPES[options.shape], vocab_size=tokenizer.get_vocab_size()))
    initialise(t5, options.seed)
    limit = max(options.question_tokens, ReaderConfig.max_question_tokens)
    made = FiD(t5, ReaderConfig(max_question_tokens=limit))
    chosen = {"calibration": options.calibration or "channel", "bits": options.bits or 0}
    return configure(made, k=options.k or 0, **chosen), tokenizer


def turned(model: Model, seed: int) -> FiD:
    """Return a reader of the same answers, its stream turned by a random rotation; its signs are yet to be set.

    Raises:
        InputError: a BERT, which cannot be turned.
    """
    if not isinstance(model, FiD):
        raise InputError("--rotate is for T5 readers; leave it out")
    return FiD(rotate(model.t5, seed), model.config)


def configure(model: Model, **changes: Any) -> Model:
    """Return a reader of the same weights with other settings; InputError if they do not fit its encoder."""
    try:
        return configured(model, replace(model.config, **changes))
    except ValueError as error:
        raise InputError(f"--k: {error}" if "k" in changes else str(error)) from error


def load_teacher(options: argparse.Namespace, student: Model, tokenizer: Tokenizer) -> Model | None:
    """Load the reader to distil from, split where the student splits; None if there is none.

    Raises:
        InputError: its states or tokens are not those of the student.
    """
    if not options.teacher:
        return None
    folder = resolve(options.teacher)
    teacher = load_reader(folder, torch.float32, None)
    theirs, ours = facts(teacher), facts(student)
    if other := [name for name in ours if theirs.get(name) != ours[name]]:
        name = other[0]
        raise InputError(f"--teacher has {name} {theirs[name]}, the student {ours[name]}; distil from a reader like it")
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise InputError("--teacher has another vocabulary than the student; distil from a reader with its tokenizer")
    teacher = turned(teacher, options.seed) if options.rotate else teacher
    return configured(teacher, student.config).eval()


def facts(model: Model) -> dict[str, Any]:
    """Return what two readers must share for the states of one to mean something to the other."""
    if isinstance(model, FiD):
        return {"family": "T5", "width": model.width, "layers": model.t5.config.num_layers, "pieces": model.vocab_size}
    layers, offset = model.bert.config.num_hidden_layers, model.config.max_question_tokens
    family = "BERT" if isinstance(model, SpanReader) else "BERT with a decoder"
    about = {"family": family, "width": model.width, "layers": layers, "pieces": model.vocab_size}
    return about | {"max_question_tokens": offset}
