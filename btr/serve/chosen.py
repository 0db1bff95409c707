"""What a question will be read against."""

from dataclasses import dataclass, field

import numpy as np

from btr.corpus import Passage
from btr.storage import Encoded


@dataclass(frozen=True)
class Chosen:
    """Hold the passages a question will be read against."""

    passages: tuple[Passage, ...]
    encoded: Encoded | None = None  # None: passages sent with the question
    scores: np.ndarray | None = None
    timings: dict[str, float] = field(default_factory=dict)
