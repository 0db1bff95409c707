"""Documents taken apart: headings, blocks, and marks that nobody reads."""

import pytest

from btr.corpus.markup import (
    Section,
    sections_of_markdown,
    sections_of_pages,
    sections_of_plain,
    sections_of_rst,
    unmarked,
)

MARKDOWN = """\
---
title: not read
---
Before.

# Guide #

One line
and another.

Setup
=====

## Empty above

### Steps
- one
  - deeper
- two

```sh
# no heading

make
```
~~~
a ``` b
~~~

| a | b |
|---|:-:|
| 1 | 2 |

## Next
<!-- a comment
# not a heading
--> after
***
[ref]: http://example.org "x"

## End
"""


def told(sections: list[Section]) -> list[tuple[tuple[str, ...], list[tuple[str, str]]]]:
    return [(section.headings, [(block.kind, block.text) for block in section.blocks]) for section in sections]


def test_markdown_falls_into_sections_and_blocks() -> None:
    assert told(sections_of_markdown(MARKDOWN)) == [
        ((), [("text", "Before.")]),
        (("Guide",), [("text", "One line\nand another.")]),
        (
            ("Setup", "Empty above", "Steps"),
            [
                ("list", "- one\n  - deeper\n- two"),
                ("code", "# no heading\n\nmake"),
                ("code", "a ``` b"),
                ("table", "| a | b |\n| 1 | 2 |"),
            ],
        ),
        (("Setup", "Next"), [("text", " after")]),
        (("Setup", "End"), []),
    ]


def test_heading_ends_those_of_its_level_and_below() -> None:
    text = "# A\n#### B\n## C\nc\n# D\nd\n#no heading\n####### nor this\n"
    assert told(sections_of_markdown(text)) == [
        (("A", "B"), []),
        (("A", "C"), [("text", "c")]),
        (("D",), [("text", "d\n#no heading\n####### nor this")]),
    ]


def test_code_that_is_not_closed_goes_on_to_the_end() -> None:
    assert told(sections_of_markdown("```\nx\n# y\n")) == [((), [("code", "x\n# y")])]


def test_slides_are_named_by_their_numbers() -> None:
    text = "<!-- Slide number: 1 -->\n# Budget\n40\n<!-- Slide number: 2 -->\nmore"
    assert [section.headings for section in sections_of_markdown(text)] == [("slide 1", "Budget"), ("slide 2",)]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("see [the `x` guide](http://a.b/c_(d) 'T') or [this][1]", "see the x guide or this"),
        ("![a ship](ship.png) **bold** and __strong__, *kept*", "a ship bold and strong, *kept*"),
        ("`a **b** [c](d)` and ``x ` y``", "a **b** [c](d) and x ` y"),
        ("one<br>two <a href='x'>link</a> List<String> 1 < 2", "one\ntwo link List<String> 1 < 2"),
        (r"snake\_case 2\*3", "snake_case 2*3"),
        ("a ** b ** c [ ] [x] (y)", "a ** b ** c [ ] [x] (y)"),
    ],
)
def test_marks_that_nobody_reads_go(text: str, read: str) -> None:
    assert unmarked(text) == read


def test_rst_titles_have_the_levels_in_which_they_come() -> None:
    text = "=====\nGuide\n=====\n\nIntro.\n\nSetup\n-----\nRun it.\n\nNot a long title\n---\n\nEnd\n===\nx\n"
    assert told(sections_of_rst(text)) == [
        (("Guide",), [("text", "Intro.")]),
        (("Guide", "Setup"), [("text", "Run it."), ("text", "Not a long title")]),
        (("End",), [("text", "x")]),
    ]


def test_plain_text_has_paragraphs_alone() -> None:
    assert told(sections_of_plain("# a\nb\n\n\n**c**\n")) == [((), [("text", "# a\nb"), ("text", "**c**")])]


def test_pages_are_named_and_their_lines_joined() -> None:
    text = "The  ferry leaves in the morn-\n\ning at 7.\n\n\fTickets\n\n\f\n"
    assert told(sections_of_pages(text)) == [
        (("page 1",), [("text", "The ferry leaves in the morning at 7.")]),
        (("page 2",), [("text", "Tickets")]),
    ]
    assert told(sections_of_pages("alone\f")) == [((), [("text", "alone")])]


REPEATED = [
    "![",
    "[a](",
    "[a][",
    "`a``",
    "<a ",
    "**",
    "<!--",
    "-",
    "- ",
    "#  ",
    " ",
    "a|",
    "|",
    "x\n",
    "x.\n\n",
    "[[](",
]


@pytest.mark.parametrize("text", REPEATED)
def test_what_somebody_repeats_is_taken_apart_in_linear_time(text: str) -> None:
    """Quadratic time would be hours."""
    for before, after in (("", ""), ("", "x"), ("# ", "x"), ("a | b\n", "x")):
        many = before + (text * 100_000)[:100_000] + after
        for sections in (sections_of_markdown(many), sections_of_pages("a-" + many), sections_of_rst(many)):
            assert sum(len(block.text) for section in sections for block in section.blocks) <= len(many) + 2
