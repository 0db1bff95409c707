"""What a run learns from: shares, exclusions, both families, and batches that are a function of seed and step."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from btr.errors import InputError
from btr.model.checkpoint import load_tokenizer
from btr.train.data import Batch
from btr.train.loop import Tensors
from btr.train.options import build_stage, parse
from btr.train.sources import drawer, open_dev, settings
from btr.train.spans import SpanBatch
from btr.train.start import build_student

CORPUS = str(Path(__file__).resolve().parents[2] / "corpus")
SHAPE = ["--batch", "2", "--passages", "2", "--row-tokens", "64", "--question-tokens", "16", "--answer-tokens", "8"]


@pytest.fixture(params=["generative", "extractive"])
def extractive(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "extractive")


@pytest.fixture
def words(extractive: bool, tokenizer: Tokenizer, bert_folder: Path) -> Tokenizer:
    """A tokenizer of the family."""
    return load_tokenizer(bert_folder) if extractive else tokenizer


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


def questions(path: Path, *asked: str) -> str:
    ctxs = [{"title": "t", "text": "The answer is forty."}, {"title": "t", "text": "There is none."}]
    return write(path, *({"question": q, "answers": ["forty"], "ctxs": ctxs} for q in asked))


def draws(tokenizer: Tokenizer, extractive: bool, *given: str, processes: int = 1) -> Callable[[int], Tensors]:
    return drawer(parse(["reader", "--out", "-", "--steps", "1", *SHAPE, *given]), tokenizer, extractive, processes)


def values(batch: Tensors) -> list[Any]:
    return [tensor.tolist() for tensor in batch.tensors()]


def asked_in(tokenizer: Tokenizer, batch: Tensors) -> list[str]:
    """Read the question of every row."""
    ids, _, lengths, *_ = values(batch)
    rows = [tokenizer.decode(row[:length]) for row, length in zip(ids, lengths, strict=True)]
    return [row.removeprefix("question: ").removeprefix("[CLS]").removesuffix("[SEP]").strip() for row in rows]


def count_asked(tokenizer: Tokenizer, draw: Callable[[int], Tensors], steps: int) -> Counter[str]:
    return Counter(question for step in range(steps) for question in asked_in(tokenizer, draw(step))[::2])


def test_batches_are_a_function_of_seed_and_step(words: Tokenizer, extractive: bool, tmp_path: Path) -> None:
    given = ["--text", CORPUS, "--questions", questions(tmp_path / "q.jsonl", "what is the answer?", "and this?")]
    first, again = draws(words, extractive, *given), draws(words, extractive, *given)
    other = draws(words, extractive, *given, "--seed", "1")
    assert isinstance(first(0), SpanBatch if extractive else Batch)
    forward = [values(first(step)) for step in range(6)]
    assert [values(again(step)) for step in reversed(range(6))] == forward[::-1]
    assert all(a != b for a, b in pairwise(forward))
    assert all(values(other(step)) != forward[step] for step in range(6))


def test_pieces_are_of_one_batch(words: Tokenizer, extractive: bool, tmp_path: Path) -> None:
    """The examples of 6 questions at once and of 3 times 2, or of 3 processes with 2 each, are the same."""
    given = ["--questions", questions(tmp_path / "q.jsonl", *(f"which {n}?" for n in range(20)))]
    whole = values(draws(words, extractive, *given, "--batch", "6")(0))
    assert len(whole[0]) == 12
    assert values(draws(words, extractive, *given, "--accumulate", "3")(0)) == whole
    assert values(draws(words, extractive, *given, processes=3)(0)) == whole


def test_steps_take_turns_with_passages(words: Tokenizer, extractive: bool, tmp_path: Path) -> None:
    """Rows stay as many; the last of 5 rows would be a question's half."""
    given = ["--questions", questions(tmp_path / "q.jsonl", "which one?", "which two?"), "--passages", "2,2,4,5"]
    draw = draws(words, extractive, *given, "--batch", "4")
    rows = [(len(tensors[0]), len(tensors[3])) for tensors in (values(draw(step)) for step in range(-1, 5))]
    assert rows == [(5, 1), (8, 4), (8, 4), (8, 2), (5, 1), (8, 4)]
    assert len(values(draws(words, extractive, *given, "--passages", "3,1", "--batch", "1")(1))[3]) == 3


@pytest.mark.parametrize("excluded", [["WHICH two", "which the three?", "else?"], ["Which  two?!", "A which three"]])
def test_excluded_questions_are_never_drawn(
    words: Tokenizer, extractive: bool, tmp_path: Path, excluded: Sequence[str]
) -> None:
    given = ["--questions", questions(tmp_path / "q.jsonl", "which one?", "Which two?", "which three?")]
    assert len(count_asked(words, draws(words, extractive, *given), 20)) == 3
    files = [questions(tmp_path / f"{n}.jsonl", question) for n, question in enumerate(excluded)]
    found = count_asked(words, draws(words, extractive, *given, "--exclude", *files), 50)
    assert {question.replace(" ", "").strip("?") for question in found} == {"whichone"}
    with pytest.raises(InputError, match=r"q.jsonl: no question that is not excluded has a passage holding an answer"):
        draws(words, extractive, *given, "--exclude", given[1])


@pytest.mark.parametrize(
    ("shares", "expected"), [(("", ""), 0.5), (("=3", ""), 0.75), (("=0.5", "=4.5"), 0.1), (("=2", "=2"), 0.5)]
)
def test_files_have_their_shares(
    tokenizer: Tokenizer, tmp_path: Path, shares: tuple[str, str], expected: float
) -> None:
    """Whatever the number of questions in each; 600 draws, five standard deviations of a share of a half."""
    first = questions(tmp_path / "a.jsonl", "which one?") + shares[0]
    second = questions(tmp_path / "b.jsonl", "which two?", "which three?") + shares[1]
    found = count_asked(tokenizer, draws(tokenizer, False, "--questions", first, second), 300)
    assert abs(found["which one?"] / 600 - expected) < 0.1


@pytest.mark.parametrize(("share", "expected"), [("1", 0.0), ("0", 1.0), ("0.5", 0.5)])
def test_text_has_its_share(tokenizer: Tokenizer, tmp_path: Path, share: str, expected: float) -> None:
    given = ["--text", CORPUS, "--text-share", share]
    files = [questions(tmp_path / f"{name}.jsonl", "which one?") for name in "ab"]  # two files share the rest
    found = count_asked(tokenizer, draws(tokenizer, False, *given, "--questions", f"{files[0]}=3", files[1]), 100)
    assert abs(found["which one?"] / 200 - expected) < 0.18


def test_yes_or_no_is_asked_as_in_evaluation(tokenizer: Tokenizer, tmp_path: Path) -> None:
    ctxs = [{"title": "t", "text": "It is salt.", "is_gold": True}]
    file = write(tmp_path / "b.jsonl", {"question": "is it?", "answers": ["yes"], "ctxs": ctxs})
    batch = draws(tokenizer, False, "--questions", file)(0)
    assert set(asked_in(tokenizer, batch)[::2]) == {"yes or no: is it?"}


def test_text_can_be_corrupted(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    marked = Tokenizer.from_str(tiny_tokenizer.to_str())
    marked.add_special_tokens([f"<extra_id_{n}>" for n in range(4)])
    marks = {marked.token_to_id(f"<extra_id_{n}>") for n in range(4)}
    for share, least, most in (("1", 40, 40), ("0.5", 8, 32), ("0", 0, 0)):
        draw = draws(marked, False, "--text", CORPUS, "--corruption", share)
        asked = [labels for step in range(20) for labels in values(draw(step))[3]]
        assert least <= sum(bool(marks & set(labels)) for labels in asked) <= most
    with pytest.raises(InputError, match="0 sentinels"):
        draws(tiny_tokenizer, False, "--text", CORPUS, "--corruption", "0.1")


def test_cloze_questions_of_a_span_reader_have_their_answer_in_one_passage(bert_folder: Path) -> None:
    draw = draws(load_tokenizer(bert_folder), True, "--text", CORPUS, "--row-tokens", "200", "--text-words", "40")
    rows: Counter[int] = Counter()
    for step in range(20):
        targets = values(draw(step))[3]
        for places in targets:
            found = {first // 200 for first, _ in places if first >= 0}
            assert len(found) == 1 and all(place[0] % 200 for place in places if place[0] >= 0)  # never "no answer"
            rows.update(found)
    assert set(rows) == {0, 1}  # the gold passage is not always the first


def test_unanswerable_share(bert_folder: Path, tmp_path: Path) -> None:
    passages = [{"title": "t", "text": "The answer is forty."}, *({"title": "t", "text": f"No {n}."} for n in range(4))]
    path = write(tmp_path / "q.jsonl", {"question": "which one?", "answers": ["forty"], "ctxs": passages})
    for share in (0.0, 1.0):
        draw = draws(load_tokenizer(bert_folder), True, "--questions", path, "--unanswerable", str(share))
        silent = [places[0] == [0, 0] for step in range(10) for places in values(draw(step))[3]]
        assert set(silent) == {share == 1}


CLAIM = {
    "claim": "Salt is heavy.",
    "label": "SUPPORTS",
    "ctxs": [{"title": "Salt", "text": "A mule takes forty kilos."}],
}
CHOICE = {"question": "What is salt?", "options": {"A": "mice", "B": "a mineral"}, "answer": "B"}


def test_unanswerable_questions_are_learnt_where_their_passage_is_marked(bert_folder: Path, tmp_path: Path) -> None:
    ctxs = [{"title": "t", "text": "The answer is forty.", "is_gold": True}]
    path = write(tmp_path / "q.jsonl", {"question": "what is fifty", "answers": [], "ctxs": ctxs})
    tokenizer = load_tokenizer(bert_folder)
    batch = draws(tokenizer, True, "--questions", path, "--passages", "1")(0)
    assert isinstance(batch, SpanBatch)
    assert asked_in(tokenizer, batch) == ["what is fifty"] * 2
    assert batch.targets[:, 0].tolist() == [[0, 0], [64, 64]] or batch.targets[:, 0].tolist() == [[0, 0]] * 2
    with pytest.raises(InputError, match="no question with answers"):
        draws(tokenizer, False, "--questions", path)


@pytest.mark.parametrize(("record", "answers"), [(CLAIM, {"supports"}), (CHOICE, {"A", "B"})])
def test_claims_and_choices_are_learnt_as_they_are_asked(
    tiny_tokenizer: Tokenizer, tmp_path: Path, record: dict[str, Any], answers: set[str]
) -> None:
    path = write(tmp_path / "q.jsonl", record)
    draw = draws(tiny_tokenizer, False, "--questions", path, "--row-tokens", "90", "--question-tokens", "60")
    found = set()
    for step in range(10):
        for labels in values(draw(step))[3]:
            found.add(tiny_tokenizer.decode([token for token in labels if token > 1]))
    assert {answer.strip() for answer in found} == answers
    with pytest.raises(InputError, match="which only readers that write learn"):
        draws(tiny_tokenizer, True, "--questions", path)


def test_what_a_family_cannot_learn_is_refused(tokenizer: Tokenizer) -> None:
    for name, extractive in (("unanswerable", False), ("blanks", True), ("corruption", True)):
        with pytest.raises(InputError, match=f"--{name} is for readers that {'write' if extractive else 'quote'}"):
            draws(tokenizer, extractive, "--text", CORPUS, f"--{name}", "0.5")


def test_dev_questions_need_passages(tokenizer: Tokenizer, tmp_path: Path) -> None:
    def dev(path: str, *given: str) -> Any:
        options = parse(["reader", "--out", "-", "--steps", "1", "--dev", path, "--passages", "3,1", *given])
        return open_dev(options, tokenizer)

    path = questions(tmp_path / "q.jsonl", "one?", "two?", "three?")
    assert (dev(path).passages, dev(path, "--dev-passages", "5").passages) == (3, 5)
    assert len(dev(path, "--dev-limit", "2").question_set.questions) == 2
    bare = write(tmp_path / "bare.jsonl", {"question": "one?", "answers": ["a"]})
    with pytest.raises(InputError, match="has no passages to read; add some with"):
        dev(bare)
    assert open_dev(parse(["reader", "--out", "-", "--steps", "1"]), tokenizer) is None


def test_settings_know_files_by_name_and_size(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """So that data may move, and may not change."""

    def found(path: str, *given: str) -> dict[str, Any]:
        start = ["--reader", str(tiny_folders["1.1"]), "--k", "2"]
        options = parse(["reader", "--out", "-", "--steps", "1", *start, "--questions", f"{path}=2", *given])
        student, tokenizer = build_student(options, build_stage(options))
        return settings(options, student, None, tokenizer)

    here = questions(tmp_path / "q.jsonl", "one?")
    (tmp_path / "there").mkdir()
    there = questions(tmp_path / "there" / "q.jsonl", "one?")
    assert found(here) == found(there)
    changed = found(questions(tmp_path / "q.jsonl", "one?", "two?"))
    assert {name for name, value in found(there).items() if value != changed[name]} == {"questions"}
    for option, value, name in (("--batch", "3", "batch"), ("--k", "3", "k"), ("--exclude", here, "exclude")):
        other = found(there, option, value)
        assert {key for key, value in found(there).items() if value != other[key]} - {"reader"} == {name}
    moved = found(there, "--reader", str(tiny_folders["1.0"]))
    assert {key for key, value in found(there).items() if value != moved[key]} == {"reader"}
