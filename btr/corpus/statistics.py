"""Take a first look at a corpus: is it sound, how large is it, which ids come twice; then read any part of it."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from btr.corpus.duplicate_ids import Duplicates
from btr.corpus.passages import Fields, read_passages
from btr.corpus.pieces import Passage
from btr.corpus.tally import Tally
from btr.errors import InputError
from btr.progress import Progress
from btr.storage.format import new_key

SAMPLE = 256  # passages, or up to twice as many, from which the size is estimated
CHANGED = "the corpus changed while it was read; leave it as it is, and run the same command again"


@dataclass(frozen=True)
class Survey:
    """What a first look at a corpus found."""

    passages: int
    hash: str
    sample: list[Passage]
    skip: np.ndarray  # int64, ascending: places of passages that are left out, because their id came before
    tally: Tally  # what was not taken as it stood; passages without text are not counted


@dataclass(frozen=True)
class Corpus:
    """A corpus and how it is read: its path or hub id, the most passages, the words of a passage, the named fields."""

    name: str
    limit: int | None
    words: int
    fields: Fields | None = None

    def read(self, tally: Tally | None = None) -> Iterator[Passage]:
        """Yield the passages in order; raises InputError, as `read_passages`."""
        return read_passages(self.name, limit=self.limit, words=self.words, tally=tally, fields=self.fields)

    def check(self) -> None:
        """Read one passage: a wrong name is to be known before a reader is loaded.

        Raises:
            InputError: nothing to read, or something that can be read only once, such as a pipe.
        """
        path = Path(self.name)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{self.name}: neither a file nor a folder, and it is read more than once; give a file")
        next(self.read())

    def survey(self, folder: Path, leave_out: Callable[[Passage], bool] | None = None) -> Survey:
        """Read all of it, so that a bad line is found before hours of work.

        `folder` takes what memory should not hold; `leave_out` tells of passages to skip beside those that come again.

        Raises:
            InputError, StoreError: a passage that cannot be read or kept.
        """
        digest, sample, stride, report = hashlib.sha256(), [], 1, Progress("checked", 0, None)
        duplicates, tally, unwanted = Duplicates(folder), Tally(), []
        for number, passage in enumerate(self.read(tally)):
            for part in (new_key(passage.id), passage.title.encode(), passage.text.encode()):
                digest.update(b"%d:%b" % (len(part), part))
            duplicates.add(passage.id)
            if leave_out is not None and leave_out(passage):
                unwanted.append(number)
            if number % stride == 0:
                sample.append(passage)
            if len(sample) == 2 * SAMPLE:
                sample, stride = sample[::2], 2 * stride
            report(1)
        skip = np.union1d(duplicates.places(), np.array(unwanted, np.int64))
        return Survey(duplicates.count, digest.hexdigest()[:16], sample, skip, tally)


class Cursor:
    """Read parts of a corpus: cheap where each begins after the one before, since a stream has no way back."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._stream = corpus.read()
        self._at = 0

    def read(self, start: int, stop: int) -> Iterator[Passage]:
        """Yield the passages at the places from `start` to `stop`, of which the corpus may have fewer."""
        if self._at > start:
            self._stream, self._at = self._corpus.read(), 0
        while self._at < start and next(self._stream, None) is not None:
            self._at += 1
        for passage in itertools.islice(self._stream, max(stop - start, 0)):
            self._at += 1
            yield passage
