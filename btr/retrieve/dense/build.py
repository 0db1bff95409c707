"""Build the dense index of a store or of a corpus, going on where a killed run stopped."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from btr.corpus import Passage, read_passages
from btr.corpus.statistics import CHANGED
from btr.errors import InputError
from btr.progress import Progress
from btr.retrieve.dense.encoder import Encoder
from btr.retrieve.dense.updates import check_shards, shards_of
from btr.retrieve.dense.writer import DenseWriter, Plan, Shards
from btr.retrieve.fusion import DENSE, WORDS, Choice
from btr.retrieve.indexed import by_ordinal
from btr.storage import Shard, Store

CHUNK = 1024  # passages embedded and written together; what a killed run does again
MANIFEST = "manifest.json"


def is_store(path: Path) -> bool:
    """Tell whether a folder is a finished store, not a corpus."""
    return (path / MANIFEST).is_file()


def read_store(store: Store, first: int) -> Iterator[list[Passage]]:
    """Yield the passages of a store from an ordinal on, those deleted empty.

    Raises:
        InputError: the store keeps no texts.
    """
    for chunk in by_ordinal(store, first):
        if not any(passage.text for passage in chunk) and any(passage.id for passage in chunk):
            raise InputError(f"store {store.path} keeps no texts to embed; precompute it without --no-text")
        yield chunk


def read_corpus(corpus: str, first: int, limit: int | None, words: int) -> Iterator[list[Passage]]:
    """Yield the passages of a corpus from a place on, CHUNK at a time."""
    passages = itertools.islice(read_passages(corpus, limit=limit, words=words), first, None)
    while chunk := list(itertools.islice(passages, CHUNK)):
        yield chunk


@dataclass(frozen=True)
class Embedding:
    """How the passages of a store are embedded while it is built."""

    encoder: Encoder
    plan: Plan

    @classmethod
    def load(cls, retriever: str, codes: int, scaled: bool, dtype: str, device: str) -> Self:
        """Load the encoder.

        Raises:
            InputError: it is missing or damaged.
        """
        encoder = Encoder.from_pretrained(retriever, dtype, device)
        plan = Plan(retriever, encoder.fingerprint, encoder.dimension, codes, dtype=dtype, scaled=scaled)
        return cls(encoder, plan)

    def expected(self, passages: int) -> int:
        """Return the bytes of the index of so many passages, about: their rows, and the quantizer."""
        D = self.plan.dimension
        bits = self.plan.codes
        return passages * (8 * -(-D // 64) + -(-(bits - 1) * D // 8) + 2) + 4 * D * D * (1 if bits == 1 else 3)

    def write(self, folder: Path, passages: Callable[[], Iterator[Passage]], shards: Sequence[Shard]) -> None:
        """Write FOLDER/dense, and what is searched; a killed run is gone on with.

        passages: those of the store, in its order; batches are those of `read_store`, so that the vectors are the same.

        Raises:
            InputError: the corpus changed, or a killed run embedded otherwise; the disk is full.
        """
        total = sum(shard.passages for shard in shards)
        report = Progress("embedded", 0, total)

        def chunks(first: int) -> Iterator[list[Passage]]:
            rest = itertools.islice(passages(), first, None)
            while chunk := list(itertools.islice(rest, CHUNK)):
                yield chunk

        try:
            count = build(self.encoder, self.plan, folder, chunks, report, shards_of(shards))
        except OSError as error:
            cure = "if the disk is full, make room; then run the same command again, it goes on where it stopped"
            raise InputError(f"{folder / DENSE}: cannot be written ({error.strerror or error}); {cure}") from error
        if count != total:
            raise InputError(f"{count:,} of {total:,} passages could be embedded: {CHANGED}")
        report.show(last=True)
        Choice("hybrid" if (folder / WORDS).is_dir() else "dense").write(folder)


def build(
    encoder: Encoder, plan: Plan, out: Path, chunks: Callable[[int], Iterator[list[Passage]]],
    report: Progress, shards: Shards | None = None,
) -> int:  # fmt: skip
    """Write OUT/dense; chunks: the passages from a place on.

    shards: of the store that the passages come from. To an index that is there, what the store got since is added.

    Returns the number of passages.

    Raises:
        InputError: as `DenseWriter`, or the store's passages have moved since the index was begun.
    """
    writer = DenseWriter.create_or_resume(out / DENSE, plan)
    first = writer.done
    if shards is not None:
        check_shards(writer.path, writer.shards, first, shards)
        writer.shards = shards
    report.first = report.done = first
    for chunk in chunks(first):
        writer.append(chunk, encoder)
        report.reach(writer.held)
    writer.finish()
    return writer.done
