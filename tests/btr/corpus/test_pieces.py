"""Texts cut by words alone."""

from hypothesis import given
from hypothesis import strategies as st

from btr.corpus.pieces import cut_text
from btr.words import count_words

# A word of any script, set between any white space.
BLANKS = st.text("\t\n \u3000\u2029", min_size=1, max_size=3)
TEXTS = st.lists(st.tuples(BLANKS, st.text("aé語.'", min_size=1, max_size=4)), max_size=60).map(
    lambda pairs: "".join(blank + word for blank, word in pairs) + "\n"
)


@given(TEXTS, st.integers(1, 12))
def test_corpus_cutting_loses_nothing(text: str, words: int) -> None:
    pieces = cut_text(text, words)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    position = 0
    for piece in pieces:  # each stands in the text as it was, white space included
        position = text.index(piece, position) + len(piece)
        assert piece == piece.strip()
    sizes = [count_words(piece) for piece in pieces]
    assert all(size == words for size in sizes[:-1])
    if len(pieces) > 1:
        assert words * 0.2 <= sizes[-1] < words * 1.2
