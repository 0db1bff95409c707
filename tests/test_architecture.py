"""The arrows between the rooms: which module may import which, read from the source of all of them."""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import btr

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"btr": "btr", "btr.kernels": "kernels", "btr.storage": "storage", "btr.train": "train"}
MAX_LINES = 400
USERS = ("plots", "gpus", "ray")  # extras for who uses the package, not for who tests it

MATHS = {
    f"btr.{name}"
    for name in ("bert", "bert_fid", "bias", "binarize", "config", "decoding", "elementwise", "fid", "merge")
}
MATHS |= {f"btr.{name}" for name in ("bert_fid", "level", "metrics", "model", "single", "skim", "span", "split", "t5")}
KERNELS = {"btr.binarize", "btr.elementwise", "btr.merge", "btr.single"}  # the mathematics that kernels do
COMMANDS = {
    f"btr.{name}"
    for name in ("__main__", "precompute", "serve", "store", "dense.__main__", "eval", "bench", "contenders")
}

# module: (modules of ours, packages of others) that it and those below it may import, beside the standard library.
# The longest name that fits decides.
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "btr.errors": (set(), set()),
    "btr.kernels": ({"btr.kernels"}, {"numpy", "numba", "llvmlite"}),
    # bitarray: which records are deleted; zstandard: texts
    "btr.storage": ({"btr.storage"}, {"numpy", "lmdb", "bitarray", "zstandard"}),
    **{name: (MATHS | {"btr.errors"}, {"torch", "numpy"}) for name in MATHS},
    **{
        name: (MATHS | {"btr.errors", "btr.kernels"}, {"torch", "numpy"})
        for name in ("btr.binarize", "btr.elementwise", "btr.merge", "btr.single")
    },
}
# The reader knows the record that passages travel in (`Encoded`, where it is defined or used), and never a store.
RECORD = {"btr.storage.encoded", "btr.storage.format"}
TEXT = {
    f"btr.{name}"
    for name in (
        "answer",
        "bert_rows",
        "checkpoint",
        "errors",
        "extractive",
        "generative",
        "kernels",
        "layout",
        "reader",
        "rebuild",
        "refusals",
        "weights",
    )
}
READER_MAY = MATHS | RECORD | TEXT


def find_modules() -> dict[str, Path]:
    """Map the import name of every module of the house to its file."""
    found = {}
    for name, folder in ROOMS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((name, *(part for part in parts if part != "__init__")))] = file
    return found


MODULES = find_modules()


def is_under(module: str, names: set[str]) -> bool:
    """Tell whether `module` is one of `names`, or below one of them."""
    return any(module == name or module.startswith(name + ".") for name in names)


def resolve(node: ast.ImportFrom, package: str) -> str:
    """Return the absolute name of what a `from ... import` statement, standing in `package`, imports from."""
    if not node.level:
        return node.module or ""
    above = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*above, *([node.module] if node.module else [])])


def read_imports(source: str, package: str, known: set[str]) -> Iterator[str]:
    """Yield the absolute name of everything `source` imports, at its top, in a function, or for the types alone.

    A name imported from a package is the module of that name where `known` has one, else the package.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = resolve(node, package)
            for alias in node.names:
                yield f"{origin}.{alias.name}" if f"{origin}.{alias.name}" in known else origin
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def imports_of(module: str, source: str) -> set[str]:
    """Return everything that `module` with this source imports, beside the standard library."""
    file = MODULES.get(module)
    package = module if file is not None and file.name == "__init__.py" else module.rpartition(".")[0]
    found = read_imports(source, package, set(MODULES))
    return {name for name in found if name.split(".")[0] not in sys.stdlib_module_names}


def is_allowed(module: str, target: str) -> bool:
    """Tell whether the arrow from `module` to `target` is one of the house's."""
    ours = target.split(".")[0] == "btr"
    if ours and is_under(target, {"btr.train"}) and not is_under(module, {"btr.train"}):
        return False
    if ours and is_under(target, COMMANDS) and not is_under(module, COMMANDS | {"btr.train"}):
        return False
    if is_under(module, {"btr.reader"}):
        return not ours or is_under(target, READER_MAY)
    for name in sorted(ALLOWED, key=len, reverse=True):
        if is_under(module, {name}):
            house, others = ALLOWED[name]
            return is_under(target, house) if ours else target.split(".")[0] in others
    return True


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_what_it_may(module: str) -> None:
    imports = imports_of(module, MODULES[module].read_text(encoding="utf-8"))
    assert [target for target in sorted(imports) if not is_allowed(module, target)] == []


def test_no_import_goes_round() -> None:
    arrows = {name: imports_of(name, file.read_text(encoding="utf-8")) for name, file in MODULES.items()}
    cycle: list[str] = []
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        cycle = error.args[1]
    assert cycle == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("btr.kernels.jit", "import torch"),
        ("btr.kernels.jit", "from btr.storage import format"),
        ("btr.kernels.jit", "from btr import config"),
        ("btr.kernels.jit", "from ..config import ReaderConfig"),
        ("btr.storage.store", "def f():\n    import btr.kernels"),
        ("btr.storage.store", "import torch.nn"),
        ("btr.t5", "import transformers"),
        ("btr.t5", "from btr import kernels"),
        ("btr.t5", "from . import reader"),
        ("btr.t5", "from btr.storage.format import Encoded"),
        ("btr.binarize", "import btr.storage"),
        ("btr.errors", "from btr.config import ReaderConfig"),
        ("btr.reader", "from btr.storage import Encoded"),
        ("btr.reader", "from btr.storage.store import Store"),
        ("btr.reader", "from btr.precompute import main"),
        ("btr.corpus", "import btr.serve.app"),
        ("btr.serve.app", "from btr.train.loop import run"),
        ("btr.__main__", "import importlib\nimportlib.import_module('btr.train.loop')"),
    ],
)
def test_wrong_arrow_is_seen(module: str, source: str) -> None:
    assert not all(is_allowed(module, target) for target in imports_of(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("btr.kernels.jit", "import os.path, numpy as np\nfrom numba.extending import intrinsic\nimport btr.kernels"),
        ("btr.storage.store", "import lmdb\nfrom .errors import StoreError\nfrom btr.storage.format import Encoded"),
        ("btr.t5", "import torch.nn.functional as F\nfrom btr.config import ReaderConfig"),
        ("btr.binarize", "from btr.kernels import pack"),
        ("btr.reader", "import transformers\nfrom btr import kernels, t5\nfrom btr.storage.format import Encoded"),
        ("btr.serve.app", "import fastapi\nfrom btr.reader import Reader\nfrom btr.storage import Store"),
        ("btr.train.loop", "from btr.train.losses import recovery\nfrom btr.reader import Reader"),
    ],
)
def test_right_arrow_is_let_through(module: str, source: str) -> None:
    assert all(is_allowed(module, target) for target in imports_of(module, source))


def declared() -> set[str]:
    """Return the packages that setup.py says are needed, or are for an option, by the names they are imported by."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    lists = {word.arg: word.value for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords}
    extras = ast.literal_eval(lists["extras_require"])
    wanted = [*ast.literal_eval(lists["install_requires"]), *(line for name in USERS for line in extras[name])]
    return {re.split("[<>=~! ]", line)[0].replace("-", "_") for line in wanted}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_package_imported_is_declared(module: str) -> None:
    """One that another package brings along today may be gone tomorrow."""
    imports = imports_of(module, MODULES[module].read_text(encoding="utf-8"))
    assert {name.split(".")[0] for name in imports} - declared() - {"btr"} == set()


@pytest.mark.parametrize("room", [*ROOMS.values(), "tests", "bench"])
def test_no_file_is_long(room: str) -> None:
    sizes = {str(file): len(file.read_bytes().splitlines()) for file in (ROOT / room).rglob("*.py")}
    assert {name: size for name, size in sizes.items() if size > MAX_LINES} == {}


def test_public_names_are_sorted_and_there() -> None:
    assert list(btr.__all__) == sorted(set(btr.__all__))
    assert [name for name in btr.__all__ if not hasattr(btr, name)] == []
