"""Find the answer in the text of a passage, at exact offsets."""

import re
from itertools import islice
from unicodedata import combining, normalize

MOST = 100  # occurrences in a passage
MARKS = 30  # combining marks that are normalised together, as in Unicode's stream-safe format: more cost their square


def find_answer(answer: str, text: str, read: int = 1 << 14) -> list[tuple[int, int]]:
    """Return [start, end) of the first occurrences of `answer` in `text`, in code points of `text`, at most `MOST`.

    No more than `read` characters of the text are looked at, and no answer that is longer is looked for.

    Ignores case, compatibility forms of a character, a leading article, and what stands between words (spaces, line
    breaks, punctuation).  Matches whole words only.
    """
    if len(answer) > read:
        return []
    words = re.findall(r"[^\W_]+|[\W_]+", _fold(answer)[0].strip())
    while words and not words[0][0].isalnum():
        words.pop(0)
    while words and not words[-1][0].isalnum():
        words.pop()
    if len(words) > 2 and words[0] in ("a", "an", "the") and words[1].isspace():
        words = words[2:]
    if not words:
        return []
    folded, origin = _fold(text[:read])
    pattern = rf"(?<![^\W_]){''.join(map(_pattern, words, [*words[1:], ''], ['', *words]))}(?![^\W_])"
    return [(origin[m.start()][0], origin[m.end() - 1][1]) for m in islice(re.finditer(pattern, folded), MOST)]


def _pattern(word: str, after: str, before: str) -> str:
    """Return what may stand for `word`; a gap of mere punctuation may be missing, unless it parts two numbers."""
    if word[0].isalnum():
        return re.escape(word)
    numbers = before[-1:].isdigit() and after[:1].isdigit()
    return r"[\W_]+" if numbers or any(map(str.isspace, word)) else r"[\W_]*"


def _fold(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return `text` folded for comparison and, per folded character, [start, end) of what it came from in `text`."""
    folded: list[str] = []
    origin: list[tuple[int, int]] = []
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and end - start <= MARKS and combining(text[end]):
            end += 1
        made = normalize("NFKC", normalize("NFKC", text[start:end]).casefold())
        folded.extend(made)
        origin.extend([(start, end)] * len(made))
        start = end
    return "".join(folded), origin
