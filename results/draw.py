"""Write what was measured into README.md and docs/, as tables and as pictures.

Each `NAME.json` here is one group of measurements: how, where and when it was made, its rows, and the columns of its
tables; what was not recorded is null. Between the lines `<!-- results: TABLE -->` and `<!-- end -->` of README.md and
docs/*.md stands that table, written by this script alone; the pictures go to docs/img/. `runs/` has runs of `btr bench`
as `--json` prints them.

    python results/draw.py            # write the tables and the pictures
    python results/draw.py --check    # exit 1 where one is not what the files here give
    python results/draw.py --list     # the names of the tables
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pictures

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
IMAGES = Path("docs/img")
OPENING = re.compile(r"^<!-- results: ", re.MULTILINE)
TABLE = re.compile(r"^<!-- results: (?P<name>[^\n]*?) -->\n(?P<body>(?:(?!<!-- )[^\n]*\n)*)<!-- end -->$", re.MULTILINE)
# A column is its heading and templates of a cell, of which the first is taken that the row has all values for.
Column = list[str]


@cache
def load(path: str) -> Any:
    """Return what the JSON file at `path`, below this folder, holds."""
    return json.loads((HERE / path).read_text(encoding="utf-8"))


def list_groups() -> dict[str, dict[str, Any]]:
    """Map the name of every group to what its file holds."""
    return {file.stem: load(file.name) for file in sorted(HERE.glob("*.json"))}


def read_rows(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a group, without nulls; `from` names a file and the keys below which it has more of the row."""
    for row in group["rows"]:
        path, *keys = row.get("from", [""])
        found = load(path) if path else {}
        for key in keys:
            found = found[key]
        yield {key: value for key, value in (found | row).items() if value is not None}


def fill(templates: Column, row: dict[str, Any]) -> str:
    """Return the first template that the row has all values for, with a true minus; "" if there is none."""
    for template in templates:
        try:
            text = re.sub(r"\+(?=0\.0+\b)", "", template.format_map(row))
        except (KeyError, IndexError):  # not there, or too short a list
            continue
        return re.sub(r"(?<![\w–])-(?=\d)", "−", text).strip()
    return ""


def make_table(columns: list[Column], rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table. Numbers stand to the right; columns without any value are left out."""
    cells = [[fill(templates, row) for row in rows] for _, *templates in columns]
    kept = [(column[0], values) for column, values in zip(columns, cells, strict=True) if any(values)]
    rules = ["---:" if all(re.match(r"[−+]?\d|$", value) for value in values) else "---" for _, values in kept]
    lines = [[head for head, _ in kept], rules, *zip(*(values for _, values in kept), strict=True)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def list_tables() -> dict[str, tuple[str, list[str]]]:
    """Map the name of every table to that of its group, and its lines."""
    tables = {}
    for name, group in list_groups().items():
        for table, columns in group["tables"].items():
            tables[table] = (name, make_table(columns, list(read_rows(group))))
    return tables


def describe(name: str, folder: Path) -> str:
    """Return the line below a table: where it was measured, and a link to the rest, for a page in `folder`."""
    group = list_groups()[name]
    machines = group["machine"] if isinstance(group["machine"], list) else [group["machine"]]
    letters = sorted(machine.partition(":")[0] for machine in machines if machine)
    listed = " and ".join(filter(None, [", ".join(letters[:-1]), *letters[-1:]]))
    where = f"machine{'s' * (len(letters) > 1)} {listed}" if letters else None
    link = Path(os.path.relpath(HERE / f"{name}.json", folder)).as_posix()
    parts = [where, group["n"], group["interval"], f"[setting and command]({link})"]
    return f"({', '.join(part for part in parts if part)})"


def write_tables(text: str, folder: Path) -> str:
    """Return a page, which stands in `folder`, with its tables as they are to be."""
    tables = list_tables()

    def write(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in tables:
            raise ValueError(f"there is no table {name!r} in results/; there are: {', '.join(tables)}")
        group, lines = tables[name]
        return "\n".join([f"<!-- results: {name} -->", *lines, "", describe(group, folder), "<!-- end -->"])

    written, count = TABLE.subn(write, text)
    if count != len(OPENING.findall(text)):
        raise ValueError("a line <!-- results: NAME --> has no <!-- end --> before the next comment")
    return written


def list_pages() -> list[Path]:
    """Return the pages that may have tables."""
    return [file for file in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))) if file.exists()]


def make_files() -> dict[Path, str]:
    """Map every page and picture to the text that it is to have."""
    files = {}
    for page in list_pages():
        try:
            files[page] = write_tables(page.read_text(encoding="utf-8"), page.parent)
        except ValueError as error:
            raise ValueError(f"{page.relative_to(ROOT)}: {error}") from error
    groups = {name: list(read_rows(group)) for name, group in list_groups().items()}
    draw: Callable[[pictures.Groups], str]
    for name, draw in pictures.PICTURES.items():
        files[ROOT / IMAGES / f"{name}.svg"] = draw(groups)
    return files


def main(arguments: list[str] | None = None) -> int:
    """Write the pages and pictures, or say which differ."""
    main = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    main.add_argument("--check", action="store_true", help="write nothing; exit 1 where something differs")
    main.add_argument("--list", action="store_true", help="list the names of the tables")
    options = main.parse_args(arguments)
    if options.list:
        for table, (name, _) in list_tables().items():
            print(f"{table:22}{list_groups()[name]['title']}")
        return 0
    try:
        files = make_files()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    stale = [file for file, text in files.items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    for file in stale:
        if options.check:
            print(f"{file.relative_to(ROOT)} is not what results/ gives: run python results/draw.py", file=sys.stderr)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(files[file], encoding="utf-8")
            print(file.relative_to(ROOT))
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
