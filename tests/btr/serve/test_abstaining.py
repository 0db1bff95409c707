"""A server that says when no passage answers, on each of its routes, whole and streamed."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from btr.reader.answer import Span

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
SAID = "No passage answers this. (Best guess: Ada Berg)"


@pytest.fixture
def reader(reader: Any, kit: Any) -> Any:
    """A span reader that holds it for 25 % likely that no passage answers."""
    start = kit.TEXTS[2].index("ADA-BERG")
    reader.span = Span(1, start, start + 8)
    return reader


@pytest.fixture
def port(kit: Any, reader: Any) -> Iterator[int]:
    """A server that abstains where it is over 20 % likely."""
    with kit.serving(kit.make_desk(reader, no_answer_above=0.2)) as taken:
        yield taken


def complete(kit: Any, port: int, path: str, **more: Any) -> Any:
    asked = {"messages": [{"role": "user", "content": "Who?"}]} if path == CHAT else {"prompt": "Who?"}
    status, _, reply = kit.send(port, "POST", path, {"model": "double"} | asked | more)
    assert status == 200, reply
    return reply


def text(choice: dict[str, Any]) -> str:
    return choice["text"] if "text" in choice else choice.get("message", choice.get("delta")).get("content", "")


@pytest.mark.parametrize("evidence", [{}, {"ids": ["p0", "p1"]}, {"passages": [{"text": "One."}, {"text": "Two."}]}])
def test_answer_is_empty_beside_its_best_guess(kit: Any, port: int, reader: Any, evidence: Any) -> None:
    reader.span = Span(1, 0, 3)
    reply = kit.ask(port, **evidence)
    assert (reply["answer"], reply["best_guess"], reply["no_answer"]) == ("", "Ada Berg", 0.25)
    assert reply["citation"]["end"] == 3
    told = kit.ask(port, no_answer_above=0.25, **evidence)
    assert told["answer"] == "Ada Berg" and "best_guess" not in told
    assert "\nbtr_abstained_total 1.0\n" in kit.send(port, "GET", "/metrics")[2]


def test_batch_and_stream_abstain_too(kit: Any, port: int) -> None:
    questions = [{"question": "Who?"}, {"question": "Who?", "no_answer_above": 1.0}]
    items = kit.send(port, "POST", "/v1/answer/batch", {"questions": questions})[2]["results"]
    assert [(one["answer"]["answer"], one["answer"].get("best_guess")) for one in items] == [
        ("", "Ada Berg"), ("Ada Berg", None),
    ]  # fmt: skip
    stream = kit.send(port, "POST", "/v1/answer", {"question": "Who?", "stream": True})[2]
    last = json.loads(stream.rstrip().rpartition("data: ")[2])
    assert (last["answer"], last["best_guess"]) == ("", "Ada Berg")


@pytest.mark.parametrize("path", [CHAT, PLAIN])
def test_openai_routes_say_it_in_words_and_in_fields(kit: Any, port: int, path: str) -> None:
    whole = complete(kit, port, path)
    assert (text(whole["choices"][0]), whole["no_answer"], whole["best_guess"]) == (SAID, 0.25, "Ada Berg")
    assert whole["citations"][0]["quote"] == "ADA-BERG"
    lines = complete(kit, port, path, stream=True).splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(text(chunk["choices"][0]) for chunk in chunks) == SAID
    assert (chunks[-1]["no_answer"], chunks[-1]["best_guess"]) == (0.25, "Ada Berg")
    sure = complete(kit, port, path, no_answer_above=1)
    assert text(sure["choices"][0]) == "Ada Berg" and "best_guess" not in sure
    made = complete(kit, port, path, response_format={"type": "json_object"})
    assert (json.loads(text(made["choices"][0])), made["best_guess"]) == ({"answer": ""}, "Ada Berg")


@pytest.mark.parametrize(("own", "said"), [(None, "Ada Berg"), (0.2, ""), (0.25, "Ada Berg")])
def test_threshold_is_the_readers_unless_told(kit: Any, reader: Any, own: float | None, said: str) -> None:
    reader.no_answer_above = own
    with kit.serving(kit.make_desk(reader)) as port:
        assert kit.ask(port)["answer"] == said
        assert kit.send(port, "GET", "/info")[2]["no_answer_above"] == own
    with kit.serving(kit.make_desk(reader, no_answer_above=1.0)) as port:
        assert kit.ask(port)["answer"] == "Ada Berg"
        assert kit.send(port, "GET", "/info")[2]["no_answer_above"] == 1.0


@pytest.mark.parametrize("above", [-0.5, 1.5, "0.5", True])
def test_threshold_is_a_probability(kit: Any, port: int, above: Any) -> None:
    for path, asked in (("/v1/answer", {"question": "Who?"}), (PLAIN, {"model": "double", "prompt": "Who?"})):
        status, _, reply = kit.send(port, "POST", path, asked | {"no_answer_above": above})
        assert (status, reply["error"]["param"]) == (422, "no_answer_above")


def test_reader_that_knows_no_doubt_answers(kit: Any, port: int, reader: Any) -> None:
    reader.span = None
    assert kit.ask(port, no_answer_above=0.0)["answer"] == "Ada Berg"
