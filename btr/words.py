"""Tell the words of a text, in any script: those that BM25 looks for, and those that passages are cut by.

Han, kana, Thai, Lao, Khmer and Myanmar are written without spaces between words. BM25 takes their characters two by two
(as Lucene's CJKBigramFilter does for the first two), so that what a question and a passage share is found without a
dictionary; where passages are cut, each of their characters counts as a word.
"""

import itertools
import re
import unicodedata

UNSPACED = (  # ranges of a character class
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ebd\u0ec0-\u0ece\u0edc-\u0edf"  # Thai, Lao
    "\u1000-\u103f\u1050-\u108f\u109a-\u109d\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa76\uaa7a-\uaa7f"  # Myanmar
    "\u1780-\u17d3\u17d7\u17dc\u17dd"  # Khmer
    "\u3005-\u3007\u3041-\u3096\u3099-\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff"  # Han, kana
)
ACCENTS = (  # marks over and under letters, of Latin, Greek, Cyrillic, Hebrew, Arabic, and what is not seen in words
    "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8"
    "\u06ea-\u06ed\u00ad\u200c\u200d\u2060\ufeff"
)
# vowel signs and the like, which are letters of words though `\w` leaves them out
MARKS = "".join(chr(point) for point in range(0x0900, 0xABFF) if unicodedata.category(chr(point))[0] == "M")

WIDEST = 64  # of a token, white space before it included; of a longer text with longer ones the end is not read

_accents, _unspaced = re.compile(f"[{ACCENTS}]+"), re.compile(f"[{UNSPACED}]+")
_word = re.compile(rf"[\w{MARKS}]{{2,}}|(?<!\w['’])\w")  # the s of "Ada's" and the t of "don't" are no words
_letter = re.compile("(?s).[\u1160-\u11ff]*")  # the vowel and the end of a Korean syllable are no marks
_UNIT = rf"(?:[{UNSPACED}][^\w\s]*|[^\s{UNSPACED}]+)"  # marks and punctuation stay with the character before them
_units = re.compile(_UNIT)
# after a full stop and what closes with it, but not that of an initial ("J. Smith"), before what can begin a sentence;
# after those of Han and kana (full width) and of Hindi; at a blank line
_ends = re.compile(
    r"(?<=[.!?…])(?<!\b[A-Z]\.)[\"'”’»)\]]*\s+(?![a-z])|(?<=[\u3002\uff01\uff1f\u0964])[”’」』)]*\s*|\s*\n\s*\n\s*"
)
LETTER_A = "\u1d00"  # a small capital: no text has it
_letter_a = re.compile(r"(?<=[^\s.!?:;][\s-])A(?![\w'’])")


def split_words(text: str, *, accents: bool = False) -> list[str]:
    """Return the words of a text as they are compared: whatever their case, accents and way of encoding.

    Compatibility forms are one (NFKC); a run of characters of scripts without spaces becomes its pairs of neighbours.
    The letter A, as in "vitamin A", is the word LETTER_A: the article, a stop word, stands so where a sentence begins.

    accents: leave those that letters have, in one way of encoding; `fold` takes them off later.
    """
    text = _letter_a.sub(LETTER_A, text)
    if text.isascii():
        return _word.findall(text.lower())
    letters = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    letters = _accents.sub("", letters) if accents else fold(letters)  # of marks that no letter takes in, in any case
    return _word.findall(_unspaced.sub(_pairs, letters))


def fold(word: str) -> str:
    """Take the accents off the letters of a word."""
    if word.isascii():
        return word
    return unicodedata.normalize("NFKC", _accents.sub("", unicodedata.normalize("NFD", word)))


def _pairs(run: re.Match[str]) -> str:
    characters = run.group()
    pairs = [characters[place : place + 2] for place in range(len(characters) - 1)]
    return f" {' '.join(pairs or characters)} "


def count_words(text: str) -> int:
    """Count runs between white space, and each character of scripts without spaces."""
    if text.isascii() or not _unspaced.search(text):
        return len(text.split())
    return sum(1 for _ in _units.finditer(text))


def spans_of(text: str, words: int) -> list[tuple[int, int]]:
    """Return (start, end) of every `words` words as they are counted, without the white space around them."""
    return [match.span() for match in re.finditer(rf"{_UNIT}(?:\s*{_UNIT}){{0,{words - 1}}}", text)]


def sentences_of(text: str) -> list[tuple[int, int]]:
    """Return (start, end) of every sentence, as its punctuation tells, without the white space around it."""
    bounds = [0, *(match.end() for match in _ends.finditer(text)), len(text)]
    parts = [(start, end, text[start:end]) for start, end in itertools.pairwise(bounds)]
    return [
        (start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip()))
        for start, end, part in parts
        if part.strip()
    ]


def readable(text: str, tokens: int) -> str:
    """Return the words of a text that so many tokens can be made of: no more than WIDEST a token are looked at."""
    most = WIDEST * tokens
    return text if len(text) <= most else "".join(text[:most].rsplit(None, 1)[:1])


def end_of_letter(text: str, end: int) -> int:
    """Return where the letter ends that `end` stands in or after: marks (accents, vowel signs) belong to it."""
    while 0 < end < len(text) and unicodedata.category(text[end])[0] == "M":
        end += 1
    return end


def composed(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return a text in NFC and, for each of its characters, [start, end) of what it came from."""
    made: list[str] = []
    origin: list[tuple[int, int]] = []
    start = 0
    while letter := _letter.match(text, start):
        end = end_of_letter(text, letter.end())
        characters = unicodedata.normalize("NFC", text[start:end])
        made.append(characters)
        origin += [(start, end)] * len(characters)
        start = end
    return "".join(made), origin
