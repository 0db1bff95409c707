"""Take a document apart: sections under their headings, and in them blocks that belong together."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["text", "list", "table", "code"]

LINE = 1000  # characters of a line that can be a heading
MOST = 1 << 17  # characters of a block that is cleaned of marks; more are no text that somebody wrote

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*")
_RST = re.compile(r"([=\-~^\"'`*+#:._])\1{2,}[ \t]*")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s+\S")
_RULE = re.compile(r"\s*(?:[-*_]\s*){3,}")
_NO_WORD = re.compile(r"[\s|:-]+")  # a row of a table without one
_REFERENCE = re.compile(r" {0,3}\[[^\]]+\]:\s+\S+.*")
_SLIDE = re.compile(r"\s*<!--\s*Slide number:\s*(\d+)\s*-->\s*")
_TAGS = "a|abbr|b|br|center|details|div|em|figcaption|figure|font|h[1-6]|hr|i|img|kbd|li|ol|p|picture|small|source|span"
_MARKS = re.compile(
    r"(?<!`)(?P<ticks>`+)(?!`)(?P<code>.+?)(?<!`)(?P=ticks)(?!`)"
    r"|!\[(?P<alt>[^\[\]]*)\]\([^()]*(?:\([^()]*\)[^()]*)?\)"
    r"|\[(?P<link>[^\[\]]+)\](?:\([^()]*(?:\([^()]*\)[^()]*)?\)|\[[^\]]*\])"
    r"|(?P<strong>\*\*|__)(?=\S)(?P<bold>[^*_\n]+)(?P=strong)"
    rf"|</?(?:{_TAGS}|strong|sub|summary|sup|table|tbody|td|th|thead|tr|u|ul)(?:\s[^<>]*)?/?>"
    r"|\\(?P<escaped>[\\`*_{}\[\]()#+.!|<>~-])"
)


@dataclass(slots=True)
class Block:
    """Lines that belong together."""

    kind: Kind
    lines: list[str]

    @property
    def text(self) -> str:
        """Return the lines as they stand in a passage."""
        return "\n".join(self.lines)


@dataclass(slots=True)
class Section:
    """What stands under a heading, before the next one: the headings above it, outermost first, its own last."""

    headings: tuple[str, ...]
    blocks: list[Block] = field(default_factory=list)


def unmarked(text: str) -> str:
    """Return Markdown as it is read: links by their words, without marks for bold and code, tags and addresses."""
    return text if len(text) > MOST else _MARKS.sub(_unmark, text)


def _unmark(found: re.Match[str]) -> str:
    if (code := found["code"]) is not None:
        return code.strip()
    if (inner := found["link"] or found["bold"] or found["alt"]) is not None:
        return unmarked(inner)
    return found["escaped"] or ("\n" if found[0].startswith("<br") else "")


def sections_of_markdown(text: str) -> list[Section]:
    """Take Markdown apart: front matter and comments go, headings are told as CommonMark does."""
    parser = _Parser()
    lines = iter(_without_front_matter(text))
    comment = False
    for line in lines:
        if comment or "<!--" in line:
            if (slide := _SLIDE.fullmatch(line)) and not comment:
                parser.heading(0, f"slide {slide[1]}")
                continue
            line, comment = _strip_comment(line, comment)
            if not line.strip():
                continue
        if fence := _FENCE.match(line):
            parser.code(_fenced(lines, fence[1]))
        elif len(line) < LINE and (found := _HEADING.fullmatch(line)) is not None:
            parser.heading(len(found[1]), unmarked(found[2] or ""))
        elif (under := _UNDERLINE.fullmatch(line)) and parser.titles_above():
            parser.underlined(1 if under[1][0] == "=" else 2)
        elif not _RULE.fullmatch(line) and not _REFERENCE.fullmatch(line):
            parser.line(line)
        else:
            parser.end()
    return parser.finished()


def _without_front_matter(text: str) -> list[str]:
    lines = text.splitlines()
    if lines and lines[0].rstrip() == "---":
        end = next((n for n, line in enumerate(lines[1:200], 1) if line.rstrip() in ("---", "...")), None)
        return lines if end is None else lines[end + 1 :]
    return lines


def _strip_comment(line: str, inside: bool) -> tuple[str, bool]:
    """Take comments out of a line; returns what is left, and whether one goes on."""
    if inside:
        _, ended, line = line.partition("-->")
        if not ended:
            return "", True
    while (start := line.find("<!--")) >= 0:
        if (end := line.find("-->", start + 4)) < 0:
            return line[:start], True
        line = line[:start] + line[end + 3 :]
    return line, False


def _fenced(lines: Iterator[str], fence: str) -> list[str]:
    """Take lines until the fence is closed, or the end."""
    found = []
    for line in lines:
        mark = line.strip()
        if mark[:1] == fence[0] and len(mark) >= len(fence) and not mark.strip(fence[0]):
            break
        found.append(line.rstrip())
    return found


def _is_ruler(below: list[str]) -> bool:
    """Tell whether the line below the first one is what makes a table of them."""
    return bool(below) and "-" in below[0] and _NO_WORD.fullmatch(below[0]) is not None


def sections_of_rst(text: str) -> list[Section]:
    """Take reStructuredText apart by its underlined titles, whose levels are in the order that they come."""
    parser, styles = _Parser(marks=False), list[str]()
    for line in text.splitlines():
        if not _RST.fullmatch(line):
            parser.line(line)
        elif parser.titles_above(len(line.rstrip())):
            if line[0] not in styles:
                styles.append(line[0])
            parser.underlined(styles.index(line[0]) + 1)
        else:
            parser.end()
    return parser.finished()


def sections_of_plain(text: str) -> list[Section]:
    """Take plain text apart by its blank lines."""
    parser = _Parser(marks=False)
    for line in text.splitlines():
        parser.line(line)
    return parser.finished()


def sections_of_pages(text: str) -> list[Section]:
    """Take the text of a PDF apart by pages; its lines are how it was set, so they are joined."""
    pages = text.strip("\f").split("\f")
    found = []
    for number, page in enumerate(pages, 1):
        words = re.sub(r"(?<=[a-z])-[ \t]{0,9}\n\s{0,9}(?=[a-z])", "", page).split()
        if words:
            found.append(Section((f"page {number}",) if len(pages) > 1 else (), [Block("text", [" ".join(words)])]))
    return found


class _Parser:
    """Collect lines into blocks, and blocks into sections."""

    def __init__(self, marks: bool = True) -> None:
        self.marks = marks
        self.stack: list[tuple[int, str]] = []
        self.sections = [Section(())]
        self.held: list[str] = []

    def line(self, line: str) -> None:
        """Take a line of text; a blank one ends a block."""
        if line.strip():
            self.held.append(line.rstrip())
        else:
            self.end()

    def code(self, lines: list[str]) -> None:
        """Take a block of code."""
        self.end()
        if any(map(str.strip, lines)):
            self.sections[-1].blocks.append(Block("code", lines))

    def titles_above(self, width: int | None = None) -> bool:
        """Tell whether what was held may be the title that a line of `width` characters underlines."""
        if len(self.held) != 1 or _ITEM.match(self.held[0]) or self.held[0].lstrip()[:1] in "|>":
            return False
        return width is None or width >= len(self.held[0].strip())

    def underlined(self, level: int) -> None:
        """Make a heading of what was held."""
        title = self.held.pop().strip()
        self.heading(level, unmarked(title) if self.marks else title)

    def heading(self, level: int, title: str) -> None:
        """Begin a section."""
        self.end()
        self.stack = [(above, name) for above, name in self.stack if above < level] + [(level, title.strip())]
        self.sections.append(Section(tuple(name for _, name in self.stack if name)))

    def end(self) -> None:
        """End a block."""
        lines, self.held = self.held, []
        if not lines:
            return
        kind: Kind = "text"
        if lines[0].lstrip().startswith("|") or ("|" in lines[0] and _is_ruler(lines[1:2])):
            kind = "table"
            lines = [line for line in lines if "|" not in line or not _NO_WORD.fullmatch(line)]
        elif _ITEM.match(lines[0]):
            kind = "list"
        if self.marks:
            lines = [line.rstrip() for line in unmarked("\n".join(lines)).split("\n") if line.strip()]
        if lines:
            self.sections[-1].blocks.append(Block(kind, lines))

    def finished(self) -> list[Section]:
        """Return what was collected, but headings that only stand above others, and nothing before the first one."""
        self.end()
        found = []
        for section, after in zip(self.sections, [*self.sections[1:], None], strict=True):
            above = after is not None and after.headings[: len(section.headings)] == section.headings
            if section.blocks or (section.headings and not above):
                found.append(section)
        return found
