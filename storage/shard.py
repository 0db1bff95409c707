"""Write one shard, one transaction per batch, so that a run killed anywhere can be resumed."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import lmdb

from .codebook import Codebook
from .disk import LOCK, ROOM, check_room, cure, disk_errors, take_lock
from .encoded import Encoded
from .environment import BLOCK_KEY, CODEBOOK, CONTENT, DATA, ORDINAL
from .errors import Corrupt, ResumeMismatch, StoreBusy
from .format import Settings, block_records, build_block, chain, header_total, id_key
from .manifest import PARTS, Shard, read_json, write_json
from .record import encode_records, read_record

SHARD = "shard.json"  # beside the data of a finished shard: its entry in the manifest, and where it comes from

_PROGRESS = b"progress"
_COMPACT = "compact.tmp"
_SLACK = 0.01  # share of free pages above which the data file is written anew
_MAP_SIZE = 1 << 26  # bytes; grows as needed


@dataclass(frozen=True)
class ShardProgress:
    """Count what is committed; stored in the transaction that it counts."""

    passages: int = 0
    tokens: int = 0
    cut: int = 0
    duplicates: int = 0
    consumed: int = 0  # passages of the shard's source that were read, duplicates among them: where to go on
    part_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    digest: str = bytes(32).hex()  # content hash of the codebook and the full blocks


class ShardWriter:
    """Write the shard in a directory, which no other process writes meanwhile."""

    def __init__(self, folder: Path, settings: Settings, map_size: int = _MAP_SIZE, wait: float = 0.0) -> None:
        """Begin a shard, or go on with it; `wait` seconds for a process that still writes it, from a killed run.

        Raises:
            StoreBusy: another process writes it.
            DiskFull: there is no room to begin.
            Corrupt: what is there is damaged.
            ResumeMismatch: a version of btr has begun it that coded nothing.
        """
        self.folder, self.settings = folder, settings
        folder.mkdir(parents=True, exist_ok=True)
        with disk_errors(folder, ROOM):
            check_room(folder)
            self._lock = take_lock(folder, wait)
            try:
                shutil.rmtree(folder / _COMPACT, ignore_errors=True)  # of a run killed while it finished
                self._lmdb = lmdb.open(str(folder), map_size=map_size, max_dbs=3)
            except BaseException:
                os.close(self._lock)
                raise
        self._blocks, self._ids, self._meta = (self._lmdb.open_db(name) for name in (b"blocks", b"ids", b"meta"))
        with self._lmdb.begin() as txn:
            self.progress = self._read_progress(txn)
            begun = txn.get(CODEBOOK, db=self._meta)
        self._open = True
        self._codebook = None if begun is None else Codebook.from_bytes(begun)
        if self.progress.passages and begun is None:
            self.close()
            raise ResumeMismatch(f"{folder} was begun by an older btr; {cure(folder)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the shard; what is committed stays there to be resumed."""
        if self._open:
            self._open = False
            self._lmdb.close()
            os.close(self._lock)

    def number(self, passage_id: str) -> int | None:
        """Return the number of a committed record, or None."""
        with self._lmdb.begin() as txn:
            value = txn.get(id_key(passage_id), db=self._ids)
        return None if value is None else int(ORDINAL.unpack(value)[0])

    def append(self, encoded: Encoded, consumed: int, cut: int = 0, duplicates: int = 0) -> list[int]:
        """Commit a batch in one transaction, and return the indices of its passages that were new.

        Passages whose id is there already are skipped and counted. `consumed` is the place in the source after this
        batch, `cut` how many of its passages were cut to the maximum length, `duplicates` how many were left out of
        the batch because their id is in another shard.

        Raises:
            BadPassage: an id, title or text cannot be stored; nothing of the batch is.
            DiskFull: nothing of the batch is stored; what was before stays.
            StoreBusy: another process has written to the same directory.
        """
        codebook = self._codebook or Codebook.learn(encoded, self.settings.vocab_size)
        records = encode_records(encoded, self.settings, codebook)
        with disk_errors(self.folder, sum(map(len, records))):
            while True:
                try:
                    with self._lmdb.begin(write=True) as txn:
                        progress, kept = self._write(txn, encoded.ids, records, codebook)
                        total = progress.duplicates + duplicates
                        progress = replace(progress, consumed=consumed, cut=progress.cut + cut, duplicates=total)
                        txn.put(_PROGRESS, json.dumps(asdict(progress)).encode(), db=self._meta)
                    break
                except lmdb.MapFullError:
                    self._lmdb.set_mapsize(2 * self._lmdb.info()["map_size"])
                except lmdb.MapResizedError:  # by another process: adopt its size, then find its progress
                    self._lmdb.set_mapsize(0)
        self.progress = progress
        self._codebook = codebook if progress.passages else None
        return kept

    def leave_out(self, count: int) -> None:
        """Commit that so many passages of the source were read and none of them is stored."""
        with disk_errors(self.folder, ROOM), self._lmdb.begin(write=True) as txn:
            after = replace(self.progress, consumed=self.progress.consumed + count)
            after = replace(after, duplicates=after.duplicates + count)
            txn.put(_PROGRESS, json.dumps(asdict(after)).encode(), db=self._meta)
        self.progress = after

    def _read_progress(self, txn: lmdb.Transaction) -> ShardProgress:
        stored = txn.get(_PROGRESS, db=self._meta)
        return ShardProgress() if stored is None else ShardProgress(**json.loads(bytes(stored)))

    def _write(
        self, txn: lmdb.Transaction, ids: Sequence[str], records: Sequence[bytes], codebook: Codebook
    ) -> tuple[ShardProgress, list[int]]:
        """Put the new ones among these passages, and return what is then stored."""
        before = self.progress
        if self._read_progress(txn) != before:
            raise StoreBusy(f"{self.folder} is being written by another process: let it finish, or stop it")
        kept: list[int] = []
        for i, passage_id in enumerate(ids):
            number = ORDINAL.pack(before.passages + len(kept))
            if txn.put(id_key(passage_id), number, overwrite=False, db=self._ids):
                kept.append(i)
        new = [read_record(memoryview(records[i]), self.settings, codebook) for i in kept]
        digest = bytes.fromhex(before.digest)
        if new and not before.passages:
            txn.put(CODEBOOK, codebook.to_bytes(), db=self._meta)
            digest = chain(digest, codebook.to_bytes())
        part_bytes = Counter(before.part_bytes)
        for record in new:
            part_bytes.update(record.part_bytes)
        after = replace(
            before,
            passages=before.passages + len(new),
            tokens=before.tokens + sum(record.tokens for record in new),
            duplicates=before.duplicates + len(ids) - len(new),
            part_bytes=dict(part_bytes),
            digest=self._put_blocks(txn, [records[i] for i in kept], digest).hex(),
        )
        return after, kept

    def _put_blocks(self, txn: lmdb.Transaction, records: list[bytes], digest: bytes) -> bytes:
        """Fill the last block, which is taken out for that, and those after it; return the hash of the full ones."""
        size = self.settings.passages_per_block
        number, partial = divmod(self.progress.passages, size)
        if partial:
            last = txn.pop(BLOCK_KEY.pack(number), db=self._blocks)
            records = block_records(bytes(last or b""), self.settings) + records
        for start in range(0, len(records), size):
            block = build_block(records[start : start + size], self.settings)
            txn.put(BLOCK_KEY.pack(number + start // size), block, append=True, db=self._blocks)
            if start + size <= len(records):
                digest = chain(digest, block)
        return digest

    def finish(self, source: Mapping[str, Any] | None = None) -> Shard:
        """Bring all to the disk, and write `shard.json`, with what is known of the shard's source.

        Raises:
            DiskFull: what is committed stays, and can be finished later.
        """
        progress = self.progress
        parts = dict(progress.part_bytes)
        parts["block_headers"] += header_total(progress.passages, self.settings)
        with disk_errors(self.folder, ROOM):
            content_hash = self._write_content_hash()
            self._close_data()
            with open(self.folder / DATA, "rb") as file:
                data_hash = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
                data_bytes = file.tell()
            shard = Shard(
                name=self.folder.name,
                passages=progress.passages,
                tokens=progress.tokens,
                cut=progress.cut,
                duplicates=progress.duplicates,
                part_bytes=parts,
                content_hash=content_hash,
                data_bytes=data_bytes,
                data_hash=data_hash,
            )
            write_json(self.folder / SHARD, {"shard": asdict(shard), "source": dict(source or {})})
        (self.folder / LOCK).unlink(missing_ok=True)
        self.close()
        return shard

    def _write_content_hash(self) -> str:
        number, partial = divmod(self.progress.passages, self.settings.passages_per_block)
        digest = bytes.fromhex(self.progress.digest)
        with self._lmdb.begin(write=True) as txn:
            if partial:
                digest = chain(digest, txn.get(BLOCK_KEY.pack(number), db=self._blocks) or b"")
            txn.put(CONTENT, digest.hex().encode(), db=self._meta)
        return digest.hex()

    def _close_data(self) -> None:
        """Close LMDB, and write its file anew where that gives back more than a hundredth and the disk has the room.

        Only small shards come to that: the last block, rewritten while it fills, leaves free pages for a few blocks,
        however large the shard is.
        """
        data, copy = self.folder / DATA, self.folder / _COMPACT
        size = data.stat().st_size
        with self._lmdb.begin() as txn:
            stats = [self._lmdb.stat(), *(txn.stat(db) for db in (self._blocks, self._ids, self._meta))]
        pages = 2 + sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        if size - pages * stats[0]["psize"] > _SLACK * size and shutil.disk_usage(self.folder).free > size + ROOM:
            copy.mkdir()
            self._lmdb.copy(str(copy), compact=True)
        self._lmdb.close()
        if copy.exists():
            os.replace(copy / DATA, data)
            copy.rmdir()
        (self.folder / "lock.mdb").unlink()


def finished_shard(folder: Path, whole: bool = False) -> Shard | None:
    """Return the shard that was finished in this directory, or None; `whole` also compares the checksum of its data."""
    try:
        data = read_json(folder / SHARD)
        shard = Shard.from_json(data["shard"] if isinstance(data, dict) else None)
        if shard.name != folder.name or (folder / DATA).stat().st_size != shard.data_bytes:
            return None
        if whole:
            with open(folder / DATA, "rb") as file:
                return shard if hashlib.file_digest(file, "sha256").hexdigest() == shard.data_hash else None
        return shard
    except (OSError, Corrupt, KeyError):
        return None


def shard_source(folder: Path) -> Mapping[str, Any]:
    """Return what is known of a shard's source; empty if nothing is."""
    try:
        source = read_json(folder / SHARD)["source"]
        return source if isinstance(source, dict) else {}
    except (OSError, Corrupt, KeyError, TypeError):
        return {}
