"""Keep passages on disk: bytes and LMDB, nothing of models."""

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
