"""The three stages as values (BTR §3.4): which modes a step trains, which losses it adds to the task's."""

from dataclasses import dataclass

from btr.config import Mode


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    modes: (mode, share of steps). distillation, recovery: weights of the added losses; distillation needs a teacher.
    """

    name: str
    modes: tuple[tuple[Mode, float], ...]
    distillation: float = 0.0
    recovery: float = 0.0

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
    "decomposed": Stage("decomposed", (("float", 1.0),), distillation=1.0),
    "binarized": Stage("binarized", (("binary", 1.0),), recovery=1.0),
}
