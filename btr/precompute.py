"""Read a corpus once: passages in, a store of bits out. `python -m btr.precompute CORPUS`.

The corpus is read three times, as a stream: to check and count it, to encode it, to index it. What is done is committed
as it comes, in `<store>.building`; a run that was killed goes on from there and ends with the same store, since batches
depend on the corpus alone, not on where a run began.
"""

import argparse
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from btr import __version__
from btr.corpus import Passage, Tally, read_passages
from btr.errors import InputError
from btr.layout import BATCH_TOKENS, length_batches
from btr.reader import DTYPES, Reader
from btr.retrieve import BM25Writer
from btr.storage import Encoded, Manifest, Settings, StoreError, StoreWriter
from btr.storage.format import id_key
from btr.storage.store import MANIFEST

CHUNK = 1024  # passages encoded and committed together; what a killed run does again
SAMPLE = 256  # passages, or up to twice as many, from which the size is estimated
COMPRESSIONS = (".gz", ".xz", ".zst")
CHANGED = "the corpus changed while it was read; leave it as it is, and start afresh with --no-resume"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command's settings.

    Raises:
        InputError: a number that is not positive.
    """
    parser = argparse.ArgumentParser(
        prog="btr precompute", description="Read a corpus once and keep every token as bits, in a store to answer from."
    )
    add = parser.add_argument
    add("corpus", metavar="CORPUS", help="a file or folder of passages or articles, or a Hugging Face dataset id")
    add("--reader", metavar="R", help="reader folder or hub id; default: the reader shipped with btr")
    add("--k", type=int, help="split layer, for a plain T5")
    add("--store", metavar="OUT", help="the store to write; default: <corpus name>.btr in the working directory")
    add("--limit", type=int, metavar="N", help="passages to read; default: all")
    add("--words", type=int, default=100, help="words per passage when articles are cut (default %(default)s)")
    add("--dtype", choices=sorted(DTYPES), default="float32", help="precision of the encoder (default %(default)s)")
    add("--no-text", action="store_true", help="keep no texts: smaller, but answers come without passages to show")
    add("--no-index", action="store_true", help="build no BM25 index; questions must then name their passages")
    add("--overwrite", action="store_true", help="replace a store that exists, once the new one is whole")
    add("--no-resume", action="store_true", help="start afresh even if an interrupted run can be gone on with")
    add("--json", action="store_true", help="print the summary as JSON")
    options = parser.parse_args(argv)
    for name, value in (("--limit", options.limit), ("--words", options.words)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; use 1 or more")
    return options


@dataclass(frozen=True)
class Survey:
    """What a first look at a corpus found: how many passages (None: not counted), their hash, and some of them."""

    passages: int | None
    hash: str
    sample: list[Passage]


@dataclass(frozen=True)
class Corpus:
    """A corpus and how it is read: its path or hub id, the largest number of passages, the words of a passage."""

    name: str
    limit: int | None
    words: int

    def read(self, tally: Tally | None = None) -> Iterator[Passage]:
        """Yield the passages in order; raises InputError, as `read_passages`."""
        return read_passages(self.name, limit=self.limit, words=self.words, tally=tally)

    def check(self) -> None:
        """Read one passage: a wrong name is to be known before a reader is loaded.

        Raises:
            InputError: nothing to read, or something that can be read only once, such as a pipe.
        """
        path = Path(self.name)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise InputError(f"{self.name}: neither a file nor a folder, and it is read more than once; give a file")
        next(self.read())

    def survey(self) -> Survey:
        """Read all of it, so that a bad line is found before hours of work; of a data set on the hub only the start.

        Raises:
            InputError, StoreError: a passage that cannot be read or kept.
        """
        if not Path(self.name).exists():
            name_hash = hashlib.sha256(self.name.encode()).hexdigest()[:16]
            return Survey(None, name_hash, list(itertools.islice(self.read(), SAMPLE)))
        digest, sample, stride, report = hashlib.sha256(), [], 1, Progress("checked", 0, None)
        for number, passage in enumerate(self.read()):
            for part in (id_key(passage.id), passage.title.encode(), passage.text.encode()):
                digest.update(b"%d:%b" % (len(part), part))
            if number % stride == 0:
                sample.append(passage)
            if len(sample) == 2 * SAMPLE:
                sample, stride = sample[::2], 2 * stride
            report(1)
        return Survey(number + 1, digest.hexdigest()[:16], sample)


def default_store(corpus: str) -> Path:
    """Name the store after the corpus: corpus -> corpus.btr, wiki/articles.jsonl.zst -> articles.btr."""
    path = Path(os.path.abspath(corpus))
    name = path.name
    if not path.is_dir():
        for suffix in COMPRESSIONS:
            name = name.removesuffix(suffix)
        name = Path(name).stem if path.is_file() else name
    return Path(f"{name}.btr")


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse a store path that cannot be written, before any work.

    Raises:
        InputError: something stands there, or its folder is missing or takes no files.
    """
    if os.path.lexists(path) and not (path / MANIFEST).is_file():
        raise InputError(f"{path} exists and is not a store; give another --store")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; give another --store, or --overwrite to replace it")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it, or give another --store")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot write to {path.parent} ({error.strerror}); give another --store") from error


def say(line: str, *, end: str = "\n") -> None:
    """Print a line on stderr; in a terminal it takes the place of a line of progress."""
    print(f"\r{line}\x1b[K" if sys.stderr.isatty() else line, end=end, file=sys.stderr, flush=True)


class Progress:
    """Report counts, rate and time left: one line that is rewritten in a terminal, else a line every 10 seconds."""

    def __init__(self, what: str, done: int, total: int | None) -> None:
        self.what, self.first, self.done, self.total = what, done, done, total
        self.tokens = 0
        self.began = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()

    def __call__(self, passages: int, tokens: int = 0) -> None:
        """Count what was just done, and show it if it is time."""
        self.done, self.tokens = self.done + passages, self.tokens + tokens
        if time.monotonic() - self.shown >= (0.5 if self.live else 10.0):
            self.show()

    def show(self, last: bool = False) -> None:
        """Print the line; the last stays in a terminal too."""
        self.shown = time.monotonic()
        seconds = max(self.shown - self.began, 1e-9)
        rate = (self.done - self.first) / seconds
        line = f"{self.what} {self.done:,}" + (f"/{self.total:,}" if self.total else "")
        line += f" passages  {rate:,.0f}/s" if rate >= 10 or not rate else f" passages  {rate:.2g}/s"
        line += f"  {self.tokens / seconds:,.0f} tokens/s" if self.tokens else ""
        if self.total and rate and not last:
            line += f"  {duration(max(self.total - self.done, 0) / rate)} left"
        say(line, end="" if self.live and not last else "\n")


def duration(seconds: float) -> str:
    """Return a time to wait in the unit that suits it."""
    for unit, size, until in (("s", 1, 100), ("min", 60, 100 * 60), ("h", 3600, 100 * 3600)):
        if seconds < until:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def chunks(passages: Iterable[Passage]) -> Iterator[list[Passage]]:
    """Cut a stream into lists of CHUNK passages; the last may be shorter."""
    passages = iter(passages)
    while chunk := list(itertools.islice(passages, CHUNK)):
        yield chunk


def expected_bytes(settings: Settings, reader: Reader, sample: list[Passage], copies: int) -> int:
    """Estimate the bytes of a passage in the store; `copies`: of its text, which an index weighs about as much as."""
    ids, _ = reader.passage_ids([(passage.title, passage.text) for passage in sample])
    token_bytes = settings.sign_bytes + 2 + settings.token_width
    total = sum(len(row) * token_bytes for row in ids)
    for passage in sample:
        total += len(passage.title.encode()) + copies * len(passage.text.encode()) + 3 * len(passage.id.encode())
    return int(1.05 * total / len(sample)) + 64  # pages of LMDB that are not full; headers


def check_disk(folder: Path, building: Path, per_passage: int, passages: int | None) -> None:
    """Print the bytes to expect.

    Raises:
        InputError: the disk has not the room for what an interrupted run has not written yet.
    """
    free = shutil.disk_usage(folder).free
    if passages is None:
        say(f"about {per_passage:,} bytes expected for each passage, {free:,} are free")
        return
    expected = passages * per_passage
    say(f"{passages:,} passages, about {expected:,} bytes expected, {free:,} are free")
    if expected - disk_bytes(building) > free:
        raise InputError(
            f"the store will take about {expected:,} bytes and {folder.absolute()} has {free:,} free; "
            "make room, or give another --store"
        )


def disk_bytes(folder: Path) -> int:
    """Return what the files of a folder take on the disk, 0 if it does not exist."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def encode_chunk(reader: Reader, passages: list[Passage], ids: list[list[int]], report: Progress) -> Encoded:
    """Encode as `reader.encode_ids` does, in the same batches, and report each."""
    batches = list(length_batches([len(row) for row in ids], BATCH_TOKENS))
    parts = []
    for batch in batches:
        parts.append(reader.encode_ids([passages[i] for i in batch], [ids[i] for i in batch]))
        report(len(batch), parts[-1].num_tokens)
    return Encoded.concat(parts).select(np.argsort(np.concatenate(batches)))


def encode(
    reader: Reader, passages: Iterator[Passage], writer: StoreWriter, keep_text: bool, total: int | None
) -> None:
    """Encode what the store does not have yet, committing chunk after chunk."""
    report = Progress("encoded", writer.consumed, total)
    for chunk in chunks(itertools.islice(passages, writer.consumed, None)):
        ids, cut = reader.passage_ids([(passage.title, passage.text) for passage in chunk])
        kept = chunk if keep_text else [Passage(passage.id, passage.title, "") for passage in chunk]
        writer.append(encode_chunk(reader, kept, ids, report), writer.consumed + len(chunk), cut)
    report.show(last=True)


def stored(passages: Iterable[Passage], writer: StoreWriter) -> Iterator[Passage]:
    """Yield the passages that the store holds, in its order: of those with one id, the first."""
    ordinal = 0
    for passage in passages:
        if writer.ordinal(passage.id) == ordinal:
            ordinal += 1
            yield passage


def index(passages: Iterable[Passage], writer: StoreWriter) -> None:
    """Build the BM25 index, whose ordinals are the store's.

    Raises:
        InputError: the corpus is no longer the one that was encoded, or the disk is full.
    """
    folder = writer.building / "bm25"
    try:
        bm25 = BM25Writer.create_or_resume(folder)
        report = Progress("indexed", bm25.done, writer.done)
        for chunk in () if bm25.finished else chunks(itertools.islice(stored(passages, writer), bm25.done, None)):
            bm25.append(chunk)
            report(len(chunk))
        if report.done != writer.done:
            raise InputError(f"{report.done:,} of {writer.done:,} passages could be indexed: {CHANGED}")
        bm25.finish()
    except OSError as error:
        cure = "if the disk is full, make room; then run the same command again, it goes on where it stopped"
        raise InputError(f"{folder}: the index cannot be written ({error.strerror or error}); {cure}") from error
    report.show(last=True)


def warn(manifest: Manifest, empty: int) -> None:
    """Print what a user should know of passages not taken as they stood."""
    limit = manifest.max_passage_tokens
    for count, what in (
        (empty, "without text were skipped"),
        (manifest.cut, f"of more than {limit} tokens were cut to {limit}"),
        (manifest.duplicates, "had the id of an earlier one and were skipped; ids must be unique"),
    ):
        if count:
            say(f"warning: {count:,} passages {what}")


def load(options: argparse.Namespace) -> Reader:
    """Load the reader.

    Raises:
        InputError: it is missing or damaged, or has no split layer.
    """
    reader = Reader.from_pretrained(options.reader, k=options.k, dtype=options.dtype)
    if not reader.config.k:
        cure = "give --k, or a reader trained with one"
        raise InputError(f"reader {reader.name} has no split layer, so there are no bits to keep; {cure}")
    return reader


def describe(options: argparse.Namespace, reader: Reader, corpus_hash: str) -> Settings:
    """Return what the store depends on; an interrupted run goes on only with the same."""
    return Settings(
        fingerprint=reader.fingerprint,
        tokenizer_hash=reader.tokenizer_hash,
        k=reader.config.k,
        D=reader.bits,
        vocab_size=reader.model.vocab_size,
        max_passage_tokens=reader.config.max_passage_tokens,
        corpus_hash=corpus_hash,
        corpus=options.corpus,
        reader=options.reader or "",
        options={"limit": options.limit, "words": options.words, "dtype": options.dtype, "text": not options.no_text},
    )


def build(options: argparse.Namespace, reader: Reader, corpus: Corpus, writer: StoreWriter, total: int | None) -> None:
    """Encode, index and finish what is not done yet."""
    tally = Tally()
    if writer.consumed:
        say(f"going on after {writer.consumed:,} passages")
    encode(reader, corpus.read(tally), writer, not options.no_text, total)
    if total is not None and writer.consumed != total:
        raise InputError(f"{writer.consumed:,} of {total:,} passages were read: {CHANGED}")
    if options.no_index:
        shutil.rmtree(writer.building / "bm25", ignore_errors=True)  # begun by a run that wanted one
    else:
        index(corpus.read(), writer)
    warn(writer.finish(created_by=f"btr {__version__}"), tally.empty)


def precompute(options: argparse.Namespace) -> dict[str, object]:
    """Make the store; returns the summary.

    Raises:
        InputError, StoreError: bad input, or a store that cannot be written.
    """
    began, path = time.monotonic(), Path(options.store) if options.store else default_store(options.corpus)
    corpus = Corpus(options.corpus, options.limit, options.words)
    check_target(path, options.overwrite)
    corpus.check()
    reader = load(options)
    survey = corpus.survey()
    settings = describe(options, reader, survey.hash)
    say(f"{options.corpus} -> {path}: reader {reader.name} ({reader.fingerprint}), k {settings.k}, D {settings.D}")
    copies = (not options.no_text) + (not options.no_index)
    per_passage = expected_bytes(settings, reader, survey.sample, copies)
    check_disk(path.parent, path.with_name(f"{path.name}.building"), per_passage, survey.passages)
    resume = not options.no_resume
    with StoreWriter.create_or_resume(path, settings, resume=resume, overwrite=options.overwrite) as writer:
        build(options, reader, corpus, writer, survey.passages)
        progress = writer.progress
    seconds = round(time.monotonic() - began, 1)
    counts = {"passages": progress.passages, "tokens": progress.tokens}
    return {"store": str(path), **counts, "bytes": disk_bytes(path), "seconds": seconds}


def main(argv: list[str] | None = None) -> int:
    """Run `btr precompute`; returns the exit code."""
    try:
        options = parse(argv)
        summary = precompute(options)
    except (InputError, StoreError, OSError) as error:
        say(f"error: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command, without --no-resume, goes on from here")
        return 130
    text = "wrote {store}: {passages:,} passages, {tokens:,} tokens, {bytes:,} bytes on disk, {seconds} s"
    print(json.dumps(summary) if options.json else text.format(**summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
