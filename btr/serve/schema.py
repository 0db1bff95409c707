"""What is asked and answered over HTTP, field by field."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from btr.corpus.records import number_text
from btr.model.config import Mode

MOST_HOPS = 8
MOST_IDS = 10_000  # of any list in a request, before the server's own limit is looked at


def _whole(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can escape and UTF-8 cannot write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]


# As files have them: numbers are text, null is a missing one.
Id = Annotated[Text, BeforeValidator(lambda value: number_text(value) or value)]
Line = Annotated[Text, BeforeValidator(lambda value: "" if value is None else number_text(value) or value)]
LENIENT = ConfigDict(strict=True, extra="ignore")  # a retriever's scores, a url: passed over


class RequestError(Exception):
    """Refuse a request with an HTTP status, a message for its sender and a code for his program."""

    def __init__(self, status: int, message: str, code: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after


class InlinePassage(BaseModel):
    """Carry a passage that is not in the store; without an id it is named by its place, from "1"."""

    model_config = LENIENT
    id: Id | None = None
    title: Line = ""
    text: Line


class Evidence(BaseModel):
    """Say what to read: the best `top_k` of the store (the default), these `ids`, or these `passages`; and how.

    `merge_ratio` is the share of passage tokens merged away in every upper layer (generative readers, not in `full`);
    `prune` how many passages are read to the end (0: all, as in `full`, if not told); the server's own by default.
    """

    top_k: int | None = None
    ids: list[Id] | None = Field(default=None, max_length=MOST_IDS)
    passages: list[InlinePassage] | None = Field(default=None, max_length=MOST_IDS)
    mode: Mode | None = None
    merge_ratio: float | None = Field(default=None, ge=0, le=0.5)
    prune: int | None = Field(default=None, ge=0, le=MOST_IDS)


class AnswerRequest(Evidence):
    """Ask a question; `timeout` is in seconds, the server's own is the most.

    With `hops` the store is searched up to so many times: for the question, then for it and the sentence with the most
    evidence, until the reader is sure or finds nothing new.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    question: Text
    max_new_tokens: int = 32
    timeout: float | None = Field(default=None, gt=0)
    hops: int = Field(default=1, ge=1, le=MOST_HOPS)


class StreamableRequest(AnswerRequest):
    """Ask a question; with `stream` the reply is server-sent events, of which the last, `answer`, has all of it.

    Before it come `reading` (the passages), `phase` (what was done, and its seconds until then) and `text`, words as
    they are decoded. `error` ends a stream that failed.
    """

    stream: bool = False


class BatchRequest(BaseModel):
    """Ask several questions; each waits, is read and fails by itself."""

    model_config = ConfigDict(strict=True, extra="forbid")
    questions: list[AnswerRequest] = Field(min_length=1, max_length=MOST_IDS)


class StoredPassage(BaseModel):
    """Give a passage as the store keeps it; `text` is empty where texts were not kept."""

    id: str
    title: str
    text: str
    tokens: int


class NewPassage(BaseModel):
    """Carry a passage for the store: of one id there is one, and a text over the reader's limit is cut to it."""

    model_config = LENIENT
    id: Id
    title: Line = ""
    text: Line


class UpsertRequest(BaseModel):
    """New ids are added, known ones replaced; what has the same title and text is left as it is."""

    model_config = ConfigDict(strict=True, extra="forbid")
    passages: list[NewPassage] = Field(min_length=1, max_length=MOST_IDS)


@dataclass(frozen=True)
class Removal:
    """Ask for a passage to be deleted."""

    id: str


Edit = UpsertRequest | Removal


class EditResponse(BaseModel):
    """Count what an edit did: all of it is done, and the next answer knows it.

    A text of over 1.5 times the words of the store's passages is divided into `<id>:0`, `<id>:1`, ..., each of which
    counts. `same` were there already; `cut` are longer than the reader reads, so that their ends are not read;
    `deleted` includes what of an id was there before, whole or in pieces, and has nothing in its place; `passages` are
    those that the store has now; `unindexed` are those that a search cannot find until the index is built anew.
    """

    added: int = 0
    replaced: int = 0
    same: int = 0
    cut: int = 0
    deleted: int = 0
    passages: int
    unindexed: int


class CitedPassage(BaseModel):
    """Name a passage that was read, and how much of the answer came from it.

    `evidence` is its share of the decoder's attention or, from a span reader, of the probability; `highlights` are
    [start, end) offsets into `text`, in Unicode code points, of the answer's first occurrences.
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


class Hop(BaseModel):
    """Tell what a step asked the store, which passages it read (best first), and what it found.

    `sentence`, of the passage called `title`, has the most evidence; the next step asks for it too. "": there is none.
    """

    query: str
    ids: list[str]
    answer: str
    no_answer: float | None
    title: str
    sentence: str


class AnswerResponse(BaseModel):
    """Give the answer, the passages it came from (most evidence first), and what reading them took.

    `score` is the mean log-probability per answer token or, from a span reader, the span's log-probability; `citation`
    comes from readers with a BERT, and `no_answer`, the probability that none of the passages answers, from span
    readers alone, or is 1, without passages, where none of the store shares a word with the question; `timings` are
    seconds (`tokenize` and what follows are those of the `batch` questions that were read together); `bits_read`
    counts the stored signs, `answer_tokens` the tokens of the answer; `read` passages were read to the end. Of a
    question longer than the reader reads, its last words are read, and `question_cut` says so. With `hops`, `trace`
    has the steps; passages and evidence are those of the last, timings and counts those of all.
    """

    answer: str
    score: float
    citation: Citation | None
    no_answer: float | None
    mode: Mode
    model: str
    passages: list[CitedPassage]
    timings: dict[str, float]
    batch: int
    read: int
    bits_read: int
    tokens_read: int
    answer_tokens: int
    question_cut: bool = False
    trace: list[Hop] | None = None


class ErrorBody(BaseModel):
    """Say what went wrong, in OpenAI's shape."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorReply(BaseModel):
    """Carry an error."""

    error: ErrorBody


class BatchItem(BaseModel):
    """Give the answer to one question of a batch, or why there is none."""

    answer: AnswerResponse | None = None
    error: ErrorBody | None = None


class BatchResponse(BaseModel):
    """Give one item per question, in the order of the questions."""

    results: list[BatchItem]


def error_body(status: int, message: str, code: str) -> dict[str, Any]:
    """Return an error as OpenAI writes it, for JSON."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"message": message, "type": kind, "code": code, "param": None}
