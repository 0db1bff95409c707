"""Find the answer in the text of a passage, at exact offsets."""

import re
from unicodedata import combining, normalize


def find_answer(answer: str, text: str) -> list[tuple[int, int]]:
    """Return [start, end) of every occurrence of `answer` in `text`, in code points of `text`.

    Ignores case, compatibility forms of a character, a leading article, and what stands between words (spaces, line
    breaks, punctuation).  Matches whole words only.
    """
    words = re.findall(r"[^\W_]+|[\W_]+", _fold(answer)[0].strip())
    while words and not words[0][0].isalnum():
        words.pop(0)
    while words and not words[-1][0].isalnum():
        words.pop()
    if len(words) > 2 and words[0] in ("a", "an", "the") and words[1].isspace():
        words = words[2:]
    if not words:
        return []
    folded, origin = _fold(text)
    pattern = rf"(?<![^\W_]){''.join(map(_pattern, words, [*words[1:], ''], ['', *words]))}(?![^\W_])"
    return [(origin[m.start()][0], origin[m.end() - 1][1]) for m in re.finditer(pattern, folded)]


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
        while end < len(text) and combining(text[end]):
            end += 1
        made = normalize("NFKC", normalize("NFKC", text[start:end]).casefold())
        folded.extend(made)
        origin.extend([(start, end)] * len(made))
        start = end
    return "".join(folded), origin
