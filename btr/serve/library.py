"""The store that answers come from, and its index: opened together, replaced together."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from btr.dense.fusion import DENSE, open_retriever
from btr.dense.index import is_finished
from btr.errors import InputError
from btr.indexed import Index, StaleIndex, open_index
from btr.reader import Reader
from btr.storage import Store


@dataclass(frozen=True, eq=False)
class Library:
    """A store, and its index if it has one.  Whoever still reads keeps it open: nothing closes it from outside."""

    store: Store
    index: Index | None

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
        first = store.at([next(store.live())])
        index = index_of(store)
        if index is not None:
            index.search([f"{first.titles[0]} {first.texts[0]}"], 1)
        return cls(store, index)


def index_of(store: Store) -> Index | None:
    """Open what a store is searched with, and warn if it has fallen behind."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StaleIndex)
        index: Index | None = open_retriever(store) if is_finished(store.path / DENSE) else open_index(store)
    for warning in caught:
        logging.getLogger("btr.serve").warning("%s", warning.message)
    return index
