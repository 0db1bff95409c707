"""What OpenAI's clients may ask for: obeyed, refused by the name of the field, or let be."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btr.serve.stops import Stopper, cut

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Who?"}]
QUOTED = {"type": "object", "properties": {"who": {"type": "string", "description": "a name"}}, "required": ["who"]}


def ask(kit: Any, port: int, path: str = CHAT, **more: Any) -> tuple[int, Any]:
    asked = {"messages": MESSAGES} if path == CHAT else {"prompt": "Who?"}
    status, _, reply = kit.send(port, "POST", path, {"model": "double"} | asked | more)
    return status, reply


def content(kit: Any, port: int, **more: Any) -> str:
    status, reply = ask(kit, port, **more)
    assert status == 200, reply
    return reply["choices"][0]["message"]["content"]


def streamed(kit: Any, port: int, path: str = CHAT, **more: Any) -> tuple[list[str], Any]:
    """Return the pieces of a streamed text, and the last chunk."""
    status, lines = ask(kit, port, path, stream=True, **more)
    assert status == 200, lines
    chunks = [json.loads(line[6:]) for line in lines.splitlines() if line.startswith("data: {")]
    choices = [chunk["choices"][0] for chunk in chunks]
    said = [one["text"] if "text" in one else one["delta"].get("content", "") for one in choices]
    return [text for text in said if text], chunks[-1]


CANNOT = {
    "n": 2, "best_of": 3, "logprobs": True, "top_logprobs": 2, "echo": True, "suffix": ".", "logit_bias": {"7": 1},
    "tools": [{"type": "function"}], "tool_choice": "required", "functions": [{"name": "f"}],
    "modalities": ["text", "audio"], "guided_json": {"type": "object"}, "min_tokens": 3, "ignore_eos": True,
}  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, PLAIN])
@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_obeyed_is_refused_by_its_name(kit: Any, port: int, path: str, name: str) -> None:
    status, reply = ask(kit, port, path, **{name: CANNOT[name]})
    error = reply["error"]
    assert (status, error["code"], error["param"]) == (400, "unsupported", name)
    assert error["type"] == "invalid_request_error" and error["message"].startswith(f"{name}: ")


@pytest.mark.parametrize("path", [CHAT, PLAIN])
def test_what_asks_for_nothing_is_let_be(kit: Any, port: int, path: str) -> None:
    neutral: dict[str, Any] = dict.fromkeys(CANNOT) | {
        "n": 1, "best_of": 1, "logprobs": False, "top_logprobs": 0, "echo": False, "logit_bias": {}, "tools": [],
        "tool_choice": "auto", "modalities": ["text"], "stop": [], "response_format": {"type": "text"}, "user": "u",
        "temperature": 0.7, "top_p": 0.9, "seed": 5, "presence_penalty": 0.1, "stream_options": None,
    }  # fmt: skip
    assert ask(kit, port, path, **neutral)[0] == 200
    assert ask(kit, port, path, **dict.fromkeys(neutral))[0] == 200


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("Berg", "Ada "), (["x", "erg", " "], "Ada"), (["ada"], "Ada Berg"), ("Ada", ""), ("", "Ada Berg"),
        (["", "g"], "Ada Ber"), ("Ada Berg!", "Ada Berg"),
    ],
)  # fmt: skip
def test_text_ends_before_a_stop(kit: Any, port: int, reader: Any, stop: Any, text: str) -> None:
    assert content(kit, port, stop=stop) == text
    assert ask(kit, port, PLAIN, stop=stop)[1]["choices"][0]["text"] == text
    for pieces in ((), ("Ada Berg",), ("A", "d", "a ", "Be", "rg"), ("Ada B",)):
        reader.pieces = pieces
        for path in (CHAT, PLAIN):
            said, last = streamed(kit, port, path, stop=stop)
            assert "".join(said) == text and last["choices"][0]["finish_reason"] == "stop"


def test_more_stops_than_four_are_refused(kit: Any, port: int) -> None:
    status, reply = ask(kit, port, stop=list("abcde"))
    assert (status, reply["error"]["param"], reply["error"]["code"]) == (400, "stop", "out_of_range")
    assert ask(kit, port, stop=list("vwxyz")[:4])[0] == 200


def test_an_answer_that_a_stop_ends_is_not_one_that_its_length_ends(kit: Any, port: int) -> None:
    for stop, reason in (("Berg", "stop"), ("x", "length")):
        assert ask(kit, port, stop=stop, max_tokens=2)[1]["choices"][0]["finish_reason"] == reason


@given(st.lists(st.text("ab", max_size=4), max_size=6), st.lists(st.text("ab", min_size=1, max_size=3), max_size=4))
def test_pieces_are_cut_where_the_whole_is(pieces: list[str], stops: list[str]) -> None:
    stopper = Stopper(stops)
    said = "".join(map(stopper.feed, pieces)) + stopper.end()
    assert said == cut("".join(pieces), stops) and not any(stop in said for stop in stops)


@pytest.mark.parametrize(
    ("wanted", "made"),
    [
        ({"type": "json_object"}, {"answer": "Ada Berg"}),
        ({"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": QUOTED}}, {"who": "Ada Berg"}),
    ],
)  # fmt: skip
def test_answer_comes_as_json(kit: Any, port: int, reader: Any, wanted: Any, made: Any) -> None:
    assert json.loads(content(kit, port, response_format=wanted)) == made
    reader.pieces = ("Ada", " Berg")
    said, _ = streamed(kit, port, response_format=wanted)
    assert json.loads("".join(said)) == made
    short = content(kit, port, response_format=wanted, stop=[" "])
    assert list(json.loads(short).values()) == ["Ada"]


@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "grammar"},
        {"schema": QUOTED},
        {"type": ["text"]},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": None},
        {"type": "json_schema", "json_schema": {"schema": []}},
        *(
            {"type": "json_schema", "json_schema": {"schema": QUOTED | change}}
            for change in (
                {"properties": {}},
                {"properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
                {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"who": {"type": "string", "enum": ["x"]}}},
                {"required": ["who", "why"]},
                {"anyOf": []},
                {"type": "array"},
            )
        ),
    ],
)
def test_json_that_a_reader_cannot_promise_is_refused(kit: Any, port: int, wanted: Any) -> None:
    status, reply = ask(kit, port, response_format=wanted)
    assert (status, reply["error"]["code"], reply["error"]["param"]) == (400, "unsupported", "response_format")


@pytest.mark.parametrize(
    "said",
    [
        {"type": "text", "text": "Who built it?"},
        [{"type": "input_text", "text": "Who built it?"}],
        [{"type": "text", "text": "Who"}, {"type": "input_text", "text": "built it?"}],
    ],
)
def test_content_is_taken_as_clients_write_it(kit: Any, port: int, reader: Any, said: Any) -> None:
    content(kit, port, messages=[{"role": "user", "content": said}])
    assert reader.asked[-1][0] == "Who built it?"


def test_earlier_turns_may_hold_what_is_not_read(kit: Any, port: int) -> None:
    before = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    assert ask(kit, port, messages=[before, *MESSAGES])[0] == 200
    status, reply = ask(kit, port, messages=[*MESSAGES, before])
    assert (status, reply["error"]["param"]) == (400, "messages.1.content.0")


def test_numbers_may_have_a_point_and_options_be_null(kit: Any, port: int, reader: Any) -> None:
    content(kit, port, max_tokens=9.0)
    assert reader.asked[-1][3] == 9
    assert streamed(kit, port, stream_options={"include_usage": None})[0] == ["Ada Berg"]


@pytest.mark.parametrize(
    ("body", "param", "part"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "text or a list is wanted, not 5"),
        ({"messages": MESSAGES, "stop": {}}, "stop", "text or a list is wanted, not an object"),
        ({"messages": MESSAGES, "max_tokens": "many"}, "max_tokens", "a whole number is wanted, not 'many'"),
        ({"messages": MESSAGES, "stream": "yes"}, "stream", "true or false is wanted, not 'yes'"),
        ({"messages": MESSAGES, "response_format": "json"}, "response_format", "an object is wanted, not 'json'"),
        ({"messages": [{"content": "Who?"}]}, "messages.0.role", "it is missing"),
        ({}, "messages", "it is missing"),
    ],
)
def test_malformed_field_is_named(kit: Any, port: int, body: dict[str, Any], param: str, part: str) -> None:
    status, _, reply = kit.send(port, "POST", CHAT, {"model": "double"} | body)
    assert (status, reply["error"]["code"], reply["error"]["param"]) == (422, "malformed", param)
    assert reply["error"]["message"] == f"{param}: {part}"
