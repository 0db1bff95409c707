"""Answers in hops: what the next query is made of, where it ends, and that the reader is asked the question alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from btr.corpus import Passage
from btr.errors import InputError
from btr.hops import Hopped, answer_in_hops
from btr.hops.answer import Hopping, State
from btr.hops.steps import take_steps
from btr.precompute import __main__ as precompute
from btr.reader import Answer, Reader
from btr.reader.kept import KeptRows
from btr.reader.sentences import best_sentence
from btr.retrieve.bm25 import BM25, Hits, WordShard
from btr.retrieve.fusion import open_retriever
from btr.storage import Encoded, Store

FACTS = [
    Passage("mill", "Mill", "The mill of Vellin was built by Ada Berg."),
    Passage("berg", "Ada Berg", "Ada Berg was born in Orsk. She liked salt."),
    Passage("orsk", "Orsk", "Orsk lies on the river Ural."),
    Passage("salt", "Salt", "Salt came on mules."),
]
INDEX = BM25([WordShard.of(FACTS, 0)])


def load(ordinals: list[int]) -> Encoded:
    chosen = [FACTS[i] for i in ordinals]
    ids, titles, texts = (tuple(getattr(p, name) for p in chosen) for name in ("id", "title", "text"))
    count = len(chosen)
    lengths, tokens = np.ones(count, np.int32), np.zeros(count, np.uint32)
    return Encoded("f" * 16, 64, ids, titles, texts, lengths, tokens, np.ones(count, np.float16))


def answering(passages: Encoded, doubt: float | None = 0.9) -> Answer:
    evidence = np.ones(len(passages), np.float32) / len(passages)
    return Answer(passages.ids[0], -1.0, "binary", {}, (), evidence, (), no_answer=doubt)


def first_sentence(answer: Answer, passages: Encoded) -> tuple[str, str]:
    """Learn the first sentence of the last passage."""
    return passages.titles[-1], passages.texts[-1].split(". ")[0].removesuffix(".") + "."


def hop(hops: int, top: int = 1, question: str = "Where was the builder of the mill born?", **more: Any) -> Hopped:
    settings: dict[str, Any] = {
        "read": lambda passages, kept: answering(passages),
        "load": load,
        "learn": first_sentence,
    } | more
    hopping = Hopping(question, hops=hops, **settings)
    return hopping.finish(*take_steps(hopping, INDEX, top, State()))


def test_next_query_is_the_question_and_the_sentence_with_its_title() -> None:
    hopped = hop(2, top=2)
    first, second = hopped.steps
    assert first.query == "Where was the builder of the mill born?" and first.ids == ("mill", "berg")
    assert (first.title, first.sentence) == ("Ada Berg", "Ada Berg was born in Orsk.")
    assert second.query == f"{first.query} Ada Berg Ada Berg was born in Orsk."
    assert second.ids == ("berg", "mill") and hopped.passages is not None and hopped.passages.ids == second.ids
    assert hopped.answer is not None and hopped.answer.text == "berg"
    assert hopped.scores.tolist() == INDEX.search([second.query], 2)[0][1].tolist()


def test_one_hop_is_one_search() -> None:
    assert [step.query for step in hop(1).steps] == ["Where was the builder of the mill born?"]


@pytest.mark.parametrize(("doubt", "steps"), [(0.05, 1), (0.1, 1), (0.11, 2), (None, 2)])
def test_reader_that_is_sure_looks_no_further(doubt: float | None, steps: int) -> None:
    assert len(hop(2, top=2, read=lambda passages, kept: answering(passages, doubt)).steps) == steps


def test_step_that_abstains_has_its_best_guess_apart() -> None:
    steps = hop(2, top=2, read=lambda passages, kept: answering(passages).abstaining(0.5)).steps
    assert [(step.answer, step.best_guess) for step in steps] == [("", "mill"), ("", "berg")]
    plain = hop(2, top=2).steps
    assert [(step.answer, step.best_guess) for step in plain] == [("mill", None), ("berg", None)]
    assert steps == tuple(step.abstaining(0.5).abstaining(0.1) for step in plain)
    assert plain == tuple(step.abstaining(0.9).abstaining(None) for step in plain)


def test_passages_that_come_again_are_not_read_again() -> None:
    read: list[tuple[str, ...]] = []

    def count(passages: Encoded, kept: KeptRows) -> Answer:
        read.append(passages.ids)
        return answering(passages)

    hopped = hop(9, top=1, read=count)
    assert read == [step.ids for step in hopped.steps] == [("mill",)]


def test_query_that_comes_again_is_not_searched_again() -> None:
    asked: list[str] = []

    class Counting:
        def search(self, questions: Sequence[str], top: int) -> list[Hits]:
            asked.extend(questions)
            return [(np.array([len(asked) % 4, (len(asked) + 1) % 4]), np.ones(2, np.float32)) for _ in questions]

    hopping = Hopping(
        "Who?", lambda passages, kept: answering(passages), load, lambda answer, passages: ("Salt", "Salt."), 9
    )
    state, _ = take_steps(hopping, Counting(), 2, State())
    assert asked == ["Who?", "Who? Salt Salt."] and len(state.steps) == 2


def test_question_without_passages_or_sentence_ends() -> None:
    nothing = hop(3, question="xyzzy")
    assert (nothing.answer, nothing.passages, nothing.steps, len(nothing.scores)) == (None, None, (), 0)
    assert len(hop(3, learn=lambda answer, passages: ("", "")).steps) == 1


@pytest.fixture(scope="module")
def store(reader_folder: Path, tiny_passages: list[Passage], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the tiny passages, made by the tiny reader."""
    folder = tmp_path_factory.mktemp("store")
    lines = (f'{{"id": "{p.id}", "title": "{p.title}", "text": "{p.text}"}}\n' for p in tiny_passages)
    (folder / "p.jsonl").write_text("".join(lines), encoding="utf-8")
    arguments = [str(folder / "p.jsonl"), "--reader", str(reader_folder), "--store"]
    assert precompute.main([*arguments, str(folder / "s.btr")]) == 0
    assert precompute.main([*arguments, str(folder / "bits.btr"), "--no-text"]) == 0
    return folder / "s.btr"


def test_reader_and_store_answer_in_hops(store: Path, tiny_reader: Reader) -> None:
    question = "Who built the lighthouse of the harbour?"
    with Store.open(store) as opened:
        index = open_retriever(opened)
        hopped = answer_in_hops(tiny_reader, opened, index, question, 3, 2)
        query, kept = question, KeptRows()
        for step in hopped.steps:
            [(ordinals, _)] = index.search([query], 2)
            passages = opened.at(ordinals.tolist())
            answer = tiny_reader.answer(question, passages, kept=kept)
            span = best_sentence(tiny_reader, answer, passages)
            assert span is not None
            sentence = passages.texts[span.passage][span.start : span.end]
            assert (step.query, step.ids, step.answer) == (query, passages.ids, answer.text)
            assert (step.title, step.sentence) == (passages.titles[span.passage], sentence)
            query = " ".join(filter(None, (question, step.title, step.sentence)))
        assert hopped.answer is not None and hopped.answer.text == hopped.steps[-1].answer
        assert len(hopped.steps) > 1
        assert hopped.steps[0] == answer_in_hops(tiny_reader, opened, index, question, 1, 2).steps[0]


def test_no_passage_is_read_twice(store: Path, tiny_reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    read, full = [], tiny_reader.model.full  # its own mode

    def count(ids: Any, *more: Any) -> Any:
        read.append(len(ids))
        return full(ids, *more)

    monkeypatch.setattr(tiny_reader.model, "full", count)
    with Store.open(store) as opened:
        question = "Who built the lighthouse of the harbour?"
        steps = answer_in_hops(tiny_reader, opened, open_retriever(opened), question, 3, 2).steps
    names = [name for step in steps for name in step.ids]
    assert sum(read) == len(set(names)) < len(names)


@pytest.mark.parametrize("strides", [[1], [2], [0, 3]])
def test_guessed_hops_are_the_same_to_the_bit(store: Path, tiny_reader: Reader, fakes: Any, strides: list[int]) -> None:
    """The store's own index of words, the tiny readers, and a pace that guesses whether it pays or not."""
    questions = (
        "Who built the lighthouse of the harbour?",
        "What is carried over the hills?",
        "xyzzy",
        "Who eats fish?",
    )
    with Store.open(store) as opened:
        index = open_retriever(opened)
        for question in questions:
            plain = answer_in_hops(tiny_reader, opened, index, question, 4, 2, sure=-1)
            sooner = answer_in_hops(tiny_reader, opened, index, question, 4, 2, sure=-1, pace=fakes.Forced(strides))
            assert sooner.steps == plain.steps and sooner.scores.tolist() == plain.scores.tolist()
            if plain.answer is not None and sooner.answer is not None:
                assert (sooner.answer.text, sooner.answer.score) == (plain.answer.text, plain.answer.score)
                for one, other in zip(sooner.answer.token_evidence, plain.answer.token_evidence, strict=True):
                    assert one.tolist() == other.tolist()
            assert fakes.threads() == []


def test_what_cannot_be_asked_in_hops_is_refused(store: Path, tiny_reader: Reader) -> None:
    with Store.open(store) as opened:
        index = open_retriever(opened)
        with pytest.raises(InputError, match="hops is 0; use 1 or more"):
            answer_in_hops(tiny_reader, opened, index, "Who?", 0)
        with pytest.raises(InputError, match="the question is blank"):
            answer_in_hops(tiny_reader, opened, index, " ", 2)
    with Store.open(store.with_name("bits.btr")) as opened:
        index = open_retriever(opened)
        with pytest.raises(InputError, match=r"bits\.btr keeps no texts, of which further queries are made"):
            answer_in_hops(tiny_reader, opened, index, "Who?", 2)
        hopped = answer_in_hops(
            tiny_reader, opened, index, "Who built it?", 1,
            read=lambda passages, kept: tiny_reader.answer("Who built it?", passages, "binary"),
        )  # fmt: skip
        assert hopped.answer is not None and hopped.steps[0].sentence == ""
