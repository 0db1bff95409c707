"""Questions of a task by name: from a folder, from the hub, from a file; what the reader is asked of them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from btr.corpus import Passage, Question, read_passages
from btr.corpus.questions import TASKS, Kind, QuestionSet, find_file, find_questions, prompt, query
from btr.errors import InputError

OPTIONS = {"A": "one", "B": "two"}
ROWS = {
    "nq": {"question": "who sang it", "answers": ["Ann"]},
    "squad": {"id": "s", "question": "Where?", "answers": ["Rome"], "ctxs": [{"title": "T", "text": "In Rome."}]},
    "fever": {"id": 7, "claim": "Salt is sweet.", "label": "REFUTES"},
    "mmlu": {"question": "1 + 1?", "options": OPTIONS, "answer": "B"},
}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "name", ["nq/dev.jsonl", "nq.jsonl", "nq.dev.jsonl", "nq/some.dev.jsonl", "nq/dev.jsonl.gz", "nq/a.dev.jsonl.zst"]
)
def test_file_of_a_task_in_a_folder(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name)
    write(tmp_path / "nq" / "train.jsonl")
    write(tmp_path / "squad" / "dev.jsonl")
    assert find_file("nq", str(tmp_path)) == str(file)
    assert find_file("nq", str(file)) == str(file)


def test_dev_split_comes_before_others(tmp_path: Path) -> None:
    write(tmp_path / "fever" / "symmetric.dev.jsonl")
    first = write(tmp_path / "fever" / "fm2.dev.jsonl")
    assert find_file("fever", str(tmp_path)) == str(first)  # of several, the first by name
    whole = write(tmp_path / "fever" / "dev.jsonl")
    assert find_file("fever", str(tmp_path)) == str(whole)


def test_questions_without_answers_are_kept_apart(tmp_path: Path) -> None:
    file = write(tmp_path / "two.jsonl", ROWS["squad"], *[ROWS["squad"] | {"answers": []}] * 2)
    asked = find_questions(str(file))
    assert (len(asked.questions), len(asked.unanswerable)) == (1, 2)


@pytest.mark.parametrize(("task", "kind"), [("nq", "question"), ("fever", "claim"), ("mmlu", "choice")])
def test_named_task_from_a_folder(tmp_path: Path, task: str, kind: str) -> None:
    file = write(tmp_path / task / "dev.jsonl", ROWS[task], ROWS[task])
    asked = find_questions(task, str(tmp_path), limit=1)
    assert (asked.task, asked.kind, asked.source, len(asked.questions)) == (task, kind, str(file), 1)


@pytest.mark.parametrize(
    ("task", "kind"), [("nq", "question"), ("squad", "question"), ("fever", "claim"), ("mmlu", "choice")]
)
def test_kind_of_a_file_is_told_from_its_questions(tmp_path: Path, task: str, kind: str) -> None:
    file = write(tmp_path / "some.jsonl", ROWS[task])
    asked = find_questions(str(file))
    assert (asked.task, asked.kind, asked.source) == ("some.jsonl", kind, str(file))


def test_questions_without_answers_are_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "some.jsonl", ROWS["nq"], {"question": "what is unknown"})
    assert [q.question for q in find_questions(str(file)).questions] == ["who sang it"]


@pytest.mark.parametrize(
    ("task", "data", "rows", "message"),
    [
        (
            "nq",
            "{folder}/nowhere",
            [],
            r"--data .*nowhere: no such file or folder; leave --data out to read nq",
        ),
        ("nq", "{folder}", [], r"no questions of nq \(looked for nq/dev\.jsonl, nq\.jsonl, .*\); name the file itself"),
        ("own.jsonl", "{folder}", [], r"--data .* is for named tasks \(nq, .*\), and 'own.jsonl' is none"),
        ("trivaqa", None, [], r"trivaqa: no such task and no such file; did you mean 'triviaqa'\?"),
        ("xyzzy", None, [], r"xyzzy: no such task and no such file; tasks: nq, triviaqa, webquestions, fever, mmlu"),
        ("./nowhere.jsonl", None, [], r"nowhere\.jsonl: cannot be read"),
        ("nq", "{file}", [{"question": "who"}], r"rows\.jsonl: no question with answers"),
        ("mmlu", "{file}", [ROWS["nq"]], r"rows\.jsonl: question '0' has no options to choose from"),
        ("fever", "{file}", [ROWS["nq"]], r"claim '0' is labelled 'Ann'; FEVER has SUPPORTS, REFUTES, NOT ENOUGH"),
    ],
)
def test_mistakes(tmp_path: Path, task: str, data: str | None, rows: list[dict[str, Any]], message: str) -> None:
    file = write(tmp_path / "rows.jsonl", *rows)
    with pytest.raises(InputError, match=message):
        find_questions(task, data and data.format(folder=tmp_path, file=file))


# What the hub's copies hold, a row of each; and what becomes of it.
HUB: dict[str, tuple[dict[str, Any], Question]] = {
    "nq": ({"question": "who sang it", "answer": ["Ann", "Bo"]}, Question("0", "who sang it", ("Ann", "Bo"))),
    "triviaqa": (
        {"question": "Which?", "question_id": "tc_3", "question_source": "", "entity_pages": {"title": []},
         "answer": {"aliases": ["York", "New York"], "normalized_aliases": ["york"], "value": "New York"}},
        Question("tc_3", "Which?", ("New York", "York")),
    ),
    "webquestions": (
        {"url": "http://example.org", "question": "where is it", "answers": ["Rome"]},
        Question("0", "where is it", ("Rome",)),
    ),
    "fever": (
        {"key": 75397, "claim": "Salt is sweet.", "label": 2, "evidence": ["Salt . Salt is salty .", " "]},
        Question("75397", "Salt is sweet.", ("REFUTES",), (Passage("75397:0", "", "Salt . Salt is salty ."),)),
    ),
    "mmlu": (
        {"question": "1 + 1?", "subject": "sums", "choices": ["1", "2", "3", "4"], "answer": 1},
        Question("0", "1 + 1?", ("B",), options=(("A", "1"), ("B", "2"), ("C", "3"), ("D", "4"))),
    ),
    "squad": (
        {"id": "56be", "title": "Rome", "context": "It is in Rome.", "question": "Where?",
         "answers": {"text": ["Rome", "Rome", "in Rome"], "answer_start": [9, 9, 6]}},
        Question("56be", "Where?", ("Rome", "in Rome"), (Passage("56be:0", "Rome", "It is in Rome."),), (True,)),
    ),
}  # fmt: skip

Load = Callable[..., None]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Let the hub have these rows of a task, and nothing else."""

    def serve(task: str, rows: list[dict[str, Any]]) -> None:
        id, configuration, split = TASKS[task].hub

        def load_dataset(asked: str, configured: str | None, *, streaming: bool) -> dict[str, Any]:
            assert (asked, configured, streaming) == (id, configuration, True)
            return {"train": [], split: rows}

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))

    return serve


@pytest.mark.parametrize("task", TASKS)
def test_named_task_from_the_hub(task: str, load: Load) -> None:
    row, question = HUB[task]
    load(task, [row, row])
    asked = find_questions(task, limit=1)
    assert asked.questions == [question] and asked.source.startswith(TASKS[task].hub[0])
    assert len(find_questions(task).questions) == 2


@pytest.mark.parametrize("task", HUB)
def test_rows_of_the_hub_in_a_file_of_yours(task: str, tmp_path: Path, load: Load) -> None:
    load(task, rows := [HUB[task][0]] * 2)
    file = write(tmp_path / "rows.jsonl", *rows)
    there, here = find_questions(task), find_questions(task, str(file))
    assert [(q.question, q.answers) for q in here.questions] == [(q.question, q.answers) for q in there.questions]


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("nq", {"answer": "Ann"}, r"nq:1: 'answer' is not a list of texts; the data set has changed: pass a file"),
        ("nq", {"question": [3]}, r"nq:1: 'question' is a list"),
        ("triviaqa", {"answer": ["York"]}, r"triviaqa:1: 'answer' is not an object"),
        ("squad", {"answers": None}, r"squad:1: 'answers' is not an object"),
        ("fever", {"label": 3}, r"fever:1: 'label' is 3, expected 0, 1 or 2"),
        ("fever", {"evidence": None}, r"fever:1: 'evidence' is not a list"),
        ("mmlu", {"answer": 4}, r"mmlu:1: 'answer' is 4, none of its choices"),
    ],
)
def test_hub_that_has_changed(task: str, change: dict[str, Any], message: str, load: Load) -> None:
    load(task, [HUB[task][0] | change])
    with pytest.raises(InputError, match=message):
        find_questions(task)


def test_what_the_reader_is_asked() -> None:
    question = Question("q", "Is it?", ("A",), options=(("A", "yes"), ("B", "no")))
    assert prompt(question, "question") == "Is it?"
    assert prompt(question, "claim") == "claim: Is it?"
    assert prompt(question, "choice") == "Is it? options: (A) yes (B) no"
    assert prompt(question, "yes/no") == "yes or no: Is it?"
    assert query(question) == "Is it? yes no"


def asked(kind: Kind, *answers: str) -> QuestionSet:
    options = (("A", "x"), ("B", "y"), ("C", "z")) if kind == "choice" else ()
    return QuestionSet("t", kind, "t", [Question("q", "which", (answer,), options=options) for answer in answers])


def test_choices_are_those_of_the_kind_and_labels_those_that_occur() -> None:
    two, three = asked("claim", "REFUTES", "SUPPORTS"), asked("claim", "NEI", "Supported", "refutes")
    assert two.choices(two.questions[0]) == ("supports", "refutes")
    assert three.choices(three.questions[0]) == ("supports", "refutes", "not enough info")
    letters, words, free = asked("choice", "A"), asked("yes/no", "Yes"), asked("question", "yes")
    assert letters.choices(letters.questions[0]) == ("A", "B", "C")
    assert words.choices(words.questions[0]) == ("yes", "no") and free.choices(free.questions[0]) is None


def test_guess_is_the_commonest_answer_or_chance() -> None:
    assert asked("claim", "REFUTES", "SUPPORTS", "REFUTED").guess() == ("always 'refutes'", [1, 0, 1])
    assert asked("yes/no", "Yes", "no", "yes").guess() == ("always 'yes'", [1, 0, 1])
    assert asked("choice", "A", "B").guess() == ("chance", [1 / 3] * 2)
    assert asked("question", "forty").guess() is None


def test_file_of_yes_and_no_is_told_from_one_of_questions(tmp_path: Path) -> None:
    rows = [{"question": "is it", "answers": [answer]} for answer in ("yes", "No")]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert find_questions(str(tmp_path / "b.jsonl")).kind == "yes/no"
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row | {"answers": ["yes", "salt"]}) + "\n" for row in rows))
    assert find_questions(str(tmp_path / "q.jsonl")).kind == "question"


def test_sample_is_named_unless_a_file_is_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked, held = find_questions("sample"), list(read_passages("sample"))
    assert (asked.task, len(asked.questions), len(held)) == ("sample", 226, 152)
    write(tmp_path / "sample", ROWS["squad"])
    assert len(find_questions("sample").questions) == 1
