"""Search a living store: the BM25 index beside it, less what is deleted, and a word when it has fallen behind."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from btr.corpus import Passage
from btr.errors import InputError
from btr.progress import Progress
from btr.retrieve.bm25 import BM25, BM25Writer, Hits, WordShard
from btr.storage import Store
from btr.storage.living import Editor
from btr.storage.manifest import store_command

INDEX = "bm25"
BATCH = 1024  # passages read and indexed at a time
MOST = 16_384  # passages that `Tail` keeps words of in memory

Part = tuple[str, str, int]  # name and content of a shard, and the record that a part of it begins with


class Index(Protocol):
    """What finds passages by their ordinals."""

    def __len__(self) -> int:
        """Return the number of passages."""

    def search(self, questions: Sequence[str], top: int) -> list[Hits]:
        """Find the best passages for each question, best first."""


class Preparing(Index, Protocol):
    """What also searches for questions that were prepared, together, and among few passages.

    For each prepared question `search_prepared` finds, to the bit, what `search` finds for that one question.
    """

    def prepare(self, question: str) -> Any:
        """Return what a question is searched by."""

    def search_prepared(self, questions: Sequence[Any], top: int) -> list[Hits]:
        """Find the best passages for each prepared question, best first."""

    def among(self, question: Any, ordinals: NDArray[np.int64], top: int) -> Hits:
        """Find the best of these passages alone, rising ordinals (R,), for a prepared question."""

    def depth(self, top: int, most: int) -> int:
        """Return how many may be asked for, up to `most`, so that the first `top` are what a search for `top` finds."""


class StaleIndex(UserWarning):
    """Warn that the index does not know the newest passages of its store."""


class StoreIndex:
    """Find passages of a store as it was when the index was opened; deleted ones do not come back."""

    def __init__(self, index: Preparing, store: Store) -> None:
        """Use `open_index`."""
        self._index, self._store = index, store

    def __len__(self) -> int:
        """Return the number of passages indexed."""
        return len(self._index)

    @property
    def _whole(self) -> bool:
        """Tell whether nothing is deleted."""
        return self._store.manifest.passages == self._store.manifest.ordinals

    def search(self, questions: Sequence[str], top: int) -> list[Hits]:
        """Find the best passages for each question, as `BM25.search`, that are not deleted."""
        if self._whole:
            return self._index.search(questions, top)
        return [self._live(partial(self._index.search, [question]), top) for question in questions]

    def prepare(self, question: str) -> Any:
        """Return what a question is searched by."""
        return self._index.prepare(question)

    def search_prepared(self, questions: Sequence[Any], top: int) -> list[Hits]:
        """Search for prepared questions, as `search` for each."""
        if self._whole:
            return self._index.search_prepared(questions, top)
        return [self._live(partial(self._index.search_prepared, [question]), top) for question in questions]

    def among(self, question: Any, ordinals: NDArray[np.int64], top: int) -> Hits:
        """Find the best of these passages alone, none of them deleted, for a prepared question."""
        return self._index.among(question, ordinals, top)

    def depth(self, top: int, most: int) -> int:
        """Return how many may be asked for, up to `most`, so that the first `top` are what a search for `top` finds."""
        return self._index.depth(top, most) if self._whole else top

    def _live(self, search: Callable[[int], list[Hits]], top: int) -> Hits:
        """Ask for more until enough of them are not deleted."""
        asked = 2 * top
        while True:
            ((ordinals, scores),) = search(asked)
            live = ~self._store.deleted(ordinals)
            if live.sum() >= top or len(ordinals) < asked:
                return ordinals[live][:top], scores[live][:top]
            asked *= 4


class Tail:
    """Know the words of what a store got since its index was built, in memory, so that it is found at once.

    Each of the store's shards is read once, however often the store changes and is opened again.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Part, str], WordShard] = {}  # by language too
        self.vectors: dict[Part, NDArray[np.float32]] = {}  # of a dense index, which `dense.updates` keeps here
        self.embedder: Any = None  # of passages, where that of questions is another

    def extend(self, bm25: BM25, store: Store) -> BM25:
        """Return the index with as many of the passages that follow as fit into MOST, all of a shard or none.

        Raises:
            Corrupt: a passage is damaged.
        """
        used: dict[tuple[Part, str], WordShard] = {}
        for part, begin, end in newer(store, len(bm25), MOST):
            key = part, bm25.language
            known = self._known.get(key) or WordShard.of(read_words(store, begin, end), begin, bm25.language)
            used[key] = replace(known, offset=begin)
        self._known = used
        return bm25.extended(list(used.values()))


def newer(store: Store, first: int, most: int) -> Iterator[tuple[Part, int, int]]:
    """Yield what tells the part of each shard from ordinal `first` on from others, and its first and last ordinal + 1.

    Of the shards in order, as many as have together no more than `most` passages there.
    """
    start, end = 0, min(first + most, store.manifest.ordinals)
    for shard in store.manifest.shards:
        begin, start = max(start, first), start + shard.passages
        if begin < start <= end:
            yield (shard.name, shard.content_hash, shard.passages - (start - begin)), begin, start
        elif start > end:
            return


def read_words(store: Store, first: int, end: int) -> list[Passage]:
    """Return the passages of these ordinals to be indexed, deleted ones empty."""
    return [passage for chunk in by_ordinal(store, first, end) for passage in chunk]


def open_index(store: Store, tail: Tail | None = None) -> StoreIndex | None:
    """Open the index of a store; None if it has none.  Warns of passages that it does not know (StaleIndex).

    tail: adds, in memory, the words of passages that are newer than the index on the disk.

    Raises:
        InputError: it is not of this store, or damaged.
    """
    folder, indexed = store.path / INDEX, store.manifest.indexed
    command = store_command("index", store.path)
    if not indexed:
        if folder.exists():
            raise InputError(f"{folder} is no longer that of store {store.path}; build it anew with: {command}")
        return None
    bm25 = BM25.open(folder, f"build it anew with: {command}")
    if len(bm25) != indexed:
        raise InputError(f"{folder} has {len(bm25)} passages, the store says {indexed}; build it anew with: {command}")
    if tail is not None and store.manifest.options.get("text") is not False:
        bm25 = tail.extend(bm25, store)
    behind = store.manifest.ordinals - len(bm25)
    if behind:
        message = f"{folder} does not know the last {behind:,} passages of the store; build it anew with: {command}"
        warnings.warn(message, StaleIndex, stacklevel=2)
    return StoreIndex(bm25, store)


def build_index(editor: Editor, language: str | None = None) -> int:
    """Index all passages of a store anew; returns their number.

    language: what words are stemmed by, from now on; None: what was given before, or else as the texts look.

    While the new index takes the place of the old one, the manifest names none: nobody takes one for the other.

    Raises:
        InputError: the store keeps no texts, or no passages.
    """
    building, manifest = editor.path / f"{INDEX}.building", editor.manifest
    shutil.rmtree(building, ignore_errors=True)  # of a killed run, perhaps of another state of the store
    try:
        known = language or editor.manifest.options.get("language")
        _write(editor, building, None if known is None else str(known))
    except InputError:
        shutil.rmtree(building, ignore_errors=True)
        raise
    editor.commit(manifest.shards, indexed=0)
    drop_index(editor.path)
    os.rename(building, editor.path / INDEX)
    editor.commit(manifest.shards, indexed=manifest.ordinals, options={"language": language} if language else None)
    return manifest.passages


def _write(editor: Editor, folder: Path, language: str | None) -> None:
    store = Store(editor.path, editor.view)
    writer = BM25Writer.create_or_resume(folder, language=language)
    report = Progress("indexed", 0, editor.manifest.ordinals)
    for chunk in by_ordinal(store):
        if any(passage.id and not passage.text for passage in chunk):
            raise InputError(f"store {editor.path} keeps no texts, and an index is built from them")
        writer.append(chunk)
        report(len(chunk))
    writer.finish()
    report.show(last=True)


def by_ordinal(store: Store, first: int = 0, end: int | None = None) -> Iterator[list[Passage]]:
    """Yield the passages by ordinal, BATCH at a time; an empty one keeps the place of each that is deleted."""
    count = store.manifest.ordinals if end is None else end
    for start in range(first, count, BATCH):
        ordinals = range(start, min(start + BATCH, count))
        gone = store.deleted(ordinals)
        found = store.at([ordinal for ordinal, out in zip(ordinals, gone, strict=True) if not out])
        rows = iter(zip(found.ids, found.titles, found.texts, strict=True))
        yield [Passage("", "", "") if out else Passage(*next(rows)) for out in gone]


def drop_index(path: Path) -> None:
    """Delete an index that the manifest no longer names."""
    shutil.rmtree(path / INDEX, ignore_errors=True)
