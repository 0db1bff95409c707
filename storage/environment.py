"""Keep LMDB's rules for readers: one environment per file and process, none across a fork, no view kept."""

import os
import struct
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import lmdb

from .codebook import Codebook
from .errors import BadPassage, Corrupt, WrongLength
from .format import Settings, check_block, id_key, record_view
from .manifest import Shard
from .record import Record, read_record

DATA = "data.mdb"
CONTENT = b"content"  # in `meta`: the content hash, by which a shard is known
CODEBOOK = b"codebook"  # in `meta`; shards whose blocks are of version 1 have none
BLOCK_KEY = struct.Struct(">Q")  # big-endian: LMDB sorts keys as bytes, so blocks lie in the order of their numbers
ORDINAL = struct.Struct("<Q")


class Environment:
    """Hold the LMDB environment of one file in one process; it closes when the last store that uses it lets go."""

    def __init__(self, folder: Path, file: tuple[int, int]) -> None:
        """Open the file of this device and inode; use `shared_environment`."""
        self.pid, self.file, self._path = os.getpid(), file, folder / DATA
        self.lmdb = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False, max_dbs=3)
        try:
            self.blocks, self.ids, self.meta = (
                self.lmdb.open_db(n, create=False) for n in (b"blocks", b"ids", b"meta")
            )
            with self.lmdb.begin() as txn:
                found = txn.get(CODEBOOK, db=self.meta)
            self.codebook = None if found is None else Codebook.from_bytes(bytes(found))
        except (lmdb.Error, Corrupt):
            self.lmdb.close()
            raise

    def length(self) -> int | None:
        """Return the bytes of the file that is mapped; None if another stands at its path, for then it lives on whole.

        By its path, not by a descriptor of its own: stores have hundreds of shards, processes 1,024 descriptors.
        """
        try:
            now = os.stat(self._path)
        except OSError:
            return None
        return now.st_size if (now.st_dev, now.st_ino) == self.file else None


# LMDB refuses to open one file twice in a process, so stores of the same file share an environment.
_environments: "weakref.WeakValueDictionary[tuple[int, int], Environment]" = weakref.WeakValueDictionary()
_opening = threading.Lock()


def shared_environment(folder: Path) -> Environment:
    """Return the environment that this process has open, or open it; a parent's, inherited by fork, is closed first.

    Raises:
        Corrupt: LMDB does not accept the file.
    """
    with _opening:
        stat = os.stat(folder / DATA)
        file = (stat.st_dev, stat.st_ino)
        found = _environments.get(file)
        if found is None or found.pid != os.getpid():
            if found is not None:
                found.lmdb.close()  # unmaps this process's copy; the parent keeps its own
            try:
                _environments[file] = found = Environment(folder, file)
            except (lmdb.Error, Corrupt) as error:
                raise Corrupt(f"{folder / DATA}: {error}") from None
        return found


class Snapshot:
    """Read one shard within one transaction; all views given out die at its end.  Numbers count within the shard.

    A file that is cut short under its map would kill the process by SIGBUS at the next touch of what is gone. So its
    length is asked for before each record; what is left is the time from there to the end of reading it.
    """

    def __init__(self, environment: Environment, settings: Settings, shard: Shard, store: Path) -> None:
        self.environment = environment  # keeps it open, whatever the store does meanwhile
        self.settings = settings
        self.shard = shard
        self.name = f"store {store}, shard {shard.name}"
        self.check_length()
        self.txn = environment.lmdb.begin(buffers=True)
        try:
            self._check_content()
        except BaseException:
            self.txn.abort()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.txn.abort()

    def check_length(self) -> None:
        """Refuse to touch the map of a file that is not as long as it was.

        Raises:
            WrongLength: it is not.
        """
        found, expected = self.environment.length(), self.shard.data_bytes
        if found is not None and found != expected:
            raise WrongLength(
                f"{self.name}: {DATA} was changed under its readers and has {found} bytes, the manifest says "
                f"{expected}; copy the shard again, beside it and with a rename"
            )

    def _check_content(self) -> None:
        """Refuse a file that is another shard, or that another was written over."""
        try:
            stored = self.txn.get(CONTENT, db=self.environment.meta)
        except lmdb.Error as error:
            raise Corrupt(f"{self.name}: {error}") from None
        found = bytes(stored or b"").decode("ascii", "replace")
        if found != self.shard.content_hash:
            raise Corrupt(
                f"{self.name}: its content hash is {found!r}, the manifest says {self.shard.content_hash!r}; if the "
                "store was replaced since it was opened, open it again"
            )
        coded = self.environment.codebook
        if coded is not None and coded.vocab_size != self.settings.vocab_size:
            sizes = f"of {coded.vocab_size} types, the manifest says {self.settings.vocab_size}"
            raise Corrupt(f"{self.name}: its codebook is {sizes}")

    def find(self, passage_id: str) -> int | None:
        """Return the number of the record of a passage, or None if the shard does not hold it.

        Raises:
            Corrupt: the index of ids is damaged.
        """
        self.check_length()
        try:
            value = self.txn.get(id_key(passage_id), db=self.environment.ids)
        except BadPassage:
            return None
        except lmdb.Error as error:
            raise Corrupt(f"{self.name}, index of ids, passage {passage_id!r}: {error}") from None
        return None if value is None else self._number(value, passage_id)

    def _number(self, value: memoryview, passage_id: str) -> int:
        number = int(ORDINAL.unpack(value)[0]) if len(value) == ORDINAL.size else -1
        if not 0 <= number < self.shard.passages:
            raise Corrupt(
                f"{self.name}, index of ids, passage {passage_id!r}: it leads to record {number} of "
                f"{self.shard.passages} (the bytes {bytes(value[:16]).hex()})"
            )
        return number

    def ids(self) -> Iterator[tuple[str, int]]:
        """Yield all ids in the order of their bytes, with the numbers of their records.

        Raises:
            Corrupt: the index of ids is damaged.
        """
        try:
            for key, value in self.txn.cursor(db=self.environment.ids):
                passage_id = str(key, "utf-8")
                yield passage_id, self._number(value, passage_id)
                self.check_length()
        except (lmdb.Error, UnicodeDecodeError) as error:
            raise Corrupt(f"{self.name}, index of ids: {error}") from None

    def block(self, number: int) -> memoryview:
        """Return a block whose header is checked.

        Raises:
            Corrupt: it is missing or damaged.
        """
        self.check_length()
        try:
            block = self.txn.get(BLOCK_KEY.pack(number), db=self.environment.blocks)
            if block is None:
                raise Corrupt("it is missing")
            check_block(block, self.settings, self.environment.codebook is not None)
        except (Corrupt, lmdb.Error) as error:
            raise Corrupt(f"{self.name}, block {number}: {error}") from None
        return block

    def view(self, number: int) -> memoryview:
        """Return the bytes of a record, unchecked, as they stand in its block; raises Corrupt as `block`."""
        place, index = divmod(number, self.settings.passages_per_block)
        try:
            return record_view(self.block(place), index)
        except Corrupt as error:
            raise error if str(error).startswith(self.name) else self._damaged(number, None, error) from None

    def record(self, number: int, passage_id: str | None = None) -> Record:
        """Return a checked record; touches no other record of its block.

        Raises:
            Corrupt: it is damaged, or of another passage than the one expected.
        """
        view = self.view(number)
        try:
            record = read_record(view, self.settings, self.environment.codebook)
            if passage_id is not None and record.id != passage_id:
                raise Corrupt(f"it is passage {record.id!r}")
        except Corrupt as error:
            raise self._damaged(number, passage_id, error) from None
        return record

    def _damaged(self, number: int, passage_id: str | None, error: Corrupt) -> Corrupt:
        block, index = divmod(number, self.settings.passages_per_block)
        name = "" if passage_id is None else f" (passage {passage_id!r})"
        return Corrupt(f"{self.name}, block {block}, record {index}{name}: {error}")

    def index_size(self) -> tuple[int, int]:
        """Return the entries of the index of ids, and the bytes of its pages.

        Raises:
            Corrupt: the index is damaged.
        """
        try:
            stat = self.txn.stat(self.environment.ids)
        except lmdb.Error as error:
            raise Corrupt(f"{self.name}, index of ids: {error}") from None
        return stat["entries"], (stat["branch_pages"] + stat["leaf_pages"]) * stat["psize"]
