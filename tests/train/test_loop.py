"""The loop: what a step does, that it learns, and that its checkpoint holds all of it."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from btr.errors import InputError
from btr.model.config import Mode
from btr.model.fid import FiD
from btr.train.data import Batch
from btr.train.loop import Trainer
from btr.train.objectives import build_objective
from btr.train.schedule import Schedule
from btr.train.stages import STAGES

MakeReader = Callable[..., FiD]


def following(step: int) -> Batch:
    """Make 16 rows of a toy task: the question names a token of the passage, the answer is the one after it."""
    generator = torch.Generator().manual_seed(step + 1000)
    ids = torch.randint(3, 64, (16, 8), generator=generator)
    ids[:, 1], ids[:, 7] = ids[:, 3], 1
    labels = torch.stack([ids[:, 4], torch.ones(16, dtype=torch.long)], 1)
    return Batch(ids, torch.full((16,), 8), torch.full((16,), 2), labels)


@pytest.fixture
def make_trainer(make_reader: MakeReader, tmp_path: Path) -> Callable[..., Trainer]:
    def make(stage: str = "reader", student: FiD | None = None, accumulate: int = 1, **schedule: Any) -> Trainer:
        teacher = make_reader(seed=1).eval() if STAGES[stage].needs_teacher else None
        settings = Schedule(**({"steps": 100, "warmup": 10} | schedule))
        return Trainer(student or make_reader(), STAGES[stage], settings, teacher, tmp_path, accumulate=accumulate)

    return make


MakeTrainer = Callable[..., Trainer]


def test_learning_rate_reaches_the_optimisers(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(learning_rate=2e-3)
    trainer.step = 4
    trainer.train_step(following(0), "full")
    assert [group["lr"] for optimiser in trainer.optimisers for group in optimiser.param_groups] == [1e-3] * 3


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
    trainer.losses(batch.tensors(), mode)["task"].backward()
    lower = [p for layer in trainer.student.t5.encoder.layers[:2] for p in layer.parameters()]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in lower)
    for value in (trainer.student.binarizer.mean, trainer.student.binarizer.magnitude):
        assert (value.grad is not None and bool(value.grad.abs().max() > 0)) == (mode == "binary")


def test_teacher_is_not_trained(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("decomposed")
    assert trainer.teacher is not None
    before = [p.clone() for p in trainer.teacher.parameters()]
    trainer.train_step(following(0), "float")
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.teacher.parameters(), strict=True))
    with pytest.raises(ValueError, match="has no teacher"):
        Trainer(trainer.student, STAGES["decomposed"], trainer.schedule, None, trainer.folder.path)


def test_infinite_loss_is_an_error(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.student.t5.decoder.norm.weight.data[0] = math.nan
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0; lower --learning-rate"):
        trainer.train_step(following(0), "full")


def test_infinite_gradient_leaves_the_weights(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    weight = trainer.student.t5.decoder.norm.weight
    before = weight.detach().clone()

    def steep(batch: tuple[Tensor, ...], mode: Mode) -> dict[str, Tensor]:
        return {"task": (weight - weight.detach()).abs().sqrt().sum()}  # 0, infinitely steep

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


def test_dropout_is_another_one_in_each_step(make_trainer: MakeTrainer, make_reader: MakeReader) -> None:
    """With weights that stay as they are, and one batch, nothing else is left to make a difference."""
    for rate in (0.0, 0.3):
        trainer = make_trainer(student=make_reader(dropout_rate=rate), learning_rate=0.0)
        first, second = (trainer.train_step(following(0), "full")["task"] for _ in range(2))
        assert (first == second) == (rate == 0)


def test_gradient_is_clipped_to_the_schedules_norm(make_trainer: MakeTrainer) -> None:
    def step(clip: float) -> tuple[float, float]:
        trainer, seen = make_trainer(clip=clip), []
        first = trainer.optimisers[0]
        gradients = [p for _, p in trainer.named_parameters()]
        first.register_step_pre_hook(
            lambda *_: seen.append(
                math.sqrt(sum(p.grad.square().sum().item() for p in gradients if p.grad is not None))
            )
        )
        return trainer.train_step(following(0), "full")["gradient"], seen[0]

    whole, same = step(math.inf)
    assert same == pytest.approx(whole, rel=1e-5)
    assert step(whole / 8) == pytest.approx((whole, whole / 8), rel=1e-4)


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


def uneven(step: int) -> Batch:
    """Make 16 rows whose answers have 1 to 6 tokens, the short ones first."""
    batch = following(step)
    labels = batch.ids[:, 2:8].clone()
    labels[torch.arange(6)[None] > torch.arange(16)[:, None] // 3] = -100
    return replace(batch, labels=labels)


@pytest.mark.parametrize("accumulate", [2, 8])
def test_accumulated_step_is_that_of_the_whole_batch(make_trainer: MakeTrainer, accumulate: int) -> None:
    """Up to the rounding of bfloat16, 2**-9 a product; a plain mean over the pieces is another loss."""
    whole, pieces = make_trainer(), make_trainer(accumulate=accumulate)
    wanted, found = (trainer.train_step(uneven(0), "full") for trainer in (whole, pieces))
    assert found == pytest.approx(wanted, rel=2**-9)
    each = [tuple(tensor.chunk(accumulate)[n] for tensor in uneven(0).tensors()) for n in range(accumulate)]
    alone = make_trainer()
    mean = sum(alone.losses(piece, "full")["task"].item() for piece in each) / accumulate
    assert abs(mean - wanted["task"]) > 2**-8 * wanted["task"]


def test_weights_of_the_stage_count(make_trainer: MakeTrainer) -> None:
    """With a loss of weight 0 the gradient is that of the other; a weight of 2 doubles it (no clipping)."""

    def norm(**weights: float) -> float:
        trainer = make_trainer("binarized", clip=math.inf, matrices="adamw")
        trainer.calibrate([following(-1)])
        trainer.stage = replace(trainer.stage, weights={**trainer.stage.weights, **weights})
        return trainer.train_step(following(0), "binary")["gradient"]

    assert norm(task=2.0, recovery=0.0) == pytest.approx(2 * norm(task=1.0, recovery=0.0), rel=1e-6)
    assert norm(task=1.0, recovery=100.0) > 1.01 * norm(task=1.0, recovery=0.0)


def test_run_with_another_schedule_is_refused(make_trainer: MakeTrainer) -> None:
    make_trainer(learning_rate=1e-3, seed=1).save()
    expected = "made with learning_rate 0.001, seed 1, this run has learning_rate 0.002, seed 2; .* --no-resume"
    with pytest.raises(InputError, match=expected):
        make_trainer(learning_rate=2e-3, seed=2).resume()
    with pytest.raises(InputError, match=r"made with stage reader, modes full=1, .*, this run has stage binarized, "):
        make_trainer("binarized", learning_rate=1e-3, seed=1).resume()
    with pytest.raises(InputError, match="made with accumulate 1, this run has accumulate 2"):
        make_trainer(learning_rate=1e-3, seed=1, accumulate=2).resume()
    assert make_trainer(learning_rate=1e-3, seed=1).resume()


def test_checkpoint_of_another_reader_is_refused(make_trainer: MakeTrainer, make_reader: MakeReader) -> None:
    make_trainer().save()
    with pytest.raises(InputError, match="a reader of another shape"):
        make_trainer(student=make_reader(vocab_size=65)).resume()


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
    trainer = make_trainer(steps=21)
    trainer.run(following, said.append, save_every=1e9)
    assert [line.split()[1] for line in said] == ["20/21", "21/21"]
    assert torch.load(trainer.folder.path / "checkpoint.pt", weights_only=True)["step"] == 21
    assert not list(trainer.folder.path.glob("*.tmp"))


def test_modes_of_steps_do_not_depend_on_the_start(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(steps=30, seed=3)
    trainer.stage = replace(trainer.stage, modes=(("full", 1.0), ("binary", 1.0)))
    modes = [mode for _, mode in trainer.prepared(following)]
    trainer.step = 11
    assert [mode for _, mode in trainer.prepared(following)] == modes[11:]
    assert set(modes) == {"full", "binary"}
    rng = random.Random("mode/3/0")
    assert modes[0] == trainer.stage.mode(rng.random())


def test_step_without_anything_to_learn_is_taken(make_trainer: MakeTrainer) -> None:
    """In mode full there are no signs to recover."""
    trainer = make_trainer("binarized")
    trainer.stage = replace(trainer.stage, weights={"recovery": 1.0})
    trainer.objective = build_objective(trainer.student, trainer.stage)
    assert trainer.train_step(following(0), "full") == {"recovery": 0, "gradient": 0}
