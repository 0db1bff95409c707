"""How long and how fast a run learns, and which optimiser moves which weight."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

OPTIMISERS = ("muon", "adamw")
RATES = {"muon": 1e-3, "adamw": 1e-4}  # peak learning rates where none is given


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. learning_rate is the peak: linear warm-up, then linear decay to floor * peak at `steps`.

    matrices: 'muon' (orthogonalised updates for hidden matrices, torch.optim.Muon) or 'adamw' for everything.
    weight_decay is for matrices, never for biases, norms and other vectors. clip: greatest norm of the gradient.
    """

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    matrices: str = "muon"
    clip: float = 1.0
    seed: int = 0
    floor: float = 0.0

    def rate(self, step: int) -> float:
        """Return the factor on the learning rate at a step (0-based)."""
        decay = (self.steps - step) / max(self.steps - self.warmup, 1)
        return min((step + 1) / max(self.warmup, 1), self.floor + (1 - self.floor) * decay)


def build_optimisers(named: Iterable[tuple[str, nn.Parameter]], schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Give hidden matrices to Muon (if chosen), everything else that is trained to AdamW, vectors without decay."""
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    muon = schedule.matrices == "muon"
    hidden = [parameter for name, parameter in trained if muon and is_hidden(name, parameter)]
    chosen = {id(parameter) for parameter in hidden}
    rest = [parameter for _, parameter in trained if id(parameter) not in chosen]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.dim() > 1], "weight_decay": schedule.weight_decay},
        {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
    ]
    rate = schedule.learning_rate
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)]
    if hidden:
        decay = schedule.weight_decay
        optimisers.append(torch.optim.Muon(hidden, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"))
    return optimisers


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Tell whether a parameter is a matrix between hidden states: neither embedding, head nor table of positions."""
    outside = ("embedding", "table", "head", "positions", "segments")
    return parameter.dim() == 2 and not any(part in name for part in outside)
