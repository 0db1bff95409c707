"""What a reader cannot do with what it was given, said in one line."""

from collections.abc import Sequence, Sized

import torch

from btr.errors import InputError
from btr.model.config import MODES, Mode, ReaderConfig
from btr.model.kinds import Model
from btr.model.merge import Schedule
from btr.storage.encoded import Encoded
from btr.words import WIDEST


def check_mode(mode: Mode, config: ReaderConfig) -> None:
    """Raise InputError for an unknown mode, or one that needs a split layer where there is none."""
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}; use one of {', '.join(MODES)}")
    if mode != "full" and not config.k:
        raise InputError(
            f"mode {mode!r} needs a split layer and this reader has none; load it with k, or use mode 'full'"
        )


def check_encoded(encoded: Encoded, mode: Mode, fingerprint: str) -> None:
    """Raise InputError for passages of another reader, or held in another mode."""
    if encoded.fingerprint != fingerprint:
        raise InputError(
            f"the passages were encoded by reader {encoded.fingerprint}, this reader is {fingerprint}; "
            "encode them again with this one"
        )
    if (encoded.packed if mode == "binary" else encoded.states) is None:
        held = "float states" if mode == "binary" else "signs"
        raise InputError(
            f"mode {mode!r} was asked for and the passages hold {held}; "
            f"encode them with encode_passages(passages, mode={mode!r})"
        )


def check_merge(merge: Schedule, none: Schedule, mode: Mode) -> None:
    """Raise InputError for a schedule that has not the layers of this reader's (`none`), or cannot run in a mode."""
    for name in ("encoder", "decoder"):
        asked, has = len(getattr(merge, name)), len(getattr(none, name))
        if asked != has:
            raise InputError(f"the schedule is for {asked} {name} layers, this reader has {has}; take its own one")
    if mode == "full" or (merge.bits and mode != "binary"):
        needed = "mode 'binary'" if merge.bits else "mode 'float' or 'binary'"
        raise InputError(f"mode {mode!r} cannot merge by this schedule, which needs {needed}; leave it out")


def check_decoder(family: str, device: torch.device) -> None:
    """Raise InputError where there is no decoder to round, or its kernels do not run."""
    if family == "extractive":
        raise InputError("a span reader has no decoder to round; leave that out")
    if device.type != "cpu":
        raise InputError(f"a decoder is rounded for the CPU, this one is on {device}; leave that out, or device")


def check_threshold(no_answer_above: float | None) -> float | None:
    """Return a threshold of `no_answer`; raises InputError for what is no probability."""
    if no_answer_above is not None and not 0 <= no_answer_above <= 1:
        raise InputError(f"no_answer_above is {no_answer_above!r}; use a probability from 0 to 1 (1: always answer)")
    return no_answer_above


def check_passages(passages: Sequence[Sized], questions: int) -> None:
    """Raise InputError unless each question has passages of its own."""
    if len(passages) != questions:
        raise InputError(f"{questions} questions and {len(passages)} lists of passages; pass as many of each")
    if not all(len(own) for own in passages):
        raise InputError("no passages to read; pass at least one")


def check_choices(choices: Sequence[Sequence[str]] | None, questions: int, family: str) -> None:
    """Raise InputError for choices of a reader that has none, or where there is nothing to choose from."""
    if choices is None:
        return
    if family == "extractive":
        raise InputError(
            "a span reader quotes passages and chooses nothing; leave the choices out, or take one that writes"
        )
    if len(choices) != questions:
        raise InputError(f"{questions} questions and {len(choices)} lists of choices; pass as many of each")
    if not all(row and all(text.strip() for text in row) for row in choices):
        raise InputError("a question has no choices, or a blank one; give texts to choose from")


def check_prune(model: Model, prune: int, name: str) -> None:
    """Raise InputError where passages cannot be chosen from before they are read; 0 asks for nothing."""
    if type(prune) is not int or prune < 0:
        raise InputError(f"prune is {prune!r}; give the number of passages to read to the end, 0 for all")
    if not prune:
        return
    if model.pruner is None:
        raise InputError(
            f"reader {name} has no skim.safetensors fitted to its weights, so it cannot prune; make it with: "
            "python -m btr.train skim --reader FOLDER --questions FILE"
        )


def check_question(question: str, most: int) -> None:
    """Raise InputError for a question that is empty, or too long to be made of `most` tokens."""
    if not question:
        raise InputError("the question is blank; ask something")
    if len(question) > WIDEST * most:
        size = f"{len(question)} characters"
        raise InputError(f"the question has {size}, this reader reads {most} tokens; shorten it")
