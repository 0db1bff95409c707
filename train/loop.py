"""One training loop: knows a Stage, never a stage number.

Steps are a function of (seed, step), the optimiser's state and the weights; all of it is in the checkpoint, which is written whole
and then renamed, so that a killed run goes on where it was and sees the same losses.
"""

import json
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from btr.config import Mode
from btr.fid import FiD
from btr.train.data import Batch
from btr.train.losses import distillation_loss, question_attention, recovery_loss, task_loss, top_tokens
from btr.train.stages import Stage


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
        hidden = [
            p
            for name, p in trained
            if p.dim() == 2 and "embedding" not in name and "table" not in name and "head" not in name
        ]
        chosen = {id(p) for p in hidden} if schedule.matrices == "muon" else set()
        rest = [p for _, p in trained if id(p) not in chosen]
        adamw = torch.optim.AdamW(
            rest, lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=schedule.weight_decay
        )
        if not chosen:
            return [adamw]
        muon = torch.optim.Muon(
            hidden, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        return [adamw, muon]

    def losses(self, batch: tuple[Tensor, Tensor, Tensor, Tensor], mode: Mode) -> tuple[Tensor, Tensor, Tensor]:
        """Return the task, distillation and recovery losses of one batch (the latter two 0 where the stage has none)."""
        ids, lengths, question_lengths, labels = batch
        rows = self.student.rows(ids, lengths, question_lengths, mode)
        task = task_loss(self.student.answer_logits(rows.memory, lengths, labels), labels)
        positions = torch.arange(ids.shape[1])[None]
        passage = (positions >= question_lengths[:, None]) & (positions < lengths[:, None])
        distilled, recovered = task.new_zeros(()), task.new_zeros(())
        if self.stage.distillation and self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher.rows(ids, lengths, question_lengths, "full")
                chosen = top_tokens(
                    question_attention(self.teacher, taught.joined, lengths, question_lengths),
                    passage,
                    self.schedule.top_ratio,
                )
            distilled = distillation_loss(rows.memory, taught.memory, chosen) + distillation_loss(
                rows.apart, taught.apart, chosen
            )
        if self.projection is not None and rows.signs is not None:
            recovered = recovery_loss(rows.signs, rows.apart, passage, self.projection)
        return task, distilled, recovered

    def train_step(self, batch: Batch, mode: Mode) -> dict[str, float]:
        """Take one step; returns the losses and the gradient's norm."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.schedule.learning_rate * self.schedule.rate(self.step)
        with torch.autocast("cpu", torch.bfloat16):
            task, distilled, recovered = self.loss(
                (batch.ids, batch.lengths, batch.question_lengths, batch.labels), mode
            )
        total = task + self.stage.distillation * distilled + self.stage.recovery * recovered
        if not math.isfinite(total.item()):
            raise FloatingPointError(f"the loss is {total.item()} at step {self.step}; lower --learning-rate")
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.schedule.clip)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        return {
            "task": task.item(),
            "distillation": distilled.item(),
            "recovery": recovered.item(),
            "gradient": norm.item(),
        }

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Set the binarizer from the passages of some batches."""
        found = []
        for batch in batches:
            rows = self.student.rows(batch.ids, batch.lengths, batch.question_lengths, "float")
            positions = torch.arange(batch.ids.shape[1])[None]
            passage = (positions >= batch.question_lengths[:, None]) & (positions < batch.lengths[:, None])
            found.append(self.student.join_norm(rows.joined)[passage])
        self.student.binarizer.calibrate(torch.cat(found))

    def save(self) -> None:
        """Write checkpoint.pt whole, then rename it into place."""
        state = {
            "stage": self.stage.name,
            "step": self.step,
            "schedule": self.schedule.__dict__,
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
            ValueError: it belongs to another stage or schedule.
        """
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return False
        state = torch.load(path, weights_only=True)
        here = {"stage": self.stage.name, "schedule": self.schedule.__dict__}
        for key, value in here.items():
            if state[key] != value:
                raise ValueError(
                    f"{path} was made with {key} {state[key]}, this run has {value}; use the same settings, or --no-resume"
                )
        self.student.load_state_dict(state["student"])
        if self.projection is not None:
            self.projection.load_state_dict(state["projection"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step = state["step"]
        return True

    def run(self, draw: Callable[[int], Batch], log: Callable[[str], None]) -> None:
        """Train to the schedule's end, appending to metrics.jsonl, saving every `save_every` seconds and at the end."""
        began, first, saved = time.monotonic(), self.step, time.monotonic()
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
            for batch, mode in self.prepared(draw):
                values = self.train_step(batch, mode)
                metrics.write(json.dumps({"step": self.step, "mode": mode} | values) + "\n")
                if self.step % 20 == 0 or self.step == self.schedule.steps:
                    metrics.flush()
                    each = (time.monotonic() - began) / (self.step - first)
                    left = each * (self.schedule.steps - self.step) / 60
                    log(
                        f"step {self.step}/{self.schedule.steps}  "
                        + "  ".join(f"{k} {v:.3f}" for k, v in values.items())
                        + f"  {each:.2f} s/step  {left:.0f} min left"
                    )
                if time.monotonic() - saved > self.schedule.save_every:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def prepared(self, draw: Callable[[int], Batch]) -> Iterator[tuple[Batch, Mode]]:
        """Yield the batches and modes of the remaining steps; both depend on (seed, step) alone."""
        for step in range(self.step, self.schedule.steps):
            yield draw(step), self.stage.mode(random.Random(f"mode/{self.schedule.seed}/{step}").random())
