"""Estimate what a store will take on the disk: a sample of its corpus is written for a moment, and measured."""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from btr.corpus import Passage
from btr.reader import Reader
from btr.reader.expansion import read_later
from btr.retrieve.bm25 import SHARD_SIZE, BM25Writer
from btr.retrieve.dense.build import Embedding
from btr.storage import Encoded, Settings
from btr.storage.shard import ShardWriter

PAGE = 4096  # bytes that a file takes on the disk at a time
SCALES = 6  # different scales of a passage, about
LISTS = ("data.csc.index.npy", "indices.csc.index.npy")  # of the index of words: they grow with the passages
MANIFEST = 1024  # bytes of the manifest that a shard has, about


def expected_bytes(
    folder: Path, settings: Settings, reader: Reader, sample: Sequence[Passage], passages: int, text: bool,
    indexed: bool, embedding: Embedding | None,
) -> int:  # fmt: skip
    """Return the bytes of a store of so many passages with all that stands in it; `folder` takes the sample's.

    Raises:
        DiskFull: not even the sample has room there.
    """
    sample = sample[: settings.shard_passages]
    with tempfile.TemporaryDirectory(prefix=".btr-estimate-", dir=folder) as name:
        path = Path(name)
        total = _shards(lambda part: _write(path, part, settings, reader, text), sample, passages, settings)
        if indexed:
            total += _index(path / "bm25", sample, passages)
    total += _pages(MANIFEST * -(-passages // settings.shard_passages))
    return total if embedding is None else total + embedding.expected(passages) + 2 * PAGE


def _shards(
    write: Callable[[Sequence[Passage]], int], sample: Sequence[Passage], passages: int, settings: Settings
) -> int:
    """Go on in a line from what half a sample and all of it take; a shard has a part that does not grow with it."""
    count = len(sample)
    whole = write(sample)
    if passages == count or count < 2:
        return whole * -(-passages // count)
    each = (whole - write(sample[: count // 2])) / (count - count // 2)
    return round(passages * each + -(-passages // settings.shard_passages) * max(whole - count * each, 0))


def _write(path: Path, part: Sequence[Passage], settings: Settings, reader: Reader, text: bool) -> int:
    """Write passages as a shard, signs and scales but for their number made up; returns its bytes."""
    ids, _ = reader.passage_ids([(passage.title, passage.text) for passage in part])
    tokens = np.concatenate([np.array(row, np.uint32) for row in ids])
    names, titles, texts = zip(*((p.id, p.title, p.text if text else "") for p in part), strict=True)
    scale = (1 + np.random.default_rng(0).integers(0, SCALES, len(tokens)) / 8).astype(np.float16)
    scale[~read_later(reader.model, tokens)] = 0
    encoded = Encoded(
        settings.fingerprint, settings.D, names, titles, texts, np.array([len(row) for row in ids], np.int32), tokens,
        scale, np.zeros((len(tokens), -(-settings.D // 64)), np.uint64),
    )  # fmt: skip
    folder = path / f"{len(part)} passages"
    with ShardWriter(folder, settings) as writer:
        writer.append(encoded, len(part))
        writer.finish()
    return sum(_sizes(folder).values())


def _index(folder: Path, sample: Sequence[Passage], passages: int) -> int:
    """Return the bytes of the index of words: its lists grow with the passages, its words by Heaps' law."""
    count, half = len(sample), max(len(sample) // 2, 1)
    for name, part in (("half", sample[:half]), ("whole", sample)):
        writer = BM25Writer.create_or_resume(folder / name, shard_size=SHARD_SIZE)
        writer.append(part)
        writer.finish()
    [shard] = (folder / "whole").glob("shard-*")
    lists = {name: size for name, size in _sizes(shard).items() if name in LISTS}
    words, before = (_words(folder / name) for name in ("whole", "half"))
    power = min(math.log(words / before) / math.log(count / half), 1.0) if count > half else 1.0
    rest = sum(_sizes(shard).values()) - sum(lists.values())

    def size(held: int) -> float:
        return sum(lists.values()) * held / count + rest * (held / count) ** power if held else 0.0

    whole, last = divmod(passages, SHARD_SIZE)
    return PAGE + round(whole * size(SHARD_SIZE) + size(last))


def _words(index: Path) -> int:
    """Return how many words an index of one shard knows."""
    [terms] = index.glob("shard-*/terms.npy")
    return max(int(np.load(terms, mmap_mode="r").shape[1]), 1)


def _sizes(folder: Path) -> dict[str, int]:
    """Return what each file of a folder takes on the disk."""
    return {file.name: _pages(file.stat().st_size) for file in folder.iterdir()}


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
