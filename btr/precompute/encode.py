"""Write shards: a part of a corpus in, its bits out.  The unit of work of all workers, on one machine or many.

A shard depends on its part of the corpus alone: batches begin anew in each, and within it every CHUNK passages. So
whoever writes it, with however many threads, and however often he was killed, it has the same content; on a CPU of
another kind, or with another torch, a bit may differ where a sum has another last digit.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch

from btr.command import cores
from btr.corpus import Passage
from btr.corpus.statistics import CHANGED, Corpus, Cursor
from btr.errors import InputError
from btr.model.devices import settle
from btr.model.layout import BATCH_TOKENS, length_batches, pad
from btr.reader import Reader
from btr.storage import Encoded, Settings, Shard
from btr.storage.shard import ShardWriter

CHUNK = 1024  # passages encoded and committed together; what a killed run does again
WARM, MEASURED = 8, 256  # passages: of a first try, and written at a time
WAIT = 60.0  # seconds to wait for a worker of a killed run, which ends with its batch

Report = Callable[[int, int], None]  # passages, tokens: just done


@dataclass(frozen=True)
class Source:
    """Say which reader encodes, and how; all workers load the same."""

    reader: str | None
    k: int | None = None
    dtype: str = "float32"
    device: str = "cpu"

    @classmethod
    def settled(cls, reader: str | None, k: int | None, dtype: str, device: str) -> Self:
        """Say so with what `auto` comes to here; raises as `settle`."""
        return cls(reader, k, *settle(dtype, device))

    def load(self) -> Reader:
        """Load the reader.

        Raises:
            InputError: it is missing or damaged, or has no split layer.
        """
        reader = Reader.from_pretrained(self.reader, k=self.k, dtype=self.dtype, device=self.device)
        if not reader.config.k:
            cure = "give --k, or a reader trained with one"
            raise InputError(f"reader {reader.name} has no split layer, so there are no bits to keep; {cure}")
        return reader


@dataclass(frozen=True)
class ShardTask:
    """Ask for one shard: the passages of a corpus at the places from `start` to `stop`, but those to skip."""

    folder: str
    settings: Settings
    corpus: Corpus
    start: int
    stop: int
    skip: tuple[int, ...] = field(repr=False)
    keep_text: bool

    @property
    def name(self) -> str:
        """Return the name of the shard."""
        return Path(self.folder).name


def shard_tasks(
    corpus: Corpus, count: int, skip: np.ndarray, settings: Settings, folder: Callable[[int], Path], keep_text: bool
) -> list[ShardTask]:
    """Cut the work on a corpus of `count` passages into shards; `folder` gives the directory of each."""
    made = []
    for number, start in enumerate(range(0, count, settings.shard_passages)):
        stop = min(start + settings.shard_passages, count)
        first, last = np.searchsorted(skip, (start, stop))
        places = tuple(skip[first:last].tolist())
        made.append(ShardTask(str(folder(number)), settings, corpus, start, stop, places, keep_text))
    return made


def encode_chunk(reader: Reader, passages: list[Passage], ids: list[list[int]], report: Report) -> Encoded:
    """Encode as `reader.encode_ids` does, in the same batches, and report each."""
    batches = list(length_batches([len(row) for row in ids], BATCH_TOKENS))
    parts = []
    for batch in batches:
        parts.append(reader.encode_ids([passages[i] for i in batch], [ids[i] for i in batch]))
        report(len(batch), parts[-1].num_tokens)
    return Encoded.concat(parts).select(np.argsort(np.concatenate(batches)))


def write_shard(job: ShardTask, reader: Reader, cursor: Cursor, report: Report) -> Shard:
    """Write a shard, or what is missing of it.

    Raises:
        InputError: the corpus is shorter than it was, or the reader is another.
        StoreError: it cannot be written.
    """
    if reader.fingerprint != job.settings.fingerprint:
        raise InputError(f"the reader is {reader.fingerprint}, shard {job.name} is of {job.settings.fingerprint}")
    with ShardWriter(Path(job.folder), job.settings, wait=WAIT) as writer:
        begun = writer.progress.consumed
        report(begun, 0)
        passages = cursor.read(job.start + begun, job.stop)
        for chunk in _chunks(passages, job, begun):
            taken = [passage for place, passage in chunk if place is not None]
            consumed, left_out = writer.progress.consumed + len(chunk), len(chunk) - len(taken)
            if not taken:
                writer.leave_out(left_out)
            else:
                ids, cut = reader.passage_ids([(passage.title, passage.text) for passage in taken])
                kept = taken if job.keep_text else [Passage(passage.id, passage.title, "") for passage in taken]
                writer.append(encode_chunk(reader, kept, ids, report), consumed, cut, left_out)
            report(left_out, 0)
        if writer.progress.consumed != job.stop - job.start:
            found, expected = job.start + writer.progress.consumed, job.stop
            raise InputError(f"{found:,} of {expected:,} passages were read: {CHANGED}")
        return writer.finish(_origin(job))


def _chunks(passages: Iterator[Passage], job: ShardTask, begun: int) -> Iterator[list[tuple[int | None, Passage]]]:
    """Yield CHUNK passages at a time with their places, None for one to skip."""
    skip = set(job.skip)
    placed = ((None if place in skip else place, p) for place, p in enumerate(passages, job.start + begun))
    while chunk := list(itertools.islice(placed, CHUNK)):
        yield chunk


def _origin(job: ShardTask) -> dict[str, object]:
    return {**asdict(job.corpus), "start": job.start, "stop": job.stop, "skip": job.skip, "text": job.keep_text}


def write_shards(jobs: Sequence[ShardTask], reader: Reader, report: Report) -> dict[str, Shard]:
    """Write shards one after the other, in this process; returns them by name."""
    cursors: dict[Corpus, Cursor] = {}
    return {
        job.name: write_shard(job, reader, cursors.setdefault(job.corpus, Cursor(job.corpus)), report) for job in jobs
    }


def threads_of(workers: int) -> int:
    """Return the threads that each of so many workers of this machine may use."""
    return max(1, cores() // workers)


@dataclass(frozen=True)
class Rates:
    """How fast a sample was read: tokens per passage; tokens per second to a shard on the disk, and of layers 1..k."""

    size: float
    whole: float
    encoder: float


def measure(
    reader: Reader, sample: Sequence[Passage], settings: Settings, keep_text: bool = True, seconds: float = 10.0
) -> Rates:
    """Write a sample as a shard that is thrown away, for about so many seconds, in turn with layers 1..k alone.

    These read the same tokens in the same batches, which are laid out before: a bare encoder.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in ("warm", "sample"):  # the first one compiles, and touches the weights
            tokens, taken, spent, bare = 0, 0, 0.0, 0.0
            stop = min(WARM, len(sample)) if name == "warm" else len(sample)
            with ShardWriter(Path(folder) / name, settings) as writer:
                while spent + bare < seconds and taken < stop:
                    part = sample[taken : min(taken + MEASURED, stop)]
                    taken += len(part)
                    began = time.monotonic()
                    ids, cut = reader.passage_ids([(p.title, p.text) for p in part])
                    kept = [p if keep_text else Passage(p.id, p.title, "") for p in part]
                    encoded = encode_chunk(reader, kept, ids, lambda passages, tokens: None)
                    writer.append(encoded, taken, cut)
                    spent, tokens = spent + time.monotonic() - began, tokens + encoded.num_tokens
                    bare += bare_seconds(reader, ids)
                began = time.monotonic()
                writer.finish({})
                spent += time.monotonic() - began
    return Rates(tokens / taken, tokens / spent, tokens / bare)


@torch.inference_mode()
def bare_seconds(reader: Reader, ids: Sequence[Sequence[int]]) -> float:
    """Time layers 1..k on tokens that are laid out before."""
    batches = length_batches([len(row) for row in ids], BATCH_TOKENS)
    laid = [pad([ids[i] for i in batch], reader.model.pad_token_id, reader.device) for batch in batches]
    began = time.monotonic()
    for rows, lengths in laid:
        states = reader.model.lower(rows, lengths, passage=True)
        states.view(-1)[0].item()  # a GPU tells that it has done it
    return time.monotonic() - began
