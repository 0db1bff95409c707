"""Documents divided into passages: along headings first, then by words."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr.corpus.division import divide_document, is_piece, size_of, titled
from btr.corpus.documents import Document, Form
from btr.corpus.pieces import Passage


def words(count: int, word: str = "w") -> str:
    return " ".join(f"{word}{n}" for n in range(count))


def divide(text: str, size: int = 10, form: Form = "markdown") -> list[tuple[str, str]]:
    passages = divide_document(Document("a/d.md", "d.md", text, form), size)
    ids = ["a/d.md"] if len(passages) == 1 else [f"a/d.md:{n}" for n in range(len(passages))]
    assert [passage.id for passage in passages] == ids
    return [(passage.title, passage.text) for passage in passages]


def test_passage_does_not_run_over_a_heading() -> None:
    text = f"# A\n{words(4)}\n## B\n{words(4, 'b')}\n\n{words(5, 'c')}\n\n{words(6, 'd')}\n"
    assert divide(text) == [
        ("d.md > A", words(4)),
        ("d.md > A > B", f"{words(4, 'b')}\n\n{words(5, 'c')}"),
        ("d.md > A > B", words(6, "d")),
    ]


def test_one_passage_has_the_id_of_its_document() -> None:
    assert divide_document(Document("x/d.txt", "d.txt", "Owls hunt.", "plain"), 10) == [
        Passage("x/d.txt", "d.txt", "Owls hunt.")
    ]
    assert divide_document(Document("d.md", "d.md", " \n", "markdown"), 10) == []


def test_short_sections_of_one_heading_are_joined() -> None:
    text = "# Settings\n## Port\n80\n## Host\nhere\n## Long\n" + words(9) + "\n## Path\n/x\n# Other\ny z v\n"
    assert divide(text, 20) == [
        ("d.md > Settings", "Port\n80\n\nHost\nhere"),
        ("d.md > Settings > Long", words(9)),
        ("d.md > Settings > Path", "/x"),
        ("d.md > Other", "y z v"),
    ]


def test_heading_without_a_text_is_kept_as_one() -> None:
    assert divide("# Not yet written\n") == [("d.md", "Not yet written")]


def test_long_paragraph_is_divided_between_sentences() -> None:
    text = "One two three four five six. Seven eight nine ten? 'Eleven twelve.' thirteen fourteen fifteen sixteen."
    assert divide(text) == [
        ("d.md", "One two three four five six. Seven eight nine ten?"),
        ("d.md", "'Eleven twelve.' thirteen fourteen fifteen sixteen."),
    ]
    assert divide(words(30)) == [("d.md", words(30).split(f" w{n}")[0][start:]) for n, start in ((10, 0),)] + [
        ("d.md", " ".join(f"w{n}" for n in range(first, first + 10))) for first in (10, 20)
    ]


def test_code_and_lists_are_divided_between_lines() -> None:
    code = "\n".join(f"run step {n} now" for n in range(6))
    assert divide(f"```\n{code}\n```") == [
        ("d.md", "run step 0 now\nrun step 1 now"),
        ("d.md", "run step 2 now\nrun step 3 now"),
        ("d.md", "run step 4 now\nrun step 5 now"),
    ]
    items = "".join(f"- item {n} is\n  long\n" for n in range(5))
    assert divide(items) == [
        ("d.md", "- item 0 is\n  long\n- item 1 is\n  long"),
        ("d.md", "- item 2 is\n  long\n- item 3 is\n  long"),
        ("d.md", "- item 4 is\n  long"),
    ]


def test_parts_of_a_table_have_its_first_row() -> None:
    rows = [f"| n{n} | v{n} |" for n in range(4)]
    table = "\n".join(["| a |", "|---|", *rows])
    assert divide(table, 14) == [
        ("d.md", "\n".join(["| a |", *rows[:2]])),
        ("d.md", "\n".join(["| a |", *rows[2:]])),
    ]


def test_line_before_code_stays_with_it() -> None:
    code = "\n".join(f"run {n}" for n in range(5))
    assert divide(f"{words(8)}\n\nThen:\n```\n{code}\n```") == [("d.md", words(8) + "\n\nThen:"), ("d.md", code)]
    assert divide(f"Run this:\n```\n{code}\nend.\n```", 12) == [("d.md", f"Run this:\n\n{code}\nend.")]


def test_code_counts_by_its_characters_too() -> None:
    assert size_of("f(x,y)" * 20) == 20 and size_of("a b c") == 3 and size_of("東京都") == 3


@pytest.mark.parametrize(
    ("headings", "title"),
    [
        ((), "d.md"),
        (("A", "B"), "d.md > A > B"),
        (("A" * 90, "B" * 20), "d.md > " + "B" * 20),
        (("A" * 200,), "d.md > " + "A" * 99 + "…"),
    ],
)
def test_title_is_the_file_and_short_headings(headings: tuple[str, ...], title: str) -> None:
    assert titled("d.md", headings) == title


def test_piece_is_known_by_its_title() -> None:
    assert is_piece("d.md", "a/d.md") and is_piece("d.md > A", "d.md")
    assert not is_piece("d.mdx", "d.md") and not is_piece("A", "d.md") and not is_piece("", "d.md")


@given(st.lists(st.sampled_from(["# h", "## g", "```", "- i j", "| k | l |", "", "m n. o", words(40)]), max_size=30))
def test_no_word_is_lost_and_no_passage_is_long(lines: list[str]) -> None:
    text = "\n".join(lines)
    pieces = divide(text)
    assert all(text.strip() and size_of(text) <= 21 for _, text in pieces)  # 1.5 of 10 and what is joined to it
    found = set(itertools.chain.from_iterable(f"{title} {text}".split() for title, text in pieces))
    expected = set(["m", "n.", "o"] if "m n. o" in lines else ()) | set(words(40).split() if words(40) in lines else ())
    assert expected <= found
