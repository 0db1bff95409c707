"""Search an index of vectors: by signs and then by all bits, or by floats, which is the reference.

Exhaustive: every question is compared with every passage, one pass over the signs by Hamming distance, then the nearest
`candidates` are scored with the float query against all bits. Equal scores stand in corpus order.

A server's store grows while it is searched: `following` adds passages newer than the index, their codes in memory.

Shapes: Q questions, N passages, D dimensions, W words.
"""

import os
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from btr import kernels
from btr.errors import InputError
from btr.retrieve.bm25 import Hits
from btr.retrieve.dense.encoder import Encoder
from btr.retrieve.dense.quantize import SIGNS, Quantizer
from btr.retrieve.dense.writer import INDEX, PROGRESS, ROTATION, VECTORS, Plan, Shards, files_of, read_state
from btr.retrieve.mapped import check_mapped

Search = Literal["rescored", "binary", "float"]

CANDIDATES = 400  # passages scored after the first pass, or 10 times as many as asked for if that is more
BLOCK = 16_384  # passages scored by floats at a time


def is_finished(folder: Path) -> bool:
    """Tell whether a folder holds a finished index."""
    return (folder / INDEX).exists() and not (folder / PROGRESS).exists()


class Dense:
    """An index on disk, mapped, and the encoder of its questions."""

    def __init__(self, path: Path, plan: Plan, passages: int, encoder: Encoder, shards: Shards) -> None:
        """Use `open`."""
        self.path, self.plan, self.encoder = path, plan, encoder
        self.shards = shards  # of the store that it was built from
        self.quantizer = Quantizer.load(path / ROTATION)
        self._passages = passages
        self._stamp = self._stat()
        self._files = {name: self._map(name, *row) for name, row in files_of(self.quantizer, plan.floats).items()}
        self._newer: dict[str, NDArray[Any]] = {}  # rows that follow those of the files, by the files' names

    @classmethod
    def open(cls, path: str | os.PathLike[str], encoder: Encoder | str | None = None) -> "Dense":
        """Map a finished index; encoder: of questions, or its folder; None: the one the passages were embedded with.

        Raises:
            InputError: not there, not finished, damaged, or of an encoder that this one is not aligned with.
        """
        folder = Path(path)
        state = read_state(folder)
        if state is None or not is_finished(folder):
            raise InputError(f"{folder}: no finished dense index; build it with: python -m btr.retrieve build")
        plan: Plan = state["plan"]
        if not isinstance(encoder, Encoder):
            encoder = Encoder.from_pretrained(encoder or plan.encoder)
        check_encoder(folder, plan, encoder)
        return cls(folder, plan, state["passages"], encoder, state["shards"])

    def __len__(self) -> int:
        """Return the number of passages."""
        return self._passages

    def following(self, vectors: NDArray[np.float32]) -> "Dense":
        """Return an index of these vectors (M, D) too, whose ordinals follow; the files stay as they are."""
        longer = copy(self)
        if not len(vectors):
            longer._newer, longer._passages = {}, self.indexed
            return longer
        rows = self.quantizer.encode(vectors) | {VECTORS: vectors}
        longer._newer = {name: rows[name] for name in self._files}
        longer._passages = self.indexed + len(vectors)
        return longer

    @property
    def indexed(self) -> int:
        """Passages in the files."""
        return len(self._files[SIGNS])

    def is_current(self) -> bool:
        """Tell whether the index on the disk is still the one that was opened."""
        return is_finished(self.path) and self._stat() == self._stamp

    def _stat(self) -> tuple[int, int]:
        """Return what tells one state of the index from another."""
        found = (self.path / INDEX).stat()
        return found.st_ino, found.st_mtime_ns

    def search(self, questions: Sequence[str], top: int, how: Search = "rescored", candidates: int = 0) -> list[Hits]:
        """Find the best passages for each question: ordinals int64 (R,) and scores float32 (R,), best first.

        how: by bits and then codes; by bits alone, whose score is minus the distance; by floats, if they are kept.
        candidates: passages scored after the first pass; 0 chooses.

        Raises:
            ValueError: top is not positive.
            InputError: no floats are kept.
        """
        if top < 1:
            raise ValueError(f"top is {top}; ask for at least 1 passage")
        if not questions:
            return []
        return self.search_vectors(self.encoder.embed(questions, "query"), top, how, candidates)

    def search_vectors(
        self, queries: NDArray[np.float32], top: int, how: Search = "rescored", candidates: int = 0
    ) -> list[Hits]:
        """Search for embedded questions (Q, D), as `search`."""
        self._check_files()
        top = min(top, self._passages)
        if how == "float":
            return self._search_floats(queries, top)
        return self._search_codes(self.quantizer.rotate(queries), top, how, candidates)

    def _search_codes(self, rotated: NDArray[np.float32], top: int, how: Search, candidates: int = 0) -> list[Hits]:
        """Search for rotated queries (Q, D): one pass over the bits for all of them."""
        wanted = top if how == "binary" else min(max(candidates or CANDIDATES, 10 * top), self._passages)
        ordinals, distances = self._nearest(kernels.pack(rotated), wanted)
        if how == "binary":
            return [(row, -found.astype(np.float32)) for row, found in zip(ordinals, distances, strict=True)]
        found = (np.sort(row) for row in ordinals)
        return [best(row, self._score(query, row), top) for query, row in zip(rotated, found, strict=True)]

    def prepare(self, question: str) -> NDArray[np.float32]:
        """Return what a question is searched by: its vector in the basis of the codes, (D,)."""
        rotated: NDArray[np.float32] = self.quantizer.rotate(self.encoder.embed([question], "query"))[0]
        return rotated

    def search_prepared(self, questions: Sequence[NDArray[np.float32]], top: int) -> list[Hits]:
        """Search for prepared questions in one pass: for each, to the bit, what `search` finds for it alone."""
        if top < 1:
            raise ValueError(f"top is {top}; ask for at least 1 passage")
        self._check_files()
        return self._search_codes(np.stack(questions), min(top, self._passages), "rescored")

    def among(self, question: NDArray[np.float32], ordinals: NDArray[np.int64], top: int) -> Hits:
        """Find the best of these passages alone, rising ordinals (R,), for a prepared question, scored as by `search`.

        All of them are scored, near by their signs or not.
        """
        return best(ordinals, self.score_prepared(question, ordinals), top)

    def score_prepared(self, question: NDArray[np.float32], ordinals: NDArray[np.int64]) -> NDArray[np.float32]:
        """Score given passages for a prepared question, as `score`."""
        self._check_files()
        return self._score(question, ordinals)

    def depth(self, top: int, most: int) -> int:
        """Return how many may be asked for, up to `most`, so that the first `top` are what a search for `top` finds.

        As long as no more candidates are scored for them, that is.
        """
        return max(top, min(most, CANDIDATES // 10))

    def score(self, questions: Sequence[str], ordinals: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float32]]:
        """Score given passages of each question by the codes, as `search` scores what it finds."""
        if not questions:
            return []
        self._check_files()
        rotated = self.quantizer.rotate(self.encoder.embed(questions, "query"))
        return [self._score(query, row) for query, row in zip(rotated, ordinals, strict=True)]

    def _check_files(self) -> None:
        for file in self._files.values():
            check_mapped(file)

    def _nearest(self, packed: NDArray[np.uint64], wanted: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Find the nearest by signs: ordinals and distances (Q, wanted), the lower ordinal first of ties."""
        known, newer = self._files[SIGNS], self._newer.get(SIGNS)
        ordinals, distances = kernels.nearest_k(packed, known, min(wanted, len(known)))
        if newer is None:
            return ordinals, distances
        more, theirs = kernels.nearest_k(packed, newer, min(wanted, len(newer)))
        ordinals = np.concatenate((ordinals, more + len(known)), 1)
        distances = np.concatenate((distances, theirs), 1)
        order = np.argsort(distances, axis=1, kind="stable")[:, :wanted]
        return np.take_along_axis(ordinals, order, 1), np.take_along_axis(distances, order, 1)

    def _rows(self, name: str, ordinals: NDArray[np.int64]) -> NDArray[Any]:
        """Gather rows of a file, and of what follows it in memory."""
        rows, newer = self._files[name], self._newer.get(name)
        if newer is None:
            return np.asarray(rows[ordinals])
        found = np.empty((len(ordinals), rows.shape[1]), rows.dtype)
        old = ordinals < len(rows)
        found[old], found[~old] = rows[ordinals[old]], newer[ordinals[~old] - len(rows)]
        return found

    def _score(self, query: NDArray[np.float32], ordinals: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.quantizer.scores(query, {name: self._rows(name, ordinals) for name in self.quantizer.files})

    def _search_floats(self, queries: NDArray[np.float32], top: int) -> list[Hits]:
        if VECTORS not in self._files:
            raise InputError(f"{self.path}: keeps no floats; build it with --floats to search by them")
        found: list[Hits] = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
        for first in range(0, self._passages, BLOCK):
            block = self._rows(VECTORS, np.arange(first, min(first + BLOCK, self._passages)))
            scores = queries @ block.T
            for number, row in enumerate(scores):
                places = nearest_floats(row, top)
                ordinals = np.concatenate((found[number][0], places + first))
                found[number] = best(ordinals, np.concatenate((found[number][1], row[places])), top)
        return found

    def _map(self, name: str, kind: str, columns: int) -> NDArray[Any]:
        path, size = self.path / name, np.dtype(kind).itemsize * columns * self._passages
        there = path.stat().st_size if path.exists() else 0
        if there != size:
            cure = "delete the folder and build it again"
            raise InputError(f"{path}: {there:,} bytes, expected {size:,} for {self._passages:,} passages; {cure}")
        return np.memmap(path, kind, "r").reshape(self._passages, columns)


def nearest_floats(scores: NDArray[np.float32], top: int) -> NDArray[np.int64]:
    """Return the places of the `top` highest scores, all ties of the lowest included, in rising order."""
    lowest = np.partition(scores, -top)[-top] if top < len(scores) else -np.inf
    return np.flatnonzero(scores >= lowest)


def best(ordinals: NDArray[np.int64], scores: NDArray[np.float32], top: int) -> Hits:
    """Sort by falling score and keep the first; ties stay in the order given, which is that of the corpus."""
    order = np.argsort(-scores, kind="stable")[:top]
    return ordinals[order], scores[order]


def check_encoder(folder: Path, plan: Plan, encoder: Encoder) -> None:
    """Refuse an encoder of questions that is neither the passages' nor aligned with it."""
    if not encoder.serves(plan.fingerprint) or encoder.dimension != plan.dimension:
        aligned = ", ".join(encoder.aligned) or "none"
        raise InputError(
            f"{folder} was built by encoder {plan.fingerprint} ({plan.encoder}, D = {plan.dimension}), this encoder is "
            f"{encoder.fingerprint} ({encoder.name}, D = {encoder.dimension}), aligned with {aligned}; use the index's "
            f"own, align one with: python -m btr.train kale --encoder {plan.encoder}, or build the index again"
        )
