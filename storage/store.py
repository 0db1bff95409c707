"""Read a finished store: a directory with `manifest.json` and an LMDB environment, `data.mdb`."""

import hashlib
import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from .encoded import Encoded
from .environment import DATA, Environment, Snapshot, shared_environment
from .errors import Corrupt, NewerFormat, NotAStore, ReaderMismatch, UnknownId
from .format import FORMAT_VERSION, Manifest, Settings, chain, decode_records

MANIFEST = "manifest.json"
SETTINGS = "settings.json"


def building_path(path: Path) -> Path:
    """Return the directory in which a store is built before it is renamed to `path`."""
    return path.with_name(path.name + ".building")


def precompute_command(path: Path, settings: Settings, reader: str) -> str:
    """Return the command that builds the store at `path` with this reader; "" is the one that comes with btr."""
    words = [settings.corpus or "CORPUS", *(["--reader", reader] if reader else []), "--store", str(path)]
    return "python -m btr.precompute " + " ".join(map(shlex.quote, words))


def read_json(file: Path) -> Any:
    """Parse a JSON file.

    Raises:
        Corrupt: it is not JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except ValueError as error:
        raise Corrupt(f"{file} is not JSON: {error}") from None


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the store at `path`.

    Raises:
        NotAStore: there is none.
        NewerFormat: it is of a later format than this package knows.
        Corrupt: it is damaged.
    """
    file = path / MANIFEST
    try:
        data = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        raise NotAStore(_explain_absence(path)) from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NewerFormat(
            f"store {path} has format {version}, this btr reads formats up to {FORMAT_VERSION}: update btr"
        )
    try:
        return Manifest.from_json(data)
    except Corrupt as error:
        raise Corrupt(f"{file}: {error}") from None


def _explain_absence(path: Path) -> str:
    building = building_path(path)
    if not (building / SETTINGS).is_file():
        return f"{path} is not a store: it has no {MANIFEST}"
    settings = Settings.from_json(read_json(building / SETTINGS))
    command = precompute_command(path, settings, settings.reader)
    return f"{path} is not finished: {building} holds what is built so far; resume with: {command}"


class Store:
    """Read passages of a finished store by id or by ordinal.

    Opens LMDB on first use, and again in a forked or unpickled copy; threads may share it.
    """

    def __init__(self, path: str | os.PathLike[str], manifest: Manifest) -> None:
        self.path = Path(path).absolute()
        self.manifest = manifest
        self._environment: Environment | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], fingerprint: str | None = None, reader: str = "") -> Self:
        """Open a store, for the reader with this fingerprint if one is given (`reader` is its name, for the message).

        Raises:
            NotAStore: no finished store is there.
            NewerFormat: it was written by a later version.
            ReaderMismatch: another reader built it.
            Corrupt: the manifest is damaged, or `data.mdb` is not as long as it was.
        """
        store = cls(path, read_manifest(Path(path).absolute()))
        made_by = store.manifest.fingerprint
        if fingerprint is not None and fingerprint != made_by:
            raise ReaderMismatch(
                f"store {store.path} was built by reader {made_by} ({store.manifest.reader or 'shipped with btr'}), "
                f"this reader is {fingerprint}; rebuild with: {precompute_command(store.path, store.manifest, reader)}"
            )
        store._check_length()
        return store

    def __len__(self) -> int:
        return self.manifest.passages

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environment": None}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of LMDB; a later read opens it again."""
        self._environment = None

    def get(self, ids: Sequence[str]) -> Encoded:
        """Read passages by id, in this order; an id may come twice.

        Raises:
            UnknownId: some are not in the store.
            Corrupt: a checksum is wrong.
        """
        with self._snapshot() as snapshot:
            places = {passage_id: snapshot.ordinal(passage_id) for passage_id in ids}
            known = {passage_id: ordinal for passage_id, ordinal in places.items() if ordinal is not None}
            unknown = tuple(passage_id for passage_id in places if passage_id not in known)
            if unknown:
                first = ", ".join(repr(passage_id[:60]) for passage_id in unknown[:3]) + ", ..." * (len(unknown) > 3)
                raise UnknownId(f"{len(unknown)} of {len(ids)} ids are not in store {self.path}: {first}", unknown)
            return decode_records([snapshot.record(known[passage_id], passage_id) for passage_id in ids], self.manifest)

    def at(self, ordinals: Sequence[int]) -> Encoded:
        """Read passages by their place in the corpus, counted from 0.

        Raises:
            IndexError: an ordinal is outside the store.
            Corrupt: a checksum is wrong.
        """
        wrong = [i for i in ordinals if not 0 <= i < len(self)]
        if wrong:
            raise IndexError(f"ordinal {wrong[0]} is outside store {self.path} of {len(self)} passages")
        with self._snapshot() as snapshot:
            return decode_records([snapshot.record(int(i)) for i in ordinals], self.manifest)

    def ids(self) -> Iterator[str]:
        """Yield all ids in corpus order; reads and checks the whole store."""
        with self._snapshot() as snapshot:
            for ordinal in range(len(self)):
                yield snapshot.record(ordinal).id

    def verify(self, progress: Callable[[int, int], None] | None = None) -> Iterator[str]:
        """Read everything, and yield one sentence per problem; `progress` gets the passages read and their number."""
        with open(self.path / DATA, "rb") as file:
            yield from self._differences({"data_hash": hashlib.file_digest(file, "sha256").hexdigest()})
        digest, size, seen = bytes(32), self.manifest.passages_per_block, Counter[str]()
        for first in range(0, len(self), size):
            try:
                with self._snapshot() as snapshot:
                    block = snapshot.block(first // size)
                    digest = chain(digest, block)
                    seen["block_headers"] += len(block)  # less the parts of the records, when they are read
            except Corrupt as error:
                yield str(error)
                continue
            for ordinal in range(first, min(first + size, len(self))):
                yield from self._verify_record(ordinal, seen)
            if progress is not None:
                progress(min(first + size, len(self)), len(self))
        if seen["passages"] == len(self):  # else they differ because of what was reported above
            yield from self._differences(seen)
        yield from self._differences({"content_hash": digest.hex()})
        yield from self._verify_index()

    def _verify_record(self, ordinal: int, seen: Counter[str]) -> Iterator[str]:
        """Yield what is wrong with a record or with its id in the index, and count it if nothing is."""
        try:
            with self._snapshot() as snapshot:  # not shared: after a damaged page LMDB gives up the transaction
                record = snapshot.record(ordinal)
                indexed = snapshot.ordinal(record.id)
                parts = record.part_bytes()
        except Corrupt as error:
            yield str(error)
            return
        if indexed != ordinal:
            yield f"store {self.path}: passage {record.id!r} is number {ordinal}, the index of ids says {indexed}"
        seen.update(passages=1, tokens=record.tokens, **parts)
        seen["block_headers"] -= sum(parts.values())

    def _verify_index(self) -> Iterator[str]:
        """Count the ids: each record's is there, as was checked before, so that an equal number leaves none without."""
        try:
            with self._snapshot() as snapshot:
                yield from self._differences({"ids_index": snapshot.index_size()[0]})
        except Corrupt as error:
            yield str(error)

    def _differences(self, found: Mapping[str, Any]) -> Iterator[str]:
        """Yield what was found otherwise than the manifest says."""
        expected = {**self.manifest.to_json(), **self.manifest.part_bytes, "ids_index": len(self)}
        for name, value in found.items():
            if value != expected[name]:
                yield f"store {self.path}: {name} is {value}, the manifest says {expected[name]}"

    def sizes(self) -> dict[str, int]:
        """Return the bytes on disk by part; they sum to what `du` says of the directory.

        The parts of the manifest, then `ids_index` (pages of the index of ids), `pages` (what else LMDB's pages, the
        manifest and the directory take) and `other_files` (what else lies in the directory).
        """
        with self._snapshot() as snapshot:
            parts = dict(self.manifest.part_bytes, ids_index=snapshot.index_size()[1])
        own = sum(_allocated(path) for path in (self.path, self.path / MANIFEST, self.path / DATA))
        other = sum(map(_allocated, self.path.rglob("*"))) + _allocated(self.path) - own
        return {**parts, "pages": own - sum(parts.values()), "other_files": other}

    def _snapshot(self) -> Snapshot:
        """Begin to read; the store on disk must still be the one that was opened."""
        environment = self._environment
        if environment is None or environment.pid != os.getpid():
            if read_manifest(self.path) != self.manifest:
                raise Corrupt(f"store {self.path} was replaced since it was opened: open it again")
            self._check_length()
            environment = self._environment = shared_environment(self.path)
        return Snapshot(environment, self.manifest, self.path)

    def _check_length(self) -> None:
        """Refuse a data file of another length before LMDB maps it: reading past its end would kill the process."""
        file = self.path / DATA
        found = file.stat().st_size if file.is_file() else 0
        if found != self.manifest.data_bytes:
            command = precompute_command(self.path, self.manifest, self.manifest.reader)
            raise Corrupt(
                f"{file} has {found} bytes, the manifest says {self.manifest.data_bytes}; "
                f"copy the store again, or rebuild it with: {command}"
            )


def _allocated(path: Path) -> int:
    """Return the bytes that a file takes on disk, or a directory without what is in it."""
    return path.lstat().st_blocks * 512
