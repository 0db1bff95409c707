"""`btr eval` on a tiny reader: its figures are those of its answers, its passages the question's or a store's."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from btr.corpus import Passage, Question
from btr.corpus.questions import find_questions
from btr.eval.__main__ import main
from btr.eval.evidence import own_passages
from btr.eval.figures import score
from btr.precompute import __main__ as precompute
from btr.reader import Reader
from btr.reader.answer import Answer
from btr.storage import Store

CORPUS = Path(__file__).resolve().parents[3] / "corpus"
DIE = Path(__file__).with_name("eval_and_die.py")
PASSAGES = [
    Passage("p1", "A", "A cat sat on the mat."),
    Passage("p2", "B", "The dog lay in the sun."),
    Passage("p3", "Salt", "Salt was carried over the hills on mules."),
]
ASKED = ("where is the cat", "where is the dog", "what was carried on mules")

Run = Callable[..., dict[str, Any]]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """The predictions of a file, without its first line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]


def steady(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predictions without what differs from run to run."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture
def squad(tiny_reader: Reader, tmp_path: Path) -> Path:
    """A folder of tasks with three questions; accepted is, of the first, what the reader will write in mode full."""
    question = Question("q0", ASKED[0], ("x",), tuple(PASSAGES), (True, False, False))
    written = tiny_reader.answer(ASKED[0], own_passages(question, 2), "full", 16).text
    ctxs = [{"id": p.id, "title": p.title, "text": p.text, "is_gold": p.id == "p1"} for p in PASSAGES]
    answers = (written, "zzz", "the mat")
    rows = ({"id": f"q{i}", "question": ASKED[0], "answers": [a], "ctxs": ctxs} for i, a in enumerate(answers))
    write(tmp_path / "tasks" / "squad" / "dev.jsonl", rows)
    return tmp_path / "tasks"


@pytest.fixture(scope="module")
def store(reader_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the three passages, made by the tiny reader."""
    folder = tmp_path_factory.mktemp("store")
    corpus = write(folder / "passages.jsonl", ({"id": p.id, "title": p.title, "text": p.text} for p in PASSAGES))
    assert precompute.main([str(corpus), "--reader", str(reader_folder), "--store", str(folder / "s.btr")]) == 0
    return folder / "s.btr"


@pytest.fixture
def run(reader_folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Evaluate the tiny reader and return the figures."""

    def evaluate(*arguments: str | Path) -> dict[str, Any]:
        capsys.readouterr()
        assert main([*map(str, arguments), "--reader", str(reader_folder), "--json"]) == 0
        figures: dict[str, Any] = json.loads(capsys.readouterr().out)
        return figures

    return evaluate


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the reader writes, by what it is asked; else what it writes by itself."""
    given: dict[str, str] = {}
    answer = Reader.answer

    def canned(self: Reader, question: str, *args: Any, **settings: Any) -> Answer:
        found = answer(self, question, *args)
        return replace(found, text=given.get(question, found.text))

    monkeypatch.setattr(Reader, "answer", canned)
    return given


def test_figures_count_the_readers_own_answers(run: Run, squad: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.jsonl"
    figures = run("squad", "--data", squad, "--modes", "full,binary", "--passages", 2, "--out", out)
    rows = read(out)
    order = [(f"q{i}", mode) for mode in ("full", "binary") for i in range(3)]
    assert [(row["id"], row["mode"]) for row in rows] == order
    full, binary = ([row["em"] for row in rows if row["mode"] == mode] for mode in ("full", "binary"))
    assert full[0] == 1.0 and full[1] == 0.0
    assert [row["em"][0] for row in figures["rows"]] == [round(100 * sum(ems) / 3, 2) for ems in (full, binary)]
    assert figures["rows"][1]["difference"][0] == round(100 * (sum(binary) - sum(full)) / 3, 2)
    assert figures["rows"][1]["retention"][0] == round(100 * sum(binary) / sum(full), 2)
    assert [row["found"][0] for row in figures["rows"]] == [33.33, 33.33]  # "the mat" alone stands in a passage
    assert figures["task"] == "squad" and figures["questions"] == 3 and figures["recall"] is None
    assert figures["passages_from"] == "the questions' own" and figures["source"].endswith("dev.jsonl")


def test_every_combination_is_a_row(run: Run, squad: Path, tmp_path: Path, tiny_reader: Reader) -> None:
    files = {name: tmp_path / f"eval.{name}" for name in ("json", "svg")}
    arguments = ["--modes", "full,float,binary", "--passages", "3,1", "--limit", "1"]
    figures = run("squad", "--data", squad, *arguments)
    settings = [(n, mode) for n in (1, 3) for mode in ("full", "float", "binary")]
    assert [(row["passages"], row["mode"]) for row in figures["rows"]] == settings
    kept = {"full": None, "float": 4.0 * tiny_reader.D, "binary": 8.0 * -(-tiny_reader.D // 64) + 2}
    assert all(row["bytes_per_token"] == kept[row["mode"]] for row in figures["rows"])
    assert all(row["questions_per_second"] > 0 for row in figures["rows"])
    pytest.importorskip("matplotlib")
    again = ["--json", str(files["json"]), "--plot", str(files["svg"])]
    assert main(["squad", "--data", str(squad), "--limit", "1", "--reader", figures["rows"][0]["reader"], *again]) == 0
    assert len(json.loads(files["json"].read_text())["rows"]) == 1
    assert "<svg" in files["svg"].read_text()


def test_table_is_what_people_get(squad: Path, reader_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", str(squad), "--reader", str(reader_folder), "--modes", "full,binary", "--passages", "1"]
    assert main(["squad", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("squad: 3 questions of ") and lines[2].split()[:4] == ["mode", "passages", "EM", "F1"]
    assert [line.split()[:2] for line in lines[3:5]] == [["full", "1"], ["binary", "1"]]


def test_nq_over_a_store(run: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ({"question": asked, "answers": [a]} for asked, a in zip(ASKED, ("mat", "moon", "SALT"), strict=True))
    write(tmp_path / "nq" / "dev.jsonl", rows)
    out, loaded = tmp_path / "out.jsonl", []
    at = Store.at
    monkeypatch.setattr(Store, "at", lambda self, ordinals: loaded.append(list(ordinals)) or at(self, ordinals))
    arguments = ["nq", "--data", tmp_path, "--store", store, "--passages", "1,2"]
    figures = run(*arguments, "--modes", "full,binary", "--out", out)
    # BM25 puts each question's passage first; the moon is in none of the passages.
    assert {k: figure[0] for k, figure in figures["recall"].items()} == {"1": 66.67, "2": 66.67}
    assert [row["found"] for row in read(out) if row["mode"] == "full" and row["passages"] == 1] == [1.0, 0.0, 1.0]
    assert len(loaded) == 3 + 1 + 2 * 3  # once for the texts, once to warm up, then the bits of each question
    with Store.open(store) as opened:
        parts, tokens = opened.manifest.part_bytes, opened.manifest.tokens
    assert [row["bytes_per_token"] for row in figures["rows"]][1] == round(
        (parts["signs"] + parts["scalars"]) / tokens, 2
    )
    # The bits of the store are those that the reader makes of its texts.
    texts = run(*arguments, "--modes", "float,binary", "--against", "float")
    assert texts["rows"][1]["against"] == "float" and texts["rows"][1]["em"] == figures["rows"][1]["em"]


def test_store_of_another_reader_gives_its_texts(
    store: Path, tmp_path: Path, tiny_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    nq = write(tmp_path / "nq.jsonl", [{"question": ASKED[0], "answers": ["mat"]}])
    arguments = ["--store", str(store), "--reader", str(tiny_folders["1.0"]), "--passages", "2", "--json"]
    assert main([str(nq), "--modes", "full", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["bytes_per_token"] is None
    assert main([str(nq), "--modes", "binary", *arguments]) == 2
    assert "knows mode 'full' alone, not 'binary'" in capsys.readouterr().err


def test_store_without_texts_can_only_be_read_as_bits(
    reader_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write(tmp_path / "passages.jsonl", [{"id": "p1", "title": "", "text": PASSAGES[0].text}])
    store = str(tmp_path / "bits.btr")
    assert precompute.main([str(corpus), "--reader", str(reader_folder), "--store", store, "--no-text"]) == 0
    nq = write(tmp_path / "nq.jsonl", [{"question": ASKED[0], "answers": ["mat"]}])
    arguments = [str(nq), "--store", store, "--reader", str(reader_folder), "--passages", "1"]
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recall"] is None
    assert main([*arguments, "--modes", "full"]) == 2
    assert "keeps no texts, and mode 'full'" in capsys.readouterr().err


def test_fever_is_scored_by_labels(run: Run, tmp_path: Path, answers: dict[str, str]) -> None:
    claims = ("Cats sit.", "Dogs fly.", "Salt is blue.", "Mules sing.")
    labels = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO", "REFUTES")
    ctxs = [{"title": p.title, "text": p.text} for p in PASSAGES]
    rows = (
        {"id": n, "claim": c, "label": a, "ctxs": ctxs} for n, (c, a) in enumerate(zip(claims, labels, strict=True))
    )
    write(tmp_path / "fever" / "dev.jsonl", rows)
    written = ("Supports", "supports", "not  enough info.", "nonsense")
    answers |= {f"claim: {claim}": text for claim, text in zip(claims, written, strict=True)}
    out = tmp_path / "out.jsonl"
    figures = run("fever", "--data", tmp_path, "--modes", "full,binary", "--passages", "2", "--out", out)
    assert [row["accuracy"] for row in read(out)] == [1.0, 0.0, 1.0, 0.0] * 2
    assert figures["rows"][1]["accuracy"][0] == 50.0 and figures["rows"][1]["retention"] == [100.0] * 3
    assert "em" not in figures["rows"][0] and "found" not in figures["rows"][0] and figures["recall"] is None
    assert figures["guess"]["by"] == "always 'refutes'" and figures["guess"]["accuracy"][0] == 50.0
    assert all(len(row["choices"]) == 3 and abs(sum(row["choices"]) - 1) < 1e-4 for row in read(out))


def test_mmlu_is_scored_by_letters(run: Run, store: Path, tmp_path: Path, answers: dict[str, str]) -> None:
    options = {"A": "a mat", "B": "the sun"}
    rows = [{"question": ASKED[n], "options": options, "answer": letter} for n, letter in enumerate("AB")]
    write(tmp_path / "mmlu.jsonl", rows)
    answers |= {f"{ASKED[0]} options: (A) a mat (B) the sun": "", f"{ASKED[1]} options: (A) a mat (B) the sun": "(b)"}
    out = tmp_path / "out.jsonl"
    figures = run("mmlu", "--data", tmp_path, "--store", store, "--passages", "2", "--out", out)
    # Exact match would have given "" for "A": an article.
    assert [row["accuracy"] for row in read(out)] == [0.0, 1.0] and figures["rows"][0]["accuracy"][0] == 50.0


@pytest.fixture(scope="module")
def span_folder(span_reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a span reader."""
    folder = tmp_path_factory.mktemp("reader") / "span"
    span_reader.save_pretrained(folder)
    return folder


def test_span_readers_give_no_labels(tmp_path: Path, span_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ctxs = [{"title": "", "text": "Cats sit."}]
    claims = write(tmp_path / "claims.jsonl", [{"claim": "Cats sit.", "label": "SUPPORTS", "ctxs": ctxs}])
    assert main([str(claims), "--reader", str(span_folder)]) == 2
    assert "claims.jsonl gives choices, and reader" in capsys.readouterr().err


def test_place_of_a_quoted_answer_is_kept(squad: Path, tmp_path: Path, span_folder: Path) -> None:
    arguments = ["squad", "--data", str(squad), "--modes", "full,binary", "--passages", "3"]
    assert main([*arguments, "--reader", str(span_folder), "--out", str(tmp_path / "out.jsonl")]) == 0
    texts = {passage.id: passage.text for passage in PASSAGES}
    rows = read(tmp_path / "out.jsonl")
    assert len(rows) == 6 and all(0 < row["no_answer"] < 1 for row in rows)
    assert all(texts[row["span"]["id"]][row["span"]["start"] : row["span"]["end"]] == row["answer"] for row in rows)
    assert all(row["answer"] for row in rows)


def test_pruned_rows_stand_beside_whole_ones(
    squad: Path, tmp_path: Path, pruning_reader: Reader, span_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruning_reader.save_pretrained(tmp_path / "prunes")
    out = tmp_path / "out.jsonl"
    given = ["squad", "--data", str(squad), "--passages", "3", "--prune", "0,1", "--out", str(out)]
    assert main([*given, "--modes", "binary", "--reader", str(tmp_path / "prunes"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["mode"], row["prune"], row.get("against")) for row in rows] == [
        ("binary", 0, None), ("binary", 1, "binary"),
    ]  # fmt: skip
    kept = out.read_text(encoding="utf-8").splitlines()
    alone = [pruning_reader.answer(ASKED[0], own_passages(q, 3), "binary", 16, prune=1) for q in find(squad)]
    assert [row["answer"] for row in read(out)[3:]] == [answer.text for answer in alone]
    assert main([*given, "--modes", "full,binary", "--reader", str(tmp_path / "prunes")]) == 0
    assert [line for line in out.read_text(encoding="utf-8").splitlines() if line in kept] == kept
    table = capsys.readouterr().out
    assert "binary, prune 1" in table and "full, prune 1" in table and "against full" in table
    whole = [pruning_reader.answer(ASKED[0], own_passages(q, 3), "full", 16, prune=1) for q in find(squad)]
    rows = [row for row in read(out) if (row["mode"], row["prune"]) == ("full", 1)]
    assert [row["answer"] for row in rows] == [answer.text for answer in whole]
    assert main([*given, "--reader", str(span_folder)]) == 2
    assert "python -m btr.train skim --reader" in capsys.readouterr().err
    assert main([*given[:-3], "-1", "--reader", str(span_folder)]) == 2
    assert "--prune has '-1'; give numbers from 0" in capsys.readouterr().err


def find(squad: Path) -> list[Question]:
    """The questions of the folder of tasks."""
    return find_questions("squad", str(squad)).questions


def test_against_another_reader(run: Run, squad: Path, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    teacher = tiny_folders["1.0"]
    figures = run("squad", "--data", squad, "--passages", "2", "--against-reader", teacher, "--out", out)
    assert [(row["mode"], row["reader"] == str(teacher)) for row in figures["rows"]] == [
        ("full", True),
        ("binary", False),
    ]
    assert figures["rows"][1]["against"] == f"full of {teacher}"
    assert len({row["reader"] for row in read(out)}) == 2  # each by its weights


def test_rounded_and_merged_rows_stand_beside_their_own(
    run: Run, squad: Path, reader_folder: Path, span_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["squad", "--data", squad, "--passages", "2", "--against", "binary"]
    reader = Reader.from_pretrained(reader_folder)
    merge = reader.schedule("algorithm", 0.3)
    expected = reader.answer(ASKED[0], own_passages(find(squad)[0], 2), "binary", 16, merge).text
    for flags, mark in ((["--round-decoder"], "-int8"), (["--merge", "0.3"], "-merged0.3")):
        figures = run(*given, *flags, "--against-reader", reader_folder, "--out", tmp_path / mark)
        assert [row["mode"] for row in figures["rows"]] == ["binary", "binary"] and "difference" in figures["rows"][1]
        assert [row["more"] for row in figures["rows"]] == ["", {"-int8": "int8"}.get(mark, "merge 0.3")]
        first, second = dict.fromkeys(row["reader"] for row in read(tmp_path / mark))
        assert second == first + mark
        assert main([*map(str, [*given, *flags]), "--reader", str(span_folder)]) == 2
        assert "a span reader" in capsys.readouterr().err
    assert read(tmp_path / "-merged0.3")[3]["answer"] == expected


def test_end_of_an_over_long_question_is_read_and_counted(run: Run, tmp_path: Path, tiny_reader: Reader) -> None:
    ctxs = [{"title": "", "text": "Cats sit."}]
    rows = (
        {"question": asked, "answers": ["cats"], "ctxs": ctxs} for asked in ("who sits", "you ask " * 99 + "who sits")
    )
    figures = run(write(tmp_path / "long.jsonl", rows), "--out", tmp_path / "out.jsonl")
    short, long = read(tmp_path / "out.jsonl")
    assert figures["rows"][0]["cut"] == 1 and "cut" not in short
    assert long["cut"].endswith("you ask who sits") and len(tiny_reader.question_ids(long["cut"])) <= 64
    assert long["answer"] == tiny_reader.answer(long["cut"], [Passage("0", "", "Cats sit.")], "binary", 16).text


def test_killed_run_goes_on_where_it_was(
    run: Run, squad: Path, reader_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["squad", "--data", squad, "--modes", "full,binary", "--passages", "2", "--out"]
    whole = run(*arguments, tmp_path / "whole.jsonl")
    out = tmp_path / "killed.jsonl"
    command = [sys.executable, DIE, "5", *arguments, out, "--reader", reader_folder]
    assert subprocess.run(list(map(str, command)), capture_output=True).returncode == -signal.SIGKILL
    torn = out.read_bytes()
    assert torn.count(b"\n") == 1 + 4 and torn.endswith(b'{"reader": "torn')
    asked: list[str] = []
    predict = Reader.answer

    def count(self: Reader, question: str, passages: Any, mode: Any, most: int, *more: Any, **named: Any) -> Answer:
        asked.append(f"{mode} {most}")
        return predict(self, question, passages, mode, most, *more, **named)

    monkeypatch.setattr(Reader, "answer", count)
    resumed = run(*arguments, out)
    assert asked == ["binary 1", "binary 16", "binary 16"]  # once to warm up, then the two that were left
    assert out.read_bytes().startswith(torn.removesuffix(b'{"reader": "torn'))
    assert steady(read(out)) == steady(read(tmp_path / "whole.jsonl"))
    speed = ("questions_per_second",)
    assert [{k: v for k, v in row.items() if k not in speed} for row in resumed["rows"]] == [
        {k: v for k, v in row.items() if k not in speed} for row in whole["rows"]
    ]
    assert run(*arguments, out) == resumed and len(asked) == 3  # nothing left to do


def test_file_of_other_settings_is_refused(
    run: Run, squad: Path, reader_folder: Path, tiny_folders: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out.jsonl"
    arguments = ["squad", "--data", str(squad), "--modes", "full", "--passages", "1", "--out", str(out)]
    run(*arguments)
    before = out.read_bytes()
    for other, message in (
        (["--reader", str(tiny_folders["1.0"])], "made with reader "),
        (["--reader", str(reader_folder), "--dtype", "bfloat16"], "made with dtype float32, this run has bfloat16"),
        (["--reader", str(reader_folder), "--max-new-tokens", "5"], "made with max_new_tokens 16, this run has 5"),
    ):
        assert main([*arguments, *other]) == 2
        assert message in capsys.readouterr().err and out.read_bytes() == before
    file = squad / "squad" / "dev.jsonl"
    file.write_text(file.read_text().replace("zzz", "yyy"))
    assert main([*arguments, "--reader", str(reader_folder)]) == 2
    assert "question 'q1': the predictions were made from input" in capsys.readouterr().err


def test_scores_of_each_kind() -> None:
    plain = Question("q", "who", ("the Nile", "Nile"))
    assert score("nile.", plain, "question") == {"em": 1.0, "f1": 1.0}
    assert score("the blue nile", plain, "question")["f1"] == pytest.approx(2 / 3)
    assert score("NEI", replace(plain, answers=("NOT ENOUGH INFO",)), "claim") == {"accuracy": 1.0}
    choice = replace(plain, answers=("A",), options=(("A", "x"), ("B", "y")))
    assert [score(text, choice, "choice")["accuracy"] for text in ("a", "(A)", "", "the", "B")] == [
        1.0,
        1.0,
        0.0,
        0.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl"),
        (["trivaqa"], "did you mean 'triviaqa'"),
        ([str(CORPUS / "questions.jsonl"), "--modes", "half"], "'half'"),
        ([str(CORPUS / "questions.jsonl"), "--passages", "1,0"], "--passages has '0'"),
        ([str(CORPUS / "questions.jsonl")], "pass --store"),
        ([str(CORPUS / "questions.jsonl"), "--out", "no/such/folder/x.jsonl"], "no such folder"),
        ([str(CORPUS / "questions.jsonl"), "--json", "no/such/folder/x.json"], "no such folder"),
        ([str(CORPUS / "questions.jsonl"), "--plot", "no/such/folder/x.png"], "no such folder"),
    ],
)
def test_mistakes_end_in_one_line(
    reader_folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--reader", str(reader_folder)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
