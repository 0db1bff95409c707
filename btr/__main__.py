"""Dispatch `btr <command>` to the module that holds the command, importing no other."""

import difflib
import importlib
import sys
from typing import NoReturn

from btr import __version__
from btr.command import run_command

# command: (module whose main(argv) runs it, what it does)
COMMANDS = {
    "ask": ("btr.ask.__main__", "answer questions at the terminal"),
    "precompute": ("btr.precompute.__main__", "read every passage of a corpus once and keep it as bits in a store"),
    "serve": ("btr.serve", "answer questions over HTTP from a store"),
    "mcp": ("btr.mcp.__main__", "answer an assistant's questions from a store, over the Model Context Protocol"),
    "store": ("btr.store.__main__", "look into a store, check it, or change it"),
    "train": ("btr.train.__main__", "make a reader, in three stages"),
    "retrieve": ("btr.retrieve.__main__", "find passages by meaning: build an index, search it, measure it"),
    "eval": ("btr.eval.__main__", "answer a file of questions and score the answers"),
    "bench": ("btr.bench.__main__", "measure speed and size on this machine"),
}


def describe() -> str:
    """Return the help text: the usage, then each command on a line of its own."""
    lines = ["usage: btr [--help] [--version] <command> ...", "", "commands:"]
    lines += [f"  {name:<12}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join([*lines, "", "btr <command> --help lists the options of a command."])


def complain(name: str) -> str:
    """Return the message for a command that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
    return f"error: unknown command {name!r}; {hint}"


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 bad input, 1 our fault."""
    first, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if first in COMMANDS:
        code: int = importlib.import_module(COMMANDS[first][0]).main(rest)
        return code
    if first in ("-h", "--help"):
        print(describe())
    elif first == "--version":
        print(f"btr {__version__}")
    else:
        print(complain(first) if first else describe(), file=sys.stderr)
        return 2
    return 0


def cli() -> NoReturn:
    """Run `btr`."""
    run_command(main)


if __name__ == "__main__":
    cli()
