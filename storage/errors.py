"""Name what can go wrong with a store; every message says what, both values, and the cure."""


class StoreError(Exception):
    """Report a store that cannot be read or written as asked; the base of all the errors below."""


class StoreExists(StoreError):
    """Refuse to replace what already stands at the path of a new store."""


class StoreBusy(StoreError):
    """Report that another process is writing the same store."""


class ResumeMismatch(StoreError):
    """Refuse to continue an unfinished store with other settings than it was begun with."""


class DiskFull(StoreError):
    """Report that the disk took no more bytes; what was committed before is kept and can be resumed."""


class BadPassage(StoreError):
    """Refuse a passage that the format cannot hold: an empty or overlong id, or text that is not Unicode."""


class NotAStore(StoreError):
    """Report a path without a finished store."""


class NewerFormat(StoreError):
    """Refuse a store written by a later version of this package."""


class ReaderMismatch(StoreError):
    """Refuse a store built by another reader than the one that wants to read it."""


class UnknownId(StoreError):
    """Report passage ids that the store does not hold; `ids` has all of them."""

    def __init__(self, message: str, ids: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.ids = ids


class Corrupt(StoreError):
    """Report bytes on disk that are not the bytes that were written."""


class WrongLength(Corrupt):
    """Report a data file that is not as long as it was: to read on in its map could kill the process by SIGBUS."""
