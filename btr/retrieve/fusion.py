"""The retriever of a store: BM25, dense, or both fused; and which of what they find is worth reading.

Fusion is by reciprocal rank (Cormack, Clarke and Buettcher 2009): a passage scores the sum of 1 / (60 + rank) over the
two lists, so that neither's scale matters. Such scores say nothing across questions; whether a passage is worth reading
is told by its dense score, held against a threshold that `python -m btr.retrieve calibrate` sets. The best passage is
always read.

What a store is searched with stands in STORE/retriever.json:

    kind        bm25, dense or hybrid
    encoder     folder or hub id of the encoder of questions; null: the one the passages were embedded with
    threshold   least dense score of a passage that is read, or null
"""

import json
import os
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from btr.errors import InputError
from btr.model.checkpoint import write
from btr.retrieve.bm25 import BM25, Hits
from btr.retrieve.dense.index import Dense, best, is_finished
from btr.retrieve.dense.updates import check_shards, follow, shards_of
from btr.retrieve.indexed import Preparing, StaleIndex, StoreIndex, Tail, open_index
from btr.storage import Store
from btr.storage.manifest import MANIFEST, store_command

Kind = Literal["bm25", "dense", "hybrid"]
KINDS: tuple[str, ...] = get_args(Kind)

FILE = "retriever.json"
DENSE, WORDS = "dense", "bm25"  # folders in a store
SMOOTHING = 60  # of reciprocal ranks, Cormack's
DEPTH = 100  # passages of each list that are fused, or twice as many as asked for if that is more


@dataclass(frozen=True)
class Choice:
    """What a store is searched with, as in `retriever.json`."""

    kind: Kind
    encoder: str | None = None
    threshold: float | None = None

    @classmethod
    def read(cls, store: Path) -> "Choice":
        """Read the choice of a store; without the file: what is there, both fused if both are.

        Raises:
            InputError: damaged, or there is no index.
        """
        there = [(store / WORDS).is_dir(), is_finished(store / DENSE)]
        if not (store / FILE).exists():
            if not any(there):
                cure = f"make one with: python -m btr.retrieve build {store} --retriever ENCODER"
                raise InputError(f"{store}: no index to search, neither {WORDS}/ nor {DENSE}/; {cure}")
            return cls("hybrid" if all(there) else "bm25" if there[0] else "dense")
        try:
            choice = cls(**json.loads((store / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{store / FILE}: damaged ({error}); delete it, and calibrate again") from error
        number = choice.threshold is None or isinstance(choice.threshold, int | float)
        if choice.kind not in KINDS or not number or not isinstance(choice.encoder, str | None):
            raise InputError(f"{store / FILE}: not a retriever ({choice}); delete it, and calibrate again")
        return choice

    def write(self, store: Path) -> None:
        """Write the choice of a store."""
        write(store / FILE, json.dumps(asdict(self), indent=1))


@dataclass(frozen=True)
class PreparedQuestion:
    """Hold what a question is searched by, of each index that is open."""

    words: Any
    vector: Any

    @property
    def only(self) -> Any:
        """That of the only index."""
        return self.vector if self.vector is not None else self.words


@dataclass(frozen=True, eq=False)
class Retriever:
    """Search a store; the indices that its kind needs are open."""

    choice: Choice
    bm25: BM25 | StoreIndex | None = None
    dense: Dense | None = None
    living: StoreIndex | None = None  # the dense index, less what its store has deleted since; None: nothing is

    @property
    def name(self) -> str:
        """Say what it is, for people."""
        words = {"bm25": "BM25", "dense": "dense", "hybrid": "BM25 and dense"}[self.choice.kind]
        at = self.choice.threshold
        return words if at is None else f"{words}, dense score at least {at:.3g}"

    def __len__(self) -> int:
        """Return the number of passages."""
        return max(len(index) for index in (self.bm25, self.dense) if index is not None)

    def search(self, questions: Sequence[str], top: int) -> list[Hits]:
        """Find what to read for each question: ordinals int64 (R,) and scores float32 (R,), R <= top, best first.

        Scores are BM25's, estimates of the vectors' inner product, or sums of reciprocal ranks. Below the threshold
        nothing but the best passage is returned.

        Raises:
            ValueError: top is not positive.
        """
        if top < 1:
            raise ValueError(f"top is {top}; ask for at least 1 passage")
        hits = self._search(questions, top)
        if self.choice.threshold is None or self.dense is None:
            return hits
        relevance = self._relevance(self.dense, questions, [ordinals for ordinals, _ in hits])
        return [keep(hit, found, self.choice.threshold) for hit, found in zip(hits, relevance, strict=True)]

    @staticmethod
    def _relevance(
        dense: Dense, questions: Sequence[str], found: Sequence[NDArray[np.int64]]
    ) -> list[NDArray[np.float32]]:
        """Score what was found; what is newer than the dense index, which words alone can find, is worth reading."""
        known = [ordinals < len(dense) for ordinals in found]
        scores = dense.score(questions, [ordinals[old] for ordinals, old in zip(found, known, strict=True)])
        relevance = [np.full(len(ordinals), np.inf, np.float32) for ordinals in found]
        for values, old, score in zip(relevance, known, scores, strict=True):
            values[old] = score
        return relevance

    def prepare(self, question: str) -> PreparedQuestion:
        """Return what a question is searched by in each index."""
        return PreparedQuestion(
            *(None if index is None else index.prepare(question) for index in (self.bm25, self.dense))
        )

    def search_prepared(self, questions: Sequence[PreparedQuestion], top: int) -> list[Hits]:
        """Search for prepared questions together: for each, to the bit, what `search` finds for it alone."""
        if self.dense is None or self.bm25 is None:
            hits = self._only.search_prepared([one.only for one in questions], top)
        else:
            depth, meaning = max(DEPTH, 2 * top), self.living or self.dense
            words = self.bm25.search_prepared([one.words for one in questions], depth)
            vectors = meaning.search_prepared([one.vector for one in questions], depth)
            hits = [fuse([first[0], second[0]], top) for first, second in zip(words, vectors, strict=True)]
        return [self._worth(one, hit) for one, hit in zip(questions, hits, strict=True)]

    def among(self, question: PreparedQuestion, ordinals: NDArray[np.int64], top: int) -> Hits:
        """Find the best of these passages alone, rising ordinals (R,), for a prepared question.

        Scores are those of `search`, but where ranks are fused: ranks among few are others than among all.
        """
        if self.dense is None or self.bm25 is None:
            return self._worth(question, self._only.among(question.only, ordinals, top))
        words = self.bm25.among(question.words, ordinals, DEPTH)
        vectors = self.dense.among(question.vector, ordinals[ordinals < len(self.dense)], DEPTH)
        return self._worth(question, fuse([words[0], vectors[0]], top))

    def depth(self, top: int, most: int) -> int:
        """Return how many may be asked for, up to `most`, so that the first `top` are what a search for `top` finds."""
        if self.choice.threshold is not None:
            return top
        if self.dense is None or self.bm25 is None:
            return self._only.depth(top, most)
        return max(top, min(most, DEPTH // 2))

    def _worth(self, question: PreparedQuestion, hits: Hits) -> Hits:
        """Return what of a prepared question's hits is worth reading."""
        if self.choice.threshold is None or self.dense is None:
            return hits
        relevance, old = np.full(len(hits[0]), np.inf, np.float32), hits[0] < len(self.dense)
        relevance[old] = self.dense.score_prepared(question.vector, hits[0][old])
        return keep(hits, relevance, self.choice.threshold)

    @property
    def _only(self) -> Preparing:
        """The index, where it is one."""
        index = self.living or self.dense or self.bm25
        assert index is not None
        return index

    def _search(self, questions: Sequence[str], top: int) -> list[Hits]:
        if self.dense is None or self.bm25 is None:
            return self._only.search(questions, top)
        depth = max(DEPTH, 2 * top)
        lists = (index.search(questions, depth) for index in (self.bm25, self.living or self.dense))
        return [fuse([ordinals for ordinals, _ in both], top) for both in zip(*lists, strict=True)]


def fuse(lists: Sequence[NDArray[np.int64]], top: int) -> Hits:
    """Fuse lists of ordinals, best first, by reciprocal rank; equal scores stand in corpus order."""
    scores: dict[int, float] = defaultdict(float)
    for ordinals in lists:
        for rank, ordinal in enumerate(ordinals.tolist(), 1):
            scores[ordinal] += 1 / (SMOOTHING + rank)
    order = sorted(scores)
    return best(np.array(order, np.int64), np.array([scores[i] for i in order], np.float32), top)


def keep(hits: Hits, relevance: NDArray[np.float32], threshold: float) -> Hits:
    """Keep the first passage, and the others whose relevance (R,) reaches the threshold."""
    kept = relevance >= threshold
    kept[:1] = True
    return hits[0][kept], hits[1][kept]


def open_retriever(
    store: Store | str | os.PathLike[str],
    kind: str | None = None,
    encoder: str | None = None,
    *,
    threshold: bool = True,
    tail: Tail | None = None,
    before: Retriever | None = None,
) -> Retriever:
    """Open what a store, or a folder of indices, is searched with; kind and encoder go before what is written in it.

    Of a store, what is deleted does not come back, and passages that BM25 does not know are warned of.

    threshold: leave out what is not worth reading, if that was calibrated, which holds for its kind and encoder alone.
    tail: for a store that changes while it is searched: both indices know its newest passages too, in memory, and one
        that does not is warned of (StaleIndex).
    before: opened earlier on the same store; its dense index and encoder are taken over if they are still the ones.

    Raises:
        InputError: an index is missing, damaged or of another number of passages, or the encoder of questions is not
            aligned with the one of the passages.
    """
    if not isinstance(store, Store) and (Path(store) / MANIFEST).is_file():
        store = Store.open(store)
    path = store.path if isinstance(store, Store) else Path(store)
    choice = Choice.read(path)
    if kind is not None and kind not in KINDS:
        raise InputError(f"retriever is {kind!r}; use {', '.join(KINDS)}")
    wanted = replace(choice, kind=cast(Kind, kind or choice.kind), encoder=encoder or choice.encoder)
    if not threshold or wanted != choice:
        wanted = replace(wanted, threshold=None)
    bm25 = (
        None
        if wanted.kind == "dense"
        else open_words(store, tail)
        if isinstance(store, Store)
        else BM25.open(path / WORDS)
    )
    dense = None if wanted.kind == "bm25" else open_dense(path / DENSE, wanted.encoder, before)
    if dense is not None and isinstance(store, Store):
        check_shards(dense.path, dense.shards, dense.indexed, shards_of(store.manifest.shards))
        dense = dense if tail is None else follow(dense, store, tail)
    others = store.manifest.ordinals if isinstance(store, Store) else len(bm25) if bm25 is not None else None
    if dense is not None and others not in (None, len(dense)):
        cure = f"bring it up to date with: python -m btr.retrieve build {path} --retriever {dense.plan.encoder}"
        kind = "the store" if isinstance(store, Store) else "BM25"
        message = f"{path}: {kind} holds {others:,} passages, the dense index {len(dense):,}; {cure}"
        if tail is None or others is None or len(dense) > others:
            raise InputError(message)
        warnings.warn(message, StaleIndex, stacklevel=2)
    living = StoreIndex(dense, store) if dense is not None and isinstance(store, Store) else None
    return Retriever(wanted, bm25, dense, living)


def open_dense(folder: Path, encoder: str | None, before: Retriever | None) -> Dense:
    """Open a dense index, or take over the one that was opened before, if it is still the same."""
    known = before.dense if before is not None and before.choice.encoder == encoder else None
    return known if known is not None and known.path == folder and known.is_current() else Dense.open(folder, encoder)


def open_words(store: Store, tail: Tail | None = None) -> StoreIndex:
    """Open the BM25 index of a store; InputError if it has none."""
    index = open_index(store, tail)
    if index is None:
        raise InputError(f"store {store.path} has no index; {store_command('index', store.path)} builds it")
    return index
