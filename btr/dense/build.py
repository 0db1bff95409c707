"""Build the dense index of a store or of a corpus, going on where a killed run stopped."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from btr.corpus import Passage, read_passages
from btr.dense.encoder import Encoder
from btr.dense.fusion import DENSE
from btr.dense.writer import DenseWriter, Plan
from btr.errors import InputError
from btr.indexed import by_ordinal
from btr.storage import Store

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


def build(
    encoder: Encoder, plan: Plan, out: Path, chunks: Callable[[int], Iterator[list[Passage]]],
    report: Callable[[int, int], None],
) -> int:  # fmt: skip
    """Write OUT/dense; chunks: the passages from a place on; report: passages done before, passages done now.

    Returns the number of passages.

    Raises:
        InputError: as `DenseWriter`.
    """
    writer = DenseWriter.create_or_resume(out / DENSE, plan)
    first = writer.done
    for chunk in chunks(first):
        writer.append(chunk, encoder)
        report(first, writer.held)
    writer.finish()
    return writer.done
