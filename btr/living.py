"""Bring passages into a store that exists: `btr store add` and `btr store upsert`."""

import shutil
from collections import Counter
from pathlib import Path

from bitarray import bitarray

from btr.corpus import Passage
from btr.errors import InputError
from btr.progress import Progress, say
from btr.reader import Reader
from btr.shards import Job, Source, jobs, write_shards
from btr.storage import Shard
from btr.storage.living import Editor
from btr.storage.shard import SHARD, finished_shard
from btr.storage.view import Reading
from btr.survey import Corpus


class Found:
    """What of a corpus is in a store of so many ordinals already: to be replaced, or the same."""

    def __init__(self, ordinals: int) -> None:
        self.counts = Counter[str]()
        self.replaced, self.same = bitarray(ordinals), bitarray(ordinals)

    def leaves_out(self, passage: Passage, reading: Reading, replace: bool) -> bool:
        """Tell whether a passage is left out, and note why; that the first of two with one id counts is seen to."""
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
    editor: Editor, name: str, limit: int | None, reader: str | None, workers: int, replace: bool
) -> dict[str, int]:
    """Add the passages of a corpus whose ids the store does not hold; with `replace`, put others in place of its own.

    Killed, the same call goes on where it stopped. Returns how many were added, replaced, left out.

    Raises:
        InputError, StoreError: the corpus cannot be read, the reader is another, the store cannot be written.
    """
    manifest = editor.manifest
    options = manifest.options
    words, dtype = options.get("words") or 100, options.get("dtype") or "float32"
    corpus, found = Corpus(name, limit, int(words)), Found(manifest.ordinals)
    corpus.check()
    source = Source(reader or manifest.reader or None, manifest.k, str(dtype))
    loaded = source.load()
    if loaded.fingerprint != manifest.fingerprint:
        raise InputError(
            f"store {editor.path} was built by reader {manifest.fingerprint} ({manifest.reader or 'shipped with btr'}) "
            f"and this reader is {loaded.fingerprint}; give the reader that built it with --reader"
        )
    with editor.view.read() as reading:
        survey = corpus.survey(editor.path.parent, lambda passage: found.leaves_out(passage, reading, replace))
    origin = ("add", survey.hash, survey.skip.tolist())
    count = -(-survey.passages // manifest.shard_passages)
    folders = editor.folders(count, *origin)
    keep_text = options.get("text") is not False
    work = jobs(corpus, survey.passages, survey.skip, manifest.settings, folders.__getitem__, keep_text)
    work = [job for job in work if len(job.skip) < job.stop - job.start]
    shards = _encode(work, source, workers, loaded)
    replaced = found.replaced.count()
    kept = editor.delete(found.replaced.search(bitarray("1"))) if replaced else manifest.shards
    if shards or replaced:
        editor.commit([*kept, *shards])
    else:
        editor.forget()
    there, same = found.counts["there"], found.counts["same"]
    added = sum(shard.passages for shard in shards) - replaced
    left = {"there": there, "same": same, "duplicates": len(survey.skip) - there - same, "empty": survey.empty}
    return {"added": added, "replaced": replaced, **left}


def _encode(work: list[Job], source: Source, workers: int, reader: Reader) -> list[Shard]:
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
        from btr.workers import run

        done |= run(todo, source, min(workers, len(todo)), report)
    elif todo:
        done |= write_shards(todo, reader, report)
    report.show(last=True)
    return [done[job.name] for job in work]
