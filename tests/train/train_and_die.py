"""Train and be killed: python train_and_die.py SAVE DIE ARGUMENT... for `btr train ARGUMENT...`.

The only checkpoint is that of step SAVE; the kill comes when step DIE has been written to metrics.jsonl.
"""

import os
import signal
import sys

from btr.train.__main__ import main
from btr.train.data import Batch
from btr.train.loop import Trainer

save, train_step = Trainer.save, Trainer.train_step


def save_once(trainer: Trainer) -> None:
    if trainer.step == int(sys.argv[1]):
        save(trainer)


def step_or_die(trainer: Trainer, batch: Batch, mode: str) -> dict[str, float]:
    if trainer.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(trainer, batch, mode)  # type: ignore[arg-type]


Trainer.save = save_once  # type: ignore[method-assign]
Trainer.train_step = step_or_die  # type: ignore[method-assign]
main(sys.argv[3:])
