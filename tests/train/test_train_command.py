"""`btr train` as typed: the stages one after the other, what comes before them, and its errors."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from btr.corpus import Passage
from btr.model.checkpoint import digest, load_reader, load_tokenizer
from btr.model.config import Mode
from btr.reader import Reader
from btr.train.__main__ import main
from btr.train.stages import STAGES

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
        added = {"decomposed": ["distillation"], "binarized": ["recovery"]}.get(name, [])
        assert all(list(line) == ["step", "mode", "task", *added, "gradient"] for line in lines)
        assert all(line[loss] > 0 for line in lines for loss in added)


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
        "made with learning_rate 0.001, this run has learning_rate 0.5; "
        "use the same settings or another --out; --no-resume starts afresh\n"
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


def test_tokenizer_is_learnt_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "words.json"
    assert main(["tokenizer", "--text", CORPUS, "--passages", "20", "--size", "200", "--out", str(out)]) == 0
    assert Tokenizer.from_file(str(out)).get_vocab_size() == 200


def test_vocabulary_is_trimmed_from_the_command_line(bert_folder: Path, tmp_path: Path) -> None:
    pieces = load_tokenizer(bert_folder).get_vocab_size()
    out = tmp_path / "small"
    given = ["--reader", str(bert_folder), "--text", CORPUS, "--passages", "20", "--size", str(pieces - 20)]
    assert main(["vocabulary", *given, "--out", str(out)]) == 0
    assert load_tokenizer(out).get_vocab_size() == pieces - 20
    quick = ["--text", CORPUS, *SHAPE, "--steps", "1"]
    assert main(["reader", "--reader", str(out), "--out", str(tmp_path / "run"), *quick]) == 0
    assert Reader.from_pretrained(tmp_path / "run" / "reader").model.vocab_size == pieces - 20


RECIPE = """
batch = 2
passages = 2
row-tokens = 64
question-tokens = 16
warmup = 1
k = 2
dev-every = 2
[reader]
steps = 3
[joint]
steps = 2
checkpointing = true
"""


@pytest.fixture
def herons(tmp_path: Path) -> str:
    """Nine questions over two passages each."""
    passages = [{"title": "Herons", "text": f"The grey heron number {n} eats {n} fish."} for n in range(10)]
    asked = [
        {"question": f"How many fish eats heron {n}?", "answers": [str(n)], "ctxs": passages[n : n + 2]}
        for n in range(9)
    ]
    (tmp_path / "herons.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return str(tmp_path / "herons.jsonl")


def test_recipe_is_trained_from_a_bert_in_one_command(
    bert_folder: Path, herons: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE)
    out = tmp_path / "run"
    given = ["--config", str(tmp_path / "mine.toml"), "--out", str(out), "--reader", str(bert_folder)]
    assert main(["all", *given, "--questions", herons, "--dev", herons]) == 0
    said = capsys.readouterr().err
    assert "starting: reader" in said and "starting: joint" in said and "the best so far" in said
    for stage, steps, measured in (("reader", 3, [2, 3]), ("joint", 2, [2])):
        lines = [json.loads(line) for line in (out / stage / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == steps and [line["step"] for line in lines if "dev" in line] == measured
        if find_spec("matplotlib"):
            assert (out / stage / "metrics.png").read_bytes().startswith(b"\x89PNG")
    # the second stage began from the best of the first, and was taught by it
    settings = torch.load(out / "joint" / "checkpoint.pt", weights_only=True)["settings"]
    first = load_reader(out / "reader" / "best", torch.float32, None)
    assert settings["teacher"] == settings["reader"] == digest(first.state_dict().items())
    reader = Reader.from_pretrained(out / "joint" / "best")
    assert (reader.family, reader.config.k, reader.config.default_mode) == ("extractive", 2, "binary")
    assert reader.answer("How many fish?", [Passage("1", "Herons", "A heron eats 5 fish.")]).span is not None
    # once more: every stage is done
    assert main(["all", *given, "--questions", herons, "--dev", herons]) == 0
    said = capsys.readouterr().err
    assert "resuming at step 3: reader" in said and "resuming at step 2: joint" in said


def test_run_without_matplotlib_has_no_plot(
    bert_folder: Path, herons: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    given = ["--reader", str(bert_folder), "--questions", herons, *SHAPE, "--steps", "1"]
    assert main(["reader", "--out", str(tmp_path / "run"), *given]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "note: no plot without matplotlib; pip install matplotlib"
    assert not (tmp_path / "run" / "metrics.png").exists()


def test_run_with_other_batches_is_refused(
    bert_folder: Path, herons: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["reader", "--out", str(tmp_path / "run"), "--reader", str(bert_folder), "--questions", herons]
    assert main([*given, *SHAPE, "--steps", "1"]) == 0
    for more, made, wanted in (
        (["--batch", "4"], "batch 2", "batch 4"),
        (["--row-tokens", "48"], "row_tokens 64", "row_tokens 48"),
        (["--unanswerable", "0.5"], "unanswerable 0.0", "unanswerable 0.5"),
    ):
        assert main([*given, *SHAPE, "--steps", "1", *more]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"was made with {made}, this run has {wanted}; use the same settings or another --out" in said


def test_recipe_without_stages_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").write_text("steps = 3")
    assert main(["all", "--config", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "run")]) == 2
    assert "has no stages; give it tables" in capsys.readouterr().err


def test_out_of_memory_says_what_to_do(
    bert_folder: Path, herons: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def burst(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("btr.train.loop.Trainer.train_step", burst)
    given = ["--reader", str(bert_folder), "--questions", herons, *SHAPE, "--steps", "1"]
    assert main(["reader", "--out", str(tmp_path / "run"), *given]) == 2
    assert "halve --batch and double --accumulate" in capsys.readouterr().err.splitlines()[-1]


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
    "unread": (["reader", "--reader", "{bert}", "--text", CORPUS, "--unread", "the xyzzy"], "'xyzzy' is no token"),
    "batch": (["reader", *NEW, "--text", CORPUS, "--batch", "0"], "--batch is 0; give at least 1"),
    "rate": (["reader", *NEW, "--text", CORPUS, "--learning-rate", "nan"], "--learning-rate is nan; give at least 0"),
    "share": (["reader", *NEW, "--text", CORPUS, "--blanks", "1.5"], "--blanks is 1.5; give a share between 0 and 1"),
    "row": (["reader", *NEW, "--text", CORPUS, "--row-tokens", "32"], "--question-tokens is 32 and --row-tokens 32"),
    "out is a file": (["reader", *NEW, "--text", CORPUS, "--out", "{words}"], "words.json: is a file; give a folder"),
    "unknown option": (["reader", *NEW, "--text", CORPUS, "--bach", "3"], "unrecognized arguments: --bach 3"),
    "unknown recipe": (
        ["reader", *NEW, "--text", CORPUS, "--config", "nq"],
        "no such recipe; give a .toml file, or one",
    ),
    "other stage": (["joint", *NEW, "--text", CORPUS, "--config", "nq-base"], "has no stage [joint]; it has reader, "),
    "dev without passages": (["reader", *NEW, "--text", CORPUS, "--dev", CORPUS], "has no passages to read"),
    "no recipe": (["all", *NEW, "--text", CORPUS, "--out", "{tmp}/run"], "all trains the stages of a recipe; pass"),
    "diverged": (
        ["reader", *NEW, "--text", CORPUS, *SHAPE, "--learning-rate", "1e30", "--warmup", "0"],
        "lower --learn",
    ),
    "size": (["tokenizer", "--text", CORPUS, "--size", "30", "--out", "{tmp}/t.json"], "size is 30"),
    "top": (["neighbours", "--questions", CORPUS, "--text", CORPUS, "--top", "0", "--out", "{tmp}/n"], "--top is 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_mistake_is_one_line(
    name: str, tokenizer_file: Path, bert_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv, expected = ERRORS[name]
    argv = [argument.format(tmp=tmp_path, words=tokenizer_file, bert=bert_folder) for argument in argv]
    if argv[0] in STAGES:
        argv = [argv[0], "--out", str(tmp_path / "run"), "--steps", "3", *argv[1:]]
    assert main(argv) == 2
    last = capsys.readouterr().err.splitlines()
    assert last[-1].startswith("error: ") and expected in last[-1]
    assert len(last) == (2 if name == "diverged" else 1)  # it had started
    assert name == "diverged" or not (tmp_path / "run").exists()
