"""Write a store, one transaction per batch, so that a run killed anywhere can be resumed."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Self

import lmdb

from .encoded import Encoded
from .environment import BLOCK_KEY, DATA, ORDINAL
from .errors import Corrupt, DiskFull, ResumeMismatch, StoreBusy, StoreExists
from .format import (
    PAYLOAD,
    Manifest,
    Settings,
    block_records,
    build_block,
    chain,
    encode_records,
    header_total,
    id_key,
    read_record,
)
from .store import MANIFEST, SETTINGS, building_path, read_json

_PROGRESS = b"progress"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # EIO is what LMDB makes of a short write
_ROOM = 1 << 20  # bytes that must be free to begin: LMDB maps its lock file, so a full disk would kill the process
_COMPACT = "compact.tmp"
_SLACK = 0.01  # share of free pages above which the data file is written anew


@dataclass(frozen=True)
class Progress:
    """Count what is committed; stored in the transaction that it counts."""

    passages: int = 0
    tokens: int = 0
    cut: int = 0
    duplicates: int = 0
    consumed: int = 0  # passages of the corpus that were read, duplicates among them: a resumed run skips so many
    part_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PAYLOAD, 0))
    digest: str = bytes(32).hex()  # content hash of the full blocks


class StoreWriter:
    """Build a store in `<path>.building`, and rename it to `path` when it is finished."""

    def __init__(self, path: Path, settings: Settings, overwrite: bool, map_size: int) -> None:
        """Open the building directory that `create_or_resume` has prepared."""
        self.path = path
        self.building = building_path(path)
        self.settings = settings
        self._overwrite = overwrite
        self._lmdb = lmdb.open(str(self.building), map_size=map_size, max_dbs=3)
        self._blocks, self._ids, self._meta = (self._lmdb.open_db(name) for name in (b"blocks", b"ids", b"meta"))
        with self._lmdb.begin() as txn:
            self.progress = self._read_progress(txn)

    @classmethod
    def create_or_resume(
        cls,
        path: str | os.PathLike[str],
        settings: Settings,
        *,
        resume: bool = True,
        overwrite: bool = False,
        map_size: int = 1 << 26,
    ) -> Self:
        """Begin a store, or go on with the one in `<path>.building`; `map_size` (bytes) grows as needed.

        Raises:
            StoreExists: something stands at `path`, and it is no store or `overwrite` is false.
            ResumeMismatch: what is there was begun with other settings, and `resume` is true.
            DiskFull: there is no room to begin.
        """
        target = Path(path).absolute()
        building = building_path(target)
        _check_target(target, overwrite)
        if not resume and ((building / SETTINGS).exists() or (building / DATA).exists()):
            shutil.rmtree(building)
        building.mkdir(parents=True, exist_ok=True)
        with _disk_errors(building, _ROOM):
            if shutil.disk_usage(building).free < _ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _keep_settings(building, settings)
            (building / MANIFEST).unlink(missing_ok=True)  # of a run killed while it finished
            shutil.rmtree(building / _COMPACT, ignore_errors=True)  # the same
            return cls(target, settings, overwrite, map_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the building directory; what is committed stays there to be resumed."""
        self._lmdb.close()

    @property
    def done(self) -> int:
        """Return how many passages are committed."""
        return self.progress.passages

    @property
    def consumed(self) -> int:
        """Return how many passages of the corpus are dealt with: where a resumed run goes on."""
        return self.progress.consumed

    def ordinal(self, passage_id: str) -> int | None:
        """Return the place of a committed passage, or None."""
        with self._lmdb.begin() as txn:
            value = txn.get(id_key(passage_id), db=self._ids)
        return None if value is None else int(ORDINAL.unpack(value)[0])

    def append(self, encoded: Encoded, consumed: int, cut: int = 0) -> list[int]:
        """Commit a batch in one transaction, and return the indices of its passages that were new.

        Passages whose id is there already are skipped and counted. `consumed` is the place in the corpus after this
        batch, `cut` how many of its passages were cut to the maximum length.

        Raises:
            BadPassage: an id, title or text cannot be stored; nothing of the batch is.
            DiskFull: nothing of the batch is stored; what was before stays.
            StoreBusy: another process has written to the same directory.
        """
        records = encode_records(encoded, self.settings)
        with _disk_errors(self.building, sum(map(len, records))):
            while True:
                try:
                    with self._lmdb.begin(write=True) as txn:
                        progress, kept = self._write(txn, encoded.ids, records)
                        progress = replace(progress, consumed=consumed, cut=progress.cut + cut)
                        txn.put(_PROGRESS, json.dumps(asdict(progress)).encode(), db=self._meta)
                    break
                except lmdb.MapFullError:
                    self._lmdb.set_mapsize(2 * self._lmdb.info()["map_size"])
                except lmdb.MapResizedError:  # by another process: adopt its size, then find its progress
                    self._lmdb.set_mapsize(0)
        self.progress = progress
        return kept

    def _read_progress(self, txn: lmdb.Transaction) -> Progress:
        stored = txn.get(_PROGRESS, db=self._meta)
        return Progress() if stored is None else Progress(**json.loads(bytes(stored)))

    def _write(self, txn: lmdb.Transaction, ids: tuple[str, ...], records: list[bytes]) -> tuple[Progress, list[int]]:
        """Put the new ones among these passages, and return what is then stored."""
        before = self.progress
        if self._read_progress(txn) != before:
            raise StoreBusy(f"{self.building} is being written by another process: let it finish, or stop it")
        kept: list[int] = []
        for i, passage_id in enumerate(ids):
            if txn.put(id_key(passage_id), ORDINAL.pack(self.done + len(kept)), overwrite=False, db=self._ids):
                kept.append(i)
        new = [read_record(memoryview(records[i]), self.settings) for i in kept]
        part_bytes = Counter(before.part_bytes)
        for record in new:
            part_bytes.update(record.part_bytes())
        after = replace(
            before,
            passages=before.passages + len(new),
            tokens=before.tokens + sum(record.tokens for record in new),
            duplicates=before.duplicates + len(ids) - len(new),
            part_bytes=dict(part_bytes),
            digest=self._put_blocks(txn, [records[i] for i in kept]).hex(),
        )
        return after, kept

    def _put_blocks(self, txn: lmdb.Transaction, records: list[bytes]) -> bytes:
        """Fill the last block, which is taken out for that, and those after it; return the hash of the full ones."""
        digest, size = bytes.fromhex(self.progress.digest), self.settings.passages_per_block
        number, partial = divmod(self.done, size)
        if partial:
            last = txn.pop(BLOCK_KEY.pack(number), db=self._blocks)
            records = block_records(bytes(last or b""), self.settings) + records
        for start in range(0, len(records), size):
            block = build_block(records[start : start + size], self.settings)
            txn.put(BLOCK_KEY.pack(number + start // size), block, append=True, db=self._blocks)
            if start + size <= len(records):
                digest = chain(digest, block)
        return digest

    def finish(self, created_by: str = "") -> Manifest:
        """Write the manifest, bring all to the disk, and rename the directory to its path.

        Raises:
            StoreExists: something has come to stand at the path meanwhile.
            DiskFull: what is committed stays, and can be finished later.
        """
        _check_target(self.path, self._overwrite)
        with _disk_errors(self.building, _ROOM):
            content_hash = self._content_hash()
            self._close_data()
            with open(self.building / DATA, "rb") as file:
                data_hash = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
                data_bytes = file.tell()
            progress = self.progress
            headers = {"block_headers": header_total(progress.passages, self.settings)}
            manifest = Manifest(
                **asdict(self.settings),
                passages=progress.passages,
                tokens=progress.tokens,
                cut=progress.cut,
                duplicates=progress.duplicates,
                part_bytes=progress.part_bytes | headers,
                content_hash=content_hash,
                data_bytes=data_bytes,
                data_hash=data_hash,
                created_by=created_by,
            )
            _write_json(self.building / MANIFEST, manifest.to_json())
        _replace_directory(self.building, self.path)
        (self.path / SETTINGS).unlink()
        return manifest

    def _content_hash(self) -> str:
        number, partial = divmod(self.done, self.settings.passages_per_block)
        if not partial:
            return self.progress.digest
        with self._lmdb.begin() as txn:
            last = txn.get(BLOCK_KEY.pack(number), db=self._blocks)
        return chain(bytes.fromhex(self.progress.digest), last or b"").hex()

    def _close_data(self) -> None:
        """Close LMDB, and write its file anew where that gives back more than a hundredth and the disk has the room.

        Only small stores come to that: the last block, rewritten while it fills, leaves free pages for a few blocks,
        however large the store is.
        """
        data, copy = self.building / DATA, self.building / _COMPACT
        size = data.stat().st_size
        with self._lmdb.begin() as txn:
            stats = [self._lmdb.stat(), *(txn.stat(db) for db in (self._blocks, self._ids, self._meta))]
        pages = 2 + sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        if size - pages * stats[0]["psize"] > _SLACK * size and shutil.disk_usage(copy.parent).free > size + _ROOM:
            copy.mkdir()
            self._lmdb.copy(str(copy), compact=True)
        self.close()
        if copy.exists():
            os.replace(copy / DATA, data)
            copy.rmdir()
        (self.building / "lock.mdb").unlink()


@contextmanager
def _disk_errors(directory: Path, needed: int) -> Iterator[None]:
    """Turn what the system and LMDB say of a full disk into DiskFull, and all else that LMDB says into Corrupt."""
    try:
        yield
    except (OSError, lmdb.Error) as error:
        code = error.errno if isinstance(error, OSError) else error.code
        if code not in _NO_SPACE and isinstance(error, OSError):
            raise
        if code not in _NO_SPACE:
            raise Corrupt(f"{directory}: {error}; --no-resume deletes it and starts afresh") from error
        free = shutil.disk_usage(directory).free
        raise DiskFull(
            f"cannot write {needed} bytes to {directory} ({os.strerror(code)}; {free} bytes are free there): "
            "make room and run the same command again, it goes on where it stopped"
        ) from error


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not (path / MANIFEST).is_file():
        raise StoreExists(f"{path} exists and is not a store: choose another path")
    if not overwrite:
        raise StoreExists(f"store {path} exists: choose another path, or replace it with --overwrite")


def _keep_settings(building: Path, settings: Settings) -> None:
    """Write the settings of a new build; compare them with those of an old one."""
    file = building / SETTINGS
    if not file.exists():
        if (building / DATA).exists():
            raise Corrupt(f"{building} has data but no {SETTINGS}: --no-resume deletes it and starts afresh")
        _write_json(file, settings.to_json())
    begun = Settings.from_json(read_json(file))
    names = [f.name for f in fields(Settings) if f.compare]
    differ = [f"{n} {getattr(begun, n)!r}, now {getattr(settings, n)!r}" for n in names]
    differ = [d for d, n in zip(differ, names, strict=True) if getattr(begun, n) != getattr(settings, n)]
    if differ:
        raise ResumeMismatch(
            f"{building} was begun with {'; '.join(differ)}: use the same settings, or --no-resume to delete it and "
            "start afresh"
        )


def _write_json(file: Path, data: object) -> None:
    """Write a JSON file that is whole or not there, whenever the machine stops."""
    temporary = file.with_name(file.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as handle:
        json.dump(data, handle, indent=2, ensure_ascii=False)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, file)
    _sync_directory(file.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_directory(source: Path, target: Path) -> None:
    """Rename a directory; one that stands at the target is moved away first and deleted last."""
    with tempfile.TemporaryDirectory(prefix=target.name + ".replaced-", dir=target.parent) as aside:
        if target.exists():
            os.rename(target, Path(aside) / target.name)
        os.rename(source, target)
        _sync_directory(target.parent)
