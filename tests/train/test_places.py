"""Where a text says an answer: whole words, other writers' marks, dates, and never a part of a number."""

import random
import re

import pytest

from btr.corpus import Passage
from btr.metrics import holds_answer
from btr.train.places import holds, places


def found(text: str, answer: str) -> list[str]:
    return [text[start:end] for start, end in places(text, answer)]


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Iran, not Tirana: Iran.", "Iran", ["Iran", "Iran"]),
        ("The NILE and the Nile's delta", "nile", ["NILE", "Nile"]),
        ("The NILE and the nile's delta", "nile", ["nile"]),  # as the answer writes it, if anything is
        ("the US told us, and IT knew it", "US", ["US"]),
        ("they told us", "US", []),
        ("It is a usa of old", "USA", []),
        ("New\nYork  City or New York-City", "New York City", ["New\nYork  City", "New York-City"]),
        ("in St. Louis", "St Louis", ["St. Louis"]),
        ("in St Louis", "St. Louis", ["St Louis"]),
        ("the U.S. Army", "U.S.", ["U.S."]),
        ("the U. S. Army, the US Army", "U.S.", ["U. S."]),
        ("Martin Luther King Jr, a man", "Martin Luther King Jr.", ["Martin Luther King Jr"]),
        ("rock–n–roll, rock-n-roll, rock n roll", "rock-n-roll", ["rock–n–roll", "rock-n-roll"]),
        ("O’Brien, O'Brien and O Brien", "O'Brien", ["O’Brien", "O'Brien"]),
        ('He sang "Hey Jude" loud', '"Hey Jude"', ["Hey Jude"]),
        ("He sang “Hey Jude”", '"Hey Jude"', ["Hey Jude"]),
        ("Foo (film) is a film", "Foo (film)", ["Foo (film)"]),
        ("the Nile; Nile", "the Nile", ["Nile", "Nile"]),
        ("The Who who", "The Who", ["The Who"]),
        ("It cost $5 million, or 5 million", "$5 million", ["$5 million", "5 million"]),
        ("It took 50 % , not 50", "50%", ["50 %", "50"]),
        ("C++ and C", "C++", ["C++", "C"]),
        ("in 2.5, 1,5, 5.1 and 15, or 5.", "5", ["5"]),
        ("in 1,000 or 11,000 days", "1,000", ["1,000"]),
        ("(1874–1901)", "1874", ["1874"]),
        ("café, cafe", "café", ["café"]),
        ("İİİ Ankara", "Ankara", ["Ankara"]),  # lower() would make it longer, and all places wrong
        ("東京都は東京", "東京", ["東京", "東京"]),  # written without spaces
        ("by Rene\u0301e, Rene\u0301 in", "Ren\u00e9e", ["Rene\u0301e"]),  # as text from PDFs and macOS comes
        ("by Zoe\u0301 in", "Zo\u00e9", ["Zoe\u0301"]),
        ("by Zo\u00e9 in", "Zoe\u0301", ["Zo\u00e9"]),
        ("by Zoe\u0301 in", "Zoe", []),
        ("\u1112\u1161\u11ab \u1112\u1161", "\ud55c", ["\u1112\u1161\u11ab"]),
        ("a b", " ", []),
        ("a b", "...", []),
        ("", "a", []),
    ],
)
def test_places_are_whole_words_as_anyone_may_write_them(text: str, answer: str, expected: list[str]) -> None:
    assert found(text, answer) == expected
    assert holds(text, ["nothing of this", answer]) == bool(expected)
    assert not holds_answer(text, [answer]) or expected or answer.isupper()  # "US" is not "us"


@pytest.mark.parametrize("answer", ["4 July 1776", "July 4, 1776", "July 4 , 1776", "4  july 1776"])
@pytest.mark.parametrize("text", ["on 4 July 1776.", "on July 4, 1776, and", "on july 4 1776"])
def test_dates_are_found_in_either_order(text: str, answer: str) -> None:
    (date,) = found(text, answer)
    assert date in text and {"4", "july", "1776"} == set(re.findall(r"\w+", date.lower()))


def test_other_dates_are_not_found() -> None:
    text = "on 14 July 1776, on 4 July 17760, on July 4 and in 1776"
    assert not holds(text, ["4 July 1776", "July 4, 1776", "4 June 1776"])


def test_words_of_a_text_are_found_where_they_are(passages: list[Passage]) -> None:
    rng = random.Random(0)
    for passage in passages:
        words = list(re.finditer(r"\d[\d.,]*\w+|\w+", passage.text))
        for _ in range(5):
            at = rng.randrange(len(words))
            last = min(at + rng.randrange(4), len(words) - 1)
            start, end = words[at].start(), words[last].end()
            if words[at].group().lower() not in ("a", "an", "the"):
                assert (start, end) in list(places(passage.text, passage.text[start:end]))
