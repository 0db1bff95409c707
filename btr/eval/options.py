"""Split options that are lists, and refuse what cannot be done before hours of work."""

import argparse
from typing import cast

from btr.command import check_file, check_least
from btr.errors import InputError
from btr.eval import plots
from btr.model.config import MODES, Mode


def read_modes(text: str) -> list[Mode]:
    """Split `--modes`."""
    modes = list(dict.fromkeys(text.split(",")))
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise InputError(f"--modes has {unknown[0]!r}; known: {', '.join(MODES)}")
    return cast(list[Mode], modes)


def read_counts(name: str, text: str | None, least: int) -> list[int]:
    """Split `--passages` or `--prune`; empty where it was not given."""
    words = text.split(",") if text else []
    if wrong := [word for word in words if not (word.isascii() and word.isdecimal()) or int(word) < least]:
        raise InputError(f"{name} has {wrong[0]!r}; give numbers from {least}, such as {least},5,20")
    return sorted({int(word) for word in words})


def check_outputs(options: argparse.Namespace) -> None:
    """Refuse, before hours of work, what could not be written after them, and numbers of nothing."""
    check_least(options, 1, "limit", "max_new_tokens", "hops")
    if options.hops > 1 and not options.store:
        raise InputError(f"--hops is {options.hops}, and no --store says where to search; name one")
    for name in ("out", "json", "plot"):
        path = getattr(options, name)
        if path is not None and path != "-":
            check_file(f"--{name}", path)
    if options.plot:
        plots.check(options.plot)
