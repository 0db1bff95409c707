"""Divide a document into passages: no passage runs over a heading, and what belongs together stays so if it fits."""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from btr.corpus.documents import Document
from btr.corpus.markup import (
    Block,
    Section,
    sections_of_markdown,
    sections_of_pages,
    sections_of_plain,
    sections_of_rst,
)
from btr.corpus.pieces import LONG, SHORT, Passage, cut_text, piece_id
from btr.words import count_words

TITLE = 100  # characters of a title, beside the name of the file
BETWEEN = " > "
DENSE = 6  # characters that count as a word at least: code and tables have few spaces and many tokens

_SECTIONS = {
    "markdown": sections_of_markdown,
    "rst": sections_of_rst,
    "plain": sections_of_plain,
    "pages": sections_of_pages,
}
_SENTENCES = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…]['\")\]])\s+|(?<=[\u3002\uff01\uff1f])")


@dataclass(frozen=True, slots=True)
class Atom:
    """A text that is not cut, and what parts it from the one before it in a passage."""

    text: str
    before: str
    size: int


def divide_document(document: Document, words: int) -> list[Passage]:
    """Divide a document into passages of about `words` words, `<id>:0`, `<id>:1`, ...; of one alone the id is its own.

    The title of each is the name of the file and the headings above it. Short sections beside each other are joined.
    """
    sections = _SECTIONS[document.form](document.text)
    pieces = [
        (titled(document.name, section.headings), text)
        for section in (sections if document.form == "pages" else _joined(sections, words))
        for text in _pack(section.blocks, words)
    ]
    if len(pieces) == 1:
        return [Passage(document.id, *pieces[0])]
    return [Passage(piece_id(document.id, number), *piece) for number, piece in enumerate(pieces)]


def titled(name: str, headings: Iterable[str]) -> str:
    """Return the title of a passage: the name of the file, and as many of the innermost headings as are short."""
    kept: list[str] = []
    for heading in reversed(list(headings)):
        heading = heading if len(heading) <= TITLE else heading[: TITLE - 1].rstrip() + "…"
        if sum(map(len, kept)) + len(heading) > TITLE:
            break
        kept.insert(0, heading)
    return BETWEEN.join([name, *kept])


def is_piece(title: str, passage_id: str) -> bool:
    """Tell by its title whether a passage may be a piece of the document of this id."""
    name = passage_id.rpartition("/")[2]
    return title == name or title.startswith(name + BETWEEN)


def size_of(text: str) -> int:
    """Return how many words a text counts as."""
    return max(count_words(text), len(text) // DENSE)


def _joined(sections: list[Section], words: int) -> Iterator[Section]:
    """Join short sections that follow each other under one heading; their own headings then stand in the text."""
    run: list[Section] = []
    size = 0
    for section in sections:
        own = size_of("\n".join([*section.headings[-1:], *(block.text for block in section.blocks)]))
        short = bool(section.headings) and (own < words * SHORT or not section.blocks)
        if run and (not short or section.headings[:-1] != run[0].headings[:-1] or size + own > words):
            yield _as_one(run)
            run, size = [], 0
        if short:
            run, size = [*run, section], size + own
        else:
            yield section
    if run:
        yield _as_one(run)


def _as_one(run: list[Section]) -> Section:
    if len(run) == 1 and run[0].blocks:
        return run[0]
    blocks = [Block("list", [part.headings[-1], *(line for b in part.blocks for line in b.lines)]) for part in run]
    return Section(run[0].headings[:-1], blocks)


def _pack(blocks: list[Block], words: int) -> list[str]:
    """Return the texts of a section's passages: as many blocks in each as fit."""
    pieces: list[list[Atom]] = []
    size = 0
    for atom in itertools.chain.from_iterable(_atoms(block, words) for block in blocks):
        room = words * LONG if size < words * SHORT else words  # a line alone says little; it stays with what follows
        if pieces and size + atom.size <= room:
            pieces[-1].append(atom)
            size += atom.size
        else:
            pieces.append([atom])
            size = atom.size
    if len(pieces) > 1 and size < words * SHORT and size + _sum(pieces[-2]) <= words * LONG:
        last = pieces.pop()
        pieces[-1] += last
    return [_text(piece) for piece in pieces]


def _sum(piece: list[Atom]) -> int:
    return sum(atom.size for atom in piece)


def _text(piece: list[Atom]) -> str:
    return piece[0].text + "".join(atom.before + atom.text for atom in piece[1:])


def _atoms(block: Block, words: int) -> Iterator[Atom]:
    """Yield a block whole if it fits, else its lines or sentences; a table's parts begin with its first row."""
    size = size_of(block.text)
    if size <= words * LONG:
        yield Atom(block.text, "\n\n", size)
        return
    if block.kind == "text":
        parts, between = [part for part in _SENTENCES.split(block.text) if part and part.strip()], " "
    elif block.kind == "table":
        parts, between = _tables(block.lines, words), "\n\n"
    else:
        parts, between = _whole_items(block), "\n"
    for number, part in enumerate(parts):
        pieces = [part] if size_of(part) <= words * LONG else cut_text(part, words)
        for piece in pieces:
            yield Atom(piece, between if number or piece is not pieces[0] else "\n\n", size_of(piece))


def _whole_items(block: Block) -> list[str]:
    """Return the lines of a list or of code, each with the deeper ones, or the closing ones, that follow it."""
    parts: list[list[str]] = []
    for line in block.lines:
        goes_on = block.kind == "list" and line[:1].isspace()
        if parts and (goes_on or not line.strip()):
            parts[-1].append(line)
        elif line.strip():
            parts.append([line])
    return ["\n".join(part) for part in parts]


def _tables(lines: list[str], words: int) -> list[str]:
    """Divide the rows of a table; each part has the first row, which names the columns, again."""
    header, *rows = lines
    if size_of(header) > words * SHORT * 2:
        return lines
    parts, held = [], [header]
    for row in rows:
        if len(held) > 1 and size_of("\n".join([*held, row])) > words:
            parts.append("\n".join(held))
            held = [header]
        held.append(row)
    return [*parts, "\n".join(held)]
