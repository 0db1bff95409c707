"""Make the store of documents that are asked, or bring it up to date."""

from pathlib import Path

from btr.precompute.run import parse, precompute
from btr.progress import say
from btr.retrieve.indexed import build_index, drop_index
from btr.storage import StoreError
from btr.storage.errors import ResumeMismatch
from btr.storage.living import compact, edit
from btr.store.updates import bring, tidy

BEHIND = 1000  # passages that the index need not know: they are found in memory


def build(store: Path, corpus: str, reader: str | None) -> None:
    """Make a store, in the place of one that is there; raises as `btr.precompute.run.precompute`."""
    arguments = ["--store", str(store), "--overwrite", *(["--reader", reader] if reader else [])]
    try:
        precompute(parse([*arguments, "--", corpus]))
    except ResumeMismatch:  # the documents have changed since a run that was killed
        precompute(parse([*arguments, "--no-resume", "--", corpus]))


def refresh(store: Path, corpus: str, reader: str | None) -> bool:
    """Make a store what the documents are now, by what has changed; returns whether it could be.

    Raises:
        InputError: there is nothing to read.
    """
    try:
        with edit(store) as editor:
            counts = bring(editor, corpus, None, reader, 1, replace=True, mirror=True)
            if counts["added"] or counts["replaced"] or counts["deleted"]:
                told = [f"{counts[name]:,} {name}" for name in ("added", "replaced", "deleted") if counts[name]]
                say(f"the documents have changed: {', '.join(told)}")
            before = editor.manifest
            if before.ordinals > 2 * before.passages:
                compact(editor)
                if before.indexed and not editor.manifest.indexed:
                    drop_index(store)
            else:
                tidy(editor, before.indexed)
            if editor.manifest.ordinals - editor.manifest.indexed > BEHIND or not editor.manifest.indexed:
                build_index(editor)
    except StoreError as error:
        say(f"the store kept of these documents cannot be brought up to date ({error}); it is made anew")
        return False
    return True
