"""Answer questions from one reader and an open store.  Of HTTP it knows the statuses of refusals."""

import logging
import threading
from collections.abc import Hashable, Sequence
from pathlib import Path
from time import perf_counter

from btr.corpus import Passage
from btr.errors import InputError
from btr.hops import Pace
from btr.model.config import Mode
from btr.reader import Answer, Reader
from btr.reader.highlight import find_answer
from btr.reader.kept import NOTHING, KeptRows
from btr.reader.truncation import shorten
from btr.retrieve import HINT
from btr.retrieve.bm25 import Hits
from btr.serve.chosen import Chosen
from btr.serve.hops import Hopped, Hops, Quiet, check_hops
from btr.serve.opened import EXAMPLES, OpenStore
from btr.serve.schema import (
    AnswerRequest,
    AnswerResponse,
    Citation,
    CitedPassage,
    Evidence,
    InlinePassage,
    RequestError,
    StoredPassage,
)
from btr.serve.settings import Settings
from btr.serve.streams import Ears
from btr.storage import Encoded, StoreError, UnknownId, WrongLength

PHASES = ("retrieve", "load", "tokenize", "expand", "look", "encode", "merge", "decode")
READ = 16  # characters per token that is read: what of a text is looked at for the answer
CHARACTERS = 4  # per token of English: what an inline passage is taken to cost before it is tokenized
_log = logging.getLogger("btr.serve")


class Service:
    """Answer questions from one reader and one open store.

    `check` and `passage` may be called from any thread, `answer` from one at a time.
    """

    def __init__(self, reader: Reader, opened: OpenStore, settings: Settings, *, model: str) -> None:
        self.reader, self.opened, self.settings, self.model = reader, opened, settings, model
        self.mode: Mode = settings.mode
        self.top = settings.top or min(reader.config.passages, settings.max_passages)
        default = 16384 if reader.family == "generative" else 0
        self.batch_tokens = default if settings.batch_tokens is None else settings.batch_tokens
        self.pace = Pace()  # of questions in several hops
        self._opening = threading.Lock()  # so that an older look at the store never follows a newer one

    @property
    def passages(self) -> int:
        """Passages in the store."""
        return len(self.opened.store)

    @property
    def no_answer_above(self) -> float | None:
        """The probability that no passage answers over which a question is not answered, unless it says another."""
        return self.reader.no_answer_above if (own := self.settings.no_answer_above) is None else own

    def check_mode(self) -> None:
        """Refuse a store from which nothing can be answered in the mode that is the default; raises RequestError."""
        found = self._try_choose(self.opened, self._first())
        if isinstance(found, Exception):
            raise found

    def warm_up(self) -> None:
        """Answer one question, so that the first visitor does not wait for compilation and cold files."""
        [result] = self.answer([self._first()])
        if isinstance(result, Exception):
            raise result

    def _first(self) -> AnswerRequest:
        """Return a question about the first passage."""
        store = self.opened.store
        return AnswerRequest(question="What is this?", ids=[store.at([next(store.live())]).ids[0]])

    def reload(self) -> None:
        """Open what now stands at the store's path, and answer from it; where that fails nothing changes.

        Raises:
            InputError, StoreError: it cannot be served by this reader.
        """
        with self._opening:
            self._open(self.settings.store)

    def refresh(self, path: Path) -> None:
        """Answer from the newest state of the store at `path`, unless another has taken its place; as `reload`."""
        with self._opening:
            if self.opened.store.path == path:
                self._open(path)

    def _open(self, path: Path) -> None:
        self.opened = OpenStore.open(path, self.reader, self.settings.reader or "", self.opened)

    def examples(self) -> list[str]:
        """Return questions that are worth a try: those of the sample corpus, if that is what the store holds."""
        try:
            self.opened.store.get(list(EXAMPLES.values()))
        except StoreError:
            return []
        return list(EXAMPLES)

    def passage(self, passage_id: str) -> StoredPassage:
        """Look a passage up.

        Raises:
            RequestError: 404, the store does not hold it; 500, it is damaged.
        """
        found = _load(self.opened, [passage_id])
        return StoredPassage(id=found.ids[0], title=found.titles[0], text=found.texts[0], tokens=int(found.lengths[0]))

    def check(self, request: AnswerRequest) -> None:
        """Refuse what no reading can mend.

        Raises:
            RequestError: the request is at fault; it says with which HTTP status.
        """
        limits = self.settings
        if not request.question.strip():
            raise RequestError(400, "the question is blank", "blank_question")
        if len(request.question) > limits.max_question_chars:
            message = f"the question has {len(request.question)} characters, over {limits.max_question_chars}"
            raise RequestError(413, message, "too_large")
        if request.prune and not self.reader.prunes:
            raise RequestError(400, "this reader reads all passages to the end; leave prune out", "cannot_prune")
        given = [name for name in ("top_k", "ids", "passages") if getattr(request, name) is not None]
        if len(given) > 1:
            raise RequestError(400, f"send only one of top_k, ids and passages, not {' and '.join(given)}", "conflict")
        check_hops(self.opened, request)
        counts = {"top_k": request.top_k, "max_new_tokens": request.max_new_tokens}
        counts |= {name: len(getattr(request, name)) for name in ("ids", "passages") if name in given}
        for name, count in counts.items():
            most = limits.max_new_tokens if name == "max_new_tokens" else limits.max_passages
            if count is not None and not 1 <= count <= most:
                unit = "of length " if name in ("ids", "passages") else ""
                raise RequestError(400, f"{name} must be {unit}1 to {most}, not {count}", "out_of_range")
        if self.opened.index is None and not {"ids", "passages"} & set(given):
            raise RequestError(400, "the store has no index to search; send ids or passages", "no_index")
        _inline(request.passages or ())

    def cost(self, request: AnswerRequest) -> int:
        """Estimate the passage tokens that a question will be read with."""
        if request.passages is not None:
            most = self.reader.config.max_passage_tokens
            return sum(min(most, len(p.title + p.text) // CHARACTERS + 4) for p in request.passages)
        manifest = self.opened.store.manifest
        count = len(request.ids) if request.ids is not None else request.top_k or self.top
        return request.hops * min(count, manifest.passages) * -(-manifest.tokens // max(manifest.passages, 1))

    def kind(self, request: AnswerRequest) -> Hashable:
        """Return what questions must have in common to be read together."""
        if request.hops > 1:
            return object()  # with nothing else
        free = (request.max_new_tokens,) if request.choices is None else ()
        return (request.mode or self.mode, free, request.merge_ratio or 0.0, self._prune(request))

    def _prune(self, request: AnswerRequest) -> int:
        """Return how many passages to read to the end, 0 for all, as a request for mode full has it if not told."""
        own = 0 if request.mode == "full" else self.settings.prune
        return own if request.prune is None else request.prune

    def answer(self, requests: Sequence[AnswerRequest], ears: Ears | None = None) -> list[AnswerResponse | Exception]:
        """Answer checked questions of one kind; one that cannot be answered has an exception in its place."""
        opened = self.opened  # the same for the whole batch, whatever a reload does meanwhile
        hopped = self._hop(opened, requests[0], ears) if len(requests) == 1 and requests[0].hops > 1 else None
        chosen: list[Chosen | Exception] = (
            [self._try_choose(opened, request) for request in requests] if hopped is None else [hopped.chosen]
        )
        ready = [n for n, found in enumerate(chosen) if isinstance(found, Chosen) and found.passages]
        results: list[AnswerResponse | Exception] = [
            found if isinstance(found, Exception) else self._nothing(request, found)
            for request, found in zip(requests, chosen, strict=True)
        ]  # those that are ready are replaced below
        if hopped is None:
            for n, found in enumerate(chosen if ears else ()):
                if isinstance(found, Chosen):
                    ears.reading(n, found.passages)  # type: ignore[union-attr]
            heard = ears.among(ready) if ears else None
            answers = self._read([requests[n] for n in ready], [chosen[n] for n in ready], heard)  # type: ignore[misc]
        else:
            answers = [hopped.answer] if hopped.answer is not None else []
        for n, answer in zip(ready, answers, strict=True):
            found = chosen[n]
            assert isinstance(found, Chosen)
            if isinstance(answer, Exception):
                results[n] = answer
                continue
            question = requests[n].question.strip()
            cut = len(shorten(question, self.reader)) < len(question)
            told = answer.abstaining(self._above(requests[n]))
            said = {"answer": told.text, "best_guess": told.best_guess, "question_cut": cut}
            results[n] = self._respond(found, answer, len(ready)).model_copy(update=said)
        return results if hopped is None else [hopped.tell(result, self._above(requests[0])) for result in results]

    def _above(self, request: AnswerRequest) -> float | None:
        """Return the probability that no passage answers over which a question gets no more than a guess."""
        return self.no_answer_above if request.no_answer_above is None else request.no_answer_above

    def _hop(self, opened: OpenStore, request: AnswerRequest, ears: Ears | None) -> Hopped:
        """Search and read several times for one question."""
        quiet = Quiet(ears.jobs) if ears else None
        hops = Hops(opened, lambda chosen, kept: self._read([request], [chosen], quiet, kept)[0], quiet)
        try:
            return hops.run(self.reader, request, request.top_k or self.top, self.pace)
        except RequestError as error:
            return Hopped(error)
        except Exception as error:
            return Hopped(broken(error))

    def _try_choose(self, opened: OpenStore, request: AnswerRequest) -> Chosen | Exception:
        try:
            found = self._choose(opened, request)
            _source(found, request.mode or self.mode, self._prune(request))
            return found
        except RequestError as error:
            return error
        except Exception as error:
            return broken(error)

    def _read(
        self,
        requests: Sequence[AnswerRequest],
        chosen: Sequence[Chosen],
        ears: Ears | None = None,
        kept: KeptRows = NOTHING,
    ) -> list[Answer | Exception]:
        """Read questions together; if that fails, one by one, so that a bad one fails alone."""
        if not requests:
            return []
        first, mode = requests[0], requests[0].mode or self.mode
        try:
            merge = self.reader.schedule("algorithm", first.merge_ratio) if first.merge_ratio else None
            return list(
                self.reader.answer_batch(
                    [shorten(request.question.strip(), self.reader) for request in requests],
                    [_source(found, mode, self._prune(first)) for found in chosen],
                    mode=mode,
                    max_new_tokens=first.max_new_tokens,
                    merge=merge,
                    prune=self._prune(first),
                    listener=ears,
                    no_answer_above=1.0,  # whether to say what was found is each question's own affair
                    choices=[request.choices or () for request in requests] if first.choices else None,
                    kept=kept,
                )
            )
        except Exception as error:
            if len(requests) > 1:
                parts = zip(requests, chosen, strict=True)
                return [answer for request, found in parts for answer in self._read([request], [found])]
            refused = isinstance(error, InputError)
            return [RequestError(400, str(error), "invalid_value") if refused else broken(error)]

    def _nothing(self, request: AnswerRequest, chosen: Chosen) -> AnswerResponse:
        """Answer a question that no passage of the store shares a word with: there is nothing to read."""
        return AnswerResponse(
            answer="",
            score=0.0,
            citation=None,
            no_answer=1.0,
            mode=request.mode or self.mode,
            model=self.model,
            passages=[],
            hint=HINT,
            timings=dict.fromkeys(PHASES, 0.0) | chosen.timings,
            batch=0,
            read=0,
            bits_read=0,
            tokens_read=0,
            answer_tokens=0,
        )

    def _respond(self, chosen: Chosen, answer: Answer, batch: int) -> AnswerResponse:
        tokens = sum(len(attention) for attention in answer.token_evidence)
        timings = dict.fromkeys(PHASES, 0.0) | chosen.timings | answer.timings
        return AnswerResponse(
            answer=answer.text,
            score=answer.score,
            choices=list(answer.choices) or None,
            citation=_quoted(chosen, answer),
            no_answer=answer.no_answer,
            mode=answer.mode,
            model=self.model,
            passages=_cite(chosen, answer, READ * self.reader.config.max_passage_tokens),
            timings=timings,
            batch=batch,
            read=answer.read,
            bits_read=tokens * self.reader.bits if answer.mode == "binary" else 0,
            tokens_read=tokens,
            answer_tokens=len(answer.tokens),
        )

    def _choose(self, opened: OpenStore, request: AnswerRequest) -> Chosen:
        if request.passages is not None:
            return Chosen(_inline(request.passages))
        start = perf_counter()
        hits = self._search(opened, request) if request.ids is None else None
        found = perf_counter()
        encoded = _load(opened, request.ids or ()) if hits is None else opened.store.at(hits[0].tolist())
        timings = {"retrieve": found - start, "load": perf_counter() - found}
        passages = tuple(Passage(*row) for row in zip(encoded.ids, encoded.titles, encoded.texts, strict=True))
        return Chosen(passages, encoded, hits[1] if hits else None, timings)

    def search(self, query: str, top: int) -> list[tuple[Passage, float]]:
        """Return the `top` passages of the store that match a query best, and their scores.

        Raises:
            RequestError: the query is at fault, or a passage cannot be read.
        """
        request, opened = AnswerRequest(question=query, top_k=top), self.opened
        self.check(request)
        try:
            chosen = self._choose(opened, request)
        except StoreError as error:
            raise broken(error) from error
        scores = chosen.scores
        assert scores is not None
        return list(zip(chosen.passages, scores.tolist(), strict=True))

    def _search(self, opened: OpenStore, request: Evidence) -> Hits:
        if opened.index is None:
            raise RequestError(400, "the store has no index to search; send ids or passages", "no_index")
        return opened.index.search([request.question], request.top_k or self.top)[0]  # type: ignore[attr-defined]


def broken(error: Exception) -> RequestError:
    """Log what failed, and say no more of it than its sender may know."""
    _log.error("a question failed", exc_info=error)
    if isinstance(error, WrongLength):
        message = "a file of the store was cut or replaced under the server; the log says which"
        return RequestError(500, message, "damaged_store")
    if isinstance(error, StoreError):
        return RequestError(500, "a passage to be read is damaged in the store; the log says which", "damaged_passage")
    return RequestError(500, "the server failed; its log says how", "internal_error")


def _load(opened: OpenStore, ids: Sequence[str]) -> Encoded:
    try:
        return opened.store.get(list(dict.fromkeys(ids)))
    except UnknownId as error:
        names = ", ".join(repr(name[:80]) for name in error.ids[:5])
        raise RequestError(404, f"the store has no passage {names}", "unknown_id") from error
    except StoreError as error:
        raise broken(error) from error


def _inline(passages: Sequence[InlinePassage]) -> tuple[Passage, ...]:
    """Return passages that came with a question, named by their places where they have no id, less blank ones."""
    if passages and not any(passage.text.strip() for passage in passages):
        raise RequestError(400, "the text of every passage is blank", "blank_passage")
    numbered = enumerate(passages, 1)
    return tuple(Passage(p.id or str(place), p.title, p.text) for place, p in numbered if p.text.strip())


def _source(chosen: Chosen, mode: Mode, prune: int) -> Encoded | Sequence[Passage]:
    """Return what the reader reads: stored bits where it looks at any, otherwise the texts, which it encodes anew."""
    bits = mode == "binary" or (mode == "full" and 0 < prune < len(chosen.passages))
    if chosen.encoded is None or not bits:
        if not all(passage.text for passage in chosen.passages):
            message = f"the store keeps signs and no text, so mode {mode} cannot read it; use mode binary"
            raise RequestError(400, message, "mode_unavailable")
        return chosen.passages
    return chosen.encoded


def _quoted(chosen: Chosen, answer: Answer) -> Citation | None:
    span = answer.span
    return None if span is None else Citation(id=chosen.passages[span.passage].id, start=span.start, end=span.end)


def _cite(chosen: Chosen, answer: Answer, read: int) -> list[CitedPassage]:
    cited = [
        CitedPassage(
            id=passage.id,
            title=passage.title,
            text=passage.text,
            retrieval_score=None if chosen.scores is None else float(chosen.scores[place]),
            evidence=float(answer.evidence[place]),
            highlights=_highlight(passage.text, place, answer, read),
        )
        for place, passage in enumerate(chosen.passages)
    ]
    return sorted(cited, key=lambda passage: -passage.evidence)


def _highlight(text: str, place: int, answer: Answer, read: int) -> list[tuple[int, int]]:
    """Return where the answer occurs in a passage, and among that where it was quoted from."""
    found = find_answer(answer.text, text, read)
    span = answer.span
    if span is None or span.passage != place:
        return found
    apart = [(start, end) for start, end in found if end <= span.start or start >= span.end]
    return sorted([*apart, (span.start, span.end)])
