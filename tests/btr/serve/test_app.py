"""The server's own API, over a real loopback socket, with doubles for the reader, the store and the index."""

import http.client
import json
import re
import threading
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from btr.corpus import Passage
from btr.errors import InputError
from btr.reader.answer import Span
from btr.serve import OpenStore
from btr.serve.service import EXAMPLES

ROOT = Path(__file__).resolve().parents[3]


def test_kept_connection_is_answered_without_delay(kit: Any, port: int) -> None:
    connection, took = http.client.HTTPConnection("127.0.0.1", port), []
    for _ in range(20):
        began = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        took.append(time.perf_counter() - began)
    connection.close()
    assert min(took[5:]) < 0.02  # 0.04 where head and body wait for one another


def test_answer_cites_its_passages_most_evidence_first(kit: Any, port: int) -> None:
    reply = kit.ask(port, question="  Who built the lighthouse? ")
    assert (reply["answer"], reply["score"], reply["mode"], reply["model"]) == ("Ada Berg", -0.25, "binary", "double")
    assert [passage["id"] for passage in reply["passages"]] == ["p2", "p3", "p1"]
    best = reply["passages"][0]
    assert (best["title"], best["text"], best["retrieval_score"]) == (kit.TITLES[2], kit.TEXTS[2], 12.0)
    assert best["evidence"] == pytest.approx(0.6)
    assert [kit.TEXTS[2][start:end] for start, end in best["highlights"]] == ["Ada\n Berg", "ADA-BERG"]
    assert reply["passages"][1]["highlights"] == []


def test_citations_are_bounded_whatever_is_sent(kit: Any, reader: Any) -> None:
    passages = [{"id": f"i{n}" * 1000, "title": "t" * 5000, "text": "Ada Berg. " * 500} for n in range(20)]
    asked = {"model": "double", "messages": [{"role": "user", "content": "Who?"}], "passages": passages}
    reader.pieces = ("Ada", " Berg")
    with kit.serving(kit.make_desk(reader)) as port:
        whole = kit.send(port, "POST", "/v1/chat/completions", asked)[2]
        streamed = kit.send(port, "POST", "/v1/chat/completions", asked | {"stream": True})[2]
    assert 1 <= len(whole["citations"]) <= 1 << 4 and len(json.dumps(whole["citations"])) < 1 << 17
    assert "[DONE]" in streamed and max(map(len, streamed.splitlines())) < 1 << 17


def test_quotation_is_cited_by_its_place(kit: Any, port: int, reader: Any) -> None:
    assert not {"citation", "no_answer"} & kit.ask(port).keys()
    start = kit.TEXTS[2].index("ADA-BERG")
    reader.span = Span(1, start, start + 3)  # in the second passage read, p2: part of one of two occurrences
    try:
        reply = kit.ask(port)
    finally:
        reader.span = None
    assert reply["citation"] == {"id": "p2", "start": start, "end": start + 3} and reply["no_answer"] == 0.25
    best = reply["passages"][0]
    assert [kit.TEXTS[2][start:end] for start, end in best["highlights"]] == ["Ada\n Berg", "ADA"]


def test_answer_says_what_it_cost(kit: Any, port: int) -> None:
    reply = kit.ask(port)
    assert list(reply["timings"]) == [
        "queue", "retrieve", "load", "tokenize", "expand", "look", "encode", "merge", "decode", "total",
    ]  # fmt: skip
    assert reply["timings"]["encode"] == 0.003
    assert all(seconds > 0 for seconds in reply["timings"].values())
    assert (reply["tokens_read"], reply["bits_read"]) == (3 * kit.TOKENS, 3 * kit.TOKENS * kit.D)


def test_question_reaches_the_reader_as_asked(kit: Any, port: int, reader: Any) -> None:
    kit.ask(port, question=" Who? ", max_new_tokens=7, top_k=2)
    question, source, mode, max_new_tokens = reader.asked[-1]
    assert (question, source.ids, mode, max_new_tokens) == ("Who?", ("p3", "p2"), "binary", 7)


def test_ids_are_read_once_each_and_have_no_retrieval_score(kit: Any, port: int, reader: Any) -> None:
    reply = kit.ask(port, ids=["p1", "p0", "p1"])
    assert reader.asked[-1][1].ids == ("p1", "p0")
    assert {passage["id"]: "retrieval_score" in passage for passage in reply["passages"]} == {"p0": False, "p1": False}


def test_store_without_index_reads_what_is_named(kit: Any, reader: Any) -> None:
    dispatcher = kit.make_desk(reader)
    dispatcher.service.opened = OpenStore(dispatcher.service.opened.store, None)
    dispatcher.service.warm_up()
    with kit.serving(dispatcher) as port:
        assert kit.ask(port, ids=["p0"])["answer"] == "Ada Berg"
        status, _, reply = kit.send(port, "POST", "/v1/answer", '{"question": "Who?"}')
    assert (status, reply["error"]["code"]) == (400, "no_index")


def test_inline_passages_go_to_the_reader_as_text(kit: Any, port: int, reader: Any) -> None:
    reply = kit.ask(port, passages=[{"text": "Ada Berg."}, {"id": "x", "title": "T", "text": "No one."}])
    assert reader.asked[-1][1] == (Passage("1", "", "Ada Berg."), Passage("x", "T", "No one."))
    assert [passage["highlights"] for passage in reply["passages"]] == [[], [[0, 8]]]
    assert (reply["timings"]["retrieve"], reply["timings"]["load"]) == (0, 0)


@pytest.mark.parametrize("mode", ["float", "full"])
def test_other_modes_read_the_stored_texts(kit: Any, port: int, reader: Any, mode: str) -> None:
    reply = kit.ask(port, mode=mode, ids=["p3"])
    assert reader.asked[-1][1:3] == ((Passage("p3", kit.TITLES[3], kit.TEXTS[3]),), mode)
    assert (reply["mode"], reply["bits_read"], reply["tokens_read"]) == (mode, 0, kit.TOKENS)


def test_mode_of_the_server_is_the_default(kit: Any, reader: Any) -> None:
    with kit.serving(kit.make_desk(reader, mode="full")) as port:
        assert kit.ask(port)["mode"] == "full"
        assert 'data-mode="full"' in kit.send(port, "GET", "/")[2]


def test_store_without_text_can_only_be_read_as_bits(kit: Any, reader: Any) -> None:
    with kit.serving(kit.make_desk(reader, texts=[""] * 4)) as port:
        assert [passage["text"] for passage in kit.ask(port)["passages"]] == ["", "", ""]
        status, _, reply = kit.send(port, "POST", "/v1/answer", '{"question": "Who?", "mode": "float"}')
    assert (status, reply["error"]["code"]) == (400, "mode_unavailable")
    assert "no text" in reply["error"]["message"] and "binary" in reply["error"]["message"]


PLAIN = {"text": "x"}
REFUSED = [
    ({"question": " \n"}, 400, "blank_question", "blank"),
    ({"ids": ["p0"], "passages": [PLAIN]}, 400, "conflict", "not ids and passages"),
    ({"ids": ["p0"], "top_k": 1}, 400, "conflict", "not top_k and ids"),
    ({"top_k": 0}, 400, "out_of_range", "top_k must be 1 to 3, not 0"),
    ({"top_k": 4}, 400, "out_of_range", "not 4"),
    ({"ids": []}, 400, "out_of_range", "not 0"),
    ({"passages": [PLAIN] * 4}, 400, "out_of_range", "passages must be of length 1 to 3, not 4"),
    ({"max_new_tokens": 65}, 400, "out_of_range", "max_new_tokens must be 1 to 64, not 65"),
    ({"passages": [{"text": None}, {"text": " "}]}, 400, "blank_passage", "every passage"),
    ({"ids": ["p0", "p9"]}, 404, "unknown_id", "p9"),
    ({"question": None}, 422, "malformed", "question: "),
    ({"top_k": "3"}, 422, "malformed", "top_k: "),
    ({"top_k": True}, 422, "malformed", "top_k: "),
    ({"passages": [{"title": "T"}]}, 422, "malformed", "passages.0.text: "),
    ({"mode": "fast"}, 422, "malformed", "'binary'"),
    ({"topk": 3}, 422, "malformed", "topk: "),
    ({"question": "\ud800"}, 422, "malformed", "question: "),
    ({"passages": [{"text": "x\udfff"}]}, 422, "malformed", "passages.0.text: "),
]


@pytest.mark.parametrize(("request_", "status", "code", "part"), REFUSED)
def test_bad_request_is_told_why(
    kit: Any, port: int, request_: dict[str, Any], status: int, code: str, part: str
) -> None:
    got, headers, reply = kit.send(port, "POST", "/v1/answer", {"question": "Who?"} | request_)
    error = reply["error"]
    assert (got, sorted(error), error["code"]) == (status, ["code", "message", "param", "type"], code)
    assert part in error["message"] and "/secret" not in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("body", "kind"), [("{", "application/json"), ("[]", "application/json"), ('{"question": "Who?"}', "text/plain")]
)
def test_body_that_is_no_request_is_malformed(kit: Any, port: int, body: str, kind: str) -> None:
    status, _, reply = kit.send(port, "POST", "/v1/answer", body, {"Content-Type": kind})
    assert (status, reply["error"]["code"]) == (422, "malformed")


def test_deep_nesting_is_no_server_error(kit: Any, port: int) -> None:
    status, _, reply = kit.send(port, "POST", "/v1/answer", "[" * 9_000)
    assert (status // 100, reply["error"]["type"]) == (4, "invalid_request_error")


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_refused(kit: Any, port: int, chunked: bool) -> None:
    text = json.dumps({"question": "Who?", "passages": [{"text": "x" * 10_000}]}).encode()
    status, _, reply = kit.send(port, "POST", "/v1/answer", iter([text[:9_000], text[9_000:]]) if chunked else text)
    assert (status, reply["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2", 404, "not_found"),
        ("GET", "/v1/answer", 405, "method_not_allowed"),
    ],
)
def test_wrong_address_has_the_same_shape(kit: Any, port: int, method: str, path: str, status: int, code: str) -> None:
    got, _, reply = kit.send(port, method, path)
    assert (got, reply["error"]["code"]) == (status, code)


def test_refusal_by_the_reader_is_passed_on(kit: Any, port: int, reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise InputError("the question has 83 tokens, over 40")

    monkeypatch.setattr(reader, "during", refuse)
    status, _, reply = kit.send(port, "POST", "/v1/answer", '{"question": "Who?"}')
    assert (status, reply["error"]["message"]) == (400, "the question has 83 tokens, over 40")


def test_failure_tells_nothing_to_the_outside(
    kit: Any, port: int, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "during", lambda: Path("/secret/place").read_text(encoding="utf-8"))
    status, headers, reply = kit.send(port, "POST", "/v1/answer", '{"question": "Who?"}')
    assert (status, reply["error"]["type"], reply["error"]["code"]) == (500, "server_error", "internal_error")
    assert "secret" not in json.dumps(reply) and "default-src 'none'" in headers["content-security-policy"]


def test_health_answers_while_the_reader_reads(
    kit: Any, port: int, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = threading.Event()
    monkeypatch.setattr(reader, "during", reading.set)
    reader.gate.clear()
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(kit.ask, port)
        try:
            assert reading.wait(kit.WAIT)
            assert kit.send(port, "GET", "/health")[2] == {"status": "ok"}
            assert not slow.done()
        finally:
            reader.gate.set()
        assert slow.result()["answer"] == "Ada Berg"


def test_questions_are_read_one_at_a_time(kit: Any, port: int, reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Lock()

    def overlap() -> None:
        assert inside.acquire(blocking=False)
        time.sleep(0.02)
        inside.release()

    monkeypatch.setattr(reader, "during", overlap)
    with ThreadPoolExecutor(4) as pool:
        assert {reply["answer"] for reply in pool.map(lambda _: kit.ask(port), range(4))} == {"Ada Berg"}


def test_page_allows_its_own_script_and_nothing_else(kit: Any, port: int) -> None:
    status, headers, page = kit.send(port, "GET", "/")
    policy = headers["content-security-policy"]
    assert status == 200 and policy.startswith("default-src 'none';") and "unsafe" not in policy
    for tag in ("script", "style"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert f"{tag}-src 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" in policy
    unwanted = r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|insertAdjacentHTML|document\.write| style=| on\w+="
    assert re.findall(unwanted, page) == []


def test_page_carries_the_examples_escaped(kit: Any, reader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("btr.serve.service.EXAMPLES", {"Who is </script>\"'& she?": "p0"})
    with kit.serving(kit.make_desk(reader)) as port:
        page = kit.send(port, "GET", "/")[2]
    assert 'data-examples="[&quot;Who is &lt;/script&gt;\\&quot;&#x27;&amp; she?&quot;]"' in page


def test_page_has_no_examples_for_another_corpus(kit: Any, port: int) -> None:
    assert 'data-examples="[]"' in kit.send(port, "GET", "/")[2]


def test_examples_are_questions_of_the_sample_corpus() -> None:
    lines = (ROOT / "corpus" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    asked = {record["question"]: record["passage"] for record in map(json.loads, lines)}
    assert {question: asked.get(question) for question in EXAMPLES} == EXAMPLES


def test_question_that_nothing_shares_a_word_with_is_answered(kit: Any, port: int, reader: Any) -> None:
    reply = kit.ask(port, question="xyzzy")
    assert (reply["answer"], reply["passages"], reply["no_answer"], reply["read"]) == ("", [], 1.0, 0)
    assert "python -m btr.retrieve build" in reply["hint"]
    assert reader.asked == []


def test_passages_are_taken_as_files_have_them(kit: Any, port: int, reader: Any) -> None:
    given = [
        {"id": 7, "title": None, "text": "Ada.", "score": "81.5", "has_answer": True},
        {"text": ""},
        {"id": 8.0, "title": 1984, "text": "Berg."},
    ]
    reply = kit.ask(port, passages=given)
    assert reader.asked[-1][1] == (Passage("7", "", "Ada."), Passage("8", "1984", "Berg."))
    assert len(reply["passages"]) == 2


def test_end_of_a_long_question_is_read(kit: Any, port: int, reader: Any) -> None:
    reader.longest = 3
    assert kit.ask(port, question="  Thanks a lot. Now: who built it? ")["question_cut"] is True
    assert reader.asked[-1][0] == "who built it?"
    assert kit.ask(port, question="Who built it?")["question_cut"] is False
