"""The words of a text: case, accents, encodings, letters alone, scripts without spaces."""

import unicodedata

import pytest

from btr.words import LETTER_A, composed, count_words, end_of_letter, sentences_of, spans_of, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What is vitamin C?", ["what", "is", "vitamin", "c"]),
        ("Ada's mule, don\u2019t; 1,712 X-rays", ["ada", "mule", "don", "1", "712", "x", "rays"]),
        ("\u00c9LAN na\u00efve Stra\u00dfe", ["elan", "naive", "strasse"]),
        ("M\u00fcller \u0130zmir \u0419\u043e\u0434", ["muller", "izmir", "\u0438\u043e\u0434"]),
        ("\ufb01ne \uff21\uff22 Haus\u00adhalt", ["fine", "ab", "haushalt"]),
        ("\u6cd5\u56fd\u7684\u9996\u90fd\uff1f", ["\u6cd5\u56fd", "\u56fd\u7684", "\u7684\u9996", "\u9996\u90fd"]),
        ("\u8336 tea\u8336", ["\u8336", "tea", "\u8336"]),
        ("\u304c\u3059 \uff76\uff9e\uff7d", ["\u304c\u3059", "\u30ac\u30b9"]),  # voiced marks tell words apart
        ("\u0e01\u0e34\u0e19", ["\u0e01\u0e34", "\u0e34\u0e19"]),
        ("\ud55c\uad6d\uc5b4 \ub2e8\uc5b4", ["\ud55c\uad6d\uc5b4", "\ub2e8\uc5b4"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", ["\u0939\u093f\u0928\u094d\u0926\u0940"]),
        ("? \ud800", []),
        ("", []),
    ],
)  # fmt: skip
def test_words_are_the_same_however_they_are_encoded(text: str, words: list[str]) -> None:
    assert split_words(text) == words
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert split_words(unicodedata.normalize(form, text)) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("What is vitamin A?", ["what", "is", "vitamin", LETTER_A]),
        (
            "vitamin-A and hepatitis A, and a cat",
            ["vitamin", LETTER_A, "and", "hepatitis", LETTER_A, "and", "a", "cat"],
        ),
        ("A cat. A dog! A hen: A fox", ["a", "cat", "a", "dog", "a", "hen", "a", "fox"]),
        ("Salt\n\nA cat", ["salt", "a", "cat"]),
        ("Caf\u00e9 A, plan B", ["cafe", LETTER_A, "plan", "b"]),
        ("the A's and AB", ["the", "a", "and", "ab"]),
    ],
)
def test_letter_is_no_article(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_words_to_cut_by_are_characters_where_there_are_no_spaces() -> None:
    text = "The caf\u00e9 \u9996\u90fd\u3002 \u0e01\u0e34\u0e19 "
    assert count_words(text) == 6
    pieces = ["The", "caf\u00e9", "\u9996", "\u90fd\u3002", "\u0e01\u0e34", "\u0e19"]
    assert count_words("plain words  here\n") == 3
    assert len(spans_of(text, 100)) == 1
    assert [text[start:end] for start, end in spans_of(text, 1)][:4] == pieces[:4]
    assert next(text[start:end] for start, end in spans_of(text, 4)) == "The caf\u00e9 \u9996\u90fd\u3002"


def test_composed_letters_know_where_they_come_from() -> None:
    text = "Rene\u0301e \u1112\u1161\u11ab q\u0323\u0307"
    whole, origin = composed(text)
    assert whole == unicodedata.normalize("NFC", text) == "Ren\u00e9e \ud55c q\u0323\u0307"
    assert [text[start:end] for start, end in origin[3:7]] == ["e\u0301", "e", " ", "\u1112\u1161\u11ab"]
    assert composed("") == ("", [])


def test_letter_ends_after_its_marks() -> None:
    text = "e\u0323\u0301a \u0939\u093f"
    assert [end_of_letter(text, end) for end in (0, 1, 2, 3, 4, 6, 7)] == [0, 3, 3, 3, 4, 7, 7]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("J. Smith was born in Rome. He died.", ["J. Smith was born in Rome.", "He died."]),
        ('He said "No." Then (as told.) it fell.', ['He said "No."', "Then (as told.) it fell."]),
        ("See e.g. this one! Or that?", ["See e.g. this one!", "Or that?"]),
        ("One\nline\n \n and another ", ["One\nline", "and another"]),
        ("富士山は高い。東京は大きい。", ["富士山は高い。", "東京は大きい。"]),
        (" \n ", []),
        ("", []),
    ],
)
def test_sentences_are_those_of_the_punctuation(text: str, sentences: list[str]) -> None:
    assert [text[start:end] for start, end in sentences_of(text)] == sentences
