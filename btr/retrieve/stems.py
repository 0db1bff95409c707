"""What BM25 compares of a text: its words (`btr.words`), less English stop words, as the stems of their language.

A stem is Snowball's, by PyStemmer: "discovered", "discovers" and "discovering" are one. An index records its language,
and questions are stemmed as its passages were; the language NONE leaves words as they are. A language that is not given
is guessed from the first passages: English, or NONE.
"""

import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import Stemmer

from btr.corpus import Passage
from btr.errors import InputError
from btr.words import fold, split_words

NONE = "none"
ENGLISH = "english"
UNACCENTED = (NONE, ENGLISH)  # accents go before stemming; endings of other languages are known by theirs
LANGUAGES: tuple[str, ...] = (NONE, *sorted(Stemmer.algorithms()))
GUESSED = 1000  # passages that a language is guessed from
LEAST = 0.15  # share of English stop words, of which prose has 0.4, from which a text may be English
_OTHERS = "de het een van der die das und den le la les des et en un une el los las y que il di che e da og det som ett"
OTHERS = frozenset(_OTHERS.split())  # common words of languages that share some of the English ones, without accents


def bm25s() -> Any:
    """Import bm25s without waking jax, which bm25s runs on import where it is installed: jax takes the accelerator."""
    hide = "bm25s" not in sys.modules and "jax" not in sys.modules
    if hide:
        sys.modules["jax"] = None  # type: ignore[assignment]  # Python's way to make an import fail
    try:
        import bm25s
    finally:
        if hide:
            del sys.modules["jax"]
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG
    return bm25s


def text_of(passage: Passage) -> str:
    """Return what is indexed of a passage."""
    return f"{passage.title}\n\n{passage.text}"  # a text begins a sentence


def check_language(language: str) -> None:
    """Refuse a language without stemmer; InputError names those there are."""
    if language not in LANGUAGES:
        raise InputError(f"language is {language!r}; use one of {', '.join(LANGUAGES)}")


def evidence(passages: Sequence[Passage]) -> Counter[str]:
    """Count what tells the language of passages: their words, common ones of English, and of other languages."""
    words = [word for passage in passages for word in split_words(text_of(passage))]
    known = {"english": dropped(NONE), "others": OTHERS}
    return Counter(words=len(words), **{name: sum(word in common for word in words) for name, common in known.items()})


def guess(found: Counter[str]) -> str:
    """Return the language of a corpus of whose first passages this is the evidence."""
    english = found["english"]
    return ENGLISH if english > 2 * found["others"] and english >= LEAST * found["words"] else NONE


@cache
def dropped(language: str) -> frozenset[str]:
    """Return the words that are not compared."""
    return frozenset(bm25s().tokenization.STOPWORDS_EN) if language in UNACCENTED else frozenset()


def splitter(language: str) -> Callable[[str], list[str]]:
    """Return what splits a text into the words that are stemmed."""
    return partial(split_words, accents=language not in UNACCENTED)


def stems_of(text: str, language: str) -> list[str]:
    """Return what is compared of a text, repeats included."""
    return stem([word for word in splitter(language)(text) if word not in dropped(language)], language)


def stem(words: Sequence[str], language: str) -> list[str]:
    """Return the stem of each word, as it is compared."""
    return (
        list(words) if language == NONE else [fold(word) for word in Stemmer.Stemmer(language).stemWords(list(words))]
    )


class Tokens:
    """Passages as numbers of their words; stemmed at the end, each word once and not each time that it occurs."""

    def __init__(self, language: str | None) -> None:
        """Take passages of this language; None: of ENGLISH or of NONE, whose words are told alike."""
        given = language or NONE
        tokens = bm25s().tokenization
        self._tokenizer = tokens.Tokenizer(lower=False, splitter=splitter(given), stopwords=list(dropped(given)))
        self._ids: list[list[int]] = []  # of the words of each passage

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self._ids)

    def add(self, passages: Sequence[Passage]) -> None:
        """Add the next passages."""
        texts = [text_of(passage) for passage in passages]
        self._ids += self._tokenizer.tokenize(texts, update_vocab=True, show_progress=False)

    def stemmed(self, language: str) -> tuple[list[list[int]], dict[str, int]]:
        """Return the numbers of the stems of each passage, and the number of each stem."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab_dict()
        if language == NONE:
            return self._ids, vocabulary
        stems = stem(list(vocabulary), language)
        numbers = {found: number for number, found in enumerate(dict.fromkeys(stems))}
        of = {word: numbers[found] for word, found in zip(vocabulary.values(), stems, strict=True)}
        return [[of[word] for word in row] for row in self._ids], numbers
