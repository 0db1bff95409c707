"""Change the store that is served: passages in and out, one edit after the other, in the reader's thread."""

import logging
from collections import Counter
from pathlib import Path
from time import perf_counter

from btr.corpus.pieces import Passage, divide
from btr.errors import InputError
from btr.retrieve.dense.index import is_finished
from btr.retrieve.dense.writer import read_state
from btr.retrieve.fusion import DENSE
from btr.serve.schema import Edit, EditResponse, Removal, RequestError, UpsertRequest
from btr.serve.service import CHARACTERS, Service, broken
from btr.storage import BadPassage, Corrupt, DiskFull, StoreBusy, StoreError
from btr.storage.format import new_key
from btr.storage.living import Editor, edit
from btr.store.articles import held, words_of
from btr.store.updates import put, tidy

_log = logging.getLogger("btr.serve")


def check_edit(service: Service, asked: Edit) -> None:
    """Refuse what no reading can mend.

    Raises:
        RequestError: editing is off, or the request is at fault.
    """
    if not service.settings.editable:
        message = "this server does not change its store; it would with --editable (or BTR_EDITABLE=1)"
        raise RequestError(403, message, "not_editable")
    if isinstance(asked, Removal):
        return
    most, count = service.settings.max_passages, len(asked.passages)
    if count > most:
        raise RequestError(400, f"passages must be of length 1 to {most}, not {count}", "out_of_range")
    for place, passage in enumerate(asked.passages, 1):
        if not passage.text.strip() or not passage.id.strip():
            name = "id" if passage.text.strip() else "text"
            raise RequestError(400, f"the {name} of passage {place} is blank", "blank_passage")
        try:
            new_key(passage.id)
        except BadPassage as error:
            raise RequestError(400, str(error), "invalid_value") from None
    twice = [name for name, times in Counter(passage.id for passage in asked.passages).items() if times > 1]
    if twice:
        raise RequestError(400, f"the id {twice[0][:80]!r} comes twice", "duplicate_id")


def edit_cost(service: Service, asked: Edit) -> int:
    """Estimate the passage tokens to be encoded: of each piece of a long text, no more than the reader reads."""
    most, words = service.reader.config.max_passage_tokens, words_of(service.opened.store.manifest)
    given = asked.passages if isinstance(asked, UpsertRequest) else ()
    pieces = [piece for p in given for piece in divide(Passage(p.id, p.title, p.text), words)]
    return sum(min(most, len(piece.title + piece.text) // CHARACTERS + 4) for piece in pieces)


def apply_edit(service: Service, asked: Edit) -> EditResponse:
    """Change the store by one commit, and answer from it as it is then.

    Raises:
        RequestError: it was not changed, or changed and could not be opened again; it says which.
    """
    began, path = perf_counter(), service.opened.store.path
    try:
        with edit(path) as editor:
            if isinstance(asked, Removal):
                done = _delete(editor, asked.id)
            else:
                done = put(editor, service.reader, [Passage(p.id, p.title, p.text) for p in asked.passages])
                _tidy(editor)
    except (StoreError, InputError, OSError) as error:
        raise _refusal(error) from error
    _refresh(service, path)
    opened = service.opened
    reply = EditResponse(**done, passages=len(opened.store), unindexed=opened.unindexed)
    _log.info("edited", extra={"fields": reply.model_dump() | {"seconds": round(perf_counter() - began, 4)}})
    return reply


def _delete(editor: Editor, passage_id: str) -> dict[str, int]:
    with editor.view.read() as reading:
        ordinals = held(reading, passage_id, words_of(editor.manifest))
    if not ordinals:
        raise RequestError(404, f"the store has no passage {passage_id[:80]!r}", "unknown_id")
    if editor.manifest.passages == len(ordinals):
        raise RequestError(
            409, "it is all that the store has, and one that is served has a passage or more", "last_passage"
        )
    editor.commit(editor.delete(ordinals))
    return {"deleted": len(ordinals)}


def _tidy(editor: Editor) -> None:
    """Join small shards, but none that an index on the disk knows, nor while one is being built."""
    dense = editor.path / DENSE
    try:
        state = read_state(dense) if is_finished(dense) else None
        if state is not None or not dense.exists():
            tidy(editor, max(editor.manifest.indexed, state["passages"] if state else 0))
    except (StoreError, InputError, OSError) as error:  # the edit itself is done
        _log.warning("small shards were not joined: %s", error)


def _refusal(error: Exception) -> RequestError:
    if isinstance(error, StoreBusy):
        message = "another process is changing the store; nothing was changed, try again when it has finished"
        return RequestError(409, message, "store_busy", 5)
    if isinstance(error, DiskFull):
        _log.error("an edit failed: %s", error)
        return RequestError(507, "the server's disk is full; nothing was changed", "disk_full")
    if isinstance(error, BadPassage):
        return RequestError(400, str(error), "invalid_value")
    if isinstance(error, Corrupt):
        return broken(error)
    _log.error("an edit failed: %s", error)
    return RequestError(500, "the server cannot change its store; its log says why", "not_writable")


def _refresh(service: Service, path: Path) -> None:
    try:
        service.refresh(path)
    except (InputError, StoreError, OSError) as error:
        _log.error("the store was changed, and cannot be opened again: %s", error)
        message = "the store was changed, but the server cannot open it again and answers from what it was"
        raise RequestError(500, message, "not_reopened") from error
