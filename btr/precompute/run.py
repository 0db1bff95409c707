"""Read a corpus once: passages in, a store of bits out.

The corpus is read as a stream: to check and count it, to encode it, to index it. What is done is committed as it comes,
in `<store>.building`; a run that was killed goes on from there and ends with the same store, since batches depend on
the corpus alone, not on where a run began, nor on how many workers there are.
"""

import argparse
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from btr import __version__
from btr.command import Parser, add_computing, check_least, try_folder
from btr.corpus import Passage
from btr.corpus.passages import FIELD_OPTIONS, Fields
from btr.corpus.statistics import CHANGED, Corpus, Survey
from btr.corpus.tally import Tally, complaints
from btr.errors import InputError
from btr.model.devices import settle
from btr.precompute.encode import ShardTask, Source, measure, shard_tasks, write_shards
from btr.precompute.estimate import expected_bytes
from btr.progress import Progress, duration, say
from btr.reader import Reader
from btr.retrieve.bm25 import BM25Writer
from btr.retrieve.dense.build import Embedding
from btr.retrieve.dense.quantize import CODES, MOST_CODES
from btr.retrieve.fusion import DENSE
from btr.retrieve.stems import check_language
from btr.storage import Building, Manifest, Settings, Shard
from btr.storage.manifest import MANIFEST, store_command

SHARD_PASSAGES = 65_536
INDEXED = 1024  # passages indexed at a time
COMPRESSIONS = (".gz", ".xz", ".zst")
FEW = 0.1  # share of what is still to be written, below which free space is worth a warning


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command's settings.

    Raises:
        InputError: a number that is not positive.
    """
    parser = Parser(
        prog="btr precompute",
        description="Read a corpus once and keep every token as bits, in a store to answer from.",
        epilog="Example: btr precompute my-passages.jsonl --store my.btr --workers 4",
    )
    about = "a file or folder of passages, articles or documents, a Hugging Face dataset id, or sample"
    parser.add_argument("corpus", metavar="CORPUS", help=about)
    add = parser.add_argument_group("what is read").add_argument
    add("--limit", type=int, metavar="N", help="passages to read; default: all")
    add("--words", type=int, default=100, help="words per passage when articles are cut (default %(default)s)")
    for name in ("id", "title", "text"):
        about = f"the field of a record that holds its {name}; default: told by its form"
        add(f"--{name}", metavar="FIELD", help=about)
    add = parser.add_argument_group("how passages become bits").add_argument
    add("--reader", metavar="R", help="reader folder or hub id; default: the reader shipped with btr")
    add("--k", type=int, help="split layer, for a plain T5")
    add_computing(add, "the encoder")
    add("--workers", type=int, default=1, metavar="N", help="processes that encode, each a shard (default %(default)s)")
    add("--engine", choices=("local", "ray"), default="local", help="where they run: here, or on a Ray cluster")
    add = parser.add_argument_group("how passages are found").add_argument
    about = "what words are stemmed by in the index: english, german, ..., none; default: as the texts look"
    add("--language", metavar="L", help=about)
    add("--no-index", action="store_true", help="build no BM25 index; questions must then name their passages")
    about = "embed the passages too, for dense retrieval: encoder folder or hub id, as for btr retrieve build"
    add("--dense", "--retriever", dest="retriever", metavar="E", help=about)
    about = "bits per dimension of a vector, 1 to 4 (default %(default)s)"
    add("--codes", type=int, default=CODES, metavar="N", help=about)
    add("--scaled", action="store_true", help="keep a scale, 2 bytes, of one bit a dimension too: better scores")
    add = parser.add_argument_group("what is written").add_argument
    add("--store", metavar="OUT", help="the store to write; default: <corpus name>.btr in the working directory")
    add("--shard-passages", type=int, default=SHARD_PASSAGES, metavar="N", help="passages per shard (%(default)s)")
    add("--no-text", action="store_true", help="keep no texts: smaller, but answers come without passages to show")
    add("--overwrite", action="store_true", help="replace a store that exists, once the new one is whole")
    add("--no-resume", action="store_true", help="start afresh even if an interrupted run can be gone on with")
    add("--dry-run", action="store_true", help="say what it would take, from a sample of the corpus; write nothing")
    add("--json", action="store_true", help="print the summary as JSON")
    options = parser.parse_args(argv)
    check_least(options, 1, "limit", "words", "workers", "shard_passages")
    if not 1 <= options.codes <= MOST_CODES:
        raise InputError(f"--codes is {options.codes}; use 1 to {MOST_CODES}")
    if options.language is not None:
        check_language(options.language)
    return options


def fields_of(options: argparse.Namespace) -> Fields | None:
    """Return which fields hold id, title and text, if one is named."""
    if options.id is options.title is options.text is None:
        return None
    title = "title" if options.title is None else options.title
    return options.id or "id", title, options.text or "text"


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
        way = store_command("upsert", path, "CORPUS")
        raise InputError(f"{path} exists; give another --store, or bring in what is new with: {way}; or --overwrite it")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it, or give another --store")
    try:
        try_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot write to {path.parent} ({error.strerror}); give another --store") from error


def check_disk(folder: Path, building: Path, expected: int, passages: int) -> None:
    """Print the bytes to expect.

    Raises:
        InputError: the disk has not the room for what an interrupted run has not written yet.
    """
    free = shutil.disk_usage(folder).free
    say(f"{passages:,} passages, about {expected:,} bytes expected, {free:,} are free")
    if expected - disk_bytes(building) > free:
        raise InputError(
            f"the store will take about {expected:,} bytes and {folder.absolute()} has {free:,} free; "
            "make room, or give another --store"
        )


def disk_bytes(folder: Path) -> int:
    """Return what the files of a folder take on the disk, 0 if it does not exist."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


class Watch:
    """Report progress, and warn once when the disk has grown too full for what is left."""

    def __init__(self, report: Progress, folder: Path, per_passage: int) -> None:
        self.report, self.folder, self.per_passage = report, folder, per_passage
        self.looked, self.warned = time.monotonic(), False

    def __call__(self, passages: int, tokens: int) -> None:
        """Count what was just done; what had no tokens was found done, or left out, and tells nothing of the rate."""
        self.report.first += 0 if tokens else passages
        self.report(passages, tokens)
        if not self.warned and time.monotonic() - self.looked > 10:
            self.looked = time.monotonic()
            left = ((self.report.total or 0) - self.report.done) * self.per_passage
            free = shutil.disk_usage(self.folder).free
            if free < (1 + FEW) * left:
                self.warned = True
                say(f"warning: about {left:,} bytes are still to be written and {free:,} are free; make room meanwhile")


def encode(options: argparse.Namespace, reader: Reader, todo: list[ShardTask], report: Watch) -> dict[str, Shard]:
    """Write the shards that are to be written, in this process or in others; returns them by name."""
    source = Source(options.reader, options.k, options.dtype, options.device)
    if options.engine == "ray":
        from btr.precompute import cluster

        return cluster.run(todo, source, options.workers, report)
    if options.workers > 1 and len(todo) > 1:
        from btr.precompute import workers

        return workers.run(todo, source, min(options.workers, len(todo)), report)
    return write_shards(todo, reader, report)


def encode_all(
    options: argparse.Namespace, reader: Reader, building: Building, work: list[ShardTask], watch: Watch
) -> list[Shard]:
    """Write what is not written yet, and return all shards in order."""
    done = {job.name: shard for n, job in enumerate(work) if (shard := building.shard(n, whole=True)) is not None}
    for job in work:
        if job.name not in done and (Path(job.folder) / "shard.json").exists():
            say(f"warning: shard {job.name} of the interrupted run is damaged; it is written anew")
            shutil.rmtree(job.folder)
    watch.report.done = watch.report.first = sum(job.stop - job.start for job in work if job.name in done)
    if done:
        say(f"going on after {watch.report.done:,} passages in {len(done)} whole shards")
    done |= encode(options, reader, [job for job in work if job.name not in done], watch)
    watch.report.show(last=True)
    return [done[job.name] for job in work]


def stored(corpus: Corpus, survey: Survey) -> Iterator[Passage]:
    """Yield the passages that the store holds, in its order."""
    skip = iter([*survey.skip.tolist(), -1])
    left_out = next(skip)
    for place, passage in enumerate(corpus.read()):
        if place == left_out:
            left_out = next(skip)
        else:
            yield passage


def index(passages: Iterator[Passage], folder: Path, total: int, language: str | None) -> None:
    """Build the BM25 index, whose ordinals are the store's.

    Raises:
        InputError: the corpus is no longer the one that was encoded, or the disk is full.
    """
    try:
        bm25 = BM25Writer.create_or_resume(folder, language=language)
        report = Progress("indexed", bm25.done, total)
        rest = itertools.islice(passages, bm25.done, None)
        while not bm25.finished and (chunk := list(itertools.islice(rest, INDEXED))):
            bm25.append(chunk)
            report(len(chunk))
        if report.done != total:
            raise InputError(f"{report.done:,} of {total:,} passages could be indexed: {CHANGED}")
        bm25.finish()
    except OSError as error:
        cure = "if the disk is full, make room; then run the same command again, it goes on where it stopped"
        raise InputError(f"{folder}: the index cannot be written ({error.strerror or error}); {cure}") from error
    report.show(last=True)


def warn(manifest: Manifest, tally: Tally) -> None:
    """Print what a user should know of passages not taken as they stood."""
    limit = manifest.max_passage_tokens
    for count, what in (
        (tally.empty, "without text were skipped"),
        (manifest.cut, f"of more than {limit} tokens were cut to {limit}"),
        (manifest.duplicates, "had the id of an earlier one and were skipped; ids must be unique"),
    ):
        if count:
            say(f"warning: {count:,} passages {what}")
    for said in complaints(tally):
        say(f"warning: {said}")


def load(options: argparse.Namespace) -> Reader:
    """Load the reader; raises as `Source.load`."""
    return Source(options.reader, options.k, options.dtype, options.device).load()


def load_embedding(options: argparse.Namespace) -> Embedding | None:
    """Load the encoder of passages, if one is wanted; raises as `Embedding.load`."""
    if not options.retriever:
        return None
    return Embedding.load(options.retriever, options.codes, options.scaled, options.dtype, options.device)


def describe(options: argparse.Namespace, reader: Reader, corpus_hash: str) -> Settings:
    """Return what the store depends on; an interrupted run goes on only with the same."""
    return Settings(
        fingerprint=reader.fingerprint,
        tokenizer_hash=reader.tokenizer_hash,
        k=reader.config.k,
        D=reader.bits,
        width=reader.D,
        vocab_size=reader.model.vocab_size,
        max_passage_tokens=reader.config.max_passage_tokens,
        corpus_hash=corpus_hash,
        shard_passages=options.shard_passages,
        corpus=options.corpus,
        reader=options.reader or "",
        options={"limit": options.limit, "words": options.words, "dtype": options.dtype, "text": not options.no_text}
        | ({"k": options.k} if options.k else {})
        | ({"language": options.language} if options.language else {})
        | ({} if options.device == "cpu" else {"device": options.device.split(":")[0]})  # the last digit is another
        | dict(zip(FIELD_OPTIONS, fields_of(options) or (), strict=False)),
    )


def build(
    options: argparse.Namespace, reader: Reader, embedding: Embedding | None, corpus: Corpus, survey: Survey,
    building: Building, per_passage: int,
) -> Manifest:  # fmt: skip
    """Encode, index, embed and finish what is not done yet."""
    work = shard_tasks(corpus, survey.passages, survey.skip, building.settings, building.folder, not options.no_text)
    watch = Watch(Progress("encoded", 0, survey.passages), building.building, per_passage)
    shards = encode_all(options, reader, building, work, watch)
    count, folder = sum(shard.passages for shard in shards), building.building / "bm25"
    if options.no_index:
        shutil.rmtree(folder, ignore_errors=True)  # begun by a run that wanted one
    else:
        index(stored(corpus, survey), folder, count, options.language)
    if embedding is None:
        shutil.rmtree(building.building / DENSE, ignore_errors=True)  # as above
    else:
        embedding.write(building.building, lambda: stored(corpus, survey), shards)
    manifest = building.finish(shards, f"btr {__version__}", 0 if options.no_index else count)
    warn(manifest, survey.tally)
    return manifest


def estimate(
    options: argparse.Namespace, reader: Reader, survey: Survey, settings: Settings, expected: int, folder: Path
) -> dict[str, object]:
    """Say what the run would take, from how fast a sample is written here."""
    rates = measure(reader, survey.sample, settings, not options.no_text)
    size, rate = rates.size, rates.whole
    tokens = int(size * survey.passages)
    seconds = tokens / rate
    free = shutil.disk_usage(folder).free
    say(f"sample of {len(survey.sample)} passages: {size:.0f} tokens each, {rate:,.0f} tokens/s with all cores here")
    say(f"that is {rate / rates.encoder:.2f} of what the reader's lower layers alone do in turn with it")
    if expected > free:
        say(f"warning: {folder.absolute()} has only {free:,} bytes free")
    return {
        "passages": survey.passages, "tokens": tokens, "bytes": expected, "free": free,
        "tokens_per_second": round(rate), "encoder_tokens_per_second": round(rates.encoder),
        "seconds": round(seconds), "takes": duration(seconds),
    }  # fmt: skip


def precompute(options: argparse.Namespace) -> dict[str, object]:
    """Make the store; returns the summary.

    Raises:
        InputError, StoreError: bad input, or a store that cannot be written.
    """
    began, path = time.monotonic(), Path(options.store) if options.store else default_store(options.corpus)
    corpus = Corpus(options.corpus, options.limit, options.words, fields_of(options))
    check_target(path, options.overwrite or options.dry_run)
    options.dtype, options.device = settle(options.dtype, options.device)
    corpus.check()
    reader = load(options)
    embedding = load_embedding(options)
    survey = corpus.survey(path.parent)
    settings = describe(options, reader, survey.hash)
    say(f"{options.corpus} -> {path}: reader {reader.name} ({reader.fingerprint}), k {settings.k}, D {settings.D}")
    text, indexed = not options.no_text, not options.no_index
    sample, passages = survey.sample, survey.passages
    expected = expected_bytes(path.parent, settings, reader, sample, passages, text, indexed, embedding)
    if options.dry_run:
        return estimate(options, reader, survey, settings, expected, path.parent)
    check_disk(path.parent, path.with_name(f"{path.name}.building"), expected, survey.passages)
    resume = not options.no_resume
    with Building.create_or_resume(path, settings, resume=resume, overwrite=options.overwrite) as building:
        per_passage = expected // survey.passages
        manifest = build(options, reader, embedding, corpus, survey, building, per_passage)
    seconds = round(time.monotonic() - began, 1)
    counts = {"passages": manifest.passages, "tokens": manifest.tokens}
    return {"store": str(path), **counts, "bytes": disk_bytes(path), "seconds": seconds}
