"""Dev questions: answered as the shipped reader answers them, and the best reader kept."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from btr.corpus import Passage, Question
from btr.corpus.questions import QuestionSet
from btr.eval.evidence import own_passages
from btr.metrics import exact_match, f1, mean
from btr.reader import Reader
from btr.reader.truncation import shorten
from btr.train.data import Batch
from btr.train.dev import Dev, better
from btr.train.loop import Trainer
from btr.train.schedule import Schedule
from btr.train.stages import STAGES

TEXTS = (
    "Who built the lighthouse?",
    "What do herons eat in hard winters?",
    "How long is it? " * 30,
    "Which bridge stands?",
)


@pytest.fixture(params=["tiny_reader", "span_reader"])
def reader(request: pytest.FixtureRequest) -> Reader:
    """A reader of each family, which may be changed."""
    given = request.getfixturevalue(request.param)
    return Reader(copy.deepcopy(given.model), given.tokenizer)


@pytest.fixture
def asked(reader: Reader, tiny_passages: list[Passage]) -> QuestionSet:
    """Four questions, of one the end alone can be read; the reader's own answers are right but for the second."""
    questions = []
    for n, text in enumerate(TEXTS):
        question = Question(str(n), text, ("nothing",), tuple(tiny_passages))
        if n != 1:
            answer = reader.answer(shorten(text, reader), own_passages(question, 3), "binary", 6).text
            question = Question(str(n), text, (answer, "nothing"), tuple(tiny_passages))
        questions.append(question)
    return QuestionSet("toy", "question", "toy.jsonl", questions)


def test_figures_are_those_of_the_reader(reader: Reader, asked: QuestionSet) -> None:
    reader.model.train()
    found = Dev(asked, reader.tokenizer, 3, 6, 1).measure(reader.model, "binary")
    assert reader.model.training
    reader.model.eval()
    pairs = []
    for question in asked.questions:
        short = shorten(question.question, reader)
        assert (short != question.question) == (question.id == "2")
        answer = reader.answer(short, own_passages(question, 3), "binary", 6).text
        pairs.append((answer, question.answers))
    wanted = {name: 100 * mean([score(*pair) for pair in pairs]) for name, score in (("em", exact_match), ("f1", f1))}
    assert found == {**wanted, "n": 4, "mode": "binary"}
    assert found["em"] >= 75


def test_claims_and_choices_are_scored_by_accuracy(tiny_reader: Reader, tiny_passages: list[Passage]) -> None:
    options = (("A", "salt"), ("B", "mice"))
    choice = Question("1", "Which?", ("A",), tuple(tiny_passages), (), options)
    claim = Question("2", "Salt is heavy.", ("SUPPORTS",), tuple(tiny_passages))
    for kind, question in (("choice", choice), ("claim", claim)):
        dev = Dev(QuestionSet("toy", kind, "", [question]), tiny_reader.tokenizer, 2, 4, 1)  # type: ignore[arg-type]
        found = dev.measure(copy.deepcopy(tiny_reader.model), "full")
        assert set(found) == {"accuracy", "n", "mode"} and found["n"] == 1


def test_better_is_exact_match_then_f1() -> None:
    def figures(em: float, f1: float) -> dict[str, Any]:
        return {"em": em, "f1": f1, "n": 9}

    assert better(figures(0, 0), None)
    assert better(figures(10, 5), figures(9, 50)) and not better(figures(9, 50), figures(10, 5))
    assert better(figures(10, 6), figures(10, 5)) and not better(figures(10, 5), figures(10, 5))
    assert better({"accuracy": 2.0}, {"accuracy": 1.0}) and not better({"accuracy": 1.0}, {"accuracy": 1.0})


def test_it_is_due_every_so_often_and_at_the_end(reader: Reader, asked: QuestionSet) -> None:
    dev = Dev(asked, reader.tokenizer, 3, 6, 4)
    assert [step for step in range(1, 11) if dev.due(step, 10)] == [4, 8, 10]


class Scripted(Dev):
    """Figures from a list, one at a time."""

    def measure(self, student: Any, mode: Any) -> dict[str, Any]:
        em = FIGURES.pop(0)
        return {"em": em, "f1": em, "n": len(self.question_set.questions), "mode": mode}


FIGURES: list[float] = []


def batch(step: int) -> Batch:
    ids = torch.randint(3, 100, (2, 8), generator=torch.Generator().manual_seed(step))
    return Batch(ids, torch.tensor([8, 8]), torch.tensor([3, 3]), ids[:, 3:5])


def make_trainer(reader: Reader, out: Path, steps: int = 4) -> Trainer:
    return Trainer(copy.deepcopy(reader.model), STAGES["reader"], Schedule(steps, warmup=1), None, out)


def best_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("best-at-*")]


def test_best_reader_is_kept_and_a_resumed_run_knows_it(
    tiny_reader: Reader, asked: QuestionSet, tmp_path: Path
) -> None:
    FIGURES[:] = [20, 30, 25]
    dev = Scripted(asked, tiny_reader.tokenizer, 3, 6, 1)
    first = make_trainer(tiny_reader, tmp_path, 3)
    first.run(batch, print, dev)
    assert best_in(tmp_path) == ["best-at-2"] and first.best is not None and first.best["em"] == 30
    kept = Reader.from_pretrained(tmp_path / "best")
    assert kept.fingerprint != Reader(first.student, tiny_reader.tokenizer).fingerprint  # not the last one

    second = make_trainer(tiny_reader, tmp_path, 3)
    assert second.resume() and second.best == first.best
    FIGURES[:] = [28]
    second.measure(dev, print)
    assert best_in(tmp_path) == ["best-at-2"]
    FIGURES[:] = [31]
    second.measure(dev, print)
    assert best_in(tmp_path) == ["best-at-3"]


def test_figures_of_other_questions_are_not_compared(tiny_reader: Reader, asked: QuestionSet, tmp_path: Path) -> None:
    trainer = make_trainer(tiny_reader, tmp_path)
    FIGURES[:] = [30, 20, 10]
    trainer.measure(Scripted(asked, tiny_reader.tokenizer, 3, 6, 1), print)
    trainer.step = 1
    trainer.measure(Scripted(asked, tiny_reader.tokenizer, 5, 6, 1), print)  # with more passages
    assert best_in(tmp_path) == ["best-at-1"]
    trainer.step = 2
    trainer.measure(Scripted(asked, tiny_reader.tokenizer, 5, 6, 1), print)
    assert best_in(tmp_path) == ["best-at-1"]
