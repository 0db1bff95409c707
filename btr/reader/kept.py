"""Rows that were read before: a passage that a question meets again is not read again."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from btr.model.config import Mode
from btr.model.layout import in_batches

MOST = 32768  # tokens; 50 MB at D = 384 in float32


class KeptRows:
    """Keep what layers k+1..n made of rows (question x passage); those used longest ago go first.

    A row depends on its question and its passage alone, but for its last bits, which depend on the rows beside it: what
    is read is settled by that and what was kept before.
    """

    def __init__(self, most: int = MOST) -> None:
        """Keep rows of at most so many tokens in all; 0: none."""
        self.most = most
        self._rows: OrderedDict[tuple[Mode, bytes], Tensor] = OrderedDict()
        self._tokens = 0

    def copy(self) -> "KeptRows":
        """Return what is kept now, to be added to apart; the rows themselves are shared."""
        twin = KeptRows(self.most)
        twin._rows, twin._tokens = self._rows.copy(), self._tokens
        return twin

    def encode(
        self, mode: Mode, ids: Sequence[list[int]], lengths: Sequence[int], encode: Callable[[list[int]], Tensor]
    ) -> Tensor:
        """Return rows end to end, (tokens, D), as `in_batches`; encoded, and kept then, are those that are not kept.

        ids (R,): tokens of question and passage; lengths (R,): how many of them are read in this mode.
        """
        if not self.most:
            return in_batches(lengths, encode)
        keys = [(mode, np.array(row, np.int64).tobytes()) for row in ids]
        rows = {i: self._rows[key] for i, key in enumerate(keys) if key in self._rows}
        if missing := [i for i in range(len(keys)) if i not in rows]:
            fresh = [lengths[i] for i in missing]
            memory = in_batches(fresh, lambda batch: encode([missing[n] for n in batch]))
            rows |= {i: row.clone() for i, row in zip(missing, memory.split(fresh), strict=True)}  # a view holds all
        for i, key in enumerate(keys):
            self._keep(key, rows[i])
        return torch.cat([rows[i] for i in range(len(keys))])

    def _keep(self, key: tuple[Mode, bytes], row: Tensor) -> None:
        if key not in self._rows:
            self._tokens += len(row)
        self._rows[key] = row
        self._rows.move_to_end(key)
        while self._tokens > self.most:
            self._tokens -= len(self._rows.popitem(last=False)[1])


NOTHING = KeptRows(0)
