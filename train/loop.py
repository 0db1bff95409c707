"""One training loop: knows a Stage, never a stage number.

Steps are a function of (seed, step), the optimiser's state and the weights; all of it is in the checkpoint, which is
written whole and then renamed, so that a killed run goes on where it was and sees the same losses.
"""

import json
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from btr.config import Mode
from btr.errors import InputError
from btr.fid import FiD
from btr.train.data import Batch
from btr.train.losses import distillation_loss, question_attention, recovery_loss, task_loss, top_tokens
from btr.train.stages import Stage

FREE = {"save_every"}  # settings that a resumed run may change: its losses do not depend on them


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. learning_rate is the peak: linear warm-up, then linear decay to floor * peak at `steps`.

    matrices: 'muon' (orthogonalised updates for hidden matrices, torch.optim.Muon) or 'adamw' for everything.
    top_ratio: share of passage tokens distilled. save_every in seconds.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    matrices: str = "muon"
    top_ratio: float = 0.5
    clip: float = 1.0
    seed: int = 0
    save_every: float = 300.0
    floor: float = 0.0

    def rate(self, step: int) -> float:
        """Return the factor on the learning rate at a step (0-based)."""
        decay = (self.steps - step) / max(self.steps - self.warmup, 1)
        return min((step + 1) / max(self.warmup, 1), self.floor + (1 - self.floor) * decay)


class Trainer:
    """The state of a run: student, training-only projection, optimisers, step."""

    def __init__(
        self, student: FiD, stage: Stage, schedule: Schedule, teacher: FiD | None, out: Path, compiled: bool
    ) -> None:
        if stage.distillation and teacher is None:
            raise ValueError(f"stage {stage.name!r} distils and has no teacher; pass --teacher FOLDER")
        self.student, self.stage, self.schedule, self.teacher, self.out = student.train(), stage, schedule, teacher, out
        width = student.t5.config.d_model
        self.projection = nn.Linear(width, width) if stage.recovery else None
        if self.projection is not None:
            nn.init.eye_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)
        self.optimisers = self.build_optimisers()
        self.step = 0
        self.loss = torch.compile(self.losses, dynamic=False) if compiled else self.losses

    def build_optimisers(self) -> list[torch.optim.Optimizer]:
        """Give hidden matrices to Muon (if chosen), everything else to AdamW."""
        schedule = self.schedule
        parameters = [
            *self.student.named_parameters(),
            *(self.projection.named_parameters("projection") if self.projection else ()),
        ]
        trained = [(name, p) for name, p in parameters if p.requires_grad]
        hidden = [p for name, p in trained if schedule.matrices == "muon" and is_hidden(name, p)]
        chosen = {id(p) for p in hidden}
        rest = [p for _, p in trained if id(p) not in chosen]
        rate, decay = schedule.learning_rate, schedule.weight_decay
        adamw = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=decay)
        if not hidden:
            return [adamw]
        return [adamw, torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw")]

    def losses(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], mode: Mode) -> tuple[Tensor, Tensor, Tensor]:
        """Return the task, distillation and recovery losses of one batch, the latter two 0 where the stage has none."""
        ids, lengths, question_lengths, labels = batch
        rows = self.student.rows(ids, lengths, question_lengths, mode)
        task = task_loss(self.student.answer_logits(rows.memory, lengths, labels), labels)
        passage = passage_tokens(ids, lengths, question_lengths)
        distilled, recovered = task.new_zeros(()), task.new_zeros(())
        if self.stage.distillation and self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher.rows(ids, lengths, question_lengths, "full")
                looked = question_attention(self.teacher, taught.joined, lengths, question_lengths)
                chosen = top_tokens(looked, passage, self.schedule.top_ratio)
            distilled = distillation_loss(rows.memory, taught.memory, chosen)
            distilled = distilled + distillation_loss(rows.apart, taught.apart, chosen)
        if self.projection is not None and rows.signs is not None:
            recovered = recovery_loss(rows.signs, rows.apart, passage, self.projection)
        return task, distilled, recovered

    def train_step(self, batch: Batch, mode: Mode) -> dict[str, float]:
        """Take one step; returns the losses and the gradient's norm.

        Raises:
            FloatingPointError: a loss or a gradient is infinite or not a number; the weights are as before the step.
        """
        rate = self.schedule.learning_rate * self.schedule.rate(self.step)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = rate
        torch.manual_seed(self.schedule.seed * 1_000_003 + self.step)  # dropout too is a function of (seed, step)
        with torch.autocast("cpu", torch.bfloat16):
            inputs = (batch.ids, batch.lengths, batch.question_lengths, batch.labels)
            task, distilled, recovered = self.loss(inputs, mode)
        total = task + self.stage.distillation * distilled + self.stage.recovery * recovered
        self.refuse_infinite("loss", total)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.schedule.clip)
        self.refuse_infinite("gradient's norm", norm)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        values = {"task": task, "distillation": distilled, "recovery": recovered, "gradient": norm}
        return {name: value.item() for name, value in values.items()}

    def refuse_infinite(self, name: str, value: Tensor) -> None:
        """Raise FloatingPointError if a scalar is infinite or not a number."""
        if not math.isfinite(value.item()):
            raise FloatingPointError(f"the {name} is {value.item()} at step {self.step}; lower --learning-rate")

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Set the binarizer from the passages of some batches."""
        self.student.eval()
        found = []
        for batch in batches:
            inputs = (batch.ids, batch.lengths, batch.question_lengths)
            rows = self.student.rows(*inputs, "float")
            found.append(self.student.join_norm(rows.joined)[passage_tokens(*inputs)])
        self.student.binarizer.calibrate(torch.cat(found))
        self.student.train()

    def save(self) -> None:
        """Write checkpoint.pt whole, then rename it into place."""
        state = {
            "stage": self.stage.name,
            "step": self.step,
            "schedule": asdict(self.schedule),
            "student": self.student.state_dict(),
            "projection": self.projection.state_dict() if self.projection else None,
            "optimisers": [o.state_dict() for o in self.optimisers],
        }
        temporary = self.out / "checkpoint.pt.tmp"
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.out / "checkpoint.pt")

    def resume(self) -> bool:
        """Load checkpoint.pt if there is one.

        Raises:
            InputError: it is damaged, or belongs to another stage, schedule or shape.
        """
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return False
        try:
            state = torch.load(path, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            raise InputError(
                f"{path}: damaged ({str(error).splitlines()[0]}); start afresh with --no-resume"
            ) from error
        self.refuse_other(path, state)
        try:
            self.restore(state)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{path} was made with a reader of another shape; use the same settings, or --no-resume"
            ) from error
        return True

    def refuse_other(self, path: Path, state: dict[str, Any]) -> None:
        """Raise InputError, naming both values, if a checkpoint is of another stage or schedule."""
        here = {"stage": self.stage.name, **asdict(self.schedule)}
        there = {"stage": state["stage"], **state["schedule"]}
        other = [name for name in here if name not in FREE and here[name] != there.get(name)]
        if other:
            made, wanted = (", ".join(f"{name} {values.get(name)}" for name in other) for values in (there, here))
            raise InputError(
                f"{path} was made with {made}, this run has {wanted}; use the same settings, or --no-resume"
            )

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the weights, the optimisers' state and the step of a checkpoint."""
        self.student.load_state_dict(state["student"])
        if self.projection is not None:
            self.projection.load_state_dict(state["projection"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step = state["step"]

    def run(self, draw: Callable[[int], Batch], log: Callable[[str], None]) -> None:
        """Train to the schedule's end, appending to metrics.jsonl, saving every `save_every` seconds and at the end.

        Lines of steps that are to be taken again go first, so that metrics.jsonl holds every step once.
        """
        keep_steps(self.out / "metrics.jsonl", self.step)
        began, first, saved = time.monotonic(), self.step, time.monotonic()
        # line by line, so that a killed run leaves the lines of all the steps that its checkpoint holds
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8", buffering=1) as metrics:
            for batch, mode in self.prepared(draw):
                values = self.train_step(batch, mode)
                metrics.write(json.dumps({"step": self.step, "mode": mode} | values) + "\n")
                if self.step % 20 == 0 or self.step == self.schedule.steps:
                    log(self.describe(values, (time.monotonic() - began) / (self.step - first)))
                if time.monotonic() - saved > self.schedule.save_every:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def prepared(self, draw: Callable[[int], Batch]) -> Iterator[tuple[Batch, Mode]]:
        """Yield the batches and modes of the remaining steps; both depend on (seed, step) alone."""
        for step in range(self.step, self.schedule.steps):
            yield draw(step), self.stage.mode(random.Random(f"mode/{self.schedule.seed}/{step}").random())

    def describe(self, values: dict[str, float], seconds: float) -> str:
        """Say how far the run is, at so many seconds a step."""
        left = seconds * (self.schedule.steps - self.step) / 60
        losses = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        return f"step {self.step}/{self.schedule.steps}  {losses}  {seconds:.2f} s/step  {left:.0f} min left"


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Tell whether a parameter is a matrix between hidden states: neither embedding, head nor table of positions."""
    return parameter.dim() == 2 and not any(part in name for part in ("embedding", "table", "head"))


def passage_tokens(ids: Tensor, lengths: Tensor, question_lengths: Tensor) -> Tensor:
    """Return which tokens of rows ids (R, T) belong to the passage, end of sequence included: bool (R, T)."""
    positions = torch.arange(ids.shape[1])[None]
    return (positions >= question_lengths[:, None]) & (positions < lengths[:, None])


def keep_steps(path: Path, last: int) -> None:
    """Leave in metrics.jsonl one whole line for each step up to `last`, the latest written."""
    if not path.exists():
        return
    lines: dict[int, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines[json.loads(line)["step"]] = line
        except ValueError:
            continue  # torn by a kill
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(lines[step] + "\n" for step in sorted(lines) if step <= last), encoding="utf-8")
    temporary.replace(path)
