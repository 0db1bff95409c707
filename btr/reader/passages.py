"""What a reader takes for a passage: anything with an id, a title and a text, or what was kept of such."""

from collections.abc import Sequence
from typing import Protocol

from btr.storage.encoded import Encoded


class PassageText(Protocol):
    """What the reader needs of a passage."""

    @property
    def id(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...


def titled(passages: "Sequence[PassageText] | Encoded") -> list[tuple[str, str]]:
    """Return the (title, text) pairs of passages, encoded or not."""
    if isinstance(passages, Encoded):
        return list(zip(passages.titles, passages.texts, strict=True))
    return [(passage.title, passage.text) for passage in passages]
