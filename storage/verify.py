"""Read all of a store and say what is not as it was written."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .environment import DATA
from .errors import Corrupt
from .format import chain
from .view import View


def verify(view: View, progress: Callable[[int, int], None] | None = None) -> Iterator[str]:
    """Yield one sentence per problem; `progress` gets the records read and their number."""
    for number in range(len(view.manifest.shards)):
        yield from _Shard(view, number, progress).verify()


class _Shard:
    """Verify one shard."""

    def __init__(self, view: View, number: int, progress: Callable[[int, int], None] | None) -> None:
        self.view, self.number, self.progress = view, number, progress
        self.shard = view.manifest.shards[number]
        self.name = f"store {view.path}, shard {self.shard.name}"
        self.seen = Counter[str]()

    def verify(self) -> Iterator[str]:
        """Yield one sentence per problem of the shard."""
        try:
            with open(self.view.folder(self.shard) / DATA, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            yield f"{self.name}: {error.strerror}; {self.view.cure()}"
            return
        if found != self.shard.data_hash:
            yield f"{self._difference('data_hash', found)}; {self.view.cure()}"
        try:
            self.view.snapshot(self.number).txn.abort()
        except Corrupt as error:
            yield str(error)
            return
        yield from self._blocks()
        if self.seen["passages"] == self.shard.passages:  # else they differ because of what was reported above
            yield from self._differences(self.seen)
        yield from self._index()

    def _blocks(self) -> Iterator[str]:
        size, count = self.view.manifest.passages_per_block, self.shard.passages
        with self.view.snapshot(self.number) as snapshot:
            codebook = snapshot.environment.codebook
        digest = bytes(32) if codebook is None else chain(bytes(32), codebook.to_bytes())
        for first in range(0, count, size):
            try:
                with self.view.snapshot(self.number) as snapshot:
                    block = snapshot.block(first // size)
                    digest = chain(digest, block)
                    self.seen["block_headers"] += len(block)  # less the other parts of the records, when they are read
            except Corrupt as error:
                yield str(error)
                continue
            for record in range(first, min(first + size, count)):
                yield from self._record(record)
            if self.progress is not None:
                done = self.view.starts[self.number] + min(first + size, count)
                self.progress(done, self.view.manifest.ordinals)
        yield from self._differences({"content_hash": digest.hex()})

    def _record(self, number: int) -> Iterator[str]:
        """Yield what is wrong with a record or with its id in the index, and count it if nothing is."""
        try:
            with self.view.snapshot(self.number) as snapshot:  # not shared: damage makes LMDB give up the transaction
                record = snapshot.record(number)
                indexed = snapshot.find(record.id)
                parts = Counter(record.part_bytes)
        except Corrupt as error:
            yield str(error)
            return
        if indexed != number:
            yield f"{self.name}: passage {record.id!r} is number {number}, the index of ids says {indexed}"
        bits = self.view.deleted[self.number]
        gone = record.tokens if bits is not None and bits[number] else 0
        self.seen.update(passages=1, tokens=record.tokens, deleted_tokens=gone, **parts)
        self.seen["block_headers"] -= parts.total()

    def _index(self) -> Iterator[str]:
        """Count the ids: each record's is there, as was checked before, so that an equal number leaves none without."""
        try:
            with self.view.snapshot(self.number) as snapshot:
                yield from self._differences({"ids_index": snapshot.index_size()[0]})
        except Corrupt as error:
            yield str(error)

    def _differences(self, found: Mapping[str, Any]) -> Iterator[str]:
        """Yield what was found otherwise than the manifest says."""
        yield from (text for name, value in found.items() if (text := self._difference(name, value)))

    def _difference(self, name: str, value: Any) -> str:
        expected = {**vars(self.shard), **self.shard.part_bytes, "ids_index": self.shard.passages}[name]
        return "" if value == expected else f"{self.name}: {name} is {value}, the manifest says {expected}"
