"""Read arrays that are mapped from files, which others may change meanwhile."""

from mmap import mmap
from typing import Any

import numpy as np

from btr.storage import WrongLength


def check_mapped(array: np.ndarray) -> None:
    """Refuse to touch an array whose file was cut short under its map: that would end the process by SIGBUS.

    Raises:
        WrongLength: the file is shorter than what is mapped of it.
    """
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap) and base.size() < len(base):
        name = getattr(array, "filename", "a file of the index")
        raise WrongLength(f"{name} was cut to {base.size()} bytes of {len(base)} while it was read; build it anew")
