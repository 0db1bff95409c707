"""Keep LMDB's rules for readers: one environment per file and process, none across a fork, no view kept."""

import os
import struct
import threading
import weakref
from pathlib import Path
from typing import Self

import lmdb

from .errors import BadPassage, Corrupt
from .format import Manifest, Record, check_block, id_key, read_record, record_view

DATA = "data.mdb"
BLOCK_KEY = struct.Struct(">Q")  # big-endian: LMDB sorts keys as bytes, so blocks lie in the order of their numbers
ORDINAL = struct.Struct("<Q")


class Environment:
    """Hold the LMDB environment of one file in one process; it closes when the last store that uses it lets go."""

    def __init__(self, path: Path) -> None:
        self.pid = os.getpid()
        self.lmdb = lmdb.open(str(path), readonly=True, lock=False, readahead=False, create=False, max_dbs=3)
        self.blocks = self.lmdb.open_db(b"blocks", create=False)
        self.ids = self.lmdb.open_db(b"ids", create=False)


# LMDB refuses to open one file twice in a process, so stores of the same file share an environment.
_environments: "weakref.WeakValueDictionary[tuple[int, int], Environment]" = weakref.WeakValueDictionary()
_opening = threading.Lock()


def shared_environment(path: Path) -> Environment:
    """Return the environment that this process has open, or open it; a parent's, inherited by fork, is closed first.

    Raises:
        Corrupt: LMDB does not accept the file.
    """
    with _opening:
        stat = os.stat(path / DATA)
        file = (stat.st_dev, stat.st_ino)
        found = _environments.get(file)
        if found is None or found.pid != os.getpid():
            if found is not None:
                found.lmdb.close()  # unmaps this process's copy; the parent keeps its own
            try:
                _environments[file] = found = Environment(path)
            except lmdb.Error as error:
                raise Corrupt(f"{path / DATA}: {error}") from None
        return found


class Snapshot:
    """Read within one transaction; all views given out die at its end."""

    def __init__(self, environment: Environment, manifest: Manifest, path: Path) -> None:
        self.environment = environment  # keeps it open, whatever the store does meanwhile
        self.manifest = manifest
        self.path = path
        self.txn = environment.lmdb.begin(buffers=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.txn.abort()

    def ordinal(self, passage_id: str) -> int | None:
        """Return the place of a passage in the corpus, or None if the store does not hold it.

        Raises:
            Corrupt: the index of ids is damaged.
        """
        try:
            value = self.txn.get(id_key(passage_id), db=self.environment.ids)
        except BadPassage:
            return None
        except lmdb.Error as error:
            raise Corrupt(f"store {self.path}, index of ids, passage {passage_id!r}: {error}") from None
        return None if value is None else int(ORDINAL.unpack(value)[0])

    def block(self, number: int) -> memoryview:
        """Return a block whose header is checked.

        Raises:
            Corrupt: it is missing or damaged.
        """
        try:
            block = self.txn.get(BLOCK_KEY.pack(number), db=self.environment.blocks)
            if block is None:
                raise Corrupt("it is missing")
            check_block(block, self.manifest)
        except (Corrupt, lmdb.Error) as error:
            raise Corrupt(f"store {self.path}, block {number}: {error}") from None
        return block

    def record(self, ordinal: int, passage_id: str | None = None) -> Record:
        """Return a checked record; touches no other record of its block.

        Raises:
            Corrupt: it is damaged, or of another passage than the one expected.
        """
        number, index = divmod(ordinal, self.manifest.passages_per_block)
        block = self.block(number)
        try:
            record = read_record(record_view(block, index), self.manifest)
            if passage_id is not None and record.id != passage_id:
                raise Corrupt(f"it is passage {record.id!r}")
        except Corrupt as error:
            name = "" if passage_id is None else f" (passage {passage_id!r})"
            raise Corrupt(f"store {self.path}, block {number}, record {index}{name}: {error}") from None
        return record

    def index_size(self) -> tuple[int, int]:
        """Return the entries of the index of ids, and the bytes of its pages.

        Raises:
            Corrupt: the index is damaged.
        """
        try:
            stat = self.txn.stat(self.environment.ids)
        except lmdb.Error as error:
            raise Corrupt(f"store {self.path}, index of ids: {error}") from None
        return stat["entries"], (stat["branch_pages"] + stat["leaf_pages"]) * stat["psize"]
