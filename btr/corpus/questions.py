"""Find the questions of a task by its name: in a folder of yours, or else on the Hugging Face hub.

    nq             NaturalQuestions-open (Lee et al. 2019), validation, whose 3,610 questions are the usual test set
    triviaqa       TriviaQA (Joshi et al. 2017), unfiltered, validation: the usual test set
    webquestions   WebQuestions (Berant et al. 2013), test
    squad          SQuAD 1.1 (Rajpurkar et al. 2016), validation, with its gold passages
    fever          FEVER (Thorne et al. 2018), dev, three labels; the evidence is KGAT's, as sentences
    mmlu           MMLU (Hendrycks et al. 2021), all subjects, test

The hub has more than one copy of most; those here load without running code of theirs.
"""

import difflib
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from glob import escape, glob
from typing import Any, Literal

from btr.corpus.hub import read_hub
from btr.corpus.passages import SUFFIXES, Question, read_questions
from btr.corpus.pieces import Passage
from btr.corpus.records import Record, open_records
from btr.corpus.sample import SAMPLE
from btr.corpus.tasks import (
    FEVER_LABELS,
    YES_NO,
    fever_label,
    fever_question,
    mmlu_question,
    yes_no_question,
    yes_or_no,
)
from btr.errors import InputError

Kind = Literal["question", "claim", "choice", "yes/no"]  # answered by words, a label of FEVER, a letter, yes or no


@dataclass(frozen=True)
class Task:
    """A named task: its kind, its place on the hub (owner/name, configuration, split), how to read a row from there."""

    kind: Kind
    hub: tuple[str, str | None, str]
    read: Callable[[Record, int], Question]


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a task that have answers, where they came from, and those without (SQuAD 2.0 has such)."""

    task: str
    kind: Kind
    source: str
    questions: list[Question]
    unanswerable: tuple[Question, ...] = ()

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels that some claim has: FEVER has three, sets made from it often two."""
        found = {fever_label(question.answers[0]) for question in self.questions}
        return tuple(label for label in FEVER_LABELS if label in found)

    def choices(self, question: Question) -> tuple[str, ...] | None:
        """Return what the answer to a question is one of; None: it is free."""
        if self.kind == "choice":
            return tuple(letter for letter, _ in question.options)
        return {"claim": self.labels, "yes/no": YES_NO}.get(self.kind) if self.kind != "question" else None

    def guess(self) -> tuple[str, list[float]] | None:
        """Return how well one does without reading: by the commonest answer of all, of a choice by chance.

        Its name, and the score of each question; None where answers are free.
        """
        if self.kind == "question":
            return None
        if self.kind == "choice":
            return "chance", [1 / len(question.options) for question in self.questions]
        name = fever_label if self.kind == "claim" else yes_or_no
        given = [name(question.answers[0]) for question in self.questions]
        common = Counter(given).most_common(1)[0][0]
        return f"always '{common}'", [float(answer == common) for answer in given]


def find_questions(
    task: str, data: str | None = None, limit: int | None = None, *, answerless: bool = False
) -> QuestionSet:
    """Read the questions of a named task, from `data` (a file, or a folder of tasks) or else the hub, or of a file.

    answerless: none of them need have an answer.

    Raises:
        InputError: nothing of that name, unreadable, no answers to compare with, or labels that are not FEVER's.
    """
    if task in TASKS:
        source = find_file(task, data) if data else None
        read = _from_file(source, task, limit) if source else _from_hub(task, limit)
        source = source or ":".join(filter(None, TASKS[task].hub))
    elif data:
        raise InputError(f"--data {data} is for named tasks ({', '.join(TASKS)}), and {task!r} is none; leave it out")
    else:
        _check_path(task)
        source, read = task, read_questions(task, limit=limit)
    found = list(read)
    questions = [question for question in found if question.answers]
    if not questions and not (answerless and found):
        raise InputError(f"{source}: no question with answers; there is nothing to compare with")
    kind = TASKS[task].kind if task in TASKS else _kind(questions)
    for question in questions:
        _check_answer(question, kind, source)
    name = task if task in TASKS else os.path.basename(task)
    return QuestionSet(name, kind, source, questions, tuple(question for question in found if not question.answers))


def find_file(task: str, data: str) -> str:
    """Return `data` if it is a file, else the file of a task in this folder; of several dev sets the first by name.

    Raises:
        InputError: no such file or folder, or nothing of the task in it.
    """
    if os.path.isfile(data):
        return data
    if not os.path.isdir(data):
        raise InputError(f"--data {data}: no such file or folder; leave --data out to read {task} from the hub")
    names = (f"{task}/dev.jsonl", f"{task}.jsonl", f"{task}.dev.jsonl")
    paths = [os.path.join(data, name + suffix) for name in names for suffix in SUFFIXES]
    found = [path for path in paths if os.path.isfile(path)]
    found += sorted(glob(os.path.join(escape(data), task, "*.dev.jsonl*")))
    if not found:
        looked = ", ".join((*names, f"{task}/*.dev.jsonl"))
        raise InputError(f"--data {data}: no questions of {task} (looked for {looked}); name the file itself")
    return found[0]


def prompt(question: Question, kind: Kind) -> str:
    """Return what the reader is asked."""
    if kind == "choice":
        return mmlu_question(question.question, question.options)
    if kind == "yes/no":
        return yes_no_question(question.question)
    return fever_question(question.question) if kind == "claim" else question.question


def query(question: Question) -> str:
    """Return what to search for: the question or claim, and the options, which often name what a question does not."""
    return " ".join([question.question, *(text for _, text in question.options)])


def _check_path(task: str) -> None:
    """Refuse a name that is no file's, guessing at the task meant."""
    if os.path.exists(task) or "/" in task or "." in task or task == SAMPLE:
        return
    near = difflib.get_close_matches(task, TASKS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"tasks: {', '.join(TASKS)}"
    raise InputError(f"{task}: no such task and no such file; {hint}")


def _kind(questions: list[Question]) -> Kind:
    if not questions:
        return "question"
    if all(question.options for question in questions):
        return "choice"
    answers = [answer for question in questions for answer in question.answers]
    if all(map(fever_label, answers)):
        return "claim"
    return "yes/no" if all(map(yes_or_no, answers)) else "question"


def _check_answer(question: Question, kind: Kind, source: str) -> None:
    if kind == "choice" and not question.options:
        raise InputError(
            f"{source}: question {question.id!r} has no options to choose from; give 'options' and 'answer'"
        )
    if kind == "claim" and not fever_label(question.answers[0]):
        known = "SUPPORTS, REFUTES, NOT ENOUGH INFO"
        raise InputError(f"{source}: claim {question.id!r} is labelled {question.answers[0]!r}; FEVER has {known}")


def _from_file(source: str, task: str, limit: int | None) -> Iterator[Question]:
    """Read a file of questions, or of the rows that the hub has of the task, saved as they are there."""
    try:
        list(read_questions(source, limit=1))
    except InputError:
        try:
            list(_rows(source, task, 1))
        except InputError:
            pass  # the file is neither, and what is wrong with it as questions says more
        else:
            return _rows(source, task, limit)
    return read_questions(source, limit=limit)


def _rows(source: str, task: str, limit: int | None) -> Iterator[Question]:
    records = open_records(source, lambda lines: iter(()))
    return (TASKS[task].read(record, number) for number, record in enumerate(itertools.islice(records, limit)))


def _from_hub(task: str, limit: int | None) -> Iterator[Question]:
    entry = TASKS[task]
    records = read_hub(task, *entry.hub)
    return (entry.read(record, number) for number, record in enumerate(itertools.islice(records, limit)))


def _texts(record: Record, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        record.fail(f"{name!r} is not a list of texts", "the data set has changed: pass a file with --data")
    return tuple(dict.fromkeys(text for text in value if text.strip()))


def _inner(record: Record, name: str) -> dict[str, Any]:
    value = record.fields.get(name)
    if not isinstance(value, dict):
        record.fail(f"{name!r} is not an object", "the data set has changed: pass a file with --data")
    return value


def _read_open(record: Record, number: int) -> Question:
    name = "answers" if "answers" in record.fields else "answer"
    return Question(str(number), record.text("question"), _texts(record, name, record.fields.get(name)))


def _read_triviaqa(record: Record, number: int) -> Question:
    answer = _inner(record, "answer")
    accepted = _texts(record, "answer", [answer.get("value"), *(answer.get("aliases") or [])])
    return Question(record.text("question_id"), record.text("question"), accepted)


def _read_squad(record: Record, number: int) -> Question:
    id, answers = record.text("id"), _texts(record, "answers", _inner(record, "answers").get("text"))
    passage = Passage(f"{id}:0", record.text("title"), record.text("context"))
    return Question(id, record.text("question"), answers, (passage,), (True,))


def _read_fever(record: Record, number: int) -> Question:
    labels = ("SUPPORTS", "NOT ENOUGH INFO", "REFUTES")  # the order of this copy
    label, id = record.fields.get("label"), record.identifier("key")
    if not isinstance(label, int) or not 0 <= label < len(labels):
        record.fail(f"'label' is {label!r}, expected 0, 1 or 2", "the data set has changed: pass a file with --data")
    texts = _texts(record, "evidence", record.fields.get("evidence"))
    passages = tuple(Passage(f"{id}:{place}", "", text) for place, text in enumerate(texts))
    return Question(id, record.text("claim"), (labels[label],), passages)


def _read_mmlu(record: Record, number: int) -> Question:
    choices, answer = record.fields.get("choices"), record.fields.get("answer")
    if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        record.fail(f"'answer' is {answer!r}, none of its choices", "the data set has changed: pass a file with --data")
    options = tuple((chr(ord("A") + place), str(text)) for place, text in enumerate(choices))
    return Question(str(number), record.text("question"), (options[answer][0],), options=options)


TASKS = {
    "nq": Task("question", ("google-research-datasets/nq_open", "nq_open", "validation"), _read_open),
    "triviaqa": Task("question", ("mandarjoshi/trivia_qa", "unfiltered.nocontext", "validation"), _read_triviaqa),
    "webquestions": Task("question", ("stanfordnlp/web_questions", None, "test"), _read_open),
    "fever": Task("claim", ("lucadiliello/fever", None, "dev"), _read_fever),
    "mmlu": Task("choice", ("cais/mmlu", "all", "test"), _read_mmlu),
    "squad": Task("question", ("rajpurkar/squad", "plain_text", "validation"), _read_squad),
}
