"""One process, or several that share a step: which device, whose turn it is to write, and sums over all of them.

Several are started by `accelerate launch -m btr.train ...`, one for each GPU. Each holds all the weights, reads its
share of the pieces of a batch, and adds its gradients to those of the others. accelerate is imported for that alone.
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from btr.errors import InputError
from btr.model.devices import choose_device


class Alone:
    """One process, on a CUDA device if there is one and no other device is named; raises as `choose_device`."""

    count, index = 1, 0

    def __init__(self, device: str | None = None) -> None:
        self.device = choose_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all processes, in place."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return values

    def wait(self) -> None:
        """Wait for all processes to come here."""


class Together(Alone):
    """One of several processes, as accelerate started them.

    Raises:
        InputError: accelerate is not installed.
    """

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator, InitProcessGroupKwargs
        except ImportError as error:
            raise InputError("several processes need accelerate; pip install accelerate") from error
        from datetime import timedelta

        patience = InitProcessGroupKwargs(timeout=timedelta(hours=6))  # the others wait while the first one evaluates
        self.accelerator: Any = Accelerator(kwargs_handlers=[patience])
        self.device = self.accelerator.device
        self.count, self.index = self.accelerator.num_processes, self.accelerator.process_index

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of all processes, in place; a parameter has one in each of them or in none."""
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = self.sum(parameter.grad)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        return self.accelerator.reduce(values, "sum")

    def wait(self) -> None:
        """Wait for all processes to come here."""
        self.accelerator.wait_for_everyone()


def join_processes(accelerate: bool, device: str | None = None) -> Alone:
    """Return the processes of this run: several if accelerate is asked for, or has started this one."""
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Together() if accelerate or launched else Alone(device)
