"""Bring passages into a store that exists: `btr store add` and `btr store upsert`, and a few at a time over HTTP."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bitarray import bitarray

from btr.corpus.pieces import Passage, divide
from btr.corpus.statistics import Corpus
from btr.corpus.tally import complaints
from btr.errors import InputError
from btr.precompute.encode import ShardTask, Source, encode_chunk, shard_tasks, write_shards
from btr.progress import Progress, say
from btr.reader import Reader
from btr.storage import BadPassage, Shard, Store
from btr.storage.living import Editor, compact
from btr.storage.shard import SHARD, ShardWriter, finished_shard
from btr.storage.view import Reading
from btr.store.articles import fields_of, held, outdated, versions, words_of

SMALL = 4096  # passages of a shard that `tidy` joins with others
MANY = 16  # small shards at the end of a store that are left alone


class Found:
    """What of a corpus is in a store of so many ordinals already: to be replaced, or the same."""

    def __init__(self, ordinals: int) -> None:
        self.counts = Counter[str]()
        self.replaced, self.same = bitarray(ordinals), bitarray(ordinals)
        self.there: set[str] = set()  # ids that are not in the store, of articles that are

    def leaves_out(self, passage: Passage, reading: Reading, replace: bool) -> bool:
        """Tell whether a passage is left out, and note why; that the first of two with one id counts is seen to."""
        if passage.id in self.there:
            self.counts["there"] += 1
            return True
        ordinal = reading.ordinal(passage.id)
        if ordinal is None or self.replaced[ordinal]:
            return False
        if not replace:
            self.counts["there"] += 1
            return True
        if self.same[ordinal]:
            return True
        record = reading.record(ordinal)
        if record.text and (record.title, record.text) == (passage.title, passage.text):
            self.counts["same"] += 1
            self.same[ordinal] = True
            return True
        self.replaced[ordinal] = True
        return False


def bring(
    editor: Editor,
    name: str,
    limit: int | None,
    reader: str | None,
    workers: int,
    replace: bool,
    mirror: bool = False,
    device: str = "cpu",
) -> dict[str, int]:
    """Add the articles of a corpus that the store does not hold; with `replace`, put others in place of its own.

    What the store has of a replaced article, whole or in pieces, and the corpus has no longer, is deleted; with
    `mirror`, so is whatever else the corpus does not hold. Killed, the same call goes on where it stopped. Returns how
    many were added, replaced, deleted, left out.

    Raises:
        InputError, StoreError: the corpus cannot be read, the reader is another, the store cannot be written.
    """
    manifest = editor.manifest
    options = manifest.options
    corpus = Corpus(name, limit, words_of(manifest), fields_of(manifest))
    found = Found(manifest.ordinals)
    corpus.check()
    precision = str(options.get("dtype") or "float32")
    source = Source.settled(reader or manifest.reader or None, manifest.k, precision, device)
    loaded = source.load()
    _check_reader(editor, loaded)
    with editor.view.read() as reading:
        found.there = set() if replace else versions(corpus, reading)
        survey = corpus.survey(editor.path.parent, lambda passage: found.leaves_out(passage, reading, replace))
        current = found.replaced | found.same
        gone = outdated(corpus, reading, current) if replace and not mirror else []
    if mirror:
        gone = [ordinal for ordinal in Store(editor.path, editor.view).live() if not current[ordinal]]
    for said in complaints(survey.tally):
        say(f"warning: {said}")
    origin = ("add", survey.hash, survey.skip.tolist())
    count = -(-survey.passages // manifest.shard_passages)
    folders = editor.folders(count, *origin)
    keep_text = options.get("text") is not False
    work = shard_tasks(corpus, survey.passages, survey.skip, manifest.settings, folders.__getitem__, keep_text)
    work = [job for job in work if len(job.skip) < job.stop - job.start]
    shards = _encode(work, source, workers, loaded)
    replaced = found.replaced.count()
    out = [*found.replaced.search(bitarray("1")), *gone]
    kept = editor.delete(out) if out else manifest.shards
    if shards or out:
        editor.commit([*kept, *shards])
    else:
        editor.forget()
    there, same = found.counts["there"], found.counts["same"]
    added = sum(shard.passages for shard in shards) - replaced
    left = {"there": there, "same": same, "duplicates": len(survey.skip) - there - same, "empty": survey.tally.empty}
    return {"added": added, "replaced": replaced, "deleted": len(gone), **left}


def _check_reader(editor: Editor, reader: Reader) -> None:
    manifest = editor.manifest
    if reader.fingerprint != manifest.fingerprint:
        raise InputError(
            f"store {editor.path} was built by reader {manifest.fingerprint} ({manifest.reader or 'shipped with btr'}) "
            f"and this reader is {reader.fingerprint}; give the reader that built it with --reader"
        )


def put(editor: Editor, reader: Reader, passages: Sequence[Passage]) -> dict[str, int]:
    """Put a few passages, no two of one id, into a store by one commit; killed before that, it has changed nothing.

    A long text is divided as `read_passages` does; what the store has of an id, whole or in pieces, makes room. Returns
    how many (of pieces, each counts) were added, replaced, there already with this title and text and left as they
    are, or deleted without one in their place; and how many were cut to the reader's limit.

    Raises:
        InputError: the reader is another, or a passage has no text.
        StoreError: the store cannot be written, or a piece has the id of another passage.
    """
    _check_reader(editor, reader)
    found, words = Found(editor.manifest.ordinals), words_of(editor.manifest)
    whole = [piece for passage in passages for piece in divide(passage, words)]
    if twice := [name for name, times in Counter(passage.id for passage in whole).items() if times > 1]:
        raise BadPassage(f"the id {twice[0][:80]!r} is that of a passage and of a piece of a longer one; rename one")
    with editor.view.read() as reading:
        new = [passage for passage in whole if not found.leaves_out(passage, reading, replace=True)]
        before = {ordinal for passage in passages for ordinal in held(reading, passage.id, words)}
    gone = sorted(ordinal for ordinal in before if not (found.replaced[ordinal] or found.same[ordinal]))
    counts = {"same": len(whole) - len(new), "deleted": len(gone)}
    out = [*found.replaced.search(bitarray("1")), *gone]
    shards, cut = [], 0
    if new:
        [folder] = editor.folders(1, "put")
        try:
            shard, cut = _write(folder, editor, reader, new)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shards.append(shard)
    if shards or out:
        editor.commit([*(editor.delete(out) if out else editor.manifest.shards), *shards])
    replaced = found.replaced.count()
    return {"added": len(new) - replaced, "replaced": replaced, "cut": cut, **counts}


def _write(folder: Path, editor: Editor, reader: Reader, passages: Sequence[Passage]) -> tuple[Shard, int]:
    """Write passages as a shard; returns it, and how many were cut."""
    shutil.rmtree(folder, ignore_errors=True)  # of a killed call
    ids, cut = reader.passage_ids([(passage.title, passage.text) for passage in passages])
    keep_text = editor.manifest.options.get("text") is not False
    kept = [passage if keep_text else Passage(passage.id, passage.title, "") for passage in passages]
    with ShardWriter(folder, editor.manifest.settings) as writer:
        writer.append(encode_chunk(reader, kept, ids, lambda passages, tokens: None), len(passages), cut)
        return writer.finish({"put": len(passages)}), cut


def tidy(editor: Editor, known: int) -> None:
    """Join the small shards at the end of a store when they are many: a thousand edits are not to be a thousand files.

    known: ordinals below this stand in an index and do not move.
    """
    shards, starts = editor.manifest.shards, editor.view.starts
    first = len(shards)
    while first and shards[first - 1].passages <= SMALL and starts[first - 1] >= known:
        first -= 1
    if len(shards) - first > MANY:
        compact(editor, first)


def _encode(work: list[ShardTask], source: Source, workers: int, reader: Reader) -> list[Shard]:
    """Write the shards that a killed call has not, and return all in order."""
    done = {job.name: shard for job in work if (shard := finished_shard(Path(job.folder), whole=True)) is not None}
    todo = [job for job in work if job.name not in done]
    for job in todo:
        if (Path(job.folder) / SHARD).exists():
            say(f"warning: shard {job.name} of an interrupted run is damaged; it is written anew")
            shutil.rmtree(job.folder)
    sizes = {job.name: job.stop - job.start for job in work}
    report = Progress("encoded", sum(sizes[name] for name in done), sum(sizes.values()))
    if workers > 1 and len(todo) > 1:
        from btr.precompute.workers import run

        done |= run(todo, source, min(workers, len(todo)), report)
    elif todo:
        done |= write_shards(todo, reader, report)
    report.show(last=True)
    return [done[job.name] for job in work]
