"""Read a store: a directory with `manifest.json` and shards, each an LMDB environment that never changes."""

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from .encoded import Encoded
from .errors import ReaderMismatch, UnknownId
from .manifest import MANIFEST, SHARDS, Manifest, beside, precompute_command
from .network import warn_of_network
from .record import decode_records
from .verify import verify
from .view import View


class Store:
    """Read passages of a store by id or by ordinal.

    What it gives back is the store as it was opened, whatever is done to it meanwhile, until `refresh` is called.
    Opens LMDB on first use, and again in a forked or unpickled copy; threads may share it.
    """

    def __init__(self, path: str | os.PathLike[str], view: View) -> None:
        """Use `open`."""
        self.path = Path(path).absolute()
        self._view = view

    @classmethod
    def open(cls, path: str | os.PathLike[str], fingerprint: str | None = None, reader: str = "") -> Self:
        """Open a store, for the reader with this fingerprint if one is given (`reader` is its name, for the message).

        Raises:
            NotAStore: no finished store is there, or one of a format that was never released.
            NewerFormat: it was written by a later version.
            ReaderMismatch: another reader built it.
            Corrupt: the manifest is damaged, or a file is not as long as it was.
        """
        store = cls(path, View.open(Path(path).absolute()))
        made_by = store.manifest.fingerprint
        if fingerprint is not None and fingerprint != made_by:
            own = f"with --reader {shlex.quote(store.manifest.reader)}" if store.manifest.reader else "without --reader"
            raise ReaderMismatch(
                f"store {store.path} was built by reader {made_by} ({store.manifest.reader or 'shipped with btr'}), "
                f"this reader is {fingerprint}; open it {own}, or build another beside it for this reader with: "
                f"{precompute_command(beside(store.path), store.manifest, reader)}"
            )
        warn_of_network(store.path)
        return store

    @property
    def manifest(self) -> Manifest:
        """Return what the store says of itself."""
        return self._view.manifest

    def __len__(self) -> int:
        """Return the number of passages, without deleted ones."""
        return self.manifest.passages

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_view": self._view}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of LMDB; a later read opens it again."""
        self._view.close()

    def is_current(self) -> bool:
        """Tell whether the store at its path is still as it was when it was opened or refreshed last."""
        return self._view.is_current()

    def refresh(self) -> bool:
        """Look at the store as it is now; returns whether it has changed since it was opened or refreshed last.

        A read that another thread has begun ends as it began. Deleted ordinals stay deleted and new ones are higher,
        unless the store was compacted or replaced.

        Raises:
            StoreError: as `open`; then the store stays as it was opened.
        """
        if self.is_current():
            return False
        view, before = View.open(self.path), self.manifest
        if before.fingerprint != view.manifest.fingerprint:
            raise ReaderMismatch(
                f"store {self.path} was replaced by one of reader {view.manifest.fingerprint}, it was of "
                f"{before.fingerprint}; open it again, with that reader"
            )
        self._view = view
        return before != view.manifest

    def get(self, ids: Sequence[str]) -> Encoded:
        """Read passages by id, in this order; an id may come twice.

        Raises:
            UnknownId: some are not in the store, or deleted.
            Corrupt: a checksum is wrong.
        """
        with self._view.read() as reading:
            places = {passage_id: reading.ordinal(passage_id) for passage_id in ids}
            known = {passage_id: ordinal for passage_id, ordinal in places.items() if ordinal is not None}
            unknown = tuple(passage_id for passage_id in places if passage_id not in known)
            if unknown:
                first = ", ".join(repr(passage_id[:60]) for passage_id in unknown[:3]) + ", ..." * (len(unknown) > 3)
                raise UnknownId(f"{len(unknown)} of {len(ids)} ids are not in store {self.path}: {first}", unknown)
            records = [reading.record(known[passage_id], passage_id) for passage_id in ids]
            return decode_records(records, self.manifest)

    def at(self, ordinals: Sequence[int] | np.ndarray) -> Encoded:
        """Read passages by ordinal: their place in the corpus, counted from 0.

        Raises:
            IndexError: an ordinal was never given to a passage.
            UnknownId: passages of some ordinals are deleted.
            Corrupt: a checksum is wrong.
        """
        view = self._view
        numbers, count = [int(i) for i in ordinals], view.manifest.ordinals
        wrong = [i for i in numbers if not 0 <= i < count]
        if wrong:
            raise IndexError(f"ordinal {wrong[0]} is outside store {self.path} of {count} passages")
        with view.read() as reading:
            gone = tuple(reading.record(i).id for i in numbers if view.is_deleted(i))
            if gone:
                raise UnknownId(f"{len(gone)} of {len(numbers)} passages are deleted from store {self.path}", gone)
            return decode_records([reading.record(i) for i in numbers], view.manifest)

    def ordinals(self, ids: Sequence[str]) -> list[int | None]:
        """Return the ordinals of passages, None for an id that is not in the store.

        Raises:
            Corrupt: an index of ids is damaged.
        """
        with self._view.read() as reading:
            return [reading.ordinal(passage_id) for passage_id in ids]

    def deleted(self, ordinals: Sequence[int] | np.ndarray) -> np.ndarray:
        """Tell which of these ordinals (n,) are those of deleted passages: bool (n,)."""
        return np.array([self._view.is_deleted(int(i)) for i in ordinals], bool)

    def live(self) -> Iterator[int]:
        """Yield the ordinals of all passages that are not deleted, ascending."""
        view = self._view
        for number, start in enumerate(view.starts[:-1]):
            yield from (view.live(number) + start).tolist()

    def ids(self) -> Iterator[str]:
        """Yield the ids of all passages by ascending ordinal; reads and checks the whole store."""
        view = self._view
        for number in range(len(view.manifest.shards)):
            with view.snapshot(number) as snapshot:
                for record in view.live(number):
                    yield snapshot.record(int(record)).id

    def verify(self, progress: Callable[[int, int], None] | None = None) -> Iterator[str]:
        """Read everything, and yield one sentence per problem; `progress` gets the passages read and their number."""
        return verify(self._view, progress)

    def sizes(self) -> dict[str, int]:
        """Return the bytes on disk by part; they sum to what `du` says of the directory.

        The parts of the manifest, then `ids_index` (pages of the indexes of ids), `pages` (what else LMDB's pages, the
        manifest, the shards' small files and the directories take) and `other_files` (what else lies there).
        """
        view, index = self._view, 0
        own = [self.path, self.path / MANIFEST, self.path / SHARDS]
        for number, shard in enumerate(view.manifest.shards):
            with view.snapshot(number) as snapshot:
                index += snapshot.index_size()[1]
            folder = view.folder(shard)
            own += [folder, *folder.iterdir()]
        parts = {**self.manifest.part_bytes, "ids_index": index}
        taken = sum(map(_allocated, own))
        other = sum(map(_allocated, self.path.rglob("*"))) + _allocated(self.path) - taken
        return {**parts, "pages": taken - sum(parts.values()), "other_files": other}


def _allocated(path: Path) -> int:
    """Return the bytes that a file takes on disk, or a directory without what is in it."""
    return path.lstat().st_blocks * 512
