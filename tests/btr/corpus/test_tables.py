"""Tables whose first line names the columns: tabs, commas, semicolons."""

from pathlib import Path

import pyarrow
import pytest

from btr.corpus import Passage, read_passages
from btr.corpus.statistics import Corpus
from btr.errors import InputError

OWL = [Passage("1", "Owl", 'Owls "hunt", by night.\nThey rest by day.'), Passage("2", "", "Herons wade.")]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("mark", [",", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_cells_between_commas_may_hold_commas_quotes_and_lines(tmp_path: Path, mark: str, end: str) -> None:
    rows = ["id,title,text", '1,Owl,"Owls ""hunt"", by night.\nThey rest by day."', "2,,Herons wade."]
    text = end.join(row.replace(",", mark).replace(f'""{mark} by', '"", by') for row in rows) + end
    assert list(read_passages(write(tmp_path / "birds.csv", text))) == OWL


def test_columns_stand_in_any_order_and_others_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "url,text,id\nhttp://x,Herons wade.,2\n")
    assert list(read_passages(path)) == [OWL[1]]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_columns_of_other_names_are_told(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path / "a.csv", f"key{mark}body\n2{mark}Herons wade.\n")
    assert list(read_passages(path, fields=("key", "", "body"))) == [OWL[1]]


def test_table_is_resumed_where_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "id,text\n" + "".join(f'{n},"line {n}\nmore"\n' for n in range(50)))
    assert [passage.id for passage in Corpus(path, None, 100).read()] == [str(n) for n in range(50)]


@pytest.mark.parametrize("form", ["file", "stream"])
def test_arrow_is_read(tmp_path: Path, form: str) -> None:
    table = pyarrow.table({"id": ["1", "2"], "title": ["Owl", None], "text": [passage.text for passage in OWL]})
    path, write_form = tmp_path / "a.arrow", pyarrow.ipc.new_file if form == "file" else pyarrow.ipc.new_stream
    with path.open("wb") as file, write_form(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    assert list(read_passages(str(path))) == OWL
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"a\.arrow: not readable as Arrow"):
        list(read_passages(str(path)))


def test_long_first_line_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.csv:1: neither JSON nor a table"):
        list(read_passages(write(tmp_path / "a.csv", "x" * 200_000)))
    long = "word " * 40_000
    assert len(list(read_passages(write(tmp_path / "a.csv", f"id,text\n1,{long}\n")))) == 400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,text\n1,a,b\n", r"a\.csv:2: 3 columns, the first line names 2; put quotes around cells that hold ','"),
        ('id,text\n1,"a\n2,b\n', r"a\.csv:2: not a row of a table \(unexpected end of data\)"),
        ('id,text\n1,"a"b\n', r"a\.csv:2: not a row of a table .*write it as CSV"),
        (
            "name,text\n1,a\n",
            r"a\.csv:1: neither JSON nor a table with columns 'id' and 'text'; begin it with a line 'id<tab>",
        ),
    ],
)
def test_mistake_in_a_table_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        list(read_passages(write(tmp_path / "a.csv", text)))
