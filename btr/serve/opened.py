"""The store that answers come from, and its index: opened together, replaced together."""

import logging
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from btr.errors import InputError
from btr.reader import Reader
from btr.retrieve.dense.index import is_finished
from btr.retrieve.fusion import DENSE, Retriever, open_retriever
from btr.retrieve.indexed import Index, StaleIndex, Tail, open_index
from btr.storage import Store

# Questions of the sample corpus that the shipped reader answers, and the passage that answers each.
EXAMPLES = {
    "Who discovered X-rays?": "light-2",
    "How high is Mount Everest?": "everest-1",
    "What kind of boat is traditional in Venice?": "venice-1",
}


@dataclass(frozen=True, eq=False)
class OpenStore:
    """A store, and its index if it has one.  Whoever still reads keeps it open: nothing closes it from outside."""

    store: Store
    index: Index | None
    tail: Tail = field(default_factory=Tail)

    @classmethod
    def open(
        cls, path: Path, reader: Reader | None = None, reader_name: str = "", before: "OpenStore | None" = None
    ) -> Self:
        """Open the store at `path`, of this reader if one is given, and read its first passage.

        A link is followed once: what stands at `path` later is seen by the next `open`. What is the same as in
        the one opened `before` is taken over from it.

        Raises:
            InputError: the store is empty or its index is damaged.
            StoreError: there is no store, another reader made it, or it is damaged.
        """
        real = path.resolve()
        store = Store.open(real, reader.fingerprint if reader else None, reader_name)
        if len(store) == 0:
            raise InputError(f"the store {path} has no passages")
        first = store.at([next(store.live())])
        before = before if before is not None and before.store.path == real else None
        tail = Tail() if before is None else before.tail
        index = index_of(store, tail, before)
        if index is not None:
            index.search([f"{first.titles[0]} {first.texts[0]}"], 1)
        return cls(store, index, tail)

    @property
    def unindexed(self) -> int:
        """Passages at the end of the store that no search finds; 0 of a store without index."""
        return 0 if self.index is None else max(0, self.store.manifest.ordinals - len(self.index))


def index_of(store: Store, tail: Tail, before: OpenStore | None) -> Index | None:
    """Open what a store is searched with, and warn if it has fallen behind."""
    known = before.index if before is not None and isinstance(before.index, Retriever) else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", StaleIndex)
        dense = is_finished(store.path / DENSE)
        index: Index | None = open_retriever(store, tail=tail, before=known) if dense else open_index(store, tail)
    for warning in caught:
        logging.getLogger("btr.serve").warning("%s", warning.message)
    return index
