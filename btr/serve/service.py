"""Answer questions from one reader, one store and its retrieval index.  Of HTTP it knows the statuses of refusals."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict

from btr.answer import Answer
from btr.config import Mode
from btr.corpus import Passage
from btr.errors import InputError
from btr.indexed import StoreIndex
from btr.reader import Reader
from btr.retrieve import BM25, Hits
from btr.serve.highlight import find_answer
from btr.storage import Encoded, Store, UnknownId

PHASES = ("retrieve", "load", "tokenize", "expand", "encode", "project", "decode")
# Questions of the sample corpus that the shipped reader answers, and the passage that answers each.
EXAMPLES = {
    "Who discovered X-rays?": "light-2",
    "How high is Mount Everest?": "everest-1",
    "What kind of boat is traditional in Venice?": "venice-1",
}


def _whole(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can escape and UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]


@dataclass(frozen=True)
class Limits:
    """Bound what one request may ask for."""

    body_bytes: int = 2 << 20
    passages: int = 100
    new_tokens: int = 128


class InlinePassage(BaseModel):
    """Carry a passage that is not in the store; without an id it is named by its place, from "1"."""

    model_config = ConfigDict(strict=True, extra="forbid")
    id: Text | None = None
    title: Text = ""
    text: Text


class AnswerRequest(BaseModel):
    """Ask a question of at most one of: the best `top_k` of the store (the default), these `ids`, these `passages`."""

    model_config = ConfigDict(strict=True, extra="forbid")
    question: Text
    top_k: int | None = None
    ids: list[Text] | None = None
    passages: list[InlinePassage] | None = None
    mode: Mode | None = None
    max_new_tokens: int = 32


class CitedPassage(BaseModel):
    """Name a passage that was read, and how much of the answer came from it.

    `evidence` is its share of the decoder's attention or, from a span reader, of the probability; `highlights` are
    [start, end) offsets into `text`, in Unicode code points, of every occurrence of the answer.
    """

    id: str
    title: str
    text: str
    retrieval_score: float | None = None
    evidence: float
    highlights: list[tuple[int, int]]


class Citation(BaseModel):
    """Say where the answer was quoted from: characters start to end, in code points, of the text of passage `id`."""

    id: str
    start: int
    end: int


class AnswerResponse(BaseModel):
    """Give the answer, the passages it came from (most evidence first), and what reading them took.

    `score` is the mean log-probability per answer token or, from a span reader, the span's log-probability; `citation`
    and `no_answer`, the probability that none of the passages answers, come from span readers alone; `timings` are
    seconds; `bits_read` counts the stored signs.
    """

    answer: str
    score: float
    citation: Citation | None
    no_answer: float | None
    mode: Mode
    model: str
    passages: list[CitedPassage]
    timings: dict[str, float]
    bits_read: int
    tokens_read: int


class RequestError(Exception):
    """Refuse a request with an HTTP status, a message for its sender and a code for his program."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Chosen:
    """Hold the passages a question will be read against."""

    passages: tuple[Passage, ...]
    encoded: Encoded | None = None  # None: passages sent with the question
    scores: np.ndarray | None = None
    timings: dict[str, float] = field(default_factory=dict)


class Service:
    """Answer questions from one reader, one store and its retrieval index, if it has one.

    Not thread-safe: one caller at a time.
    """

    def __init__(
        self,
        reader: Reader,
        store: Store,
        index: BM25 | StoreIndex | None,
        *,
        model: str,
        top: int = 20,
        mode: Mode = "binary",
        limits: Limits = Limits(),
    ) -> None:
        self.reader, self.store, self.index = reader, store, index
        self.model, self.top, self.mode, self.limits = model, top, mode, limits
        self.passages = len(store)

    def warm_up(self) -> None:
        """Answer one question, so that the first visitor does not wait for compilation and cold files."""
        first = self.store.at([next(self.store.live())])
        if self.index is not None:
            self.index.search(first.titles, 1)
        self.answer(AnswerRequest(question="What is this?", ids=[first.ids[0]]))

    def examples(self) -> list[str]:
        """Return questions that are worth a try: those of the sample corpus, if that is what the store holds."""
        try:
            self.store.get(list(EXAMPLES.values()))
        except UnknownId:
            return []
        return list(EXAMPLES)

    def answer(self, request: AnswerRequest) -> AnswerResponse:
        """Answer one question.

        Raises:
            RequestError: the request is at fault; it says with which HTTP status.
        """
        start = perf_counter()
        self._check(request)
        mode = request.mode or self.mode
        chosen = self._choose(request)
        source = _source(chosen, mode)
        try:
            answer = self.reader.answer(
                request.question.strip(), source, mode=mode, max_new_tokens=request.max_new_tokens
            )
        except InputError as error:
            raise RequestError(400, str(error), "invalid_value") from error
        tokens = sum(len(attention) for attention in answer.token_evidence)
        timings = dict.fromkeys(PHASES, 0.0) | chosen.timings | answer.timings | {"total": perf_counter() - start}
        return AnswerResponse(
            answer=answer.text,
            score=answer.score,
            citation=_quoted(chosen, answer),
            no_answer=answer.no_answer,
            mode=mode,
            model=self.model,
            passages=_cite(chosen, answer),
            timings=timings,
            bits_read=tokens * self.reader.bits if mode == "binary" else 0,
            tokens_read=tokens,
        )

    def _check(self, request: AnswerRequest) -> None:
        if not request.question.strip():
            raise RequestError(400, "the question is blank", "blank_question")
        given = [name for name in ("top_k", "ids", "passages") if getattr(request, name) is not None]
        if len(given) > 1:
            raise RequestError(400, f"send only one of top_k, ids and passages, not {' and '.join(given)}", "conflict")
        asked = {"top_k": request.top_k, "max_new_tokens": request.max_new_tokens}
        asked |= {name: len(getattr(request, name)) for name in ("ids", "passages") if name in given}
        for name, count in asked.items():
            most = self.limits.new_tokens if name == "max_new_tokens" else self.limits.passages
            if count is not None and not 1 <= count <= most:
                unit = "of length " if name in ("ids", "passages") else ""
                raise RequestError(400, f"{name} must be {unit}1 to {most}, not {count}", "out_of_range")

    def _choose(self, request: AnswerRequest) -> Chosen:
        if request.passages is not None:
            return Chosen(_inline(request.passages))
        start = perf_counter()
        hits = self._search(request) if request.ids is None else None
        found = perf_counter()
        encoded = self._load(request.ids or ()) if hits is None else self.store.at(hits[0].tolist())
        timings = {"retrieve": found - start, "load": perf_counter() - found}
        passages = tuple(Passage(*row) for row in zip(encoded.ids, encoded.titles, encoded.texts, strict=True))
        return Chosen(passages, encoded, hits[1] if hits else None, timings)

    def _search(self, request: AnswerRequest) -> Hits:
        if self.index is None:
            raise RequestError(400, "the store has no index to search; send ids or passages", "no_index")
        (hits,) = self.index.search([request.question], request.top_k or self.top)
        if len(hits[0]) == 0:
            raise RequestError(404, "no passage of the store shares a word with the question", "no_passages")
        return hits

    def _load(self, ids: Sequence[str]) -> Encoded:
        try:
            return self.store.get(list(dict.fromkeys(ids)))
        except UnknownId as error:
            names = ", ".join(repr(name[:80]) for name in error.ids[:5])
            raise RequestError(404, f"the store has no passage {names}", "unknown_id") from error


def _inline(passages: Sequence[InlinePassage]) -> tuple[Passage, ...]:
    for place, passage in enumerate(passages, 1):
        if not passage.text.strip():
            raise RequestError(400, f"the text of passage {place} is blank", "blank_passage")
    return tuple(Passage(p.id or str(place), p.title, p.text) for place, p in enumerate(passages, 1))


def _source(chosen: Chosen, mode: Mode) -> Encoded | Sequence[Passage]:
    """Return what the reader reads: stored bits in binary mode, otherwise the texts, which it encodes anew."""
    if chosen.encoded is None or mode != "binary":
        if not all(passage.text for passage in chosen.passages):
            message = f"the store keeps signs and no text, so mode {mode} cannot read it; use mode binary"
            raise RequestError(400, message, "mode_unavailable")
        return chosen.passages
    return chosen.encoded


def _quoted(chosen: Chosen, answer: Answer) -> Citation | None:
    span = answer.span
    return None if span is None else Citation(id=chosen.passages[span.passage].id, start=span.start, end=span.end)


def _cite(chosen: Chosen, answer: Answer) -> list[CitedPassage]:
    cited = [
        CitedPassage(
            id=passage.id,
            title=passage.title,
            text=passage.text,
            retrieval_score=None if chosen.scores is None else float(chosen.scores[place]),
            evidence=float(answer.evidence[place]),
            highlights=_highlight(passage.text, place, answer),
        )
        for place, passage in enumerate(chosen.passages)
    ]
    return sorted(cited, key=lambda passage: -passage.evidence)


def _highlight(text: str, place: int, answer: Answer) -> list[tuple[int, int]]:
    """Return where the answer occurs in a passage, and among that where it was quoted from."""
    found = find_answer(answer.text, text)
    span = answer.span
    if span is None or span.passage != place:
        return found
    apart = [(start, end) for start, end in found if end <= span.start or start >= span.end]
    return sorted([*apart, (span.start, span.end)])
