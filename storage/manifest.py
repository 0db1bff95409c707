"""Say what a store holds: `manifest.json`, the one file that makes a set of shards a store.

It is replaced by a rename, so that whoever opens it sees the store before a change or after it, never between.
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from .errors import Corrupt, NewerFormat, NotAStore
from .format import PAYLOAD, Settings, check_fields

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
SETTINGS = "settings.json"
SHARDS = "shards"
PARTS = (*PAYLOAD, "block_headers")
USUAL = {"words": 100, "dtype": "float32"}  # what `btr precompute` does unless told

_NAME = re.compile(r"[0-9a-z][0-9a-z-]{0,63}")  # of a shard: never a way out of the directory
_LEAST = 13  # bytes of a passage in a shard: the shortest header of a record
_MOST_BYTES = 1 << 28  # of a JSON file: the manifest of 350 million passages has 4 MB


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Describe one shard: a file that is never changed, and which of its records are deleted."""

    name: str
    passages: int  # records, deleted ones among them
    tokens: int
    cut: int  # passages cut to max_passage_tokens
    duplicates: int  # passages left out because their id was there already
    part_bytes: Mapping[str, int]  # signs, scalars, token_ids, text, ids, block_headers
    content_hash: str  # see format.chain()
    data_bytes: int  # size of data.mdb
    data_hash: str  # SHA-256 of data.mdb
    deleted: int = 0
    deleted_tokens: int = 0
    deletions: str = ""  # SHA-256 of the bitmap of deleted records; "" without one

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Build from a parsed JSON object.

        Raises:
            Corrupt: it contradicts itself, or what a shard can be.
        """
        check_fields(cls, data)
        shard = cls(**data)
        if not _NAME.fullmatch(shard.name):
            raise Corrupt(f"{shard.name[:80]!r} is no name of a shard")
        parts = shard.part_bytes
        if parts.keys() != set(PARTS) or not all(type(n) is int and n >= 0 for n in parts.values()):
            raise Corrupt(f"shard {shard.name}: part_bytes are not the bytes of {', '.join(PARTS)}")
        if max(_LEAST * shard.passages, sum(parts.values())) > shard.data_bytes:
            raise Corrupt(
                f"shard {shard.name}: {shard.passages} passages of {sum(parts.values())} bytes are not in a file of "
                f"{shard.data_bytes}"
            )
        if shard.deleted > shard.passages or shard.deleted_tokens > shard.tokens:
            raise Corrupt(f"shard {shard.name}: more is deleted than it holds")
        if not all(re.fullmatch("[0-9a-f]{1,64}", digest) for digest in (shard.content_hash, shard.data_hash)):
            raise Corrupt(f"shard {shard.name}: content_hash or data_hash is none in hex")
        if bool(shard.deleted) != bool(shard.deletions) or not re.fullmatch(r"([0-9a-f]{64})?", shard.deletions):
            raise Corrupt(f"shard {shard.name}: {shard.deleted} deleted, in a bitmap of hash {shard.deletions[:80]!r}")
        return shard

    @property
    def deletions_file(self) -> str:
        """Return the name of the bitmap's file."""
        return f"{self.deletions[:16]}.deleted"


@dataclass(frozen=True, kw_only=True)
class Manifest(Settings):
    """Describe a store: what it was built from, and its shards, whose passages have the ordinals 0, 1, ... in order."""

    format_version: int = FORMAT_VERSION
    generation: int = 0  # changes since it was built
    shards: Sequence[Shard]
    indexed: int = 0  # the search index covers the ordinals below this; 0: there is none
    created_by: str

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Build from the parsed JSON file.

        Raises:
            Corrupt: a key is missing, unknown, or of another type, or the shards contradict themselves.
        """
        check_fields(cls, data)
        if not isinstance(data["shards"], list):
            raise Corrupt("values of the wrong type: ['shards']")
        shards = tuple(Shard.from_json(shard) for shard in data["shards"])
        twice = [name for name, count in Counter(shard.name for shard in shards).items() if count > 1]
        if twice:
            raise Corrupt(f"shard {twice[0]} stands there twice")
        try:
            manifest = cls(**{**data, "shards": shards})
        except ValueError as error:
            raise Corrupt(str(error)) from None
        if manifest.indexed > manifest.ordinals:
            raise Corrupt(f"{manifest.indexed} passages are indexed, the store has only {manifest.ordinals} ordinals")
        return manifest

    @property
    def settings(self) -> Settings:
        """Return what the store is built from alone."""
        return Settings(**{f.name: getattr(self, f.name) for f in fields(Settings)})

    @property
    def ordinals(self) -> int:
        """Return the number of ordinals given out: of all records, deleted ones among them."""
        return sum(shard.passages for shard in self.shards)

    @property
    def passages(self) -> int:
        """Return the number of passages that are not deleted."""
        return sum(shard.passages - shard.deleted for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Return the tokens of the passages that are not deleted."""
        return sum(shard.tokens - shard.deleted_tokens for shard in self.shards)

    @property
    def cut(self) -> int:
        """Return how many passages were cut to `max_passage_tokens`."""
        return sum(shard.cut for shard in self.shards)

    @property
    def duplicates(self) -> int:
        """Return how many passages were left out because their id was there already."""
        return sum(shard.duplicates for shard in self.shards)

    @property
    def part_bytes(self) -> dict[str, int]:
        """Return the bytes of each part of the blocks, deleted records among them."""
        return {part: sum(shard.part_bytes[part] for shard in self.shards) for part in PARTS}

    @property
    def content_hash(self) -> str:
        """Return SHA-256 of the shards' content hashes and deletions, in order."""
        lines = (f"{shard.content_hash} {shard.deletions}\n" for shard in self.shards)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def totals(self) -> dict[str, Any]:
        """Return what is counted over all shards, by name."""
        names = ("passages", "tokens", "cut", "duplicates", "part_bytes", "content_hash", "ordinals")
        return {name: getattr(self, name) for name in names}


def building_path(path: Path) -> Path:
    """Return the directory in which a store is built before it is renamed to `path`."""
    return path.with_name(path.name + ".building")


def beside(path: Path) -> Path:
    """Return where a store is built anew while the one at `path`, which may hold more than its corpus, stays."""
    return path.with_name(f"{path.name}.new")


def precompute_command(path: Path, settings: Settings, reader: str) -> str:
    """Return the command that builds the store at `path` as it was, with this reader; "" is the one that is shipped."""
    words = [settings.corpus or "CORPUS", *(["--reader", reader] if reader else []), "--store", str(path)]
    for name, value in settings.options.items():
        if name == "text":
            words += [] if value else ["--no-text"]
        elif value is not None and value != USUAL.get(name):
            words += [f"--{name}", str(value)]
    if settings.shard_passages != Settings.shard_passages:
        words += ["--shard-passages", str(settings.shard_passages)]
    return "python -m btr.precompute " + " ".join(map(shlex.quote, words))


def store_command(verb: str, path: Path, *words: str) -> str:
    """Return a `btr store` command about the store at `path`, as it is typed."""
    return f"python -m btr.store {verb} " + " ".join(map(shlex.quote, (str(path), *words)))


def read_json(file: Path | int, name: str = "") -> Any:
    """Parse a JSON file, given by its path, or by a descriptor and a name for messages.

    Raises:
        Corrupt: it is not JSON, or larger than any of a store's.
    """
    with open(file, "rb", closefd=not isinstance(file, int)) as handle:
        content = handle.read(_MOST_BYTES + 1)
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError(f"longer than {_MOST_BYTES} bytes")
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{name or file} is not JSON: {error}") from None


def write_json(file: Path, data: object) -> None:
    """Write a JSON file that is whole or not there, whenever the machine stops."""
    temporary = file.with_name(file.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as handle:
        json.dump(data, handle, indent=2, ensure_ascii=False)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, file)
    sync(file.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Make this the manifest of the store at `path`; raises Corrupt, and changes nothing, if nobody could read it."""
    data = json.loads(json.dumps(asdict(manifest)))
    Manifest.from_json(data)
    write_json(path / MANIFEST, data)


def lock_manifest(path: Path) -> tuple[int, Manifest]:
    """Open the manifest of the store at `path`, and tell writers by a shared lock that its shards are in use.

    Returns the descriptor that holds the lock; it is the caller's to close.

    Raises:
        NotAStore: there is none, or it is of a format that was never released.
        NewerFormat: it is of a later format than this package knows.
        Corrupt: it is damaged.
    """
    file = path / MANIFEST
    while True:
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotAStore(_explain_absence(path)) from None
        try:
            with suppress(OSError):  # no locks on this file system, or a writer has just put another in its place
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            mine, current = os.fstat(descriptor), _stat(file)
            if current is None or (mine.st_dev, mine.st_ino) == (current.st_dev, current.st_ino):
                return descriptor, parse_manifest(path, read_json(descriptor, str(file)))
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _stat(file: Path) -> os.stat_result | None:
    try:
        return os.stat(file)
    except FileNotFoundError:
        return None


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the store at `path`; raises as `lock_manifest`."""
    descriptor, manifest = lock_manifest(path)
    os.close(descriptor)
    return manifest


def parse_manifest(path: Path, data: Any) -> Manifest:
    """Check the parsed manifest of the store at `path`; raises as `lock_manifest`."""
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise NewerFormat(
            f"store {path} has format {version}, this btr reads formats up to {FORMAT_VERSION}: update btr"
        )
    if version == 1:
        corpus, reader = (data.get(name) if isinstance(data.get(name), str) else "" for name in ("corpus", "reader"))
        words = [corpus or "CORPUS", *(["--reader", reader] if reader else []), "--store", str(beside(path))]
        raise NotAStore(
            f"store {path} has format 1, which was never released and which this btr does not read; "
            f"build it anew, beside this one, with: python -m btr.precompute {' '.join(map(shlex.quote, words))}"
        )
    try:
        return Manifest.from_json(data)
    except Corrupt as error:
        raise Corrupt(f"{path / MANIFEST}: {error}") from None


def _explain_absence(path: Path) -> str:
    building = building_path(path)
    if not (building / SETTINGS).is_file():
        return f"{path} is not a store: it has no {MANIFEST}"
    settings = Settings.from_json(read_json(building / SETTINGS))
    command = precompute_command(path, settings, settings.reader)
    return f"{path} is not finished: {building} holds what is built so far; resume with: {command}"
