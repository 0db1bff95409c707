"""Prepared questions: searched together or alone, among all passages or few, a passage has one score, to the bit."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from btr.corpus import Passage
from btr.precompute import __main__ as precompute
from btr.retrieve import bm25
from btr.retrieve.bm25 import BM25, BM25Writer, WordShard
from btr.retrieve.dense.encoder import Encoder
from btr.retrieve.dense.writer import DenseWriter, Plan
from btr.retrieve.fusion import Choice, Retriever, open_retriever
from btr.retrieve.indexed import StoreIndex, open_index
from btr.storage import Store
from btr.store import __main__ as store_command

WORDS = [f"word{n:02d}" for n in range(40)]
QUESTIONS = ["word00 word03 word03 word39", "word05", "word01 word02 nothing", "the", "word00 word01 word07 word11"]


def make_passages(count: int) -> list[Passage]:
    """Make passages of few words, unevenly frequent, so that scores tie and repeat often."""
    rng = random.Random(1)
    weights = [1 / (n + 1) for n in range(len(WORDS))]
    return [Passage(str(n), "", " ".join(rng.choices(WORDS, weights, k=rng.randint(3, 12)))) for n in range(count)]


PASSAGES = make_passages(300)


@pytest.fixture
def store(tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both indices, that of words in shards of 70 passages."""
    monkeypatch.setattr(bm25, "sync", lambda path: None)
    words = BM25Writer.create_or_resume(tmp_path / "bm25", shard_size=70)
    words.append(PASSAGES)
    words.finish()
    encoder = Encoder.from_pretrained(str(encoder_folder))
    writer = DenseWriter.create_or_resume(tmp_path / "dense", Plan(str(encoder_folder), encoder.fingerprint, 64, 2))
    writer.append(PASSAGES, encoder)
    writer.finish()
    return tmp_path


@pytest.fixture(params=["bm25", "dense", "hybrid", "threshold"])
def index(request: pytest.FixtureRequest, store: Path) -> Retriever:
    """What the folder is searched with."""
    if request.param == "threshold":
        Choice("hybrid", threshold=0.9).write(store)
        return open_retriever(store)
    return open_retriever(store, request.param)


def same(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def test_searched_together_is_searched_alone(index: Retriever) -> None:
    together = index.search_prepared([index.prepare(question) for question in QUESTIONS], 7)
    for question, found in zip(QUESTIONS, together, strict=True):
        assert same(found, index.search([question], 7)[0])


@pytest.mark.parametrize("kind", ["bm25", "dense"])
def test_few_passages_have_the_scores_of_all(store: Path, kind: str) -> None:
    index = open_retriever(store, kind)
    rng = np.random.default_rng(0)
    for question in QUESTIONS:
        [(ordinals, scores)] = index.search([question], 300)
        score = dict(zip(ordinals.tolist(), scores.tolist(), strict=True))
        for size in (0, 1, 2, 3, 5, 8, 40, 300):
            few = np.sort(rng.choice(300, size, replace=False))
            found, their = index.among(index.prepare(question), few, 5)
            expected = sorted((n for n in few.tolist() if n in score), key=lambda n: (-score[n], n))[:5]
            assert found.tolist() == expected
            assert their.tolist() == [score[n] for n in expected]


def test_among_what_holds_the_best_they_are_found(index: Retriever) -> None:
    if index.choice.kind == "hybrid":
        return  # ranks among few are others than among all
    for question in QUESTIONS:
        [found] = index.search([question], 6)
        others = np.random.default_rng(2).choice(len(PASSAGES), 5, replace=False)
        if index.choice.kind == "dense":  # those that the first codes put far away are not among its candidates
            others = index.search([question], 20)[0][0]
        assert same(index.among(index.prepare(question), np.union1d(found[0], others), 6), found)


def test_more_begins_with_fewer(index: Retriever) -> None:
    for top in (1, 3, 10, 30):
        most = index.depth(top, 40)
        assert most >= top
        for question in QUESTIONS:
            [few], [many] = index.search([question], top), index.search([question], most)
            assert same(few, (many[0][:top], many[1][:top]))
    depths = {"bm25": 40, "dense": 40, "hybrid": 40}
    assert index.depth(10, 40) == (10 if index.choice.threshold is not None else depths[index.choice.kind])


@pytest.fixture
def edited(store: Path, tmp_path: Path, reader_folder: Path, tiny_passages: list[Passage]) -> Callable[[], Store]:
    """A store of the tiny passages, of which one is deleted."""
    lines = (f'{{"id": "{p.id}", "title": "{p.title}", "text": "{p.text}"}}\n' for p in tiny_passages)
    (tmp_path / "p.jsonl").write_text("".join(lines), encoding="utf-8")
    made = str(tmp_path / "s.btr")
    assert precompute.main([str(tmp_path / "p.jsonl"), "--reader", str(reader_folder), "--store", made]) == 0
    assert store_command.main(["delete", made, "p1"]) == 0
    return lambda: Store.open(made)


def test_what_is_deleted_is_not_found_by_prepared_questions(edited: Callable[[], Store]) -> None:
    with edited() as store:
        index = open_index(store)
        assert index is not None
        asked = ["Ada Berg built the lighthouse", "salt on mules"]
        together = index.search_prepared([index.prepare(question) for question in asked], 2)
        gone = store.deleted(np.arange(store.manifest.ordinals))
        assert gone.sum() == 1
        for question, found in zip(asked, together, strict=True):
            assert same(found, index.search([question], 2)[0]) and not gone[found[0]].any()
        assert index.depth(2, 40) == 2


def test_store_index_hands_on_what_is_not_deleted(store: Path) -> None:
    words: Any = BM25([WordShard.of(PASSAGES, 0)])

    class Whole:
        class manifest:
            passages = ordinals = len(PASSAGES)

    living: Any = StoreIndex(words, Whole())  # type: ignore[arg-type]
    asked = living.prepare(QUESTIONS[0])
    few = np.arange(0, 300, 7)
    assert same(living.search_prepared([asked], 5)[0], words.search([QUESTIONS[0]], 5)[0])
    assert same(living.among(asked, few, 5), words.among(asked, few, 5)) and living.depth(5, 9) == 9
