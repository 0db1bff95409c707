"""Hold encoded passages in memory: what a reader makes, what a store keeps and gives back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Encoded:
    """Hold N passages as the lower layers of one reader left them: ragged, flat, M tokens in all.

    Either `packed` (binary) or `states` (float; never stored) is there, or neither.
    """

    fingerprint: str  # of the reader that made it
    D: int
    ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]  # "" where the text was not kept
    lengths: np.ndarray  # int32 (N,)
    token_ids: np.ndarray  # uint32 (M,)
    scale: np.ndarray  # float16 (M,), root mean square per token
    packed: np.ndarray | None = None  # uint64 (M, W)
    states: np.ndarray | None = None  # float32 (M, D)

    def __post_init__(self) -> None:
        n, m = len(self.ids), int(self.lengths.sum())
        passages = {"titles": len(self.titles), "texts": len(self.texts), "lengths": len(self.lengths)}
        tokens = {"token_ids": self.token_ids.shape, "scale": self.scale.shape}
        wrong = [f"{name} has {got}, ids {n}" for name, got in passages.items() if got != n]
        wrong += [f"{name} is {got}, lengths sum to {m}" for name, got in tokens.items() if got != (m,)]
        for name, array, width in (("packed", self.packed, -(-self.D // 64)), ("states", self.states, self.D)):
            if array is not None and array.shape != (m, width):
                wrong.append(f"{name} is {array.shape}, expected {(m, width)}")
        if wrong:
            raise ValueError("; ".join(wrong))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_tokens(self) -> int:
        """Return M, the tokens of all passages."""
        return len(self.token_ids)

    @property
    def offsets(self) -> np.ndarray:
        """Return int64 (N+1,): passage i has the tokens offsets[i] to offsets[i+1]."""
        return np.concatenate(([0], np.cumsum(self.lengths, dtype=np.int64)))

    def select(self, indices: Sequence[int] | np.ndarray) -> "Encoded":
        """Copy the passages at these indices, in this order; an index may come twice."""
        chosen = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[chosen]
        shift = self.offsets[:-1][chosen] - (np.cumsum(lengths, dtype=np.int64) - lengths)
        rows = np.arange(lengths.sum()) + np.repeat(shift, lengths)
        ids, titles, texts = (tuple(column[i] for i in chosen) for column in (self.ids, self.titles, self.texts))
        return Encoded(
            self.fingerprint,
            self.D,
            ids,
            titles,
            texts,
            lengths,
            self.token_ids[rows],
            self.scale[rows],
            None if self.packed is None else self.packed[rows],
            None if self.states is None else self.states[rows],
        )

    @staticmethod
    def concat(parts: "Sequence[Encoded]") -> "Encoded":
        """Join passages of one reader, in order.

        Raises:
            ValueError: no parts, parts of different readers, or binary and float parts mixed.
        """
        kinds = {(p.fingerprint, p.D, p.packed is None, p.states is None) for p in parts}
        if len(kinds) != 1:
            raise ValueError(f"parts must be of one kind (reader, D, no packed, no states), got {sorted(kinds)}")
        first = parts[0]

        def join(name: str) -> Any:
            columns = [getattr(p, name) for p in parts]
            if columns[0] is None:
                return None
            return sum(columns, ()) if isinstance(columns[0], tuple) else np.concatenate(columns)

        names = ("ids", "titles", "texts", "lengths", "token_ids", "scale", "packed", "states")
        return Encoded(first.fingerprint, first.D, *(join(name) for name in names))
