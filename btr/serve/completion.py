"""Read what OpenAI's clients ask: obey what a reader can, refuse by name what it cannot, and let preferences be.

How words are drawn (temperature, top_p, seed, penalties) is no more than a preference: a reader says what is likeliest.
"""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from btr.serve.faults import shown
from btr.serve.schema import MOST_IDS, QUESTION, AnswerRequest, Evidence, RequestError, Text, example_of, field
from btr.serve.stops import cut

LENIENT = ConfigDict(strict=True, extra="ignore")
MOST_STOPS = 4
# What changes a reply and cannot be obeyed, and the values, beside null, false, 0 and what is empty, that ask for none.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "modalities": (["text"],),
    **dict.fromkeys((
        "logprobs", "top_logprobs", "prompt_logprobs", "echo", "suffix", "logit_bias", "tools", "functions", "audio",
        "web_search_options", "min_tokens", "ignore_eos", "stop_token_ids", "include_stop_str_in_output", "grammar",
        "json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
    ), ()),
}  # fmt: skip
PLAIN_WORDS = {"title", "description", "$schema"}  # of a JSON schema: they ask for nothing


def _whole(value: Any) -> Any:
    """Take whole numbers with a point, as clients of other languages write them."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parts(content: Any) -> Any:
    """Take text, or one part, for a list of one."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [content] if isinstance(content, dict) else _listed(content)


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else _listed(value)


def _listed(value: Any) -> Any:
    if not isinstance(value, list):
        raise ValueError(f"text or a list is wanted, not {shown(value)}")
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
TEXT = {"type": "string"}
Texts = Annotated[
    list[Text],
    Field(max_length=MOST_IDS),
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [TEXT, {"type": "array", "items": TEXT}]}),
]


def open_request(values: dict[str, Any]) -> ConfigDict:
    """Return the settings of a request that may have any fields, which are looked at later, with an example of it."""
    return ConfigDict(**example_of(values), strict=True, extra="allow")


class Part(BaseModel):
    """Carry one part of a message; only text is read, of type `text` or `input_text`."""

    model_config = LENIENT
    type: str = field(..., "what it is: `text` or `input_text`", "text")
    text: Text | None = field(None, "the text", QUESTION)


PART = {"type": "object", "properties": {"type": {"enum": ["text", "input_text"]}, "text": TEXT}, "required": ["type"]}
Content = Annotated[
    list[Part],
    Field(max_length=MOST_IDS),
    BeforeValidator(_parts),
    WithJsonSchema({"anyOf": [TEXT, PART, {"type": "array", "items": PART}]}),
]


class Message(BaseModel):
    """Carry one turn of a conversation."""

    model_config = LENIENT
    role: str = field(..., "who says it; what the last `user` says is the question", "user")
    content: Content | None = field(None, "text, a part or a list of parts; of other turns it is not read", QUESTION)


class StreamOptions(BaseModel):
    """Say whether a stream ends with its usage."""

    model_config = LENIENT
    include_usage: bool | None = field(None, "whether a chunk with the tokens used comes before the end", True)


class CompletionBase(Evidence):
    """Hold what both kinds of completion share."""

    model: Text = field(..., "the reader, as /v1/models names it", "default")
    stream: bool | None = field(None, "whether the answer comes by server-sent events", False)
    stream_options: StreamOptions | None = field(None, "how a stream ends", {"include_usage": True})
    max_tokens: Whole | None = field(
        None, "tokens of the answer at most, default 32; the server's `max_new_tokens` at -1, 0 and what is over it", 32
    )
    stop: Texts | None = field(None, "one to four strings before the first of which the text ends", ["\n"])
    response_format: dict[str, Any] | None = field(
        None,
        "`text`, `json_object` (of one field, `answer`) or a `json_schema` with one string",
        {"type": "json_object"},
    )


class ChatRequest(CompletionBase):
    """Ask the last message of the user.

    `top_k`, `ids`, `passages`, `mode`, `merge_ratio`, `prune`, `no_answer_above` are this server's own. Preferences
    (`temperature`, `seed`, ...) are passed over; what would change the reply and cannot be had is a 400.
    """

    model_config = open_request({"model": "default", "messages": [{"role": "user", "content": QUESTION}]})
    messages: list[Message] = field(
        ..., "the conversation", [{"role": "user", "content": QUESTION}], min_length=1, max_length=MOST_IDS
    )
    max_completion_tokens: Whole | None = field(None, "as `max_tokens`, and goes before it", 32)

    @property
    def question(self) -> str:
        """Return what is asked; raises RequestError where no text is."""
        asked = [(n, message) for n, message in enumerate(self.messages) if message.role == "user"]
        if not asked:
            said = "no message has the role user; the last one that has is the question"
            raise RequestError(400, said, "no_question", param="messages")
        place, message = asked[-1]
        parts = message.content or []
        if other := [n for n, part in enumerate(parts) if part.type not in ("text", "input_text")]:
            param = f"messages.{place}.content.{other[0]}"
            said = f"{param}: a part of type {shown(parts[other[0]].type)} cannot be read; send text"
            raise RequestError(400, said, "unsupported_content", param=param)
        return " ".join(part.text or "" for part in parts)

    @property
    def most(self) -> int | None:
        """Return how many tokens the answer may have, as the client says it."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(CompletionBase):
    """Ask the prompt; as a chat for the rest."""

    model_config = open_request({"model": "default", "prompt": QUESTION})
    prompt: Texts = field(..., "the question, or a list of one", QUESTION)

    @property
    def question(self) -> str:
        """Return what is asked; raises RequestError where several things are."""
        if len(self.prompt) != 1:
            said = f"prompt: one is wanted, not {len(self.prompt)}; /v1/answer/batch takes several questions"
            raise RequestError(400, said, "out_of_range", param="prompt")
        return self.prompt[0]

    @property
    def most(self) -> int | None:
        """Return how many tokens the answer may have, as the client says it."""
        return self.max_tokens


@dataclass(frozen=True)
class Form:
    """How a text is given: up to the first of some stops, and as the one field of a JSON object, if one is named."""

    stops: tuple[str, ...] = ()
    field: str | None = None

    def put(self, text: str) -> str:
        """Return the text in this form."""
        text = cut(text, self.stops)
        return text if self.field is None else json.dumps({self.field: text}, ensure_ascii=False)


def to_answer(request: ChatRequest | CompletionRequest, model: str, bound: int) -> AnswerRequest:
    """Turn a completion into a question, whose answer has `bound` tokens at most: clients send large bounds unasked.

    Raises:
        RequestError: another model is asked for, or something that cannot be obeyed.
    """
    if request.model != model:
        raise no_model(request.model, model)
    for name, value in (request.model_extra or {}).items():
        if value and name in UNSUPPORTED and value not in UNSUPPORTED[name]:
            raise _unsupported(name, f"this server cannot follow {shown(value)}")
    fields = {name: getattr(request, name) for name in Evidence.model_fields}
    most = 32 if request.most is None else request.most if request.most > 0 else bound  # -1 is how some say: no bound
    least = min(most, bound)
    return AnswerRequest.model_construct(question=request.question, timeout=None, max_new_tokens=least, **fields)


def form_of(request: ChatRequest | CompletionRequest) -> Form:
    """Return the form that a completion is wanted in.

    Raises:
        RequestError: it cannot be had.
    """
    stops = tuple(stop for stop in request.stop or () if stop)
    if len(stops) > MOST_STOPS:
        raise RequestError(
            400, f"stop: at most {MOST_STOPS} are wanted, not {len(stops)}", "out_of_range", param="stop"
        )
    return Form(stops, _field(request.response_format) if request.response_format else None)


def _field(wanted: dict[str, Any]) -> str | None:
    """Return the one field of the JSON object that a `response_format` asks for, None for plain text."""
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return "answer"
    if kind != "json_schema":
        raise _unsupported(
            "response_format", f"type 'text', 'json_object' or 'json_schema' is wanted, not {shown(kind)}"
        )
    try:
        schema = wanted["json_schema"]["schema"]
        [(name, field)] = schema["properties"].items()
        odd = set(schema) - PLAIN_WORDS - {"type", "properties", "required", "additionalProperties"}
        fits = schema["type"] == "object" and set(schema.get("required", ())) <= {name} and not odd
        fits = fits and field["type"] == "string" and set(field) <= PLAIN_WORDS | {"type"}
    except (KeyError, TypeError, ValueError, AttributeError):
        fits, name = False, ""
    if not fits:
        raise _unsupported("response_format", "a schema is wanted of an object with one field, a string without bounds")
    return str(name)


def _unsupported(name: str, why: str) -> RequestError:
    return RequestError(400, f"{name}: {why}; leave it out", "unsupported", param=name)


def no_model(asked: str, model: str) -> RequestError:
    """Say that another model is served."""
    return RequestError(
        404, f"there is no model {asked[:80]!r}; this server has {model!r}", "model_not_found", param="model"
    )
