"""Whatever pydantic refuses is said in our words, and addresses and bodies are taken as clients write them."""

import json
from typing import Any

import pytest

from btr.serve.middleware import plain_path

QUESTION = '{"question": "Who?"}'
PYDANTIC = ("Input should", "Extra inputs", "Field required", "valid ", "function-", "[", "should have")
BODIES: dict[str, tuple[Any, ...]] = {
    "/v1/answer": (
        {}, {"question": 1}, {"top_k": 1.5}, {"ids": "p1"}, {"ids": [[]]}, {"mode": "x"}, {"merge_ratio": 2},
        {"merge_ratio": -1}, {"prune": "0"}, {"timeout": 0}, {"timeout": True}, {"stream": 1}, {"tpo_k": 1}, {"x": 1},
        {"passages": [1]}, {"passages": [{"id": [], "text": "x"}]}, {"passages": [{"id": 1.5, "text": {}}]},
        {"ids": ["p"] * 10_001}, {"question": "\ud800"}, {"top_k": None, "mode": 3},
    ),
    "/v1/answer/batch": ({}, {"questions": []}, {"questions": {}}, {"questions": ["Who?"]}, {"questions": [{}]}),
    "/v1/passages": ({}, {"passages": []}, {"passages": [{}]}, {"passages": [{"id": None, "text": ""}]}),
    "/v1/completions": ({"prompt": [1, 2]}, {"prompt": None}, {"prompt": "x", "model": 5}),
}  # fmt: skip


@pytest.mark.parametrize("path", BODIES)
def test_no_word_of_pydantic_reaches_a_client(kit: Any, reader: Any, path: str) -> None:
    with kit.serving(kit.make_desk(reader, max_body_bytes=1 << 20)) as port:
        for body in BODIES[path]:
            asked = {"question": "Who?"} | body if path == "/v1/answer" and body else body
            status, _, reply = kit.send(port, "POST", path, asked)
            said = reply["error"]["message"]
            assert status == 422 and not any(word in said for word in PYDANTIC), said
            assert "something else" not in said and reply["error"]["param"] in said


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"question": "Who?", "tpo_k": 1}, "tpo_k: there is no such field; did you mean top_k?"),
        ({"question": "Who?", "xyzzy": 1}, "xyzzy: there is no such field"),
        ({"question": "Who?", "top_k": "3"}, "top_k: a whole number is wanted, not '3'"),
        ({"question": "Who?", "prune": -1}, "prune: a number of at least 0 is wanted, not -1"),
        ({"question": "Who?", "merge_ratio": 2}, "merge_ratio: a number of at most 0.5 is wanted, not 2"),
        ('{"question": "Who?", "timeout": NaN}', "timeout: a number over 0 is wanted, not NaN"),
        ({"question": ["Who?"]}, "question: text is wanted, not a list of 1"),
        ({"question": "Who?", "mode": "x" * 50}, f"mode: 'full', 'float' or 'binary' is wanted, not '{'x' * 40}…'"),
        ({"question": None, "ids": 1}, "ids: a list is wanted, not 1; question: text is wanted, not null"),
        ("[]", "the body: an object is wanted, not a list of 0"),
        ('"Who?"', "the body: an object is wanted, not 'Who?'"),
        ("", "the body: it is missing"),
        ('{"question": }', "the body is not JSON (Expecting value, at character 13)"),
    ],
)
def test_fault_names_field_and_what_is_wanted(kit: Any, port: int, body: Any, said: str) -> None:
    status, _, reply = kit.send(port, "POST", "/v1/answer", body)
    assert (status, reply["error"]["message"]) == (422, said)


@pytest.mark.parametrize("body", ["[" * 9_000, b'{"question": "\xff"}', '{"top_k": ' + "1" * 5000 + "}"])
def test_body_that_python_cannot_read_is_told_why(kit: Any, port: int, body: Any) -> None:
    status, _, reply = kit.send(port, "POST", "/v1/answer", body)
    assert (status, reply["error"]["code"]) == (400, "bad_request")
    assert reply["error"]["message"].startswith("the body cannot be read: it is not UTF-8, nested too deeply")


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    "headers", [{"X-Any": "thing"}, {"Content-Type": FORM}, {"Content-Type": f"{FORM}; charset=x"}]
)
def test_body_without_its_type_is_json(kit: Any, port: int, headers: dict[str, str]) -> None:
    assert kit.send(port, "POST", "/v1/answer", QUESTION, headers)[0] == 200


@pytest.mark.parametrize("sender", [{"Origin": "https://elsewhere.example"}, {"Sec-Fetch-Site": "cross-site"}])
@pytest.mark.parametrize("kind", [{}, {"Content-Type": FORM}, {"Content-Type": "text/plain"}])
def test_page_elsewhere_cannot_have_a_browser_send_json_unasked(
    kit: Any, port: int, reader: Any, sender: dict[str, str], kind: dict[str, str]
) -> None:
    status, _, reply = kit.send(port, "POST", "/v1/answer", QUESTION, sender | kind)
    assert status == 422 and "send JSON, with Content-Type: application/json" in reply["error"]["message"]
    assert reader.asked == []


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("/", "/"), ("//", "/"), ("//v1/models", "/v1/models"), ("/v1//models/", "/v1/models"),
        ("/v1/passages/", "/v1/passages"), ("//v1//passages/a//b/", "/v1/passages/a//b/"),
        ("/v1/passages/https://example.org/", "/v1/passages/https://example.org/"),
        ("/v1/passages//x", "/v1/passages//x"),
    ],
)  # fmt: skip
def test_slashes_too_many_are_left_out_but_of_ids(path: str, plain: str) -> None:
    assert plain_path(path) == plain


def test_addresses_are_taken_as_clients_join_them(kit: Any, port: int) -> None:
    for path in ("/v1/models/", "//v1/models", "/v1//models//"):
        assert kit.send(port, "GET", path)[2]["data"][0]["id"] == "double"
    assert kit.send(port, "POST", "//v1/answer/", QUESTION)[0] == 200
    assert kit.send(port, "GET", "//v1/passages/p1")[2]["id"] == "p1"
    assert kit.send(port, "GET", "/v1/passages/p1/")[2]["error"]["code"] == "unknown_id"


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/embeddings", "/v1", "/chat/completions"])
def test_unknown_address_is_told_which_there_are(kit: Any, port: int, path: str) -> None:
    for method, body in (("POST", json.dumps({"input": "Who?"})), ("GET", None)):
        status, _, reply = kit.send(port, method, path, body)
        error = reply["error"]
        assert (status, error["type"], error["code"]) == (404, "not_found_error", "not_found")
        assert path in error["message"] and "/v1/chat/completions" in error["message"]


def test_wrong_method_is_told_the_right_one(kit: Any, port: int) -> None:
    status, headers, reply = kit.send(port, "GET", "/v1/chat/completions")
    assert (status, headers["allow"]) == (405, "POST")
    assert reply["error"]["message"] == "GET is not answered here; use POST"
