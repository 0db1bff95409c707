"""Lay tokens out in batches of rows, and rows' tokens end to end again.

Shapes: N passages, R rows of a batch, T row tokens, Q question tokens, M tokens of all passages, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from btr.model.kinds import Model
from btr.model.merge import MergedBits, Schedule, Tokens, merge_bits

BATCH_TOKENS = 2048  # tokens of a batch in the encoder, padding counted: what it makes on the way stays in the caches
PADDING = 256  # of them padding: more than this takes longer than another batch
FEW = 160  # rows of a product below which it depends on the threads: up to 147 of them do with 64 threads


def length_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield indices in batches of like length, longest first, each of one row or up to `budget` tokens with padding.

    No batch has more than `PADDING` tokens of padding.
    """
    batch: list[int] = []
    padding = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        padding += lengths[batch[0]] - lengths[i] if batch else 0
        if batch and (lengths[batch[0]] * (len(batch) + 1) > budget or padding > PADDING):
            yield batch
            batch, padding = [], 0
        batch.append(i)
    if batch:
        yield batch


@contextmanager
def steady(tokens: int) -> Iterator[None]:
    """Compute the products of so many rows as if torch had one thread, if they are few.

    MKL divides few rows otherwise among threads, and sums in another order: a bit, once in a while, would depend on
    how many there are, and with it what a store holds on the number of workers.
    """
    threads = torch.get_num_threads()
    if tokens >= FEW or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def pad(ids: Sequence[Sequence[int]], value: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Pad token sequences to (R, T) with `value`; returns ids and lengths (R,), on the device if one is given."""
    rows = torch.full((len(ids), max(map(len, ids))), value)
    for r, row in enumerate(ids):
        rows[r, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in ids])
    return (rows, lengths) if device is None else (rows.to(device), lengths.to(device))


def in_batches(lengths: Sequence[int], encode: Callable[[list[int]], Tensor]) -> Tensor:
    """Encode rows in batches of like length; lay their tokens end to end in the original order, without padding."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    memory: Tensor | None = None
    for batch in length_batches(lengths, BATCH_TOKENS):
        states = encode(batch)
        if memory is None:
            memory = states.new_empty(int(offsets[-1]), states.shape[2])
        for r, i in enumerate(batch):
            memory[offsets[i] : offsets[i + 1]] = states[r, : lengths[i]]
    if memory is None:
        raise ValueError("no rows to encode")
    return memory


@dataclass(frozen=True, eq=False)
class Halves:
    """What layers 1..k made of a question and, apart from it, of its passages.

    asked: the question's streams, (Q, D) each; read: the passages', (M, D) each, end to end; lengths (N,) of passages;
    packed (M, W): the passages' signs, uint64, or None.
    """

    asked: Sequence[Tensor]
    read: Sequence[Tensor]
    lengths: Sequence[int]
    packed: np.ndarray | None = None

    @property
    def rows(self) -> list[int]:
        """Tokens of each row: question and passage."""
        return [len(self.asked[0]) + n for n in self.lengths]

    def batch(self, chosen: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Lay out the streams of some rows: the question, its passage, zeros, (R, T, D) each; and the lengths (R,)."""
        Q, lengths = len(self.asked[0]), [self.rows[i] for i in chosen]
        ends = np.cumsum(self.lengths)
        filled = []
        for start, flat in zip(self.asked, self.read, strict=False):  # float states need no u: it is computed
            rows = flat.new_zeros(len(chosen), max(lengths), flat.shape[1])
            rows[:, :Q] = start
            for r, i in enumerate(chosen):
                rows[r, Q : lengths[r]] = flat[ends[i] - self.lengths[i] : ends[i]]
            filled.append(rows)
        return filled, torch.tensor(lengths, device=filled[0].device)

    def only(self, chosen: Sequence[int]) -> "Halves":
        """Return some of the passages."""
        ends = np.cumsum(self.lengths)
        tokens = np.concatenate([np.arange(ends[i] - self.lengths[i], ends[i]) for i in chosen])
        streams, packed = [stream[torch.from_numpy(tokens).to(stream.device)] for stream in self.read], self.packed
        kept = None if packed is None else packed[tokens]
        return Halves(self.asked, streams, [self.lengths[i] for i in chosen], kept)

    def merged(self, bits: MergedBits) -> "Halves":
        """Average the passages' tokens that were chosen by their bits."""
        return Halves(self.asked, [bits.average(stream) for stream in self.read], bits.lengths)


def pruning_features(model: Model, halves: Halves) -> Tensor:
    """Let the question attend to each passage in layer k+1: the features of `Pruner`, (N, D + 1)."""
    batches, Q = list(length_batches(halves.rows, BATCH_TOKENS)), len(halves.asked[0])
    laid = (halves.batch(batch) for batch in batches)
    found = torch.cat([model.pruning_features(filled[0], lengths, Q, *filled[1:]) for filled, lengths in laid])
    return found[torch.tensor([i for batch in batches for i in batch], device=found.device).argsort()]


Merging = Callable[[Tokens, Schedule, Tensor | None], Tokens]


@dataclass(frozen=True, eq=False)
class MergedRows:
    """The memory of a question, in batches of rows whose tokens may stand for several; numbers: which rows."""

    parts: list[Tokens]
    numbers: list[list[int]]
    schedule: Schedule

    @classmethod
    def join(cls, halves: Halves, schedule: Schedule, run: Merging) -> "MergedRows":
        """Run the joint layers over all rows of a question, merging on the way, and before if the schedule has it so.

        That needs the signs.
        """
        bits = None
        if schedule.bits and halves.packed is not None:
            bits = merge_bits(halves.packed, halves.lengths, schedule.bits).to(halves.asked[0].device)
            halves = halves.merged(bits)
        parts, numbers = [], []
        for batch in length_batches(halves.rows, BATCH_TOKENS):
            filled, lengths = halves.batch(batch)
            Q = len(halves.asked[0])
            tokens = Tokens.of(filled[0], lengths, Q) if bits is None else bits.rows(filled[0], batch, Q)
            parts.append(run(tokens, schedule, filled[1] if len(filled) > 1 else None))
            numbers.append(batch)
        return cls(parts, numbers, schedule)
