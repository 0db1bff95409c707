"""The loop: what a step does, that it learns, and that a killed run goes on as if nothing had happened."""

import json
import math
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from btr.config import Mode
from btr.errors import InputError
from btr.fid import FiD
from btr.train.__main__ import main
from btr.train.data import Batch
from btr.train.loop import Schedule, Trainer, keep_steps, passage_tokens
from btr.train.stages import STAGES

MakeReader = Callable[..., FiD]
CORPUS = Path(__file__).resolve().parents[2] / "corpus"


def following(step: int) -> Batch:
    """Make 16 rows of a toy task: the question names a token of the passage, the answer is the one after it."""
    generator = torch.Generator().manual_seed(step + 1000)
    ids = torch.randint(3, 64, (16, 8), generator=generator)
    ids[:, 1], ids[:, 7] = ids[:, 3], 1
    labels = torch.stack([ids[:, 4], torch.ones(16, dtype=torch.long)], 1)
    return Batch(ids, torch.full((16,), 8), torch.full((16,), 2), labels)


@pytest.fixture
def make_trainer(make_reader: MakeReader, tmp_path: Path) -> Callable[..., Trainer]:
    def make(stage: str = "reader", student: FiD | None = None, **schedule: Any) -> Trainer:
        teacher = make_reader(seed=1).eval() if stage == "decomposed" else None
        settings = Schedule(**({"steps": 100, "warmup": 10} | schedule))
        return Trainer(student or make_reader(), STAGES[stage], settings, teacher, tmp_path, False)

    return make


MakeTrainer = Callable[..., Trainer]


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (60, 0.6), (109, 0.208)])
def test_learning_rate_rises_then_falls(step: int, factor: float) -> None:
    assert math.isclose(Schedule(110, warmup=10, floor=0.2).rate(step), factor)


def test_learning_rate_of_a_run_that_is_all_warm_up() -> None:
    assert [Schedule(4, warmup=8).rate(step) for step in range(4)] == [0.125, 0.25, 0.375, 0.5]
    assert Schedule(4, warmup=0).rate(0) == 1


def test_learning_rate_reaches_the_optimisers(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(learning_rate=2e-3)
    trainer.step = 4
    trainer.train_step(following(0), "full")
    assert [group["lr"] for optimiser in trainer.optimisers for group in optimiser.param_groups] == [1e-3, 1e-3]


@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_hidden_matrices_and_adamw_the_rest(
    make_trainer: MakeTrainer, make_reader: MakeReader, tied: bool
) -> None:
    trainer = make_trainer("binarized", make_reader(tied_head=tied))
    names = {id(p): name for name, p in trainer.student.named_parameters()}
    assert trainer.projection is not None
    names |= {id(p): f"projection.{name}" for name, p in trainer.projection.named_parameters()}
    given = [[names[id(p)] for group in o.param_groups for p in group["params"]] for o in trainer.optimisers]
    adamw, muon = given
    assert sorted(adamw + muon) == sorted(names.values())  # each once, a tied head too
    assert [type(optimiser).__name__ for optimiser in trainer.optimisers] == ["AdamW", "Muon"]
    outside = ("norm.weight", "table.weight", "embedding.weight", "head.weight", "mean", "magnitude", "bias")
    assert all(name.endswith(outside) for name in adamw)
    assert all(name.split(".")[-2] in {"q", "k", "v", "o", "wi", "wo", "projection"} for name in muon)
    assert ("t5.head.weight" in adamw) == (not tied)
    assert len(muon) == (4 * 6 + 2 * 10) + 1  # 4 encoder layers, 2 decoder layers, the projection


def test_adamw_can_take_everything(make_trainer: MakeTrainer, make_reader: MakeReader) -> None:
    trainer = make_trainer(student=make_reader(calibration="paper"), matrices="adamw")
    (adamw,) = trainer.optimisers
    given = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert given == {id(p) for name, p in trainer.student.named_parameters() if "binarizer" not in name}


@pytest.mark.parametrize("mode", ["full", "binary"])
def test_training_learns_to_copy(make_trainer: MakeTrainer, mode: Mode) -> None:
    trainer = make_trainer(learning_rate=3e-3)
    trainer.calibrate([following(-1)])
    losses = [trainer.train_step(following(step), mode)["task"] for step in range(80)]
    assert losses[0] > 4
    assert sum(losses[-10:]) / 10 < 0.6 * losses[0]


def test_every_stage_lowers_its_losses(make_trainer: MakeTrainer) -> None:
    for stage, mode, name in (("decomposed", "float", "distillation"), ("binarized", "binary", "recovery")):
        trainer = make_trainer(stage, learning_rate=3e-3)
        trainer.calibrate([following(-1)])
        losses = [trainer.train_step(following(0), mode)[name] for _ in range(25)]  # type: ignore[arg-type]
        assert 0 < losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("mode", ["full", "float", "binary"])
def test_gradient_reaches_the_lower_layers(make_trainer: MakeTrainer, mode: Mode) -> None:
    trainer = make_trainer()
    trainer.calibrate([following(-1)])
    batch = following(0)
    trainer.losses((batch.ids, batch.lengths, batch.question_lengths, batch.labels), mode)[0].backward()
    lower = [p for layer in trainer.student.t5.encoder.layers[:2] for p in layer.parameters()]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in lower)
    for value in (trainer.student.binarizer.mean, trainer.student.binarizer.magnitude):
        assert (value.grad is not None and bool(value.grad.abs().max() > 0)) == (mode == "binary")


def test_each_stage_has_its_own_losses(make_trainer: MakeTrainer) -> None:
    for stage, mode, extra in (("decomposed", "float", 1), ("binarized", "binary", 2)):
        trainer = make_trainer(stage)
        batch = following(0)
        found = trainer.losses((batch.ids, batch.lengths, batch.question_lengths, batch.labels), mode)  # type: ignore[arg-type]
        assert [bool(value > 0) for value in found] == [True, extra == 1, extra == 2]


def test_teacher_is_not_trained(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("decomposed")
    assert trainer.teacher is not None
    before = [p.clone() for p in trainer.teacher.parameters()]
    trainer.train_step(following(0), "float")
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.teacher.parameters(), strict=True))
    with pytest.raises(ValueError, match="has no teacher"):
        Trainer(trainer.student, STAGES["decomposed"], trainer.schedule, None, trainer.out, False)


def test_infinite_loss_is_an_error(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.student.t5.decoder.norm.weight.data[0] = math.nan
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0; lower --learning-rate"):
        trainer.train_step(following(0), "full")


def test_infinite_gradient_leaves_the_weights(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    weight = trainer.student.t5.decoder.norm.weight
    before = weight.detach().clone()

    def steep(batch: tuple[Tensor, ...], mode: Mode) -> tuple[Tensor, Tensor, Tensor]:
        loss = (weight - weight.detach()).abs().sqrt().sum()  # 0, infinitely steep
        return loss, loss.new_zeros(()), loss.new_zeros(())

    trainer.loss = steep
    with pytest.raises(FloatingPointError, match="the gradient's norm is nan at step 0"):
        trainer.train_step(following(0), "full")
    assert torch.equal(weight, before)


def test_dropout_is_a_function_of_seed_and_step(make_trainer: MakeTrainer, make_reader: MakeReader) -> None:
    def losses(noise: int, **schedule: Any) -> list[float]:
        torch.manual_seed(noise)
        trainer = make_trainer(student=make_reader(dropout_rate=0.3), **schedule)
        return [trainer.train_step(following(0), "full")["task"] for _ in range(2)]

    assert losses(1) == losses(2) != losses(1, seed=1)


def test_calibration_is_that_of_the_passages(make_trainer: MakeTrainer, make_reader: MakeReader) -> None:
    trainer = make_trainer(student=make_reader(dropout_rate=0.3))
    batch = following(0)
    batch = replace(batch, lengths=torch.randint(4, 8, (16,)))
    trainer.calibrate([batch, following(1)])
    reader = trainer.student.eval()
    found = []
    for made in (batch, following(1)):
        for ids, length, asked in zip(made.ids, made.lengths, made.question_lengths, strict=True):
            found.append(reader.join_norm(reader.lower(ids[None, asked:length], (length - asked)[None])[0]))
    u = torch.cat(found)
    assert torch.allclose(reader.binarizer.mean, u.mean(0), atol=1e-5)
    assert torch.allclose(reader.binarizer.magnitude, (u - u.mean(0)).abs().mean(0), atol=1e-5)


def test_calibration_leaves_the_reader_training(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.calibrate([following(0)])
    assert trainer.student.training and trainer.student.t5.encoder.layers[0].ffn.training


def test_passage_tokens_are_between_question_and_padding() -> None:
    found = passage_tokens(torch.zeros(2, 5), torch.tensor([5, 3]), torch.tensor([2, 3]))
    assert found.tolist() == [[False, False, True, True, True], [False] * 5]


OPTIONS = [
    *("reader", "--shape", "tiny", "--k", "2", "--text", str(CORPUS), "--modes", "full=1,binary=1"),
    *("--batch", "2", "--passages", "2", "--row-tokens", "48", "--question-tokens", "16", "--steps", "12"),
    *("--warmup", "2", "--save-every", "0"),
]


def run(tokenizer_file: Path, out: Path, *more: str) -> int:
    return main([*OPTIONS, "--tokenizer", str(tokenizer_file), "--out", str(out), *more])


def test_killed_run_goes_on_as_if_nothing_had_happened(tokenizer_file: Path, tmp_path: Path) -> None:
    given = [*OPTIONS, "--tokenizer", str(tokenizer_file), "--out", str(tmp_path / "killed")]
    script = Path(__file__).with_name("train_and_die.py")
    died = subprocess.run([sys.executable, script, "5", "8", *given], capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    metrics = tmp_path / "killed" / "metrics.jsonl"
    assert steps_in(metrics) == list(range(1, 9))  # beyond the checkpoint
    assert not (tmp_path / "killed" / "reader").exists()
    assert run(tokenizer_file, tmp_path / "killed") == run(tokenizer_file, tmp_path / "whole") == 0
    assert steps_in(metrics) == list(range(1, 13))
    assert metrics.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    for name in ("model.safetensors", "btr.safetensors", "btr_config.json"):
        first, second = (tmp_path / run / "reader" / name for run in ("killed", "whole"))
        assert first.read_bytes() == second.read_bytes()


def test_metrics_hold_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    keep_steps(path, 3)
    assert not path.exists()
    lines = [
        json.dumps({"step": step, "task": take}) for take, steps in ((1, (1, 2, 3)), (2, (3, 4, 5))) for step in steps
    ]
    path.write_text("\n".join(lines) + '\n{"step": 6, "ta')
    keep_steps(path, 4)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "task": 1},
        {"step": 2, "task": 1},
        {"step": 3, "task": 2},
        {"step": 4, "task": 2},
    ]
    keep_steps(path, 0)
    assert path.read_text() == ""


def test_run_with_another_schedule_is_refused(make_trainer: MakeTrainer) -> None:
    make_trainer(learning_rate=1e-3, seed=1).save()
    expected = "made with learning_rate 0.001, seed 1, this run has learning_rate 0.002, seed 2; .* or --no-resume"
    with pytest.raises(InputError, match=expected):
        make_trainer(learning_rate=2e-3, seed=2).resume()
    with pytest.raises(InputError, match="made with stage reader, this run has stage binarized"):
        make_trainer("binarized", learning_rate=1e-3, seed=1).resume()
    assert make_trainer(learning_rate=1e-3, seed=1, save_every=7.0).resume()  # no loss depends on it


def test_checkpoint_of_another_reader_is_refused(make_trainer: MakeTrainer, make_reader: MakeReader) -> None:
    make_trainer().save()
    with pytest.raises(InputError, match="a reader of another shape"):
        make_trainer(student=make_reader(vocab_size=65)).resume()


def test_damaged_checkpoint_is_refused(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    assert not trainer.resume()
    trainer.save()
    path = trainer.out / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"checkpoint.pt: damaged .*--no-resume"):
        trainer.resume()


def test_checkpoint_holds_all_of_a_run(make_trainer: MakeTrainer) -> None:
    """After a save, the steps of the run and of one that takes it over are the same to the bit."""
    first = make_trainer("binarized", learning_rate=3e-3)
    for step in range(3):
        first.train_step(following(step), "binary")
    first.save()
    second = make_trainer("binarized", learning_rate=3e-3)
    assert second.resume() and second.step == 3
    for step in range(3, 6):
        assert first.train_step(following(step), "binary") == second.train_step(following(step), "binary")
    assert first.step == second.step == 6


def test_run_saves_and_reports(make_trainer: MakeTrainer) -> None:
    said: list[str] = []
    trainer = make_trainer(steps=21, save_every=1e9)
    trainer.run(following, said.append)
    assert [line.split()[1] for line in said] == ["20/21", "21/21"]
    assert torch.load(trainer.out / "checkpoint.pt", weights_only=True)["step"] == 21
    assert not list(trainer.out.glob("*.tmp"))


def test_modes_of_steps_do_not_depend_on_the_start(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(steps=30, seed=3)
    trainer.stage = replace(trainer.stage, modes=(("full", 1.0), ("binary", 1.0)))
    modes = [mode for _, mode in trainer.prepared(following)]
    trainer.step = 11
    assert [mode for _, mode in trainer.prepared(following)] == modes[11:]
    assert set(modes) == {"full", "binary"}
    rng = random.Random("mode/3/0")
    assert modes[0] == trainer.stage.mode(rng.random())
