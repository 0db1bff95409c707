"""The stages as values (BTR §3.4): which modes a step trains, and which losses with which weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from btr.errors import InputError
from btr.model.config import Mode

# what each is: `train/objectives.py`
LOSSES = (
    "task",
    "distillation",
    "answers",
    "cross",
    "copying",
    "recovery",
    "rate",
)
TEACHER_LOSSES = {"distillation", "answers", "cross"}  # those that need a teacher
CHOICES = {"distill": ("off", "all", "top"), "straight_through": ("tanh", "clipped")}


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    modes: (mode, share of steps). weights: of the losses, by name; one that is missing or 0 is not computed.
    distill: which passage tokens the distillation takes: none, all, or the share `top_ratio` that the teacher's
    question looks at most. straight_through: the gradient of the sign (`btr.model.binarize`).

    Raises:
        InputError: an unknown loss or choice, a negative weight, or a share that is none.
    """

    name: str
    modes: tuple[tuple[Mode, float], ...]
    weights: Mapping[str, float] = field(default_factory=lambda: {"task": 1.0}, hash=False)
    distill: Literal["off", "all", "top"] = "top"
    top_ratio: float = 0.5
    straight_through: Literal["tanh", "clipped"] = "tanh"

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name not in LOSSES:
                raise InputError(f"a loss is called {name!r}; known: {', '.join(LOSSES)}")
            if not weight >= 0:
                raise InputError(f"the weight of {name!r} is {weight}; give 0 or more")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} is {getattr(self, name)!r}; known: {', '.join(known)}")
        if not 0 <= self.top_ratio <= 1:
            raise InputError(f"top_ratio is {self.top_ratio}; give a share between 0 and 1")

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses to compute, in a fixed order."""
        chosen = (name for name in LOSSES if self.weights.get(name))
        return tuple(name for name in chosen if name != "distillation" or self.distill != "off")

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss needs a teacher."""
        return not TEACHER_LOSSES.isdisjoint(self.losses)

    def mode(self, draw: float) -> Mode:
        """Choose the step's mode from a uniform draw in [0, 1)."""
        total = sum(share for _, share in self.modes)
        for mode, share in self.modes:
            draw -= share / total
            if draw < 0:
                return mode
        return self.modes[-1][0]  # rounding


STAGES = {
    "reader": Stage("reader", (("full", 1.0),)),
    "decomposed": Stage("decomposed", (("float", 1.0),), {"task": 1.0, "distillation": 1.0}),
    "binarized": Stage("binarized", (("binary", 1.0),), {"task": 1.0, "recovery": 1.0}),
    # the last two as one, and the teacher's answers too: ours
    "joint": Stage("joint", (("binary", 1.0),), {"task": 1.0, "distillation": 1.0, "answers": 1.0, "recovery": 1.0}),
}
