"""Find passages by their words: BM25 over a corpus of any size, in bounded memory.

The index is a folder of shards, each a `bm25s` index of the next SHARD_SIZE passages, and `index.json`:

    index.json              format, language, passages, shard_size, shards: [{name, offset, passages}]; written last
    shard-00000/
        *.index.npy, *.index.json   the index as bm25s saves it (columns of term scores, vocabulary, parameters)
        terms.npy           uint64 (3, U): hashes of the shard's stems, ascending; where the column of each begins, ends
        shard.json          settings and number of passages; a shard without it is unfinished

A passage is known by its ordinal, its place in the corpus from 0. Writing holds the words of one shard (about 400 MiB
for 100-word passages). Reading maps the files, vocabulary included, so that memory is what the questions touch.

Scores are Lucene's BM25, k1 = 1.5, b = 0.75, over the stems (`btr.retrieve.stems`) of title and text. Two shards must
be comparable, yet a shard knows its own passages only, and the last may hold a handful, where every word looks common.
So a term counts with its frequency in the *whole* corpus, summed over the shards when a question comes (Elasticsearch's
`dfs_query_then_fetch`; its default would use each shard's own). The mean passage length alone remains a shard's own.
"""

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from btr.corpus import Passage
from btr.errors import InputError
from btr.retrieve.mapped import check_mapped
from btr.retrieve.stems import GUESSED, NONE, Tokens, bm25s, check_language, evidence, guess, stems_of
from btr.storage.manifest import sync

FORMAT = 3  # 1 had other words: of two letters or more, accents and all, scripts without spaces uncut
UNSTEMMED = 2  # has no language and is read as of NONE
SHARD_SIZE = 131_072  # passages; all of Wikipedia is then 250 shards, under the usual 1,024 open files
K1, B = 1.5, 0.75
REBUILD = "build it with: python -m btr.precompute"

Hits = tuple[np.ndarray, np.ndarray]  # ordinals int64 (R,), scores float32 (R,), best first


def _hash(words: Iterable[str]) -> np.ndarray:
    """Hash words to uint64. Two of a shard's 3e5 words meet with a chance of 2e-9; one is then not found."""
    digests = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _idf(passages: int, frequency: np.ndarray) -> np.ndarray:
    """Weigh terms by rarity as Lucene does: ln(1 + (N - f + 1/2) / (f + 1/2)), positive for f <= N."""
    return np.log1p((passages - frequency + 0.5) / (frequency + 0.5))


class BM25Writer:
    """Write an index shard by shard; killed at any moment, it goes on after the last whole shard.

    The index does not depend on where the writing was interrupted, nor on how `append` divides the passages.
    """

    def __init__(self, path: Path, shard_size: int, done: int, finished: bool, language: str | None) -> None:
        """Use `create_or_resume`."""
        self.path, self.shard_size = path, shard_size
        self.language = language  # None: not told until the first shard is written
        self._evidence: Counter[str] = Counter()  # of the first passages of the corpus, which tells it
        self.done = done  # passages in whole shards on disk: feed the corpus from here
        self.finished = finished
        self._start_shard()

    @classmethod
    def create_or_resume(
        cls, path: str | os.PathLike[str], *, shard_size: int = SHARD_SIZE, language: str | None = None
    ) -> "BM25Writer":
        """Open an index for writing and drop what is unfinished; `done` tells where to go on.

        A shard that ends early, or was made with other settings, is dropped with all that follow it; an index of an
        older format is dropped whole.

        language: one of LANGUAGES; None: guessed from the first passages.

        Raises:
            InputError: the path holds something that is not an index, or there is no such language.
            ValueError: shard_size is not positive.
        """
        if language is not None:
            check_language(language)
        if shard_size < 1:
            raise ValueError(f"shard_size is {shard_size}; a shard holds at least 1 passage")
        folder = Path(path)
        state = _read_json(folder / "index.json")
        older = isinstance(state, dict) and state.get("format") in range(1, FORMAT)
        if (folder / "index.json").exists() and not older:
            index = _read_index(folder)
            return cls(folder, shard_size, index["passages"], True, index["language"])
        _check_ours(folder)
        folder.mkdir(parents=True, exist_ok=True)
        begun = _read_json(folder / _name(0) / "shard.json")
        known = language or (begun.get("language") if isinstance(begun, dict) else None)
        whole = 0
        while _read_json(folder / _name(whole) / "shard.json") == _settings(shard_size, known):
            whole += 1
        for leftover in sorted(folder.iterdir()):
            if leftover.name not in {_name(number) for number in range(whole)}:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        return cls(folder, shard_size, whole * shard_size, False, known if whole else language)

    def append(self, passages: Sequence[Passage]) -> None:
        """Add the next passages of the corpus, writing each shard as it fills.

        Raises:
            InputError: the index is finished.
        """
        if self.finished and passages:
            cure = "delete the folder to index another corpus"
            raise InputError(f"{self.path}: this index is finished ({self.done} passages) and takes no more; {cure}")
        start = 0
        while start < len(passages):
            taken = passages[start : start + self.shard_size - len(self._tokens)]
            self._tokens.add(taken)
            if self.language is None:
                self._evidence += evidence(taken[: max(GUESSED + len(taken) - len(self._tokens), 0)])
            start += len(taken)
            if len(self._tokens) == self.shard_size:
                self._write_shard()

    def finish(self) -> None:
        """Write the last, shorter shard and `index.json`; do nothing to a finished index.

        Raises:
            InputError: there is no passage to index.
        """
        if self.finished:
            return
        if len(self._tokens):
            self._write_shard()
        if not self.done:
            raise InputError(f"{self.path}: no passage to index; give at least one")
        shards = [
            {"name": _name(number), "offset": offset, "passages": min(self.shard_size, self.done - offset)}
            for number, offset in enumerate(range(0, self.done, self.shard_size))
        ]
        facts = {"format": FORMAT, "language": self.language, "passages": self.done, "shard_size": self.shard_size}
        _write_json(self.path / "index.json.building", {**facts, "shards": shards})
        _publish(self.path / "index.json.building", self.path / "index.json")
        self.finished = True

    def _start_shard(self) -> None:
        self._tokens = Tokens(self.language)

    def _write_shard(self) -> None:
        if self.language is None:
            self.language = guess(self._evidence)
        index, vocabulary = _index(self._tokens, self.language)
        name = _name(self.done // self.shard_size)
        building = self.path / f"{name}.building"
        index.save(building, show_progress=False)
        np.save(building / "terms.npy", _terms(vocabulary, index.scores["indptr"]))
        _write_json(building / "shard.json", _settings(len(self._tokens), self.language))
        _publish(building, self.path / name)
        self.done += len(self._tokens)
        self._start_shard()


def _index(tokens: Tokens, language: str) -> tuple[Any, dict[str, int]]:
    """Score every stem in every passage; returns bm25s' index and its vocabulary."""
    ids, vocabulary = tokens.stemmed(language)
    index = bm25s().BM25(method="lucene", k1=K1, b=B, backend="numpy")
    index.index(bm25s().tokenization.Tokenized(ids, vocabulary), show_progress=False)
    return index, vocabulary


def _terms(vocabulary: dict[str, int], bounds: np.ndarray) -> np.ndarray:
    """Return the hash, begin and end of every word's column, uint64 (3, U), by rising hash; bounds is (U + 1,)."""
    columns = np.fromiter(vocabulary.values(), np.int64)
    terms = np.stack((_hash(vocabulary), bounds[columns], bounds[columns + 1]), dtype=np.uint64, casting="unsafe")
    return terms[:, np.argsort(terms[0], kind="stable")]


def _name(number: int) -> str:
    return f"shard-{number:05d}"


def _settings(passages: int, language: str | None) -> dict[str, Any]:
    return {"format": FORMAT, "passages": passages, "method": "lucene", "k1": K1, "b": B, "language": language}


def _check_ours(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: a file, not a folder for an index; give another path or move it away")
    others = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    others = [name for name in others if not name.startswith(("shard-", "index.json"))]
    if others:
        raise InputError(f"{folder}: not an index, it holds {min(others)}; give an empty or a new folder")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> Any:
    """Read a JSON file; None if it is not there or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _publish(building: Path, final: Path) -> None:
    """Give a finished file or folder its name, once its bytes are on the disk."""
    for path in [*building.iterdir(), building] if building.is_dir() else [building]:
        sync(path)
    building.rename(final)
    sync(final.parent)


def _read_index(folder: Path, rebuild: str = REBUILD) -> dict[str, Any]:
    index = _read_json(folder / "index.json")
    if not isinstance(index, dict):
        raise InputError(f"{folder}: no finished BM25 index (no index.json that can be read); {rebuild}")
    if index.get("format") == UNSTEMMED:
        return {"language": NONE, **index}
    if index.get("format") != FORMAT:
        cure = rebuild if index.get("format") in range(1, FORMAT) else f"upgrade btr, or {rebuild}"
        raise InputError(f"{folder}: index format {index.get('format')!r}, this btr reads format {FORMAT}; {cure}")
    return index


@dataclass(frozen=True, slots=True)
class WordShard:
    """The index of some consecutive passages, mapped or in memory; term scores stand column by column."""

    offset: int  # ordinal of its first passage
    passages: int
    terms: np.ndarray  # uint64 (3, U), see `terms.npy`
    scores: np.ndarray  # float32 (E,), each term's score in each passage that has it, column by column
    places: np.ndarray  # int32 (E,), that passage, from 0

    @classmethod
    def of(cls, passages: Sequence[Passage], offset: int, language: str = NONE) -> "WordShard":
        """Index passages in memory."""
        tokens = Tokens(language)
        tokens.add(passages)
        index, vocabulary = _index(tokens, language)
        scores = index.scores
        return cls(offset, len(passages), _terms(vocabulary, scores["indptr"]), scores["data"], scores["indices"])

    @classmethod
    def open(cls, folder: Path, offset: int, passages: int) -> "WordShard":
        """Map the files of a shard; each keeps one file descriptor."""
        try:
            names = ("terms", "data.csc.index", "indices.csc.index")
            return cls(offset, passages, *(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))
        except (OSError, ValueError, EOFError) as error:
            if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise InputError(f"{folder}: too many open files; allow more, for example: ulimit -n 65536") from error
            raise InputError(f"{folder}: a damaged shard ({error}); delete the index and {REBUILD}") from error

    def spans(self, words: np.ndarray) -> np.ndarray:
        """Return where the column of each word (Q,) begins and ends, int64 (Q, 2); 0, 0 for a word it does not know."""
        for array in (self.terms, self.scores, self.places):
            check_mapped(array)
        found = np.minimum(np.searchsorted(self.terms[0], words), self.terms.shape[1] - 1)
        known = self.terms[0, found] == words
        return np.where(known, self.terms[1:, found], 0).T.astype(np.int64)

    def best(self, spans: np.ndarray, idf: np.ndarray, top: int) -> Hits:
        """Score the passages that share a word; idf (Q,) is that of the whole corpus times the word's repeats."""
        total = np.zeros(self.passages, dtype=np.float32)
        for (start, end), weight in zip(spans, self._weigh(spans, idf), strict=True):
            total[self.places[start:end]] += weight * self.scores[start:end]
        lowest = np.partition(total, -top)[-top] if top < self.passages else 0
        places = np.flatnonzero((total >= lowest) & (total > 0))
        return _rank(places + self.offset, total[places], top)

    def score(self, spans: np.ndarray, idf: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Score these passages alone, places (R,) from 0, to the bit as `best` does: float32 (R,)."""
        total = np.zeros(len(places), dtype=np.float32)
        wanted = places.astype(self.places.dtype)  # or a whole column would be converted
        for (start, end), weight in zip(spans, self._weigh(spans, idf), strict=True):
            column = self.places[start:end]  # in rising order
            if len(column):
                found = np.minimum(np.searchsorted(column, wanted), len(column) - 1)
                has = column[found] == wanted
                total[has] += weight * self.scores[start:end][found[has]]
        return total

    def _weigh(self, spans: np.ndarray, idf: np.ndarray) -> np.ndarray:
        """Return what each word's scores, made with the shard's own frequencies, are to be multiplied by, (Q,)."""
        return (idf / _idf(self.passages, spans[:, 1] - spans[:, 0])).astype(np.float32)


def _rank(ordinals: np.ndarray, scores: np.ndarray, top: int) -> Hits:
    """Sort by falling score and keep the first; ties stay in the order given, which is that of the corpus."""
    order = np.argsort(-scores, kind="stable")[:top]
    return ordinals[order], scores[order]


class BM25:
    """Search an index written by `BM25Writer`."""

    def __init__(self, shards: Sequence[WordShard], language: str = NONE) -> None:
        """Use `open`."""
        self._shards, self.language = shards, language
        self._passages = sum(shard.passages for shard in shards)

    @classmethod
    def open(cls, path: str | os.PathLike[str], rebuild: str = REBUILD) -> "BM25":
        """Map a finished index; rebuild: what a message says of how to build it anew.

        Raises:
            InputError: not an index, not finished, of another format, or damaged.
        """
        folder = Path(path)
        index = _read_index(folder, rebuild)
        check_language(index["language"])
        shards = (WordShard.open(folder / one["name"], one["offset"], one["passages"]) for one in index["shards"])
        return cls(list(shards), index["language"])

    def __len__(self) -> int:
        """Return the number of passages."""
        return self._passages

    def extended(self, shards: Sequence[WordShard]) -> "BM25":
        """Return an index of these passages too, whose ordinals follow."""
        return BM25([*self._shards, *shards], self.language)

    def search(self, questions: Sequence[str], top: int) -> list[Hits]:
        """Find the best passages for each question: ordinals int64 (R,) and scores float32 (R,), best first.

        Only passages that share a word with the question are found, so R <= top, and R = 0 for a question of stop
        words and words the corpus does not hold. Equal scores stand in corpus order.

        Raises:
            ValueError: top is not positive.
        """
        return self.search_prepared([self.prepare(question) for question in questions], top)

    def prepare(self, question: str) -> np.ndarray:
        """Return what a question is searched by: the hashes of its stems, uint64 (Q,)."""
        return _hash(stems_of(question, self.language))

    def search_prepared(self, questions: Sequence[np.ndarray], top: int) -> list[Hits]:
        """Search for prepared questions, as `search`."""
        if top < 1:
            raise ValueError(f"top is {top}; ask for at least 1 passage")
        return [self._search(words, top) for words in questions]

    def among(self, question: np.ndarray, ordinals: np.ndarray, top: int) -> Hits:
        """Find the best of these passages alone, rising ordinals (R,), for a prepared question, scored as all are."""
        spans, idf = self._look_up(question)
        scores = np.zeros(len(ordinals), np.float32)
        for shard, span in zip(self._shards, spans, strict=True):
            first, end = np.searchsorted(ordinals, (shard.offset, shard.offset + shard.passages))
            if first < end:
                scores[first:end] = shard.score(span, idf, ordinals[first:end] - shard.offset)
        return _rank(ordinals[scores > 0], scores[scores > 0], top)

    def depth(self, top: int, most: int) -> int:
        """Return how many may be asked for, up to `most`, so that the first `top` are what a search for `top` finds."""
        return max(top, most)

    def _look_up(self, words: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """Return where each shard has the columns of the words, once each, and their weights in the whole corpus."""
        words, repeats = np.unique(words, return_counts=True)
        spans = [shard.spans(words) for shard in self._shards]
        frequency = np.sum([span[:, 1] - span[:, 0] for span in spans], axis=0)
        return spans, _idf(self._passages, frequency) * repeats

    def _search(self, words: np.ndarray, top: int) -> Hits:
        spans, idf = self._look_up(words)
        hits = [shard.best(span, idf, top) for shard, span in zip(self._shards, spans, strict=True)]
        ordinals, scores = (np.concatenate(parts) for parts in zip(*hits, strict=True))
        return _rank(ordinals, scores, top)
