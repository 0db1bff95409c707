"""Read tables whose first line names the columns: split by tabs, or by commas or semicolons as spreadsheets do."""

import csv
from collections.abc import Collection, Iterator

from btr.corpus.answer_lists import looks_like_list, unquote
from btr.corpus.records import LONGEST, Line, Record
from btr.errors import InputError


def read_table(lines: Iterator[Line], needed: Collection[str] = ("id", "text")) -> Iterator[Record]:
    """Read rows of a table that has the columns `needed`; what splits them is told by the first line.

    Between tabs a cell is what stands there, less quotes around it. Between commas or semicolons, quoted cells may hold
    these, and line breaks (RFC 4180; blank lines within a cell are left out).

    Raises:
        InputError: no such columns, or a row of another number of cells.
    """
    where, header = next(lines, ("", ""))
    if not header:
        return
    csv.field_size_limit(LONGEST)  # lines are no longer; its own limit is 128 KiB
    for mark in ",;":
        if "\t" not in header and set(needed) <= set(next(csv.reader([header], delimiter=mark), ())):
            yield from _quoted_rows(where, header, lines, mark)
            return
    names = [unquote(name) for name in header.split("\t")]
    if not set(needed) <= set(names):
        columns = " and ".join(map(repr, needed))
        first = "<tab>".join([*needed, "title"] if "title" not in needed else needed)
        cure = f"begin it with a line {first!r}, or give one JSON object on each line"
        raise InputError(f"{where}: neither JSON nor a table with columns {columns}; {cure}")
    for where, line in lines:
        yield _record(
            where, names, [unquote(cell) for cell in line.split("\t")], "take tabs and line breaks out of the text"
        )


def _quoted_rows(where: str, header: str, lines: Iterator[Line], mark: str) -> Iterator[Record]:
    taken = [where]

    def texts() -> Iterator[str]:
        yield header + "\n"
        for place, text in lines:
            taken.append(place)
            yield text + "\n"

    rows = csv.reader(texts(), delimiter=mark, strict=True)
    try:
        names = next(rows)
        taken.clear()
        for row in rows:
            yield _record(taken[0], names, row, f"put quotes around cells that hold {mark!r}")
            taken.clear()
    except csv.Error as error:
        cure = "write it as CSV, quotes in a cell doubled, or as one JSON object on each line"
        raise InputError(f"{(taken or [where])[0]}: not a row of a table ({error}); {cure}") from error


def _record(where: str, names: list[str], cells: list[str], cure: str) -> Record:
    if len(cells) != len(names):
        raise InputError(f"{where}: {len(cells)} columns, the first line names {len(names)}; {cure}")
    return Record(where, dict(zip(names, cells, strict=True)))


def read_pairs(lines: Iterator[Line]) -> Iterator[Record]:
    """Read lines `question<tab>['answer', ...]`; raises InputError for another one."""
    for where, line in lines:
        question, tab, answers = line.partition("\t")
        answers = unquote(answers.strip(" "))
        if not tab or not looks_like_list(answers):
            cure = "write question<tab>['answer', ...], or one JSON object on each line"
            raise InputError(f"{where}: neither JSON nor a question and a list of answers; {cure}")
        yield Record(where, {"question": unquote(question), "answers": answers})
