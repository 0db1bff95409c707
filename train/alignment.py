"""Align a small encoder to a larger one: the loop that KALE and LEAF share.

The teacher embeds every text once (targets-*.bin); steps cost the student's passes alone. A step is a function of
(seed, step), the weights and the optimiser's state, all of which is in the checkpoint: a killed run goes on and sees
the same losses.

Shapes: N texts, B texts of a step, D width of a vector, L layers.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from btr.errors import InputError
from btr.model.bert import Bert
from btr.model.checkpoint import digest
from btr.model.layout import length_batches, pad
from btr.retrieve.dense.encoder import Embedder, Encoder, Kind
from btr.train.folder import CURE, RunFolder
from btr.train.schedule import Schedule, build_optimisers

CHUNK = 1024  # texts embedded by the teacher between two writes
PIECE_TOKENS = 8192  # of a step, read at a time; padding counted
KINDS: tuple[Kind, ...] = ("query", "passage")
REPORT = 100  # steps between lines of progress

Loss = Callable[[Tensor, Tensor], Tensor]  # student's and teacher's vectors (B, D) -> the loss of each text (B,)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Text:
    """What is embedded, and as what."""

    text: str
    kind: Kind


def shortened(teacher: Encoder, layers: Sequence[int]) -> Embedder:
    """Copy an encoder with some of its layers, by their numbers from 0, in that order; the embeddings do not learn.

    They are three quarters of a small encoder's weights, fit already, and half of a step's time.

    Raises:
        InputError: a layer that is not there, or twice.
    """
    model = teacher.model
    count = model.bert.config.num_hidden_layers
    if not layers or sorted(set(layers)) != sorted(layers) or not all(0 <= layer < count for layer in layers):
        raise InputError(f"--layers keeps {', '.join(map(str, layers))}; encoder {teacher.name} has 0 to {count - 1}")
    bert = Bert(replace(model.bert.config, num_hidden_layers=len(layers)))
    own = model.bert.state_dict()
    kept = {name: value for name, value in own.items() if not name.startswith("layers.")}
    for place, layer in enumerate(layers):
        prefix = f"layers.{layer}."
        parts = {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)}
        kept |= {f"layers.{place}.{name}": value for name, value in parts.items()}
    bert.load_state_dict(kept)
    for table in (bert.embedding, bert.positions, bert.segments):
        if table is not None:
            table.requires_grad_(False)
    short = Embedder(bert, model.recipe)
    short.projection = copy.deepcopy(model.projection)
    return short


def spread(count: int, kept: int) -> list[int]:
    """Choose which layers to keep: the first, and the others evenly up to the last."""
    if kept == 1:
        return [0]
    return [round(place * (count - 1) / (kept - 1)) for place in range(kept)]


def targets(teacher: Encoder, texts: Sequence[Text], folder: Path, say: Say) -> NDArray[np.float32]:
    """Embed every text with the teacher, going on where a killed run stopped: float32 (N, D), mapped."""
    name = digest([], teacher.fingerprint, *(f"{text.kind} {text.text}" for text in texts))
    folder.mkdir(parents=True, exist_ok=True)
    path, row = folder / f"targets-{name}.bin", 4 * teacher.dimension
    done = path.stat().st_size // row if path.exists() else 0
    with path.open("ab") as file:
        file.truncate(done * row)
        for first in range(done, len(texts), CHUNK):
            chunk = texts[first : first + CHUNK]
            vectors = np.empty((len(chunk), teacher.dimension), np.float32)
            for kind in KINDS:
                places = [place for place, text in enumerate(chunk) if text.kind == kind]
                if places:
                    vectors[places] = teacher.embed([chunk[place].text for place in places], kind)
            file.write(vectors.tobytes())
            file.flush()
            if first // CHUNK % 10 == 0:
                say(f"the teacher has embedded {first + len(chunk):,} of {len(texts):,} texts")
    return np.memmap(path, np.float32, "r", shape=(len(texts), teacher.dimension))


class Alignment:
    """The state of a run: the student, its optimiser, the step.

    settings: what else the losses depend on; a checkpoint made with others is refused.
    """

    def __init__(
        self, student: Encoder, loss: Loss, schedule: Schedule, batch: int, out: Path, settings: Mapping[str, Any]
    ) -> None:
        self.student, self.loss, self.schedule, self.batch = student, loss, schedule, batch
        self.folder = RunFolder(out)
        self.settings = {**settings, **asdict(schedule), "batch": batch}
        self.optimisers = build_optimisers(student.model.named_parameters(), schedule)
        self.step = 0

    def chosen(self, step: int, count: int) -> NDArray[np.int64]:
        """Return which of `count` texts a step learns from: every text once before any comes again."""
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        found = np.empty(self.batch, np.int64)
        for epoch in np.unique(places // count):
            order = np.random.default_rng([self.schedule.seed, int(epoch)]).permutation(count)
            now = places // count == epoch
            found[now] = order[places[now] % count]
        return found

    def train_step(self, ids: Sequence[Sequence[int]], targets: Tensor) -> float:
        """Take one step on token ids of B texts and the teacher's vectors (B, D); returns the loss.

        Raises:
            FloatingPointError: the loss or the gradient is infinite or not a number; the weights are as before.
        """
        rate = self.schedule.learning_rate * self.schedule.rate(self.step)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = rate
        total = 0.0
        for piece in length_batches([len(row) for row in ids], PIECE_TOKENS):
            rows, lengths = pad([ids[i] for i in piece], self.student.model.bert.config.pad_token_id)
            with torch.autocast("cpu", torch.bfloat16):
                vectors = self.student.model(rows, lengths)
            loss = self.loss(vectors.float(), targets[piece]).sum() / len(ids)
            loss.backward()
            total += loss.item()
        norm = nn.utils.clip_grad_norm_(self.student.model.parameters(), self.schedule.clip).item()
        if not math.isfinite(total + norm):
            raise FloatingPointError(f"the loss is {total} at step {self.step}; lower --learning-rate")
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.step += 1
        return total

    def save(self) -> None:
        """Write the checkpoint."""
        states = [optimiser.state_dict() for optimiser in self.optimisers]
        state = {"settings": self.settings, "step": self.step, "student": self.student.model.state_dict()}
        self.folder.save(state | {"optimisers": states})

    def resume(self) -> bool:
        """Go on from the checkpoint if there is one.

        Raises:
            InputError: it is damaged, or belongs to other settings or another shape.
        """
        state = self.folder.load(self.settings)
        if state is None:
            return False
        try:
            self.student.model.load_state_dict(state["student"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"{self.folder.checkpoint} was made with another shape; {CURE}") from error
        self.step = state["step"]
        return True

    def run(self, texts: Sequence[Text], targets: NDArray[np.float32], say: Say, save_every: float) -> None:
        """Train to the schedule's end, appending to metrics.jsonl, saving every `save_every` seconds and at the end."""
        self.folder.keep_steps(self.step)
        self.folder.metrics.touch()
        self.student.model.train()
        began = saved = time.monotonic()
        first = self.step
        while self.step < self.schedule.steps:
            places = self.chosen(self.step, len(texts))
            ids = [self.student.tokenize([texts[i].text], texts[i].kind)[0] for i in places]
            loss = self.train_step(ids, torch.from_numpy(np.array(targets[places])))
            self.folder.add_line({"step": self.step, "loss": loss})
            if self.step % REPORT == 0 or self.step == self.schedule.steps:
                seconds = (time.monotonic() - began) / (self.step - first)
                left = seconds * (self.schedule.steps - self.step) / 60
                progress = f"step {self.step}/{self.schedule.steps}  loss {loss:.5f}"
                say(f"{progress}  {seconds:.2f} s/step  {left:.0f} min left")
            if time.monotonic() - saved > save_every:
                self.save()
                saved = time.monotonic()
        self.save()
        self.student.model.eval()


def agreement(
    student: Encoder, teacher: Encoder, questions: Sequence[str], texts: NDArray[np.float32], k: int = 20
) -> tuple[float, float]:
    """Compare the two encoders' vectors of questions: their mean cosine, and the recall of the teacher's neighbours.

    That is the share, of the k texts that lie nearest to a question by the teacher's vectors alone, that are among the
    k nearest to the student's vector of it too. texts (N, D) are the teacher's.
    """
    ours, theirs = (encoder.embed(questions) for encoder in (student, teacher))
    k, found = min(k, len(texts)), 0
    for start in range(0, len(questions), 64):
        scores = (torch.from_numpy(vectors[start : start + 64] @ texts.T) for vectors in (ours, theirs))
        nearest, targets = (score.topk(k, dim=1).indices.tolist() for score in scores)
        found += sum(len(set(a) & set(b)) for a, b in zip(nearest, targets, strict=True))
    near = F.cosine_similarity(torch.from_numpy(ours), torch.from_numpy(theirs)).mean()
    return float(near), found / (k * len(questions))
