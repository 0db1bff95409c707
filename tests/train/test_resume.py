"""A killed run goes on as if nothing had happened: the same losses, figures, best reader and last reader."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CORPUS = Path(__file__).resolve().parents[2] / "corpus"
SHAPE = ["--batch", "2", "--passages", "2", "--row-tokens", "48", "--question-tokens", "16", "--warmup", "2"]


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def kill_and_go_on(tmp_path: Path, options: list[str], *readers: str) -> list[dict[str, object]]:
    """Kill a run of 12 steps before its ninth, go on from the checkpoint of step 5, and compare with a whole run."""
    given = [*options, *SHAPE, "--steps", "12", "--save-every", "0"]
    script = Path(__file__).with_name("train_and_die.py")
    command = [sys.executable, script, "5", "8", *given, "--out", str(tmp_path / "killed")]
    died = subprocess.run(command, capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    metrics = tmp_path / "killed" / "metrics.jsonl"
    assert steps_in(metrics) == list(range(1, 9))  # beyond the checkpoint
    assert not (tmp_path / "killed" / "reader").exists()
    for name in ("killed", "whole"):  # in fresh processes: what ran before in one can change the last digit of a sum
        train = [sys.executable, "-m", "btr.train", *given, "--out", str(tmp_path / name)]
        subprocess.run(train, check=True, capture_output=True)
    assert steps_in(metrics) == list(range(1, 13))
    assert metrics.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    for reader in readers:
        for file in (tmp_path / "whole" / reader).iterdir():
            assert file.read_bytes() == (tmp_path / "killed" / reader / file.name).read_bytes()
    return [json.loads(line) for line in metrics.read_text().splitlines()]


def test_generative_run(tokenizer_file: Path, tmp_path: Path) -> None:
    start = ["reader", "--shape", "tiny", "--k", "2", "--tokenizer", str(tokenizer_file)]
    lines = kill_and_go_on(tmp_path, [*start, "--text", str(CORPUS), "--modes", "full=1,binary=1"], "reader")
    assert {line["mode"] for line in lines} == {"full", "binary"}


@pytest.fixture
def questions(tmp_path: Path) -> str:
    """Nine questions over two passages each."""
    passages = [{"title": "Herons", "text": f"The grey heron number {n} eats {n} fish."} for n in range(10)]
    lines = [
        {"question": f"How many fish eats heron {n}?", "answers": [str(n)], "ctxs": passages[n : n + 2]}
        for n in range(9)
    ]
    path = tmp_path / "herons.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def test_extractive_run_with_dev_questions(bert_folder: Path, questions: str, tmp_path: Path) -> None:
    """Batches in two pieces, a teacher, figures at steps 4, 8 and 12, of which the kill comes after the second."""
    start = ["joint", "--reader", str(bert_folder), "--teacher", str(bert_folder), "--k", "2", "--accumulate", "2"]
    data = ["--questions", questions, "--dev", questions, "--dev-every", "4", "--learning-rate", "0.01"]
    lines = kill_and_go_on(tmp_path, [*start, *data], "reader", "best")
    measured = {line["step"]: line["dev"] for line in lines if "dev" in line}
    assert sorted(measured) == [4, 8, 12]
    best = max(measured.values(), key=lambda figures: (figures["em"], figures["f1"]))  # type: ignore[index]
    first = min(step for step, figures in measured.items() if figures == best)  # type: ignore[type-var]
    for name in ("killed", "whole"):
        assert [path.name for path in (tmp_path / name).glob("best-at-*")] == [f"best-at-{first}"]
