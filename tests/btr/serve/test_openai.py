"""OpenAI's protocol, spoken by its own client."""

from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="the official client is not installed (pip install openai)")

from btr.reader.answer import Span  # noqa: E402


@pytest.fixture
def client(port: int) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as made:
        yield made


def said(text: Any, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": text}]


def test_chat_answers_with_citations(client: Any, reader: Any, kit: Any) -> None:
    history = [*said("Be brief.", "system"), *said("Hello"), *said("Hi", "assistant"), *said("Who built it?")]
    reply = client.chat.completions.create(model="double", messages=history, temperature=0.2, max_tokens=9)
    [choice] = reply.choices
    assert (choice.message.content, choice.finish_reason, reply.model) == ("Ada Berg", "stop", "double")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3 * kit.TOKENS, 2)
    assert [(c["id"], c["quote"]) for c in reply.citations] == [
        ("p2", "Ada\n Berg"),
        ("p2", "ADA-BERG"),
        ("p1", "Ada Berg"),
    ]
    assert reader.asked[-1][0] == "Who built it?" and reader.asked[-1][3] == 9


def test_quotation_is_the_first_citation(client: Any, reader: Any, kit: Any) -> None:
    start = kit.TEXTS[2].index("ADA-BERG")
    reader.span = Span(1, start, start + 8)
    reply = client.chat.completions.create(model="double", messages=said("Who?"))
    assert (reply.citations[0]["id"], reply.citations[0]["start"]) == ("p2", start)


def test_answer_that_stands_nowhere_cites_what_was_looked_at(client: Any) -> None:
    reply = client.chat.completions.create(model="double", messages=said("Who?"), extra_body={"ids": ["p0", "p3"]})
    assert [(c["id"], "start" in c) for c in reply.citations] == [("p3", False)]


def test_stream_ends_and_cites_in_every_chunk(client: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model="double", messages=said([{"type": "text", "text": "Who?"}]), stream=True, max_completion_tokens=2,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Ada Berg"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices] == [None, "length"]
    assert chunks[-1].usage.completion_tokens == 2 and len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.citations[0]["id"] == "p2" for chunk in chunks)


def test_completion_whole_and_streamed(client: Any) -> None:
    whole = client.completions.create(model="double", prompt=["Who?"], max_tokens=30)
    assert (whole.choices[0].text, whole.object, whole.citations[0]["id"]) == ("Ada Berg", "text_completion", "p2")
    chunks = list(client.completions.create(model="double", prompt="Who?", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Ada Berg" and chunks[-1].citations


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["double"]
    assert client.models.retrieve("double").owned_by == "btr"


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        ({"model": "other", "messages": said("Who?")}, openai.NotFoundError, "model_not_found"),
        ({"model": "double", "messages": said("Who?"), "n": 2}, openai.BadRequestError, "unsupported"),
        ({"model": "double", "messages": said("Who?", "system")}, openai.BadRequestError, "no_question"),
        ({"model": "double", "messages": said(None)}, openai.BadRequestError, "blank_question"),
        ({"model": "double", "messages": said([{"type": "image_url"}])}, openai.BadRequestError, "unsupported_content"),
        ({"model": "double", "messages": said("x" * 300)}, openai.APIStatusError, "too_large"),
        ({"model": "double", "messages": []}, openai.UnprocessableEntityError, "malformed"),
    ],
)  # fmt: skip
def test_refusals_are_the_client_s_own_errors(client: Any, call: dict[str, Any], error: type, code: str) -> None:
    with pytest.raises(error) as refused:
        client.chat.completions.create(**call)
    assert refused.value.code == code


def test_wrong_key_is_an_authentication_error(kit: Any, reader: Any, tmp_path: Any) -> None:
    from btr.serve.keys import Keys

    (tmp_path / "keys").write_text("# the front end\nk" + "1" * 20 + "\n", encoding="utf-8")
    with kit.serving(kit.make_desk(reader, keys=Keys.read(tmp_path / "keys"))) as port:
        for key, right in (("k" + "1" * 20, True), ("k" + "1" * 19, False), ("", False)):
            with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key or "x", max_retries=0) as client:
                if right:
                    assert client.models.list().data[0].id == "double"
                else:
                    with pytest.raises(openai.AuthenticationError):
                        client.models.list()


@pytest.mark.parametrize("bound", [{"max_tokens": 32_000}, {"max_tokens": -1}, {"max_completion_tokens": 2048}])
def test_bounds_over_the_server_s_are_its_own(client: Any, reader: Any, bound: dict[str, int]) -> None:
    client.chat.completions.create(model="double", messages=said("Who?"), **bound)
    assert reader.asked[-1][3] == 64


@pytest.mark.parametrize("stream", [False, True])
def test_chat_says_where_there_is_nothing_to_read(client: Any, stream: bool) -> None:
    reply = client.chat.completions.create(model="double", messages=said("xyzzy"), stream=stream)
    if stream:
        chunks = list(reply)
        text, last = "".join(chunk.choices[0].delta.content or "" for chunk in chunks), chunks[-1]
    else:
        text, last = reply.choices[0].message.content, reply
    assert text == "No passage shares a word with the question."
    assert (last.no_answer, last.citations) == (1.0, [])
