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
)
from .format import FORMAT_VERSION, Manifest, Settings
from .store import Store
from .writer import Progress, StoreWriter

__all__ = [
    "BadPassage",
    "Corrupt",
    "DiskFull",
    "Encoded",
    "FORMAT_VERSION",
    "Manifest",
    "NewerFormat",
    "NotAStore",
    "Progress",
    "ReaderMismatch",
    "ResumeMismatch",
    "Settings",
    "Store",
    "StoreBusy",
    "StoreError",
    "StoreExists",
    "StoreWriter",
    "UnknownId",
]
