"""Stems: what they make one, which language an index has, and that questions are stemmed as its passages were."""

import json
from pathlib import Path

import pytest

from btr.corpus import Passage
from btr.errors import InputError
from btr.retrieve import bm25
from btr.retrieve.bm25 import BM25, BM25Writer
from btr.retrieve.stems import ENGLISH, NONE, evidence, guess, stems_of

ENGLISH_TEXTS = [
    "In 1895 the rays were discovered by a physicist at the university.",
    "Vitamin A is needed by the eyes, and carrots hold a lot of it.",
    "Vitamin C is found in fruit; it is an acid that the body cannot make.",
    "The churches of the old town were built of stone.",
]
GERMAN_TEXTS = ["Die Häuser stehen am Fluss.", "Das Haus ist alt und war ein Kloster.", "Er lief durch die Stadt."]


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk."""
    monkeypatch.setattr(bm25, "sync", lambda path: None)


def passages(texts: list[str]) -> list[Passage]:
    return [Passage(str(number), "", text) for number, text in enumerate(texts)]


def build(path: Path, texts: list[str], language: str | None = None, shard_size: int = 1000) -> Path:
    writer = BM25Writer.create_or_resume(path, shard_size=shard_size, language=language)
    writer.append(passages(texts))
    writer.finish()
    return path


def found(index: BM25, question: str) -> list[int]:
    return [int(ordinal) for ordinal in index.search([question], 9)[0][0]]


def test_english_is_stemmed_unless_told_otherwise(tmp_path: Path) -> None:
    stemmed, plain = build(tmp_path / "a", ENGLISH_TEXTS), build(tmp_path / "b", ENGLISH_TEXTS, NONE)
    assert [json.loads((path / "index.json").read_text())["language"] for path in (stemmed, plain)] == [ENGLISH, NONE]
    assert found(BM25.open(stemmed), "Who discovers a ray?") == [0]
    assert found(BM25.open(plain), "Who discovers a ray?") == []
    assert found(BM25.open(stemmed), "CHURCH building") == [3]


def test_one_letter_is_found_among_stems(tmp_path: Path) -> None:
    index = BM25.open(build(tmp_path / "index", ENGLISH_TEXTS))
    assert found(index, "What is vitamin C?") == [2, 1]
    assert found(index, "What are vitamins A?") == [1, 2]
    assert found(index, "a") == []


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (ENGLISH_TEXTS, ENGLISH),
        (GERMAN_TEXTS, NONE),
        (["Le chat est sur la table de la cuisine et il dort."], NONE),
        (["De hond is in het huis van een vriend, of op straat."], NONE),
        (["Katten er i huset og sover for det meste om dagen."], NONE),
        (["Кошка спит в доме."], NONE),
        (["red green blue", "12 14 17"], NONE),
        ([""], NONE),
        ([], NONE),
    ],
)
def test_language_is_guessed(texts: list[str], language: str) -> None:
    assert guess(evidence(passages(texts))) == language


@pytest.mark.parametrize(
    ("language", "words", "stems"),
    [
        ("english", "discovered discovering Discovers", ["discov"] * 3),
        ("english", "Resumes résumés", ["resum"] * 2),  # accents go first
        ("german", "Häuser Haus", ["haus"] * 2),
        ("russian", "красивый красивая", ["красив"] * 2),  # the ending is known by its short i
        ("none", "Häuser the Haus", ["hauser", "haus"]),
        ("german", "an was", ["an", "was"]),  # no stop words but English ones, in English
        ("english", "東京都 cats", ["東京", "京都", "cat"]),
    ],
)
def test_stems(language: str, words: str, stems: list[str]) -> None:
    assert stems_of(words, language) == stems


def test_given_language_is_that_of_questions(tmp_path: Path) -> None:
    index = BM25.open(build(tmp_path / "index", GERMAN_TEXTS, "german"))
    assert index.language == "german"
    assert sorted(found(index, "Haus")) == [0, 1]
    with pytest.raises(InputError, match=r"language is 'klingon'; use one of none, arabic, .*english"):
        BM25Writer.create_or_resume(tmp_path / "other", language="klingon")


def test_language_is_kept_when_a_run_goes_on(tmp_path: Path) -> None:
    # What follows the first shard does not look English, and is stemmed as the first was.
    texts = [*ENGLISH_TEXTS, "discovers rays", "churches", "vitamins"]
    whole = build(tmp_path / "whole", texts, shard_size=4)
    BM25Writer.create_or_resume(tmp_path / "index", shard_size=4).append(passages(texts)[:5])
    writer = BM25Writer.create_or_resume(tmp_path / "index", shard_size=4)
    assert (writer.done, writer.language) == (4, ENGLISH)
    writer.append(passages(texts)[4:])
    writer.finish()
    for file in whole.rglob("*.*"):
        assert (tmp_path / "index" / file.relative_to(whole)).read_bytes() == file.read_bytes()
    assert sorted(found(BM25.open(whole), "discovered")) == [0, 4]
    other = BM25Writer.create_or_resume(tmp_path / "index2", shard_size=4, language=ENGLISH)
    other.append(passages(texts)[:5])
    assert BM25Writer.create_or_resume(tmp_path / "index2", shard_size=4, language="german").done == 0


def test_index_from_before_stemming_is_read_as_it_is(tmp_path: Path) -> None:
    path = build(tmp_path / "index", ENGLISH_TEXTS, NONE)
    state = json.loads((path / "index.json").read_text())
    del state["language"]
    (path / "index.json").write_text(json.dumps(state | {"format": 2}))
    index = BM25.open(path)
    assert (found(index, "discovered rays"), found(index, "discovers")) == ([0], [])
