"""What the command lines share: how they end, options written in full, files that are checked before the work."""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from btr.errors import InputError

CGROUP = Path("/sys/fs/cgroup")
PRECISIONS = ("auto", "bfloat16", "float32")  # of a model; here, for btr.model.devices is too slow for --help
INT8 = "int8"  # of a reader that answers: of the layers that are run for a question


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command and leave with its exit code; ^C is one line and 130, a pipe that is closed (`| head`) silence."""
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        code = 141
    sys.exit(code)


class Parser(argparse.ArgumentParser):
    """Take options by their whole names: recipes, environment and resumed runs know no others."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **({"allow_abbrev": False} | more))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read a command line; `~/` stands for the home folder behind `--option=` and in a recipe too."""
        return super().parse_known_args([at_home(word) for word in (sys.argv[1:] if args is None else args)], namespace)


def at_home(word: str) -> str:
    """Put the home folder in place of a `~/` that a word, or what follows its `--option=`, begins with."""
    option, name = re.fullmatch(r"(--[\w-]+=)?(.*)", word, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    return option + os.path.expanduser(name) if name == "~" or name.startswith("~/") else word


def cores() -> int:
    """Return how many cores this process may use: those it is bound to, and no more than its container has of them."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, int(min(_quotas(), default=bound))))


def _quotas() -> Iterator[float]:
    """Yield the cores that a container is given, where it is bound to some: by cgroups of version 2 or of version 1."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            given, period, *_ = " ".join((CGROUP / name).read_text() for name in names).split()
            if given not in ("max", "-1"):
                yield int(given) / int(period)
        except (OSError, ValueError, ZeroDivisionError):
            continue


def add_threads(add: Callable[..., Any]) -> None:
    """Add the option that says on how many cores."""
    about = "threads that compute; default: OMP_NUM_THREADS, or the cores that this process and its container have"
    add("--threads", type=int, metavar="N", help=about)


def add_computing(
    add: Callable[..., Any], of: str = "the reader", dtype: str = "float32", *, answers: bool = False
) -> None:
    """Add the options that say how, and where, a model computes; `answers`: it answers questions, which int8 is for."""
    about = f"precision of {of}; auto: bfloat16 where the device multiplies it"
    about += "; int8: auto, with int8 weights from layer k+1 on" * answers
    add(
        "--dtype",
        choices=(*PRECISIONS, INT8) if answers else PRECISIONS,
        default=dtype,
        help=f"{about} (default %(default)s)",
    )
    about = f"where {of} computes: cpu, cuda, cuda:1, mps, or auto: the GPU, if there is one (default %(default)s)"
    add("--device", metavar="D", default="cpu", help=about)


def check_file(flag: str, name: str) -> None:
    """Refuse, before hours of work, a file that could not be written after them; what is there is left as it is.

    Raises:
        InputError: it is a folder, its folder is missing, or one of the two takes no writing.
    """
    path = Path(name).absolute()
    if path.is_dir():
        raise InputError(f"{flag} {name}: is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise InputError(f"{flag} {name}: no such folder; make it first")
    try:
        try_folder(path.parent)
        if path.exists():
            path.open("ab").close()
    except OSError as error:
        raise InputError(f"{flag} {name}: cannot be written ({error.strerror}); give another name") from error


def try_folder(folder: Path) -> None:
    """Write to a folder, and leave nothing there; OSError where that cannot be done."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_least(options: argparse.Namespace, least: int, *names: str) -> None:
    """Raise InputError for the first of these options that was given and is below `least`."""
    for name in names:
        value = getattr(options, name, None)
        if value is not None and not value >= least:
            raise InputError(f"--{name.replace('_', '-')} is {value}; use {least} or more")
