"""One training loop: knows a Stage, never a stage number, and neither family of readers.

Steps are a function of (seed, step), the optimiser's state and the weights; all of it is in the checkpoint, which is
written whole and then renamed, so that a killed run goes on where it was and sees the same losses.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from btr.errors import InputError
from btr.model.binarize import Known
from btr.model.checkpoint import save_reader
from btr.model.config import Mode
from btr.model.kinds import Model
from btr.model.span_head import SpanReader
from btr.train.dev import Dev, better, describe
from btr.train.folder import CURE, RunFolder
from btr.train.losses import passage_tokens
from btr.train.objectives import build_objective
from btr.train.pieces import split, weigh
from btr.train.processes import Alone
from btr.train.schedule import Schedule, build_optimisers
from btr.train.stages import Stage

REPORT = 20  # steps between lines of progress


class Tensors(Protocol):
    """A batch of either family."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the batch as tensors; each has a multiple of the batch's questions as its first dimension."""


Draw = Callable[[int], Tensors]


class Trainer:
    """The state of a run: student, training-only projection, optimisers, step, best figures.

    A step's batch is read in `accumulate` pieces in each of the processes; the loss is that of the whole batch.
    settings: whatever else the losses depend on; a checkpoint made with others is refused.
    """

    def __init__(
        self,
        student: Model,
        stage: Stage,
        schedule: Schedule,
        teacher: Model | None,
        out: Path,
        *,
        accumulate: int = 1,
        compiled: bool = False,
        processes: Alone | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if stage.needs_teacher and teacher is None:
            raise ValueError(f"stage {stage.name!r} distils and has no teacher; pass --teacher FOLDER")
        self.processes = processes or Alone()
        device = self.processes.device
        self.student, self.stage, self.schedule = student.to(device).train(), stage, schedule
        self.teacher = teacher.to(device).eval() if teacher else None
        self.folder, self.accumulate, self.more = RunFolder(out), accumulate, dict(settings or {})
        self.objective = build_objective(student, stage)
        if self.objective.projection is not None:
            self.objective.projection.to(device)
        self.optimisers = build_optimisers(self.named_parameters(), schedule)
        self.step = 0
        self.best: dict[str, Any] | None = None
        self.loss = torch.compile(self.losses, dynamic=False) if compiled else self.losses

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters of the student and of what is for training only."""
        yield from self.student.named_parameters()
        if self.objective.projection is not None:
            yield from self.objective.projection.named_parameters("projection")

    def losses(self, inputs: tuple[Tensor, ...], mode: Mode) -> dict[str, Tensor]:
        """Return the named losses of a piece of a batch, unweighted."""
        return self.objective(self.student, self.teacher, inputs, mode)

    def train_step(self, batch: Tensors, mode: Mode) -> dict[str, float]:
        """Take one step; returns the losses and the gradient's norm.

        Raises:
            FloatingPointError: a loss or a gradient is infinite or not a number; the weights are as before the step.
        """
        rate = self.schedule.learning_rate * self.schedule.rate(self.step)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = rate
        losses = self.gradients(batch, mode)
        self.refuse_infinite("loss", sum(losses.values()))
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.schedule.clip).item()
        self.refuse_infinite("gradient's norm", norm)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        return losses | {"gradient": norm}

    def gradients(self, batch: Tensors, mode: Mode) -> dict[str, float]:
        """Fill the gradients of the whole batch's loss, piece by piece; returns its losses."""
        processes = self.processes
        pieces = split(batch.tensors(), self.accumulate * processes.count)
        # dropout too is a function of (seed, step)
        torch.manual_seed((self.schedule.seed * 1_000_003 + self.step) * processes.count + processes.index)
        total: dict[str, Tensor] = {}
        some = isinstance(self.student, SpanReader) and mode != "full"
        piece_weights = weigh(pieces, self.stage, self.student.config.unread if some else ())
        for piece, share in list(zip(pieces, piece_weights, strict=True))[processes.index :: processes.count]:
            with torch.autocast(processes.device.type, torch.bfloat16):
                losses = self.loss(tuple(tensor.to(processes.device) for tensor in piece), mode)
            shared = {name: loss * share[name] for name, loss in losses.items()}
            whole = torch.stack([self.stage.weights[name] * loss for name, loss in shared.items()]).sum()
            if whole.requires_grad:  # in some modes a stage may have nothing to learn
                whole.backward()
            total = {name: total.get(name, 0) + loss.detach() for name, loss in shared.items()}
        processes.sum_gradients(parameter for _, parameter in self.named_parameters())
        values = processes.sum(torch.stack([loss.float() for loss in total.values()])).tolist()
        return dict(zip(total, values, strict=True))

    def refuse_infinite(self, name: str, value: float) -> None:
        """Raise FloatingPointError if a number is infinite or none."""
        if not math.isfinite(value):
            raise FloatingPointError(f"the {name} is {value} at step {self.step}; lower --learning-rate")

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Tensors]) -> None:
        """Set the binarizer from the passages of some batches."""
        student = self.student.eval()
        found, tokens, follows = [], [], []
        for batch in batches:
            ids, lengths, question_lengths = (tensor.to(self.processes.device) for tensor in batch.tensors()[:3])
            passage = passage_tokens(ids, lengths, question_lengths)
            rows = student.rows(ids, lengths, question_lengths, "float")
            found.append(student.normalised(rows.joined)[passage])
            tokens.append(ids[passage])
            follows.append(Known.of_rows(ids, passage, student.embedding).follows[passage])
        known = Known(torch.cat(tokens), torch.cat(follows), student.embedding)
        student.binarizer.calibrate(torch.cat(found), known)
        self.student.train()

    def settings(self) -> dict[str, Any]:
        """Return all that the losses of a step depend on, beside the weights."""
        stage = self.stage
        switches = {name: getattr(stage, name) for name in ("distill", "top_ratio", "straight_through")}
        return {
            "stage": stage.name, "modes": shares(stage.modes), "losses": shares(stage.weights.items()), **switches,
            **asdict(self.schedule), "accumulate": self.accumulate, "processes": self.processes.count, **self.more,
        }  # fmt: skip

    def save(self) -> None:
        """Write the checkpoint."""
        projection = self.objective.projection
        self.folder.save(
            {
                "settings": self.settings(), "step": self.step, "best": self.best,
                "student": self.student.state_dict(),
                "projection": projection.state_dict() if projection is not None else None,
                "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            }
        )  # fmt: skip

    def resume(self) -> bool:
        """Go on from the checkpoint if there is one.

        Raises:
            InputError: it is damaged, or belongs to other settings or another shape.
        """
        state = self.folder.load(self.settings())
        if state is None:
            return False
        try:
            self.student.load_state_dict(state["student"])
            if self.objective.projection is not None:
                self.objective.projection.load_state_dict(state["projection"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"{self.folder.checkpoint} was made with a reader of another shape; {CURE}") from error
        self.step, self.best = state["step"], state["best"]
        return True

    def run(self, draw: Draw, log: Callable[[str], None], dev: Dev | None = None, save_every: float = 300.0) -> None:
        """Train to the schedule's end, appending to metrics.jsonl, saving every `save_every` seconds and at the end.

        Lines of steps that are to be taken again go first, so that metrics.jsonl holds every step once. Of several
        processes the first one measures and writes, and the others wait.
        """
        writing = self.processes.index == 0
        if writing:
            self.folder.keep_steps(self.step)
            self.folder.metrics.touch()
        began, first, saved = time.monotonic(), self.step, time.monotonic()
        for batch, mode in self.prepared(draw):
            line: dict[str, Any] = {"step": self.step + 1, "mode": mode} | self.train_step(batch, mode)
            seconds = (time.monotonic() - began) / (self.step - first)
            if writing and (self.step % REPORT == 0 or self.step == self.schedule.steps):
                log(self.describe(line, seconds))
            if dev is not None and dev.due(self.step, self.schedule.steps):
                line |= {"dev": self.measure(dev, log)} if writing else {}
                self.processes.wait()
            if writing:
                self.folder.add_line(line)
            if writing and time.monotonic() - saved > save_every:
                self.save()
                saved = time.monotonic()
        if writing:
            self.save()
        self.processes.wait()

    def measure(self, dev: Dev, log: Callable[[str], None]) -> dict[str, Any]:
        """Answer the dev questions in the stage's first mode; keep the reader if it is the best so far."""
        found = dev.measure(self.student, self.stage.modes[0][0])
        kept = self.best if self.best is not None and self.best["of"] == dev.settings() else None
        if improved := better(found, kept):
            self.folder.keep_best(lambda path: save_reader(self.student, dev.tokenizer, path), self.step)
            self.best = {**found, "step": self.step, "of": dev.settings()}
        improved_by = ", the best so far" if improved else ""
        log(f"step {self.step}/{self.schedule.steps}  {describe(found)}{improved_by}")
        return found

    def prepared(self, draw: Draw) -> Iterator[tuple[Tensors, Mode]]:
        """Yield the batches and modes of the remaining steps; both depend on (seed, step) alone."""
        for step in range(self.step, self.schedule.steps):
            yield draw(step), self.stage.mode(random.Random(f"mode/{self.schedule.seed}/{step}").random())

    def describe(self, line: Mapping[str, Any], seconds: float) -> str:
        """Say how far the run is, at so many seconds a step."""
        left = seconds * (self.schedule.steps - self.step) / 60
        losses = "  ".join(f"{name} {value:.3f}" for name, value in line.items() if name not in ("step", "mode"))
        return f"step {self.step}/{self.schedule.steps}  {losses}  {seconds:.2f} s/step  {left:.0f} min left"


def shares(named: Iterable[tuple[str, float]]) -> str:
    """Write numbers by name as the command line takes them: binary=3,full=1."""
    return ",".join(f"{name}={value:g}" for name, value in named)
