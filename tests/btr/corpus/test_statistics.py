"""The first look at a corpus: what its hash tells apart, and which ids it refuses."""

import json
from pathlib import Path

import pytest

from btr.corpus.statistics import Corpus
from btr.storage import BadPassage

ROWS = [{"id": "a", "title": "Salt", "text": "on mules"}, {"id": "b", "title": "Heron", "text": "in reeds"}]


def look(folder: Path, rows: list[dict[str, str]]) -> str:
    (folder / "c.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return Corpus(str(folder / "c.jsonl"), None, 100).survey(folder).hash


@pytest.mark.parametrize(
    "rows",
    [
        [ROWS[0] | {"id": "c"}, ROWS[1]],
        [ROWS[0] | {"title": "Salz"}, ROWS[1]],
        [ROWS[0] | {"text": "on carts"}, ROWS[1]],
        [ROWS[0] | {"title": "Sal", "text": "ton mules"}, ROWS[1]],  # the same letters, cut elsewhere
        ROWS[::-1],
        ROWS[:1],
    ],
)
def test_hash_is_of_all_that_is_kept(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    assert look(tmp_path, ROWS) == look(tmp_path, [dict(row) for row in ROWS])
    assert look(tmp_path, rows) != look(tmp_path, ROWS)


@pytest.mark.parametrize("passage_id", ["a\nb", "a\rb", "\ta", "a\x00", "a\x7f", "a\x85b"])
def test_ids_that_nobody_could_ask_for_are_refused(tmp_path: Path, passage_id: str) -> None:
    with pytest.raises(BadPassage, match=r"has a control character, U\+00\w\w; take it out"):
        look(tmp_path, [*ROWS, {"id": passage_id, "title": "", "text": "x"}])


def test_other_ids_are_not(tmp_path: Path) -> None:
    for passage_id in ("a b", "a\u2028b", "a/b?c#d", "\u00e9\u200d", "\U0001f9c2"):
        assert look(tmp_path, [*ROWS, {"id": passage_id, "title": "", "text": "x"}]) != look(tmp_path, ROWS)
