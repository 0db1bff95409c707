"""Keep a dense index in step with a store that changes: what is newer in memory, what was moved on the disk."""

import shutil
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from btr.errors import InputError
from btr.retrieve.dense.encoder import Encoder
from btr.retrieve.dense.index import Dense, is_finished
from btr.retrieve.dense.writer import Shards, read_state, rewrite, text_of
from btr.retrieve.indexed import Part, Tail, newer, read_words
from btr.storage import Shard, Store
from btr.storage.view import View

MOST = 1024  # passages newer than the index that are embedded when a store is opened; a second has some 50 of them


def follow(dense: Dense, store: Store, tail: Tail) -> Dense:
    """Return the index with the newest passages of its store, as many shards as fit into MOST; the files stay as is.

    Where the encoder of questions is another, aligned one, that of the passages is loaded when one is to be embedded;
    if it is not where it was, the index is as it was.

    tail: keeps their vectors for the next time, by part of a shard, and such an encoder.

    Raises:
        Corrupt: a passage is damaged.
    """
    dense = dense.following(np.empty((0, dense.plan.dimension), np.float32))
    if store.manifest.options.get("text") is False:
        return dense
    used: dict[Part, NDArray[np.float32]] = {}
    for part, begin, end in newer(store, len(dense), MOST):
        vectors = tail.vectors.get(part)
        if vectors is None:
            tail.embedder = embedder(dense, tail.embedder)
            if tail.embedder is None:
                return dense
            vectors = tail.embedder.embed([text_of(p) for p in read_words(store, begin, end)], "passage")
        used[part] = vectors
    tail.vectors = used
    return dense.following(np.concatenate(list(used.values()))) if used else dense


def embedder(dense: Dense, known: Encoder | None) -> Encoder | None:
    """Return the encoder of an index's passages: that of its questions, a known one, or loaded; None: not there."""
    for encoder in (dense.encoder, known):
        if encoder is not None and encoder.fingerprint == dense.plan.fingerprint:
            return encoder
    try:
        loaded = Encoder.from_pretrained(dense.plan.encoder)
    except InputError:
        return None
    return loaded if loaded.fingerprint == dense.plan.fingerprint else None


def shards_of(shards: Iterable[Shard]) -> Shards:
    """Return what tells which passages the ordinals of a store are: contents and passages of its shards, in order."""
    return [(shard.content_hash, shard.passages) for shard in shards]


def check_shards(folder: Path, covered: Shards, passages: int, there: Shards) -> None:
    """Refuse an index whose ordinals are no longer its store's.

    Raises:
        InputError: a shard that it was built from, up to `passages`, was written anew or is gone, or it names none.
    """
    cure = f"build it again with: python -m btr.retrieve build {folder.parent} --retriever ENCODER --no-resume"
    if sum(count for _, count in covered) < passages:
        raise InputError(f"{folder}: does not say which shards of a store its {passages:,} passages are of; {cure}")
    start = 0
    for was, now in zip_longest(covered, there):
        if start >= passages:
            break
        if was != now:
            raise InputError(f"{folder}: passages of its store have moved since it was built; {cure}")
        start += was[1]


def kept_ordinals(before: View, names: Iterable[str]) -> NDArray[np.int64]:
    """Return the ordinals, ascending, of what a compaction kept; names: of the shards that are there afterwards."""
    there, kept = set(names), []
    for number, shard in enumerate(before.manifest.shards):
        rows = np.arange(shard.passages) if shard.name in there else before.live(number)
        kept.append(rows + before.starts[number])
    return np.concatenate([np.empty(0, np.int64), *kept])


def after_compaction(folder: Path, before: View, store: Store) -> bool:
    """Move the rows of an index as a compaction moved its passages; tells whether there was one to move.

    Killed before its end, it leaves an index that `check_shards` refuses.

    Raises:
        InputError: the index is damaged.
    """
    state = read_state(folder) if is_finished(folder) else None
    if state is None:
        return False
    kept = kept_ordinals(before, (shard.name for shard in store.manifest.shards))
    kept = kept[kept < state["passages"]]
    if not len(kept):
        shutil.rmtree(folder)
        return False
    rewrite(folder, kept, shards_of(store.manifest.shards))
    return True
