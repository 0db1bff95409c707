"""What a run leaves on disk, each part whole or not at all.

RUN/checkpoint.pt    all that the next step depends on, and the settings it was made with
RUN/metrics.jsonl    one line for each step
RUN/best             the reader that measured best on dev questions: a link to best-at-STEP
RUN/reader           the reader of the last step
RUN/metrics.png      the curves, where matplotlib is installed
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from btr.errors import InputError
from btr.model.weights import first_line

CURE = "use the same settings or another --out; --no-resume starts afresh"


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint, self.metrics = path / "checkpoint.pt", path / "metrics.jsonl"

    def check(self) -> None:
        """Raise InputError if there is something else where the folder would be."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--out {self.path}: is a file; give a folder, new or of the same run")

    def create(self) -> None:
        """Make the folder."""
        self.path.mkdir(parents=True, exist_ok=True)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write checkpoint.pt whole, then rename it into place."""
        temporary = self.checkpoint.with_name("checkpoint.pt.tmp")
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.checkpoint)

    def load(self, settings: Mapping[str, Any]) -> dict[str, Any] | None:
        """Read checkpoint.pt, None if there is none.

        Raises:
            InputError: it is damaged, or was made with other settings; the message names both values.
        """
        if not self.checkpoint.exists():
            return None
        try:
            state = dict(torch.load(self.checkpoint, map_location="cpu", weights_only=True))
        except Exception as error:  # torch raises many kinds for a damaged file
            reason = first_line(error)
            raise InputError(
                f"{self.checkpoint}: damaged ({reason}); another --out, or --no-resume, starts afresh"
            ) from error
        refuse_other(self.checkpoint, state.get("settings", {}), settings)
        return state

    def forget(self) -> None:
        """Drop what an earlier run left that a new one would go on with or be taken for."""
        self.checkpoint.unlink(missing_ok=True)
        self.drop_best()

    def keep_steps(self, last: int) -> None:
        """Leave in metrics.jsonl one whole line for each step up to `last`, the latest written."""
        if not self.metrics.exists():
            return
        lines: dict[int, str] = {}
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                lines[json.loads(line)["step"]] = line
            except ValueError:
                continue  # torn by a kill
        temporary = self.metrics.with_name("metrics.jsonl.tmp")
        kept = (lines[step] + "\n" for step in sorted(lines) if step <= last)
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self.metrics)

    def add_line(self, values: Mapping[str, Any]) -> None:
        """Append a step to metrics.jsonl; once it returns, a kill does not take the line away."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def keep_best(self, write: Callable[[Path], None], step: int) -> None:
        """Write a reader into a folder of its own, then let RUN/best be that one: at no time is there none, or half."""
        name = f"best-at-{step}"
        if (self.path / name).exists() and not self.is_best(name):
            shutil.rmtree(self.path / name)
        write(self.path / name)
        link = self.path / "best.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(name, target_is_directory=True)
        link.replace(self.path / "best")
        for other in self.path.glob("best-at-*"):
            if other.name != name:
                shutil.rmtree(other)

    def is_best(self, name: str) -> bool:
        """Tell whether RUN/best is the folder of this name."""
        best = self.path / "best"
        return best.is_symlink() and os.readlink(best) == name

    def drop_best(self) -> None:
        """Remove RUN/best."""
        (self.path / "best").unlink(missing_ok=True)
        for folder in self.path.glob("best-at-*"):
            shutil.rmtree(folder)


def refuse_other(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise InputError, naming both values, if a checkpoint was made with settings other than these."""
    names = dict.fromkeys([*here, *there])
    other = [name for name in names if here.get(name) != there.get(name)]
    if other:
        made, wanted = (", ".join(f"{name} {values.get(name)}" for name in other) for values in (there, here))
        raise InputError(f"{path} was made with {made}, this run has {wanted}; {CURE}")
