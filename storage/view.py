"""Look at a store as one manifest describes it: its shards, their deleted records, where each passage is."""

import os
from bisect import bisect_right
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self
from weakref import finalize

import numpy as np

from .deletions import read_deletions
from .environment import DATA, Environment, Snapshot, shared_environment
from .errors import Corrupt, StoreError, WrongLength
from .manifest import MANIFEST, SHARDS, Manifest, Shard, beside, lock_manifest, precompute_command
from .record import Record


class View:
    """Hold what does not change while one manifest is looked at; while it lives, no writer deletes its shards.

    LMDB is opened on first use, and again in a forked or unpickled copy; threads may share it.
    """

    def __init__(self, path: Path, manifest: Manifest, lock: int | None = None) -> None:
        self.path, self.manifest = path, manifest
        self.starts = [0]  # the ordinal of each shard's first record, and one past the last
        for shard in manifest.shards:
            self.starts.append(self.starts[-1] + shard.passages)
        self._environments: dict[int, Environment] = {}
        self._lock = lock
        if lock is not None:
            finalize(self, os.close, lock)
        self.deleted = [read_deletions(self.folder(shard), shard) for shard in manifest.shards]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Look at the store as it is now; raises as `lock_manifest`, and Corrupt for a file that is not as it was."""
        lock, manifest = lock_manifest(path)
        view = cls(path, manifest, lock)
        for shard in manifest.shards:
            view.check_length(shard)
        return view

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        lock = None
        with suppress(OSError, StoreError):  # gone, or replaced: what is still there can be read without a lock
            lock, current = lock_manifest(state["path"])
            if current != state["manifest"]:
                os.close(lock)
                lock = None
        self.__init__(**state, lock=lock)  # type: ignore[misc]

    def is_current(self) -> bool:
        """Tell whether the manifest on the disk is still the one looked at."""
        if self._lock is None:
            return False
        try:
            mine, now = os.fstat(self._lock), os.stat(self.path / MANIFEST)
        except OSError:
            return False
        return (mine.st_dev, mine.st_ino) == (now.st_dev, now.st_ino)

    def close(self) -> None:
        """Let go of LMDB; a later read opens it again."""
        self._environments = {}

    def folder(self, shard: Shard) -> Path:
        """Return the directory of a shard."""
        return self.path / SHARDS / shard.name

    def check_length(self, shard: Shard) -> None:
        """Refuse a data file of another length before LMDB maps it: reading past its end would kill the process.

        Raises:
            WrongLength: it is missing, or of another length.
        """
        file = self.folder(shard) / DATA
        found = file.stat().st_size if file.is_file() else 0
        if found != shard.data_bytes:
            raise WrongLength(f"{file} has {found} bytes, the manifest says {shard.data_bytes}; {self.cure()}")

    def cure(self) -> str:
        """Say what to do about a damaged shard: nothing that deletes what the others hold."""
        command = precompute_command(beside(self.path), self.manifest, self.manifest.reader)
        return f"copy the shard again from where it is sound, or build the store anew, beside this one, with: {command}"

    def snapshot(self, number: int) -> Snapshot:
        """Begin to read a shard.

        Raises:
            Corrupt: it is not the one that the manifest describes.
        """
        environment, shard = self._environments.get(number), self.manifest.shards[number]
        if environment is None or environment.pid != os.getpid():
            if not (self.folder(shard) / DATA).exists():
                raise Corrupt(
                    f"store {self.path} was replaced since it was opened, shard {shard.name} is gone: open it again"
                )
            self.check_length(shard)
            environment = shared_environment(self.folder(shard))
        snapshot = Snapshot(environment, self.manifest, shard, self.path)
        self._environments[number] = environment
        return snapshot

    def locate(self, ordinal: int) -> tuple[int, int]:
        """Return the shard of an ordinal of the store, and the number of its record there."""
        number = bisect_right(self.starts, ordinal) - 1
        return number, ordinal - self.starts[number]

    def is_deleted(self, ordinal: int) -> bool:
        """Tell whether the passage of this ordinal is deleted."""
        number, record = self.locate(ordinal)
        bits = self.deleted[number]
        return bits is not None and bool(bits[record])

    def first_deleted(self, start: int = 0) -> int:
        """Return the least deleted ordinal from shard `start` on; the number of ordinals if there is none."""
        deleted = list(enumerate(self.deleted))[start:]
        found = (self.starts[n] + bits.find(True) for n, bits in deleted if bits is not None)
        return next(found, self.starts[-1])

    def live(self, number: int) -> np.ndarray:
        """Return the numbers of a shard's records that are not deleted, int64 ascending."""
        count, bits = self.manifest.shards[number].passages, self.deleted[number]
        if bits is None:
            return np.arange(count)
        gone = np.unpackbits(np.frombuffer(bits.tobytes(), np.uint8), bitorder="little", count=count)
        return np.flatnonzero(gone == 0)

    def read(self) -> "Reading":
        """Begin to read any of the shards."""
        return Reading(self)


class Reading:
    """Read records of several shards; all views given out die at its end."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._snapshots: dict[int, Snapshot] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def shard(self, number: int) -> Snapshot:
        """Return the snapshot of a shard; raises as `View.snapshot`."""
        if number not in self._snapshots:
            self._snapshots[number] = self._stack.enter_context(self.view.snapshot(number))
        return self._snapshots[number]

    def ordinal(self, passage_id: str) -> int | None:
        """Return the ordinal of a passage that is not deleted, or None; the newest shard is asked first."""
        for number in reversed(range(len(self.view.manifest.shards))):
            record, bits = self.shard(number).find(passage_id), self.view.deleted[number]
            if record is not None and not (bits is not None and bits[record]):
                return self.view.starts[number] + record
        return None

    def record(self, ordinal: int, passage_id: str | None = None) -> Record:
        """Return the checked record of an ordinal; raises Corrupt as `Snapshot.record`."""
        number, record = self.view.locate(ordinal)
        return self.shard(number).record(record, passage_id)
