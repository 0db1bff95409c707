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
IMPORTED_AS = {"PyStemmer": "Stemmer"}
USERS = ("plots", "gpus", "ray", "mcp", "documents", "bench")  # extras for who uses the package, not for who tests it

HALL = {f"btr.{name}" for name in ("errors", "progress", "metrics", "words", "command")}  # for every room but two
# room: what it may import of ours, beside itself and the hall
MAY = {
    "btr.kernels": "",
    "btr.storage": "",
    "btr.model": "kernels",
    "btr.reader": "kernels model storage.encoded storage.format",  # the record that passages travel in, never a store
    "btr.corpus": "storage.format",  # the longest id
    "btr.retrieve": "kernels storage model corpus",
    "btr.hops": "storage reader retrieve",
    "btr.precompute": "storage model reader corpus retrieve",
    "btr.store": "storage reader corpus retrieve precompute",
    "btr.ask": "storage model reader corpus retrieve hops precompute store",
    "btr.eval": "storage model reader corpus retrieve hops",
    "btr.bench": "kernels storage model reader corpus eval.plots",
    "btr.serve": "storage model reader corpus retrieve hops store",
    "btr.mcp": "storage model.config serve",  # the shared way to load, check, answer and search
    "btr.train": "storage.errors model reader corpus retrieve eval",
}
ALONE = {"btr.kernels", "btr.storage"}  # not even the hall: they can be taken out of the house
# module or room: the packages of others that it and what is below it may import; the longest name that fits decides
OTHERS = {
    "btr.kernels": "numpy numba llvmlite",
    "btr.storage": "numpy lmdb bitarray zstandard",  # bitarray: which records are deleted; zstandard: texts
    "btr.model": "torch numpy",
    "btr.model.checkpoint": "torch numpy safetensors tokenizers transformers",
    "btr.model.marks": "tokenizers",
    "btr.model.weights": "torch safetensors huggingface_hub",
    "btr.retrieve.bm25": "numpy",
    "btr.retrieve.stems": "bm25s Stemmer",
    **dict.fromkeys(HALL, "numpy"),
}


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
    if target.split(".")[0] != "btr":
        fitting = [name for name in OTHERS if is_under(module, {name})]
        return not fitting or target.split(".")[0] in OTHERS[max(fitting, key=len)].split()
    room = ".".join(module.split(".")[:2])
    if target.endswith("__main__"):
        return False  # a command is imported by nobody
    if target == "btr" or is_under(target, HALL):
        return room not in ALONE
    return is_under(target, {room, *(f"btr.{name}" for name in MAY.get(room, "").split())})


def test_every_room_has_its_line() -> None:
    rooms = {".".join(name.split(".")[:2]) for name, file in MODULES.items() if file.name == "__init__.py"} - {"btr"}
    assert rooms == set(MAY)
    assert {name for name in MODULES if name.count(".") == 1} == {"btr.__main__"} | HALL | rooms


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
        ("btr.kernels.jit", "from btr import errors"),
        ("btr.kernels.jit", "from ..model.config import ReaderConfig"),
        ("btr.storage.store", "def f():\n    import btr.kernels"),
        ("btr.storage.store", "import torch.nn"),
        ("btr.model.t5", "import transformers"),
        ("btr.model.t5", "from btr import reader"),
        ("btr.model.t5", "from ..reader import Reader"),
        ("btr.model.t5", "from btr.storage.format import Encoded"),
        ("btr.model.binarize", "import btr.storage"),
        ("btr.errors", "from btr.model.config import ReaderConfig"),
        ("btr.reader.reader", "from btr.storage import Encoded"),
        ("btr.reader.reader", "from btr.storage.store import Store"),
        ("btr.reader", "from btr.corpus import Passage"),
        ("btr.serve.app", "from btr.precompute.__main__ import main"),
        ("btr.retrieve.bm25", "from btr.reader import Reader"),
        ("btr.corpus.passages", "import btr.serve.app"),
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
        ("btr.model.t5", "import torch.nn.functional as F\nfrom btr.model.config import ReaderConfig"),
        ("btr.model.binarize", "from btr.kernels import pack"),
        ("btr.reader.reader", "import transformers\nfrom btr import kernels\nfrom btr.storage.format import Encoded"),
        ("btr.retrieve.dense.index", "from btr.retrieve.bm25 import Hits"),
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
    names = {re.split(r"[<>=~! \[]", line)[0].replace("-", "_") for line in wanted}
    return {IMPORTED_AS.get(name, name) for name in names}


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
