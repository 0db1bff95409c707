"""The store that answers come from, and its index: opened together, replaced together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from btr.errors import InputError
from btr.reader import Reader
from btr.retrieve import BM25
from btr.storage import Store


@dataclass(frozen=True, eq=False)
class Library:
    """A store, and its index if it has one.  Whoever still reads keeps it open: nothing closes it from outside."""

    store: Store
    index: BM25 | None

    @classmethod
    def open(cls, path: Path, reader: Reader | None = None, reader_name: str = "") -> Self:
        """Open the store at `path`, of this reader if one is given, and read its first passage.

        A link is followed once: what stands at `path` later is seen by the next `open`.

        Raises:
            InputError: the store is empty or its index is damaged.
            StoreError: there is no store, another reader made it, or it is damaged.
        """
        real = path.resolve()
        store = Store.open(real, reader.fingerprint if reader else None, reader_name)
        if len(store) == 0:
            raise InputError(f"the store {path} has no passages")
        first = store.at([0])
        index = BM25.open(real / "bm25") if (real / "bm25").exists() else None
        if index is not None:
            index.search([f"{first.titles[0]} {first.texts[0]}"], 1)
        return cls(store, index)
