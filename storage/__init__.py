"""Keep passages on disk: bytes and LMDB, nothing of models.

In: N passages as a reader encodes them (`Encoded`: of M tokens in all the ids uint32 (M,), packed signs uint64
(M, ceil(D / 64)) and scales float16 (M,)), with id, title and text. Out: the same, of the ids or ordinals asked for.
`writer` builds a folder of immutable shards under one manifest (`shard`, `record`, `codebook`, `format`), `store` reads
it, `living` changes it by a new manifest, `verify` looks for damage.
"""

from .encoded import Encoded
from .errors import (
    BadPassage,
    Corrupt,
    DiskFull,
    NewerFormat,
    NotAStore,
    ReaderMismatch,
    ResumeMismatch,
    StoreBusy,
    StoreError,
    StoreExists,
    UnknownId,
    WrongLength,
)
from .format import Settings
from .manifest import FORMAT_VERSION, Manifest, Shard
from .network import NetworkFileSystem
from .store import Store
from .writer import Building, StoreWriter

__all__ = [
    "BadPassage",
    "Building",
    "Corrupt",
    "DiskFull",
    "Encoded",
    "FORMAT_VERSION",
    "Manifest",
    "NetworkFileSystem",
    "NewerFormat",
    "NotAStore",
    "ReaderMismatch",
    "ResumeMismatch",
    "Settings",
    "Shard",
    "Store",
    "StoreBusy",
    "StoreError",
    "StoreExists",
    "StoreWriter",
    "UnknownId",
    "WrongLength",
]
