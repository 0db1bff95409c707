"""Where an answer stands in a passage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr.reader import highlight
from btr.reader.highlight import MARKS, MOST, find_answer


@pytest.mark.parametrize(
    ("answer", "text", "found"),
    [
        ("Ada Berg", "ada  BERG, Ada\nBerg.", ["ada  BERG", "Ada\nBerg"]),
        ("the lighthouse", "A lighthouse. Lighthouses?", ["lighthouse"]),
        ("U.S.", "the US, the U.S. and us; bus", ["US", "U.S", "us"]),
        ("twenty-one", "Twenty one; twentyone", ["Twenty one", "twentyone"]),
        ("3.5", "35, 3.5, 13.5 and 3.55", ["3.5"]),
        ("10,000", "of 10,000 and 110,000", ["10,000"]),
        ("new york", "newyork", []),
        ("café", "Cafe\u0301 CAFÉ cafe", ["Cafe\u0301", "CAFÉ"]),
        ("strasse", "🚢 STRAßE.", ["STRAßE"]),
        ("½ cup", "1\u20442 cup, ½ cup", ["1\u20442 cup", "½ cup"]),
        ("a.*b", "axxb a.*b", ["a.*b"]),
        ("a_b", "a_b, a b", ["a_b", "a b"]),
        ("the", "the end", ["the"]),
        ("?!", "what?!", []),
        ("", "text", []),
        ("x", "", []),
    ],
)
def test_answer_is_found_as_a_reader_would(answer: str, text: str, found: list[str]) -> None:
    assert [text[start:end] for start, end in find_answer(answer, text)] == found


WORD = st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=6)


@given(st.lists(WORD, min_size=1, max_size=3), st.text(max_size=20), st.text(max_size=20))
def test_answer_put_into_a_text_is_found_there(words: list[str], before: str, after: str) -> None:
    answer = " ".join(words)
    text = f"{before} . {answer} . {after}"
    start = len(before) + 3
    spans = find_answer(answer, text)
    assert all(0 <= a < b <= len(text) for a, b in spans)
    assert any(a <= start + len(answer) and b > start for a, b in spans)


def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def normalize(form: str, text: str) -> str:
        lengths.append(len(text))
        return text

    monkeypatch.setattr(highlight, "normalize", normalize)
    assert find_answer("x", "x" + "\u0301\u0316" * 50_000, 1000) != []
    assert max(lengths) == MARKS + 1 and sum(lengths) <= 2 * 1001
    assert find_answer("y" * 1001, "y" * 2000, 1000) == []
    assert find_answer("y", " " * 1000 + "y", 1000) == [] != find_answer("y", " " * 999 + "y", 1000)


def test_number_of_occurrences_is_bounded() -> None:
    assert find_answer("a", "a " * 1000) == [(2 * i, 2 * i + 1) for i in range(MOST)]
