"""Answers that stand in a file as text."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr.corpus.answer_lists import looks_like_list, parse_answers, unquote


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_answer_lists_well_formed_are_read_as_python_does(items: list[str]) -> None:
    assert looks_like_list(repr(items))
    assert parse_answers(repr(items)) == (items, True)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("['pine', gardener's oak, 'elm, dwarf']", ["pine", "gardener's oak", "elm, dwarf"]),
        ("[the cook's]", ["the cook's"]),
        ("[Salt, the cook's tale, 'salt']", ["Salt, the cook's tale", "salt"]),
        ("[the cook's, the baker's, 'x']", ["the cook's", "the baker's", "x"]),
        ("[the cook's house, Lower Street, Upton]", ["the cook's house, Lower Street, Upton"]),
        ("['x', '20s, 'twenties', 20's]", ["x", "'20s", "twenties", "20's"]),
        ("[no apostrophe, at all]", ["no apostrophe, at all"]),
        ("['one', 2]", ["one", "2"]),
        ("[`` oak '']", ["`` oak ''"]),
    ],
)
def test_answer_lists_without_their_quotes_are_taken_apart(text: str, items: list[str]) -> None:
    assert parse_answers(text) == (items, False)


# What broke the published files: csv put quotes around the list and doubled those inside, and a reader dropped them.
@given(st.lists(st.sampled_from(["oak", "elm, dwarf", "pine's", "the ash's leaf", "fir (tree)"]), min_size=1))
def test_answer_lists_survive_the_loss_of_double_quotes(items: list[str]) -> None:
    assert parse_answers(repr(items).replace('"', ""))[0] == items


def test_answer_lists_unknown_escapes_are_silent() -> None:
    assert parse_answers(r"['\W']") == ([r"\W"], True)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0")))
def test_answer_lists_unquote_undoes_csv(field: str) -> None:
    written = io.StringIO()
    csv.writer(written, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="").writerow([field])
    assert unquote(written.getvalue()) == field


@pytest.mark.parametrize("field", ["", '"', "plain", '"A" and "B"', 'an "inner" one', '"open'])
def test_answer_lists_unquote_leaves_other_quotes(field: str) -> None:
    assert unquote(field) == field
