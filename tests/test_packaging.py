"""What a wheel holds, and that it works away from the repository. Builds without the network."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import btr

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"btr": "btr", "btr/kernels": "kernels", "btr/storage": "storage", "btr/train": "train"}  # in the wheel: here
SHIPPED = (
    re.compile(r".*\.py"),
    re.compile(r"btr/(py\.typed|default_reader/[^/]+|serve/[^/]+\.html|train/recipes/[^/]+\.toml)"),
)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of the source (a build leaves files beside it) and unpack it into a folder."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ROOMS.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = subprocess.run([*command, "--wheel-dir", str(built), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [wheel] = built.glob("btr-*.whl")
    zipfile.ZipFile(wheel).extractall(built / "unpacked")
    return built / "unpacked"


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
    [metadata] = unpacked.glob("btr-*.dist-info")
    assert list_files(unpacked) - {f"{metadata.name}/{file}" for file in list_files(metadata)} == list_expected()


def test_wheel_names_its_command_and_licence(unpacked: Path) -> None:
    [metadata] = unpacked.glob("btr-*.dist-info")
    assert "btr = btr.__main__:cli" in (metadata / "entry_points.txt").read_text(encoding="utf-8")
    assert (metadata / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


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
