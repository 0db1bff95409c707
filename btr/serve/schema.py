"""What is asked and answered over HTTP, field by field."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from btr.corpus.records import number_text
from btr.model.config import Mode
from btr.retrieve import HINT

MOST_HOPS, MOST_CHOICES = 8, 32
QUESTION, RONTGEN = "Who discovered X-rays?", "X-rays were discovered by Wilhelm Röntgen in 1895."
INLINE: dict[str, Any] = {"id": "light-2", "title": "X-rays", "text": RONTGEN}
CITATION = {"id": "light-2", "start": 26, "end": 41}
HOP: dict[str, Any] = {
    "query": QUESTION, "ids": ["light-2"], "answer": "Wilhelm Röntgen", "no_answer": 0.02, "title": "X-rays",
    "sentence": RONTGEN,
}  # fmt: skip
CITED = INLINE | {"retrieval_score": 7.5, "evidence": 1.0, "highlights": [[26, 41]]}
REPLY: dict[str, Any] = {
    "answer": "Wilhelm Röntgen", "score": -0.01, "citation": CITATION, "no_answer": 0.02, "mode": "binary",
    "model": "default", "passages": [CITED], "timings": {"queue": 0.001, "encode": 0.15, "decode": 0.01, "total": 0.19},
    "batch": 1, "read": 1, "bits_read": 2880, "tokens_read": 24, "answer_tokens": 4, "question_cut": False,
}  # fmt: skip
ERROR = {
    "message": "top_k: a whole number is wanted, not 'five'", "type": "invalid_request_error", "code": "malformed",
    "param": "top_k",
}  # fmt: skip
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


def field(default: Any, meaning: str, example: Any, **limits: Any) -> Any:
    """Return a field with its meaning and an example, as /docs and /openapi.json tell them; default `...`: required."""
    return Field(default, description=meaning, examples=[example], **limits)


def example_of(values: dict[str, Any]) -> ConfigDict:
    """Return the settings of a model, with an example of it whole."""
    return ConfigDict(json_schema_extra={"examples": [values]})


def request_like(values: dict[str, Any]) -> ConfigDict:
    """Return the settings of a request that takes no fields but its own, with an example of it whole."""
    return ConfigDict(**example_of(values), strict=True, extra="forbid")


class RequestError(Exception):
    """Refuse a request with an HTTP status, a message for its sender, a code for his program, the field at fault."""

    def __init__(
        self, status: int, message: str, code: str, retry_after: int | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """Return it as OpenAI writes an error, for JSON."""
        return error_body(self.status, self.message, self.code, self.param)


class InlinePassage(BaseModel):
    """Carry a passage that is not in the store; other fields, a retriever's scores say, are passed over."""

    model_config = LENIENT
    id: Id | None = field(None, "its name in the reply; default: its place, from `1`; numbers are taken as text", "r-7")
    title: Line = field("", "its title, read with it; null is none", "X-rays")
    text: Line = field(..., "its text, cut to the reader's `max_passage_tokens`; blank ones are passed over", RONTGEN)


class Evidence(BaseModel):
    """Say what to read, by one of `top_k`, `ids` and `passages`, and how."""

    top_k: int | None = field(
        None, "how many of the store's best passages to read: 1 to the server's `max_passages`; default: its `top`", 5
    )
    ids: list[Id] | None = field(
        None, "passages of the store to read, 1 to `max_passages` of them", ["light-2"], max_length=MOST_IDS
    )
    passages: list[InlinePassage] | None = field(
        None, "passages to read that come along, 1 to `max_passages` of them", [INLINE], max_length=MOST_IDS
    )
    mode: Mode | None = field(
        None,
        "`full` reads the texts together with the question, `float` apart from it, `binary` as bits; default: the "
        "server's",
        "binary",
    )
    merge_ratio: float | None = field(
        None,
        "share of passage tokens merged away in every upper layer (generative readers, not in mode `full`); default: 0",
        0.2,
        ge=0,
        le=0.5,
    )
    prune: int | None = field(
        None,
        "how many passages are read to the end, 0 for all; default: the server's, in mode `full` 0",
        4,
        ge=0,
        le=MOST_IDS,
    )
    no_answer_above: float | None = field(
        None,
        "the probability that no passage answers over which no answer is given, but a best guess (span readers; 1: "
        "always answer); default: the server's",
        0.9,
        ge=0,
        le=1,
    )


class AnswerRequest(Evidence):
    """Ask a question."""

    model_config = request_like({"question": QUESTION, "top_k": 5})
    question: Text = field(
        ...,
        "what is asked: at most `max_question_chars` characters; of more than `max_question_tokens` tokens the last "
        "words are read",
        QUESTION,
    )
    choices: list[Text] | None = field(
        None,
        "what the answer is one of, by likelihood (generative readers), as `yes` and `no`; default: it is free",
        ["supports", "refutes"],
        min_length=1,
        max_length=MOST_CHOICES,
    )
    max_new_tokens: int = field(32, "tokens of the answer at most: 1 to the server's `max_new_tokens`", 16)
    timeout: float | None = field(
        None,
        "seconds after which the question is given up, its wait included; the server's `timeout` is the most",
        10,
        gt=0,
    )
    hops: int = field(
        1,
        "searches of the store at most: for the question, then for it and the sentence with the most evidence, until "
        "the reader is sure or finds nothing new",
        3,
        ge=1,
        le=MOST_HOPS,
    )


class StreamableRequest(AnswerRequest):
    """Ask a question; with `stream` the reply is server-sent events, of which the last, `answer`, has all of it.

    Before it come `reading` (the passages), `phase` (what was done, and its seconds until then) and `text`, words as
    they are decoded. `error` ends a stream that failed.
    """

    stream: bool = field(False, "whether to be told how the answer comes, by server-sent events", True)


class BatchRequest(BaseModel):
    """Ask several questions; each waits, is read and fails by itself."""

    model_config = request_like({"questions": [{"question": QUESTION}, {"question": "How high is Mount Everest?"}]})
    questions: list[AnswerRequest] = field(
        ...,
        "the questions, 1 to the server's `max_questions`",
        [{"question": QUESTION}],
        min_length=1,
        max_length=MOST_IDS,
    )


class StoredPassage(BaseModel):
    """Give a passage as the store keeps it."""

    model_config = example_of(INLINE | {"tokens": 24})
    id: str = field(..., "its name", "light-2")
    title: str = field(..., "its title, empty where it has none", "X-rays")
    text: str = field(..., "its text, empty where the store was made without texts", RONTGEN)
    tokens: int = field(..., "its tokens that are kept", 24)


class NewPassage(BaseModel):
    """Carry a passage for the store; other fields are passed over."""

    model_config = LENIENT
    id: Id = field(..., "its name, of which the store has one; numbers are taken as text", "light-2")
    title: Line = field("", "its title; null is none", "X-rays")
    text: Line = field(
        ..., "its text, not blank; a long one is divided, what the reader does not read of a piece is `cut`", RONTGEN
    )


class UpsertRequest(BaseModel):
    """New ids are added, known ones replaced; what has the same title and text is left as it is."""

    model_config = request_like({"passages": [INLINE]})
    passages: list[NewPassage] = field(
        ..., "the passages, 1 to the server's `max_passages`", [INLINE], min_length=1, max_length=MOST_IDS
    )


@dataclass(frozen=True)
class Removal:
    """Ask for a passage to be deleted."""

    id: str


Edit = UpsertRequest | Removal


class EditResponse(BaseModel):
    """Count what an edit did: all of it is done, and the next answer knows it.

    A text of over 1.5 times the words of the store's passages is divided into `<id>:0`, `<id>:1`, ..., each of which
    counts.
    """

    model_config = example_of(
        {"added": 1, "replaced": 0, "same": 0, "cut": 0, "deleted": 0, "passages": 201, "unindexed": 0}
    )
    added: int = field(0, "passages that are new", 1)
    replaced: int = field(0, "passages that have another title or text than before", 1)
    same: int = field(0, "passages that were there already", 0)
    cut: int = field(0, "of these, those longer than the reader reads, whose ends are not read", 0)
    deleted: int = field(0, "passages that are gone and have nothing in their place, old pieces of an id included", 0)
    passages: int = field(..., "passages that the store has now", 201)
    unindexed: int = field(..., "passages that no search finds until the index is built anew", 0)


class CitedPassage(BaseModel):
    """Name a passage that was read, and how much of the answer came from it."""

    id: str = field(..., "its id, or its place among those that came along", "light-2")
    title: str = field(..., "its title", "X-rays")
    text: str = field(..., "its text, empty where the store keeps none", RONTGEN)
    retrieval_score: float | None = field(None, "how well it was found; not there for passages that were named", 7.5)
    evidence: float = field(
        ..., "its share of the decoder's attention or, of a span reader, of the probability; all make 1", 0.97
    )
    highlights: list[tuple[int, int]] = field(
        ...,
        "where the answer stands in its text, [start, end) in Unicode code points, the first 100 places",
        [[26, 41]],
    )


class Citation(BaseModel):
    """Say where the answer, or the best guess, was quoted from."""

    id: str = field(..., "the passage", "light-2")
    start: int = field(..., "the first character of its text, in Unicode code points from 0", 26)
    end: int = field(..., "the character after the last", 41)


class Hop(BaseModel):
    """Tell what a step asked the store, what it read, and what it found."""

    model_config = example_of(HOP)
    query: str = field(..., "what was searched for", QUESTION)
    ids: list[str] = field(..., "the passages that were found and read, best first", ["light-2"])
    answer: str = field(..., "the answer from these; empty where `no_answer` is over the threshold", "Wilhelm Röntgen")
    best_guess: str | None = field(
        None, "what would have been said, where no answer is given; else not there", "Röntgen"
    )
    no_answer: float | None = field(..., "probability that none of them answers, of a span reader", 0.02)
    title: str = field(..., "title of the passage that `sentence` stands in", "X-rays")
    sentence: str = field(
        ..., "the sentence with the most evidence, which the next step asks for too; or empty", RONTGEN
    )


class AnswerResponse(BaseModel):
    """Give the answer, the passages it came from, and what reading them took."""

    model_config = example_of(REPLY)
    answer: str = field(..., "the answer; empty where `no_answer` is over the threshold", "Wilhelm Röntgen")
    best_guess: str | None = field(
        None, "what would have been said, where no answer is given; else not there", "Röntgen"
    )
    score: float = field(
        ..., "mean log-probability of the answer's tokens or, of a span reader, the span's log-probability", -0.01
    )
    choices: list[float] | None = field(
        None, "of `choices` the probability of each among them, in their order; else not there", [0.9, 0.1]
    )
    citation: Citation | None = field(..., "where it was quoted from, by readers with a BERT", CITATION)
    no_answer: float | None = field(
        ...,
        "probability that no passage answers, of a span reader; 1 where no passage shares a word with the question",
        0.02,
    )
    mode: Mode = field(..., "how the passages were read", "binary")
    model: str = field(..., "the reader's name", "default")
    passages: list[CitedPassage] = field(..., "the passages that were read, that with most evidence first", [CITED])
    hint: str | None = field(None, "where nothing was found to read: what would find more; else not there", HINT)
    timings: dict[str, float] = field(
        ..., "seconds by phase; from `tokenize` on those of all questions that were read together", {"total": 0.19}
    )
    batch: int = field(..., "questions that were read together", 1)
    read: int = field(..., "passages that were read to the end", 1)
    bits_read: int = field(..., "stored signs that were read", 2880)
    tokens_read: int = field(..., "passage tokens that were read", 24)
    answer_tokens: int = field(..., "tokens of the answer", 4)
    question_cut: bool = field(False, "whether the question was too long, so that only its last words were read", False)
    trace: list[Hop] | None = field(
        None, "of `hops` over 1 the steps; passages are those of the last, seconds and tokens those of all", [HOP]
    )


class ErrorBody(BaseModel):
    """Say what went wrong, in OpenAI's shape."""

    message: str = field(
        ..., "what is wrong, and what helps, for people", "top_k: a whole number is wanted, not 'five'"
    )
    type: str = field(..., "the kind of error, as OpenAI names it", "invalid_request_error")
    code: str = field(..., "what is wrong, for programs", "malformed")
    param: str | None = field(None, "the field at fault, if it is one", "top_k")


class ErrorReply(BaseModel):
    """Carry an error."""

    model_config = example_of({"error": ERROR})
    error: ErrorBody = field(..., "what went wrong", ERROR)


class BatchItem(BaseModel):
    """Give the answer to one question of a batch, or why there is none."""

    answer: AnswerResponse | None = field(None, "as /v1/answer gives it", REPLY)
    error: ErrorBody | None = field(None, "why there is no answer", ERROR)


class BatchResponse(BaseModel):
    """Give one item per question, in the order of the questions."""

    model_config = example_of({"results": [{"answer": REPLY}, {"error": ERROR}]})
    results: list[BatchItem] = field(..., "an answer or an error for each question", [{"answer": REPLY}])


def error_body(status: int, message: str, code: str, param: str | None = None) -> dict[str, Any]:
    """Return an error as OpenAI writes it, for JSON."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"message": message, "type": kind, "code": code, "param": param}
