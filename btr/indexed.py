"""Search a living store: the BM25 index beside it, less what is deleted, and a word when it has fallen behind."""

import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from btr.corpus import Passage
from btr.errors import InputError
from btr.progress import Progress
from btr.retrieve import BM25, BM25Writer, Hits
from btr.storage import Store
from btr.storage.living import Editor
from btr.storage.manifest import store_command

INDEX = "bm25"
BATCH = 1024  # passages read and indexed at a time


class Index(Protocol):
    """What finds passages by their ordinals."""

    def __len__(self) -> int:
        """Return the number of passages."""

    def search(self, questions: Sequence[str], top: int) -> list[Hits]:
        """Find the best passages for each question, best first."""


class StaleIndex(UserWarning):
    """Warn that the index does not know the newest passages of its store."""


class StoreIndex:
    """Find passages of a store as it was when the index was opened; deleted ones do not come back."""

    def __init__(self, bm25: Index, store: Store) -> None:
        """Use `open_index`."""
        self._bm25, self._store = bm25, store

    def __len__(self) -> int:
        """Return the number of passages indexed."""
        return len(self._bm25)

    def search(self, questions: Sequence[str], top: int) -> list[Hits]:
        """Find the best passages for each question, as `BM25.search`, that are not deleted."""
        if self._store.manifest.passages == self._store.manifest.ordinals:
            return self._bm25.search(questions, top)
        return [self._search(question, top) for question in questions]

    def _search(self, question: str, top: int) -> Hits:
        """Ask for more until enough of them are not deleted."""
        asked = 2 * top
        while True:
            ((ordinals, scores),) = self._bm25.search([question], asked)
            live = ~self._store.deleted(ordinals)
            if live.sum() >= top or len(ordinals) < asked:
                return ordinals[live][:top], scores[live][:top]
            asked *= 4


def open_index(store: Store) -> StoreIndex | None:
    """Open the index of a store; None if it has none.  Warns of passages that it does not know (StaleIndex).

    Raises:
        InputError: it is not of this store, or damaged.
    """
    folder, indexed = store.path / INDEX, store.manifest.indexed
    command = store_command("index", store.path)
    if not indexed:
        if folder.exists():
            raise InputError(f"{folder} is no longer that of store {store.path}; build it anew with: {command}")
        return None
    bm25 = BM25.open(folder)
    if len(bm25) != indexed:
        raise InputError(f"{folder} has {len(bm25)} passages, the store says {indexed}; build it anew with: {command}")
    behind = store.manifest.ordinals - indexed
    if behind:
        message = f"{folder} does not know the last {behind:,} passages of the store; build it anew with: {command}"
        warnings.warn(message, StaleIndex, stacklevel=2)
    return StoreIndex(bm25, store)


def build_index(editor: Editor) -> int:
    """Index all passages of a store anew; returns their number.

    While the new index takes the place of the old one, the manifest names none: nobody takes one for the other.

    Raises:
        InputError: the store keeps no texts, or no passages.
    """
    building, manifest = editor.path / f"{INDEX}.building", editor.manifest
    shutil.rmtree(building, ignore_errors=True)  # of a killed run, perhaps of another state of the store
    try:
        _write(editor, building)
    except InputError:
        shutil.rmtree(building, ignore_errors=True)
        raise
    editor.commit(manifest.shards, indexed=0)
    drop_index(editor.path)
    os.rename(building, editor.path / INDEX)
    editor.commit(manifest.shards, indexed=manifest.ordinals)
    return manifest.passages


def _write(editor: Editor, folder: Path) -> None:
    store = Store(editor.path, editor.view)
    writer, report = BM25Writer.create_or_resume(folder), Progress("indexed", 0, editor.manifest.ordinals)
    for chunk in by_ordinal(store):
        if any(passage.id and not passage.text for passage in chunk):
            raise InputError(f"store {editor.path} keeps no texts, and an index is built from them")
        writer.append(chunk)
        report(len(chunk))
    writer.finish()
    report.show(last=True)


def by_ordinal(store: Store, first: int = 0) -> Iterator[list[Passage]]:
    """Yield the passages by ordinal, BATCH at a time; an empty one keeps the place of each that is deleted."""
    count = store.manifest.ordinals
    for start in range(first, count, BATCH):
        ordinals = range(start, min(start + BATCH, count))
        gone = store.deleted(ordinals)
        found = store.at([ordinal for ordinal, out in zip(ordinals, gone, strict=True) if not out])
        rows = iter(zip(found.ids, found.titles, found.texts, strict=True))
        yield [Passage("", "", "") if out else Passage(*next(rows)) for out in gone]


def drop_index(path: Path) -> None:
    """Delete an index that the manifest no longer names."""
    shutil.rmtree(path / INDEX, ignore_errors=True)
