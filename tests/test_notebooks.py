"""The notebooks: they run from beginning to end, show what they say, and are kept without what they showed."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WAIT = 900  # seconds a cell may take, of which it takes a few on a machine with nothing else to do


def run(name: str, folder: Path) -> str:
    """Run a notebook in a folder, and return what it printed; figures are named by their type."""
    nbformat = pytest.importorskip("nbformat", reason="not installed (pip install nbclient ipykernel)")
    nbclient = pytest.importorskip("nbclient", reason="not installed (pip install nbclient ipykernel)")
    pytest.importorskip("ipykernel", reason="not installed (pip install nbclient ipykernel)")
    book = nbformat.read(ROOT / "notebooks" / name, 4)
    nbformat.validate(book)
    bare = {key: value for key, value in os.environ.items() if not key.startswith("BTR_")}
    client = nbclient.NotebookClient(book, timeout=WAIT, resources={"metadata": {"path": str(folder)}})
    client.execute(env=bare | {"TMPDIR": str(folder)})
    shown = [one for cell in book.cells for one in cell.get("outputs", [])]
    return "".join(one.get("text") or " ".join(one.get("data", {})) for one in shown)


def test_documents_are_asked_edited_and_asked_again(tmp_path: Path) -> None:
    shown = run("ask_your_documents.ipynb", tmp_path)
    assert "Who built the lighthouse? Ada Berg\n" in shown and "1 replaced, 4 unchanged" in shown
    first, second = re.findall(r"What does a ship pay a night\? (.+)", shown)
    assert "forty" in first and "sixty-five" in second


def test_bits_are_flipped_and_plotted(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="an optional extra: pip install 'btr-reader[plots]'")
    shown = run("what_a_bit_knows.ipynb", tmp_path)
    rows = dict(re.findall(r"(\d+)% flipped: (.+)", shown))
    answers = {int(share): row.split(" | ") for share, row in rows.items()}
    assert len(set(answers[0])) == 1 and "crocus" in answers[0][0]
    assert set(answers[50]) != set(answers[0])
    assert shown.count("image/png") == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_kept_without_output(path: Path) -> None:
    book: Any = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    written = json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    assert path.read_text(encoding="utf-8") == written  # as a difference is easiest to read


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_imports_public_names_alone(path: Path) -> None:
    source = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])
    assert re.findall(r"(?:from|import) btr\.\S+", source) == [] and "from btr import " in source


def test_each_notebook_is_run() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    assert NOTEBOOKS and [path.name for path in NOTEBOOKS if path.name not in tested] == []
