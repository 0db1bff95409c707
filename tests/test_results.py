"""What was measured: every file says how, and no page or picture says anything else."""

import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
GROUPS = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))}
RUNS = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("runs/*.json"))}
KEYS = "title setting machine versions date commit command n interval notes tables rows"
RUN_KEYS = "reader k sizes questions row_tokens new_tokens dtype runs merge machine cores threads torch btr commit"
NEWER_KEYS = "python transformers onnxruntime device command"  # of runs since `btr bench --json FILE`


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the script, which is no part of the package."""
    monkeypatch.syspath_prepend(str(RESULTS))
    return importlib.import_module("draw")


@pytest.fixture
def page(draw: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the page of a folder of its own, which the script takes for the repository."""
    monkeypatch.setattr(draw, "ROOT", tmp_path)
    return tmp_path / "README.md"


@pytest.mark.parametrize("name", GROUPS)
def test_group_says_how_it_was_measured(name: str) -> None:
    group = GROUPS[name]
    assert list(group) == KEYS.split()
    assert list(group["versions"]) == ["python", "torch", "transformers", "btr"]
    assert all(group[key] for key in ("title", "setting", "tables", "rows"))  # the rest may be null: not recorded
    assert {table == name or table.startswith(f"{name}-") for table in group["tables"]} == {True}


@pytest.mark.parametrize("name", RUNS)
def test_run_is_what_bench_prints(name: str) -> None:
    assert set(RUN_KEYS.split()) <= RUNS[name].keys() <= {*RUN_KEYS.split(), *NEWER_KEYS.split()}


def test_every_run_is_used() -> None:
    used = {row["from"][0] for group in GROUPS.values() for row in group["rows"] if "from" in row}
    assert used - {f"{name}.json" for name in GROUPS} == {f"runs/{name}.json" for name in RUNS}


@pytest.mark.parametrize("name", GROUPS)
def test_table_has_every_row_and_column(draw: ModuleType, name: str) -> None:
    for table, columns in GROUPS[name]["tables"].items():
        head, _, *lines = draw.list_tables()[table][1]
        assert head == f"| {' | '.join(column[0] for column in columns)} |"  # one without values has a misspelt key
        assert len(lines) == len(GROUPS[name]["rows"])
        assert not re.search(r"None|[{}]", "".join(lines))


def test_pages_and_pictures_are_what_the_results_give(draw: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert draw.main(["--check"]) == 0, capsys.readouterr().err


def test_number_that_differs_is_seen_and_mended(draw: ModuleType, page: Path) -> None:
    page.write_text("Above.\n\n<!-- results: store-bytes -->\n<!-- end -->\n\nBelow.\n", encoding="utf-8")
    assert draw.main([]) == 0
    whole = page.read_text(encoding="utf-8")
    assert "| signs | 15.00 | 77.0 % | 15.00 |\n" in whole
    assert whole.startswith("Above.\n\n<!-- ") and whole.endswith("\n<!-- end -->\n\nBelow.\n")
    assert draw.main(["--check"]) == 0
    changed = whole.replace("| signs | 15.00", "| signs | 14.00")
    page.write_text(changed, encoding="utf-8")
    assert draw.main(["--check"]) == 1
    assert page.read_text(encoding="utf-8") == changed
    assert draw.main([]) == 0
    assert page.read_text(encoding="utf-8") == whole


def test_picture_is_xml_and_one_that_differs_is_seen(draw: ModuleType, page: Path) -> None:
    assert draw.main([]) == 0
    files = sorted((page.parent / "docs" / "img").iterdir())
    assert [file.stem for file in files] == sorted(draw.pictures.PICTURES)
    for file in files:
        assert ElementTree.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        whole = file.read_bytes()
        file.write_bytes(whole.replace(b"achine ", b"achine X"))
        assert draw.main(["--check"]) == 1
        assert draw.main([]) == 0
        assert file.read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: nothing -->\n<!-- end -->\n", "there is no table 'nothing'"),
        ("<!-- results: store-bytes -->\n| a |\n", "has no <!-- end -->"),
        ("<!-- results: store-bytes -->\n<!-- results: store-fuzz -->\n<!-- end -->\n", "has no <!-- end -->"),
    ],
)
def test_marker_that_cannot_be_followed_is_an_error(
    draw: ModuleType, page: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    page.write_text(text, encoding="utf-8")
    assert draw.main(["--check"]) == 1
    assert message in capsys.readouterr().err
    assert draw.main([]) == 1
    assert page.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("templates", "row", "cell"),
    [
        (["{a[0]:.1f} [{a[1]:.1f}]", "{a[0]:.1f}"], {"a": [1.0, -2.0]}, "1.0 [−2.0]"),
        (["{a[0]:.1f} [{a[1]:.1f}]", "{a[0]:.1f}"], {"a": [1.0]}, "1.0"),
        (["{a[0]:.1f}"], {}, ""),
        (["{a:+.1f}"], {"a": 0.0}, "0.0"),
        (["{a:+.1f}"], {"a": -0.5}, "−0.5"),
        (["{a}"], {"a": "T5-2, `a-1`"}, "T5-2, `a-1`"),
    ],
)
def test_cell_is_the_first_template_that_can_be_filled(
    draw: ModuleType, templates: list[str], row: dict[str, Any], cell: str
) -> None:
    assert draw.fill(templates, row) == cell
