"""Answer an assistant's questions from a store: `btr mcp STORE`, which the assistant's own program starts.

Standard output belongs to the protocol; all else is said on standard error.
"""

import argparse
import contextlib
import sys
from typing import get_args

from btr.command import Parser, run_command
from btr.errors import InputError
from btr.model.config import MODES
from btr.progress import say
from btr.serve import check, load
from btr.serve.settings import DType, Settings, read_settings
from btr.storage import StoreError

SETTINGS = ("reader", "dtype", "device", "threads", "mode", "top", "prune")  # of those of `btr serve`


def parse(argv: list[str] | None) -> Settings:
    """Return the command's settings.

    Raises:
        InputError: one is wrong.
    """
    parser = Parser(
        prog="btr mcp",
        description="Serve answers from a store to an assistant, over the Model Context Protocol: the tools answer and "
        "search, on standard input and output. Needs the SDK: pip install 'btr-reader[mcp]'.",
        epilog="Each setting can also stand as BTR_NAME, in capitals, in the environment; a flag goes before it.",
    )
    parser.add_argument("store", metavar="STORE", help="the store to answer from")
    choices = {"dtype": get_args(DType), "mode": MODES}
    for name in SETTINGS:
        field = Settings.model_fields[name]
        said = f"{field.description}" + ("" if field.default is None else f"; default: {field.default}")
        metavar = None if name in choices else "X"
        parser.add_argument(
            f"--{name}", choices=choices.get(name), metavar=metavar, help=said, default=argparse.SUPPRESS
        )
    return read_settings(vars(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> int:
    """Run `btr mcp`; returns the exit code."""
    try:
        settings = parse(argv)
        try:
            from btr.mcp.tools import make_server  # imported here: the SDK is an extra
        except ImportError as error:
            raise InputError(
                f"btr mcp needs the SDK, mcp 2 or newer: pip install 'btr-reader[mcp]' ({error})"
            ) from error
        with contextlib.redirect_stdout(sys.stderr):
            check(settings)
            server = make_server(load(settings))
        say(f"{settings.store}: answers are served on standard input and output")
        server.run()
    except (InputError, StoreError) as error:
        say(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    run_command(main)
