"""Ask a store, or a folder of documents, at the terminal: `python -m btr.ask STORE "question"`."""

import argparse
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from btr.ask.show import Told, clean, describe
from btr.command import Parser, add_computing, add_threads, check_least, run_command
from btr.errors import InputError

if TYPE_CHECKING:
    from btr.ask.asker import Asker

Ask = Callable[[str], Told]
MODES, KINDS = ("full", "float", "binary"), ("bm25", "dense", "hybrid")  # of torch's modules, too slow for --help


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command's settings.

    Raises:
        InputError: a number that is not positive.
    """
    parser = Parser(
        prog="btr ask",
        usage="btr ask [options] STORE|DOCUMENTS... [QUESTION]",
        description="Answer questions from a store, or from documents: a folder or files, of which a store is made the "
        "first time and kept. Without a question: those of standard input, one a line, or, at a terminal, those that "
        "are typed.",
        epilog='Example: btr ask notes/ "Who built the lighthouse?"',
    )
    add = parser.add_argument
    about = "a store, or a folder or files of documents; then what to ask (-: one question a line of standard input)"
    add("words", metavar="STORE|DOCUMENTS... [QUESTION]", nargs="+", help=about)
    add("--json", action="store_true", help="print one JSON object a question, on a line")
    add("--passages", type=int, metavar="N", help="passages that are read a question; default: the reader's own number")
    about = "searches a question at most, each by what the last found, with the trace shown (default %(default)s)"
    add("--hops", type=int, default=1, metavar="H", help=about)
    add("--mode", choices=MODES, default="binary", help="how passages are read (default %(default)s)")
    add("--reader", metavar="R", help="folder or hub id of the reader; default: the store's own")
    add_computing(add, answers=True)
    add_threads(add)
    add("--retriever", choices=KINDS, help="what finds the passages; default: what the store is searched with")
    add("--cache", metavar="DIR", help="where stores of documents are kept; default: the user's cache")
    add("--no-cache", action="store_true", help="make the store of documents anew, and keep nothing")
    options = parser.parse_intermixed_args(argv)  # the question may stand behind options
    words = options.words
    asked = len(words) > 1 and not (os.path.exists(words[-1]) and words[-1] != "-")
    options.sources, options.question = (words[:-1], words[-1]) if asked else (words, None)
    check_least(options, 1, "passages", "hops", "threads")
    return options


@contextmanager
def open_asker(options: argparse.Namespace) -> Iterator["Asker"]:
    """Open what is asked; what can be known to be wrong is, before anything slow is loaded.

    Raises:
        InputError, StoreError: there is nothing to be asked.
    """
    from btr.ask.cache import default_cache, is_store, store_of  # LMDB and NumPy, where --help needs neither

    paths = [Path(source) for source in options.sources]
    if (options.dtype, options.device) != ("float32", "cpu"):
        from btr.model.devices import settle

        options.dtype, options.device = settle(options.dtype, options.device)
    with ExitStack() as stack:
        path = paths[0]
        if len(paths) > 1 or not is_store(path):
            cache = Path(options.cache) if options.cache else default_cache()
            if options.no_cache:
                cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="btr-ask-")))
            path = store_of(paths, options.reader, cache)
        from btr.ask.asker import Asker
        from btr.model.devices import use_threads

        use_threads(options.threads)
        how = (options.mode, options.passages, options.hops, options.dtype, options.device)
        yield Asker.open(path, options.reader, options.retriever, *how)


def piped(ask: Ask, as_json: bool) -> int:
    """Answer the lines of standard input as they come; return 2 if one of them could not be.

    Raises:
        InputError: they are not UTF-8.
    """
    code = 0
    try:
        for line in io.TextIOWrapper(sys.stdin.buffer, "utf-8-sig"):
            if not (question := line.strip()):
                continue
            if not as_json:
                print(f"> {clean(question)}")
            try:
                tell(ask(question), as_json)
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
                code = 2
            if not as_json:
                print()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not UTF-8 ({error.reason}); convert it to UTF-8") from None
    return code


def typed() -> Iterator[str]:
    """Yield the questions that are typed, until ^D."""
    import readline  # noqa: F401  # the arrow keys: what was asked before

    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            raise
        if line:
            yield line


def converse(ask: Ask, as_json: bool) -> int:
    """Answer what is typed."""
    print("Ask something; ^D ends.", file=sys.stderr)
    for question in typed():
        try:
            tell(ask(question), as_json)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
        print()
    return 0


def tell(told: Told, as_json: bool) -> None:
    """Print an answer, at once."""
    print(json.dumps(told.to_json(), ensure_ascii=False) if as_json else describe(told, _colours()), flush=True)


def _colours() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def hush() -> None:
    """Show no warnings but our own, which are of whole sentences; nor what libraries log."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.disable(logging.ERROR)
    warnings.showwarning = _warn
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a letter that the terminal does not know is no reason to stop


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if category.__module__.startswith("btr."):
        print(f"warning: {message}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run `btr ask`; returns the exit code."""
    from btr.storage import StoreError

    try:
        options = parse(argv)
        if options.question is not None and not options.question.strip():
            raise InputError("the question is blank; ask something")
        hush()
        with open_asker(options) as asker:
            if options.question not in (None, "-"):
                tell(asker.ask(options.question), options.json)
                return 0
            if options.question == "-" or not sys.stdin.isatty():
                return piped(asker.ask, options.json)
            return converse(asker.ask, options.json)
    except (InputError, StoreError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    run_command(main)
