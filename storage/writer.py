"""Build a store beside the place where it will stand: its shards, one manifest, and a rename that makes it whole."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Self

from .disk import LOCK, ROOM, check_room, cure, disk_errors, take_lock
from .encoded import Encoded
from .errors import Corrupt, ResumeMismatch, StoreExists
from .format import Settings
from .manifest import (
    MANIFEST,
    SETTINGS,
    SHARDS,
    Manifest,
    Shard,
    building_path,
    read_json,
    sync,
    write_json,
    write_manifest,
)
from .shard import ShardProgress, ShardWriter, finished_shard


def shard_name(number: int, *origin: object) -> str:
    """Name a shard by its number and by what decides its content, so that no two of a store's life share a name."""
    token = hashlib.sha256(json.dumps(origin, default=str, sort_keys=True).encode()).hexdigest()[:8]
    return f"{number:05d}-{token}"


class Building:
    """Hold `<path>.building`, where the shards of a new store are written; one process at a time."""

    def __init__(self, path: Path, settings: Settings, overwrite: bool, lock: int) -> None:
        """Use `create_or_resume`."""
        self.path, self.settings = path, settings
        self.building = building_path(path)
        self._overwrite = overwrite
        self._lock: int | None = lock

    @classmethod
    def create_or_resume(
        cls, path: str | os.PathLike[str], settings: Settings, *, resume: bool = True, overwrite: bool = False
    ) -> Self:
        """Begin a store, or go on with the one in `<path>.building`.

        Raises:
            StoreExists: something stands at `path`, and it is no store or `overwrite` is false.
            ResumeMismatch: what is there was begun with other settings, and `resume` is true.
            StoreBusy: another process is building it.
            DiskFull: there is no room to begin.
        """
        target = Path(path).absolute()
        building = building_path(target)
        _check_target(target, overwrite)
        building.mkdir(parents=True, exist_ok=True)
        with disk_errors(building, ROOM):
            check_room(building)
            lock = take_lock(building)
            try:
                if not resume and ((building / SETTINGS).exists() or (building / SHARDS).exists()):
                    _empty(building)
                _keep_settings(building, settings)
                (building / MANIFEST).unlink(missing_ok=True)  # of a run killed while it finished
            except BaseException:
                os.close(lock)
                raise
        return cls(target, settings, overwrite, lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others write; what is committed stays there to be resumed."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def folder(self, number: int) -> Path:
        """Return the directory of a shard, by its place in the store."""
        s = self.settings
        origin = [getattr(s, f.name) for f in fields(Settings) if f.compare]
        return self.building / SHARDS / shard_name(number, *origin)

    def shard(self, number: int, whole: bool = False) -> Shard | None:
        """Return a shard that is finished, or None; as `finished_shard`."""
        return finished_shard(self.folder(number), whole)

    def finish(self, shards: Sequence[Shard], created_by: str = "", indexed: int = 0) -> Manifest:
        """Write the manifest, and rename the directory to its path.

        Raises:
            StoreExists: something has come to stand at the path meanwhile.
            DiskFull: what is committed stays, and can be finished later.
        """
        _check_target(self.path, self._overwrite)
        with disk_errors(self.building, ROOM):
            manifest = Manifest(**vars(self.settings), shards=tuple(shards), created_by=created_by, indexed=indexed)
            write_manifest(self.building, manifest)
        _replace_directory(self.building, self.path)
        for name in (SETTINGS, LOCK):
            (self.path / name).unlink()
        self.close()
        return manifest


class StoreWriter:
    """Build a store of one shard, batch by batch: for passages that are encoded already."""

    def __init__(self, building: Building, shard: ShardWriter) -> None:
        """Use `create_or_resume`."""
        self._building, self._shard = building, shard

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
        """Begin a store, or go on with it; `map_size` (bytes) grows as needed.  Raises as `Building`."""
        building = Building.create_or_resume(path, settings, resume=resume, overwrite=overwrite)
        try:
            return cls(building, ShardWriter(building.folder(0), settings, map_size))
        except BaseException:
            building.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory; what is committed stays there to be resumed."""
        self._shard.close()
        self._building.close()

    @property
    def building(self) -> Path:
        """Return the directory in which the store is built."""
        return self._building.building

    @property
    def progress(self) -> ShardProgress:
        """Return what is committed."""
        return self._shard.progress

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
        return self._shard.number(passage_id)

    def append(self, encoded: Encoded, consumed: int, cut: int = 0) -> list[int]:
        """Commit a batch; as `ShardWriter.append`."""
        return self._shard.append(encoded, consumed, cut)

    def finish(self, created_by: str = "") -> Manifest:
        """Make the store whole; as `Building.finish`."""
        return self._building.finish([self._shard.finish()], created_by)


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not (path / MANIFEST).is_file():
        raise StoreExists(f"{path} exists and is not a store: choose another path")
    if not overwrite:
        raise StoreExists(f"store {path} exists: choose another path; --overwrite would replace it")


def _empty(building: Path) -> None:
    """Delete what a build has written, but not the lock that is held on it."""
    for entry in building.iterdir():
        if entry.name != LOCK:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _keep_settings(building: Path, settings: Settings) -> None:
    """Write the settings of a new build; compare them with those of an old one."""
    file = building / SETTINGS
    if not file.exists():
        if (building / SHARDS).exists():
            raise Corrupt(f"{building} has data but no {SETTINGS}; {cure(building)}")
        write_json(file, asdict(settings))
    begun = Settings.from_json(read_json(file))
    names = [f.name for f in fields(Settings) if f.compare]
    differ = [f"{n} {getattr(begun, n)!r}, now {getattr(settings, n)!r}" for n in names]
    differ = [d for d, n in zip(differ, names, strict=True) if getattr(begun, n) != getattr(settings, n)]
    if differ:
        raise ResumeMismatch(
            f"{building} was begun with {'; '.join(differ)}: use the same settings, or build under another "
            "name; --no-resume would delete it and start afresh"
        )


def _replace_directory(source: Path, target: Path) -> None:
    """Rename a directory; one that stands at the target is moved away first and deleted last."""
    with tempfile.TemporaryDirectory(prefix=target.name + ".replaced-", dir=target.parent) as aside:
        if target.exists():
            os.rename(target, Path(aside) / target.name)
        os.rename(source, target)
        sync(target.parent)
