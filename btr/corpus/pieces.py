"""Passages, and how a long text is cut into some: by words alone."""

from dataclasses import dataclass

from btr.words import count_words, spans_of

LONG = 1.5  # a text of more than this many passages' words is cut
SHORT = 0.2  # a last piece of fewer than this many passages' words stays with the piece before it


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage to read: its id, unique in the corpus, and its title, which may be empty."""

    id: str
    title: str
    text: str


def cut_text(text: str, words: int) -> list[str]:
    """Cut a text into pieces of `words` words, dropping the white space at the cuts and the ends and nothing else.

    A last piece of fewer than a fifth of `words` (3 words read alone mean nothing) stays with the piece before it, so
    that every piece has between `words` / 5 and 1.2 * `words` words, unless the whole text is shorter.

    Raises:
        ValueError: `words` is not positive.
    """
    if words < 1:
        raise ValueError(f"words is {words}; a passage needs at least 1")
    spans = spans_of(text, words)
    if len(spans) > 1 and count_words(text[slice(*spans[-1])]) < words * SHORT:
        spans[-2:] = [(spans[-2][0], spans[-1][1])]
    return [text[start:end] for start, end in spans]


def divide(passage: Passage, words: int) -> list[Passage]:
    """Cut a passage of more than 1.5 * `words` words into `<id>:0`, `<id>:1`, ...; return others as they are."""
    if count_words(passage.text) <= words * LONG:
        return [passage]
    pieces = enumerate(cut_text(passage.text, words))
    return [Passage(piece_id(passage.id, number), passage.title, piece) for number, piece in pieces]


def piece_id(passage_id: str, number: int) -> str:
    """Name a piece of a passage that was cut."""
    return f"{passage_id}:{number}"
