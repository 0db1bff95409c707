"""Find where a text says an answer: whole words, whatever the case, spacing, dashes, quotes, Unicode form, dates."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise

from btr.words import composed

WORD = re.compile(r"\w+")
ARTICLES = frozenset({"a", "an", "the"})
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
DATE = re.compile(rf"(?:(\d{{1,2}})\s+({MONTHS})|({MONTHS})\s+(\d{{1,2}}))\s*,?\s+(\d{{4}})", re.IGNORECASE)
# characters that one writer puts for another's: apostrophes, dashes, quotation marks
ALIKE = ("'`\u00b4\u2018\u2019", "-\u2010\u2011\u2012\u2013\u2014\u2212", '"\u201c\u201d')
WRAPPED = re.compile(rf"[(\[{ALIKE[0]}{ALIKE[2]}](.*)[)\]{ALIKE[0]}{ALIKE[2]}]", re.DOTALL)


def places(text: str, answer: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of every place in text that reads like the answer, left to right, without overlap.

    Places written in the answer's own case are preferred: if there is one, the others do not count ("US" is not "us").
    """
    words, pattern = compiled(unicodedata.normalize("NFC", answer))
    if not unicodedata.is_normalized("NFC", text):
        whole, origin = composed(text)
        yield from ((origin[start][0], origin[end - 1][1]) for start, end in places(whole, answer))
        return
    if not words or words[0].lower() not in text.lower():
        return
    found = list(pattern.finditer(text))
    same = [match for match in found if WORD.findall(match.group()) == list(words)]
    yield from (match.span() for match in same or found)


def holds(text: str, answers: Iterable[str]) -> bool:
    """Tell whether a text says one of the answers."""
    return any(True for answer in answers for _ in places(text, answer))


@lru_cache(maxsize=100_000)
def compiled(answer: str) -> tuple[tuple[str, ...], re.Pattern[str]]:
    """Return the words that a place has to have, none for an answer without any, and what to look for.

    An article before the answer is left out, as exact match does, unless only short words are left ("The Who").
    """
    bare = answer.strip(" \t\n,;:")
    if wrapped := WRAPPED.fullmatch(bare):
        bare = wrapped[1].strip()
    words = list(WORD.finditer(bare))
    if len(words) > 1 and words[0].group().lower() in ARTICLES and max(len(word.group()) for word in words[1:]) > 3:
        del words[0]
        bare = bare[words[0].start() :]
    forms = "|".join(spelled(form) for form in date_orders(bare))
    acronym = len(words) == 1 and bare.isupper() and len(bare) <= 3
    return tuple(word.group() for word in words), re.compile(forms, 0 if acronym else re.IGNORECASE)


def date_orders(answer: str) -> list[str]:
    """Return a date in both orders, anything else as it is."""
    date = DATE.fullmatch(answer)
    if date is None:
        return [answer]
    day, month = date[1] or date[4], date[2] or date[3]
    return [f"{month} {day}, {date[5]}", f"{day} {month} {date[5]}"]


def spelled(answer: str) -> str:
    """Return the regular expression of an answer's spellings; a mark before or after all its words may be missing."""
    words = list(WORD.finditer(answer))
    if not words:
        return r"(?!)"
    first, last = words[0], words[-1]
    parts = [re.escape(first.group())]
    for before, after in pairwise(words):
        parts += [between(answer[before.end() : after.start()]), re.escape(after.group())]
    if lead := marks(answer[: first.start()]):
        parts.insert(0, rf"(?:{lead}\s*)?")
    if trail := marks(answer[last.end() :]):
        parts.append(rf"(?:\s*{trail})?")
    left = edge(first.group()[0], r"(?<!\w)", r"(?<!\d[.,])")
    right = edge(last.group()[-1], r"(?!\w)", r"(?![.,]\d)")
    return left + "".join(parts) + right


def edge(character: str, word: str, number: str) -> str:
    """Return the condition at an end of an answer: a whole word, a whole number (5 is not in 2.5).

    There is none for scripts that are written without spaces (CJK, from U+2E80).
    """
    if character >= "\u2e80":
        return ""
    return word + number if character.isdigit() else word


def between(marked: str) -> str:
    """Return the regular expression of what may stand between two words: any marks for spaces, marks with spaces."""
    return r"\W{1,3}" if any(character.isspace() for character in marked) else rf"\s*{marks(marked)}\s*"


def marks(marked: str) -> str:
    """Return the regular expression of punctuation as anyone may write it, spaces put in or left out."""
    alike = {character: f"[{re.escape(group)}]" for group in ALIKE for character in group}
    return r"\s*".join(alike.get(one, re.escape(one)) for one in marked if not one.isspace())
