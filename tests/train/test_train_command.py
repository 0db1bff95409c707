"""`btr train` as typed: the stages one after the other, what it draws, and its errors."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from btr.checkpoint import save_reader
from btr.config import Mode
from btr.corpus import Passage
from btr.errors import InputError
from btr.fid import FiD
from btr.reader import Reader
from btr.train.__main__ import build_student, drawer, main, parse_modes, parser
from btr.train.data import Batch

CORPUS = str(Path(__file__).resolve().parents[2] / "corpus")
SHAPE = ["--batch", "2", "--passages", "2", "--row-tokens", "64", "--question-tokens", "16", "--answer-tokens", "8"]
QUICK = ["--text", CORPUS, *SHAPE, "--steps", "3", "--warmup", "1"]


@pytest.fixture(scope="module")
def runs(tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the three stages, each from the one before."""
    out = tmp_path_factory.mktemp("runs")
    new = ["--shape", "tiny", "--k", "2", "--tokenizer", str(tokenizer_file)]
    first, second = str(out / "reader" / "reader"), str(out / "decomposed" / "reader")
    assert main(["reader", "--out", str(out / "reader"), *new, *QUICK]) == 0
    assert main(["decomposed", "--out", str(out / "decomposed"), "--reader", first, "--teacher", first, *QUICK]) == 0
    assert main(["binarized", "--out", str(out / "binarized"), "--reader", second, *QUICK]) == 0
    return out


def test_three_stages_make_a_reader(runs: Path, passages: list[Passage]) -> None:
    reader = Reader.from_pretrained(runs / "binarized" / "reader")
    assert (reader.config.k, reader.config.default_mode) == (2, "binary")
    modes: tuple[Mode, ...] = ("full", "float", "binary")
    for mode in modes:
        answer = reader.answer("Which sea does the Nile reach?", passages[:3], mode, max_new_tokens=4)
        assert answer.mode == mode and torch.isfinite(torch.tensor(answer.score))
    kept = reader.encode_passages(passages[:3])
    assert reader.answer("Which sea does the Nile reach?", kept, max_new_tokens=4).mode == "binary"


def test_every_stage_reports_its_losses(runs: Path) -> None:
    for name, mode in (("reader", "full"), ("decomposed", "float"), ("binarized", "binary")):
        lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        assert [(line["step"], line["mode"]) for line in lines] == [(1, mode), (2, mode), (3, mode)]
        assert all(line["task"] > 0 and line["gradient"] > 0 for line in lines)
        assert all((line["distillation"] > 0) == (name == "decomposed") for line in lines)
        assert all((line["recovery"] > 0) == (name == "binarized") for line in lines)


def binarizer(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "reader" / "btr.safetensors")


def test_signs_are_calibrated_once(runs: Path, tmp_path: Path) -> None:
    """Until a stage trains them mean and magnitude are 0 and 1; once trained, another run starts from them."""
    for name in ("reader", "decomposed"):
        assert not binarizer(runs / name)["mean"].any() and (binarizer(runs / name)["magnitude"] == 1).all()
    trained = binarizer(runs / "binarized")
    assert trained["mean"].abs().max() > 0.01
    more = ["--reader", str(runs / "binarized" / "reader"), "--text", CORPUS, *SHAPE, "--steps", "0"]
    assert main(["binarized", "--out", str(tmp_path), *more, "--seed", "5"]) == 0
    assert all(torch.equal(value, trained[name]) for name, value in binarizer(tmp_path).items())


def test_finished_run_is_not_taken_again(
    runs: Path, tokenizer_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    new = ["--shape", "tiny", "--k", "2", "--tokenizer", str(tokenizer_file), "--out", str(tmp_path), *QUICK]
    assert main(["reader", *new]) == 0
    first = (tmp_path / "metrics.jsonl").read_text()
    assert main(["reader", *new]) == 0
    assert "resuming at step 3" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == first == (runs / "reader" / "metrics.jsonl").read_text()
    assert main(["reader", *new, "--learning-rate", "0.5"]) == 2
    assert capsys.readouterr().err.endswith(
        "made with learning_rate 0.001, this run has learning_rate 0.5; use the same settings, or --no-resume\n"
    )
    assert main(["reader", *new, "--seed", "1", "--no-resume"]) == 0
    assert "starting: reader" in capsys.readouterr().err
    again = (tmp_path / "metrics.jsonl").read_text()
    assert len(again.splitlines()) == 3 and again != first


def test_afresh_drops_the_old_checkpoint_at_once(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = ["--shape", "tiny", "--k", "2", "--tokenizer", str(tokenizer_file), "--out", str(tmp_path), *QUICK]
    assert main(["reader", *new]) == 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("btr.train.loop.Trainer.train_step", interrupt)
    assert main(["reader", *new, "--no-resume"]) == 130
    assert not (tmp_path / "checkpoint.pt").exists()


def test_default_mode_can_be_chosen(runs: Path, tmp_path: Path) -> None:
    given = ["--reader", str(runs / "decomposed" / "reader"), "--modes", "float=1,binary=2", "--default-mode", "full"]
    assert main(["binarized", "--out", str(tmp_path), *given, "--text", CORPUS, *SHAPE, "--steps", "0"]) == 0
    assert Reader.from_pretrained(tmp_path / "reader").config.default_mode == "full"


def student(*given: str) -> FiD:
    return build_student(parser().parse_args(["reader", "--out", "-", "--steps", "1", *given]))[0]


def test_split_and_calibration_of_a_reader_can_be_changed(runs: Path, tokenizer_file: Path) -> None:
    trained = str(runs / "binarized" / "reader")
    same = student("--reader", trained)
    assert (same.config.k, same.config.calibration) == (2, "channel") and same.binarizer.mean.any()
    other = student("--reader", trained, "--k", "3")
    assert other.config.k == 3 and not other.binarizer.mean.any()
    paper = student("--reader", trained, "--calibration", "paper")
    assert (paper.config.k, paper.config.calibration) == (2, "paper") and not paper.binarizer.mean.requires_grad
    fresh = student("--shape", "tiny", "--tokenizer", str(tokenizer_file))
    assert (fresh.config.k, fresh.config.calibration, fresh.t5.config.vocab_size) == (0, "channel", 400)


def test_limits_of_a_reader_are_kept(make_reader: Callable[..., FiD], tokenizer: Tokenizer, tmp_path: Path) -> None:
    reader = make_reader(vocab_size=400)
    object.__setattr__(reader.config, "max_passage_tokens", 77)
    save_reader(reader, tokenizer, tmp_path)
    assert student("--reader", str(tmp_path), "--k", "1").config.max_passage_tokens == 77


def questions(path: Path, *asked: str) -> str:
    ctxs = [{"title": "t", "text": "The answer is forty."}, {"title": "t", "text": "There is none."}]
    path.write_text("\n".join(json.dumps({"question": q, "answers": ["forty"], "ctxs": ctxs}) for q in asked))
    return str(path)


def draws(tokenizer: Tokenizer, *given: str) -> Callable[[int], Batch]:
    options = parser().parse_args(["reader", "--out", "-", "--steps", "1", *SHAPE, *given])
    return drawer(options, tokenizer)


def test_batches_are_a_function_of_seed_and_step(tokenizer: Tokenizer, tmp_path: Path) -> None:
    given = ["--text", CORPUS, "--questions", questions(tmp_path / "q.jsonl", "what is the answer?", "and this?")]

    def values(batch: Batch) -> list[list[int]]:
        return [*batch.ids.tolist(), batch.lengths.tolist(), batch.question_lengths.tolist(), *batch.labels.tolist()]

    first, again, other = draws(tokenizer, *given), draws(tokenizer, *given), draws(tokenizer, *given, "--seed", "1")
    forward = [values(first(step)) for step in range(6)]
    assert [values(again(step)) for step in reversed(range(6))] == forward[::-1]
    assert all(a != b for a, b in pairwise(forward))
    assert all(values(other(step)) != forward[step] for step in range(6))


def asked_in(tokenizer: Tokenizer, batch: Batch) -> set[str]:
    rows = zip(batch.ids.tolist(), batch.question_lengths.tolist(), strict=True)
    return {tokenizer.decode(ids[:length]).removeprefix("question: ") for ids, length in rows}


def test_excluded_questions_are_never_drawn(tokenizer: Tokenizer, tmp_path: Path) -> None:
    given = ["--questions", questions(tmp_path / "q.jsonl", "which one?", "Which two?", "which three?")]
    draw = draws(tokenizer, *given)
    assert set().union(*(asked_in(tokenizer, draw(step)) for step in range(20))) == {
        "which one?",
        "which two?",
        "which three?",
    }
    exclude = [questions(tmp_path / "a.jsonl", "WHICH two?"), questions(tmp_path / "b.jsonl", "which three?", "else?")]
    draw = draws(tokenizer, *given, "--exclude", *exclude)
    assert set().union(*(asked_in(tokenizer, draw(step)) for step in range(50))) == {"which one?"}
    with pytest.raises(InputError, match="no question that is not excluded has a passage holding an answer"):
        draws(tokenizer, *given, "--exclude", given[1])


@pytest.mark.parametrize(("share", "expected"), [("1", 0.0), ("0", 1.0), ("0.5", 0.5)])
def test_text_has_its_share(tokenizer: Tokenizer, tmp_path: Path, share: str, expected: float) -> None:
    draw = draws(
        tokenizer, "--text", CORPUS, "--text-share", share, "--questions", questions(tmp_path / "q.jsonl", "which one?")
    )
    asked = ["which one?" in asked_in(tokenizer, draw(step)) for step in range(60)]
    wanted = 1 - (1 - expected) ** 2  # a batch holds two questions
    assert abs(sum(asked) / 60 - wanted) < 0.2


def test_modes_are_read() -> None:
    assert parse_modes("binary=3,full") == (("binary", 3.0), ("full", 1.0))


@pytest.mark.parametrize(
    "given", ["bits=1", "binary=0", "binary=-1", "binary=x", "binary=nan", "full=inf", "", "full,"]
)
def test_modes_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(InputError, match=f"--modes {re.escape(repr(given))}"):
        parse_modes(given)


def test_tokenizer_is_learnt_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "words.json"
    assert main(["tokenizer", "--text", CORPUS, "--passages", "20", "--size", "200", "--out", str(out)]) == 0
    assert Tokenizer.from_file(str(out)).get_vocab_size() == 200


def test_neighbours_are_found_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "near.jsonl"
    assert main(["neighbours", "--questions", CORPUS, "--text", CORPUS, "--top", "5", "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(records) == 226
    found = sum(any(passage["is_gold"] for passage in record["ctxs"]) for record in records)
    assert found > 200 and all(len(record["ctxs"]) <= 5 for record in records)


NEW = ["--shape", "tiny", "--tokenizer", "{words}"]
ERRORS: dict[str, tuple[list[str], str]] = {
    "nothing to learn from": (["reader", *NEW], "nothing to learn from; pass --text, --questions or both"),
    "no tokenizer": (["reader", "--text", CORPUS], "a new reader needs --tokenizer"),
    "missing tokenizer": (["reader", "--tokenizer", "{tmp}/none.json", "--text", CORPUS], "none.json: no such file"),
    "missing reader": (["reader", "--reader", "{tmp}/none", "--text", CORPUS], "none: no such folder"),
    "missing text": (["reader", *NEW, "--text", "{tmp}/none.jsonl"], "none.jsonl"),
    "missing questions": (["reader", *NEW, "--questions", "{tmp}/none.jsonl"], "none.jsonl"),
    "missing excluded": (["reader", *NEW, "--questions", CORPUS, "--exclude", "{tmp}/none.jsonl"], "none.jsonl"),
    "no passages": (["reader", *NEW, "--questions", CORPUS], "add passages with: python -m btr.train neighbours"),
    "bad modes": (
        ["reader", *NEW, "--text", CORPUS, "--modes", "bits=2"],
        "'bits=2' is not one of full, float, binary",
    ),
    "no teacher": (["decomposed", *NEW, "--k", "2", "--text", CORPUS], "distils from a teacher; pass --teacher FOLDER"),
    "missing teacher": (
        ["decomposed", *NEW, "--k", "2", "--text", CORPUS, "--teacher", "{tmp}/none"],
        "no such folder",
    ),
    "no split": (["binarized", *NEW, "--text", CORPUS], "decomposes the encoder and the reader has k = 0; pass --k"),
    "no split to answer by": (["reader", *NEW, "--text", CORPUS, "--default-mode", "binary"], "k = 0; pass --k"),
    "k too large": (["binarized", *NEW, "--text", CORPUS, "--k", "4"], "k is 4, the encoder has 4 layers"),
    "k negative": (["binarized", *NEW, "--text", CORPUS, "--k", "-1"], "k is -1"),
    "batch": (["reader", *NEW, "--text", CORPUS, "--batch", "0"], "--batch is 0; give at least 1"),
    "rate": (["reader", *NEW, "--text", CORPUS, "--learning-rate", "nan"], "--learning-rate is nan; give at least 0"),
    "share": (["reader", *NEW, "--text", CORPUS, "--blanks", "1.5"], "--blanks is 1.5; give a share between 0 and 1"),
    "row": (["reader", *NEW, "--text", CORPUS, "--row-tokens", "32"], "--question-tokens is 32 and --row-tokens 32"),
    "out is a file": (["reader", *NEW, "--text", CORPUS, "--out", "{words}"], "words.json"),
    "diverged": (
        ["reader", *NEW, "--text", CORPUS, *SHAPE, "--learning-rate", "1e30", "--warmup", "0"],
        "lower --learn",
    ),
    "size": (["tokenizer", "--text", CORPUS, "--size", "30", "--out", "{tmp}/t.json"], "size is 30"),
    "top": (["neighbours", "--questions", CORPUS, "--text", CORPUS, "--top", "0", "--out", "{tmp}/n"], "--top is 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_mistake_is_one_line(
    name: str, tokenizer_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, expected = ERRORS[name]
    argv = [argument.format(tmp=tmp_path, words=tokenizer_file) for argument in argv]
    if argv[0] in ("reader", "decomposed", "binarized"):
        argv = [argv[0], "--out", str(tmp_path / "run"), "--steps", "3", *argv[1:]]
    assert main(argv) == 2
    last = capsys.readouterr().err.splitlines()
    assert last[-1].startswith("error: ") and expected in last[-1]
    assert len(last) == (2 if name == "diverged" else 1)  # it had started
    assert name == "diverged" or not (tmp_path / "run").exists()


def test_teacher_of_another_kind_is_refused(
    runs: Path,
    make_reader: Callable[..., FiD],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_reader(make_reader(vocab_size=400, d_model=32), tokenizer, tmp_path / "narrow")
    save_reader(make_reader(vocab_size=400), swapped(tokenizer), tmp_path / "foreign")
    given = ["--reader", str(runs / "reader" / "reader"), "--out", str(tmp_path / "run"), *QUICK]
    for name, expected in (("narrow", "d_model 32, the student 64"), ("foreign", "another vocabulary")):
        assert main(["decomposed", "--teacher", str(tmp_path / name), *given]) == 2
        assert expected in capsys.readouterr().err


def swapped(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with two pieces in each other's place."""
    state = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    return Tokenizer.from_str(json.dumps(state))
