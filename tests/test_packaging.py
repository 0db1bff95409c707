"""What a wheel holds, and that it works away from the repository. Builds without the network."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import btr

ROOT = Path(__file__).resolve().parents[1]
# in the wheel: here
ROOMS = {"btr": "btr", "btr/kernels": "kernels", "btr/storage": "storage", "btr/train": "train", "btr/sample": "corpus"}
SHIPPED = (
    re.compile(r".*\.py"),
    re.compile(r"btr/(py\.typed|default_reader/[^/]+|serve/[^/]+\.html|train/recipes/[^/]+\.toml|sample/[^/]+)"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of the source: a build leaves files beside it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    for folder in ROOMS.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*command, "--wheel-dir", str(built), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = built.iterdir()
    return wheel


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    """Unpack the wheel into a folder."""
    zipfile.ZipFile(wheel).extractall(wheel.parent / "unpacked")
    return wheel.parent / "unpacked"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment that has what the wheel needs, but no clone, and return its `bin`."""
    environment = tmp_path_factory.mktemp("installed")
    venv.create(environment)
    bin = environment / "bin"
    [packages] = environment.glob("lib/python*/site-packages")
    # Folders that a .pth names are searched, but their own .pth files, of which one leads to the clone, are not read.
    (packages / "needed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    command = [sys.executable, "-m", "pip", "--python", str(bin / "python"), "install", "--no-deps", "--no-index"]
    done = subprocess.run([*command, "--ignore-installed", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return bin


def list_files(folder: Path) -> set[str]:
    """Return the path of every file below `folder`, with slashes."""
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def list_expected() -> set[str]:
    """Return the path, inside a wheel, of every file of the rooms that has to be shipped."""
    inside = {f"{name}/{file}" for name, folder in ROOMS.items() for file in list_files(ROOT / folder)}
    return {path for path in inside if any(kind.fullmatch(path) for kind in SHIPPED)}


def run_away_from_home(unpacked: Path, cwd: Path, *arguments: str) -> str:
    """Run Python on what the wheel held, in another folder, and return its output."""
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wheel_holds_the_rooms_and_nothing_else(unpacked: Path) -> None:
    [metadata] = unpacked.glob("btr_reader-*.dist-info")
    assert list_files(unpacked) - {f"{metadata.name}/{file}" for file in list_files(metadata)} == list_expected()


def test_wheel_names_its_command_and_licence(unpacked: Path) -> None:
    [metadata] = unpacked.glob("btr_reader-*.dist-info")
    assert "btr = btr.__main__:cli" in (metadata / "entry_points.txt").read_text(encoding="utf-8")
    assert (metadata / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_wheel_says_what_it_is(unpacked: Path) -> None:
    [folder] = unpacked.glob("btr_reader-*.dist-info")
    metadata = email.message_from_string((folder / "METADATA").read_text(encoding="utf-8"))
    assert (metadata["Name"], metadata["Version"]) == ("btr-reader", btr.__version__)
    assert metadata["Requires-Python"] == ">=3.11" and metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_installed_wheel_reads_and_answers_far_from_a_clone(installed: Path, tmp_path: Path) -> None:
    """Run what a user of the package runs first, on the reader and the corpus that come with it."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BTR_"))}

    def run(*words: str) -> str:
        command = [str(installed / words[0]), *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("python", "-c", "import btr; print(btr.__file__)").startswith(str(installed.parent))
    assert run("btr", "--help").startswith("usage: btr ")
    assert "wrote sample.btr: 3 passages" in run("btr", "precompute", "sample", "--limit", "3")
    assert "usage: btr eval" in run("btr", "eval", "--help")
    code = "from btr import Reader, Store; s = Store.open('sample.btr'); i = next(iter(s.ids())); print(i)"
    code += "; print(Reader.from_pretrained().answer('What is this?', s.get([i])).read)"
    assert run("python", "-c", code).split()[1] == "1"


@pytest.mark.parametrize("extra", ["bench", "gpus", "plots", "ray"])
def test_texts_name_extras_that_there_are(extra: str, unpacked: Path) -> None:
    [folder] = unpacked.glob("btr_reader-*.dist-info")
    assert f"\nProvides-Extra: {extra}\n" in (folder / "METADATA").read_text(encoding="utf-8")


def test_texts_install_the_package_by_its_own_name() -> None:
    """On the index `btr` is somebody else's."""
    folders = (*ROOMS.values(), "docs", "examples", "notebooks", "results", "tests")
    files = [*ROOT.iterdir(), *(file for folder in folders for file in (ROOT / folder).rglob("*"))]
    texts = [file for file in files if file.suffix in {".html", ".ipynb", ".md", ".py", ".sh", ".toml"}]
    named = re.compile(r"pip3? install (?:-\S+ )*['\"]?btr(?!-reader)\b")
    assert ROOT / "README.md" in texts
    assert [file for file in texts if named.search(file.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("package", ["btr", "btr.kernels", "btr.storage", "btr.train"])
def test_wheel_imports_away_from_the_repository(package: str, unpacked: Path, tmp_path: Path) -> None:
    printed = run_away_from_home(unpacked, tmp_path, "-c", f"import {package}; print({package}.__file__)")
    assert printed.strip() == str(unpacked.joinpath(*package.split("."), "__init__.py"))


def test_wheel_runs_as_a_module(unpacked: Path, tmp_path: Path) -> None:
    assert re.fullmatch(r"btr \d+\.\d+\.\d+\n", run_away_from_home(unpacked, tmp_path, "-m", "btr", "--version"))


def test_editable_install_finds_the_rooms_from_anywhere(tmp_path: Path) -> None:
    code = "import btr, btr.kernels, btr.storage, btr.train; print(btr.kernels.__file__)"
    for cwd in (ROOT, tmp_path):
        done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
        assert done.stdout.strip() == str(ROOT / "kernels" / "__init__.py"), done.stderr


def test_folder_kernels_is_not_taken_for_the_package_of_that_name() -> None:
    code = "from transformers.utils import is_kernels_available; print(is_kernels_available())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_folder_that_holds_the_clone_is_no_trap(tmp_path: Path) -> None:
    """Import and run btr where a folder named btr is found first: the clone itself."""
    (tmp_path / "btr").symlink_to(ROOT)
    code = "import btr, btr.kernels, btr.train; from btr import Passage; print(btr.__all__ == sorted(btr.__all__))"
    for words, shown in ((["-c", code], "True\n"), (["-m", "btr", "--version"], btr.__version__)):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and shown in done.stdout, done.stderr
