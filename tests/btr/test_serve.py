"""The server, over a real loopback socket, with doubles for the reader, the store and the index."""

import http.client
import json
import re
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn

from btr.answer import Span
from btr.corpus import Passage
from btr.errors import InputError
from btr.serve import Limits, Service, create_app
from btr.serve.service import EXAMPLES
from btr.storage import Encoded, UnknownId

ROOT = Path(__file__).resolve().parents[2]
D = 64
TOKENS = 5  # per passage
WAIT = 60  # seconds, for what takes milliseconds on a machine with nothing else to do
TITLES = ("Tides", "Harbours", "Lighthouses", "Winds")
TEXTS = (
    "The moon raises the tides.",
    "A harbour wall, drawn by Ada Berg, keeps the swell out.",
    "Ada\n Berg built the first lighthouse; ADA-BERG lamps 🚢 followed. <script>alert(1)</script>",
    "The trade winds blow from the east.",
)


def make_encoded(ordinals: Sequence[int], texts: Sequence[str]) -> Encoded:
    count = len(ordinals) * TOKENS
    return Encoded(
        fingerprint="f" * 16,
        D=D,
        ids=tuple(f"p{i}" for i in ordinals),
        titles=tuple(TITLES[i] for i in ordinals),
        texts=tuple(texts[i] for i in ordinals),
        lengths=np.full(len(ordinals), TOKENS, np.int32),
        token_ids=np.zeros(count, np.uint32),
        scale=np.ones(count, np.float16),
        packed=np.zeros((count, 1), np.uint64),
        states=None,
    )


class FakeStore:
    """Hold the four passages above."""

    def __init__(self, texts: Sequence[str] = TEXTS) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __enter__(self) -> "FakeStore":
        return self

    def __exit__(self, *error: object) -> None:
        self.texts = ()

    def ids(self) -> Iterator[str]:
        return (f"p{i}" for i in range(len(self)))

    def at(self, ordinals: Sequence[int]) -> Encoded:
        return make_encoded(ordinals, self.texts)

    def get(self, ids: Sequence[str]) -> Encoded:
        known = list(self.ids())
        unknown = [name for name in ids if name not in known]
        if unknown:
            raise UnknownId(f"no passage {unknown[0]!r} in /secret/place", tuple(unknown))
        return self.at([known.index(name) for name in ids])


class FakeIndex:
    """Find the passages in the order 3 2 1 0, and none for a question of strange words."""

    def search(self, questions: Sequence[str], top: int) -> list[tuple[np.ndarray, np.ndarray]]:
        found = [] if "xyzzy" in questions[0] else [3, 2, 1, 0][:top]
        return [(np.array(found, np.int64), np.array(found, np.float32) + 10) for _ in questions]


class FakeReader:
    """Answer "Ada Berg", with most evidence in the passage that comes second; keep what it was asked."""

    D = D
    name = "double"
    fingerprint = "f" * 16

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, str, int]] = []
        self.span: Span | None = None
        self.during: Callable[[], object] = lambda: None
        self.gate = threading.Event()
        self.gate.set()

    def answer(self, question: str, source: Any, mode: str = "binary", max_new_tokens: int = 32) -> SimpleNamespace:
        self.asked.append((question, source, mode, max_new_tokens))
        self.during()
        assert self.gate.wait(WAIT)
        count = len(source)
        evidence = np.full(count, 0.4 / max(count - 1, 1), np.float32)
        evidence[min(1, count - 1)] = 0.6
        timings = {"tokenize": 0.001, "expand": 0.002, "encode": 0.003, "project": 0.004, "decode": 0.005}
        attention = [np.zeros(TOKENS, np.float32)] * count
        return SimpleNamespace(
            text="Ada Berg", score=-0.25, timings=timings, mode=mode, evidence=evidence, token_evidence=attention,
            span=self.span, no_answer=None if self.span is None else 0.25,
        )  # fmt: skip


@contextmanager
def serving(service: Service) -> Iterator[int]:
    """Serve on a free loopback port from a thread, and give the port."""
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_level="critical", lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield bound.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def reader() -> FakeReader:
    return FakeReader()


@pytest.fixture(scope="module")
def port(reader: FakeReader) -> Iterator[int]:
    limits = Limits(body_bytes=10_000, passages=3, new_tokens=64)
    with serving(make_service(reader, limits=limits)) as taken:
        yield taken


def make_service(reader: FakeReader, texts: Sequence[str] = TEXTS, **settings: Any) -> Service:
    doubles: Any = (reader, FakeStore(texts), FakeIndex())
    return Service(*doubles, model="double", **({"top": 3} | settings))


def send(port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """Return (status, headers, parsed JSON or text) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        connection.request(method, path, body, headers or {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        parsed = json.loads(text) if response.headers["content-type"].startswith("application/json") else text
        return response.status, response.headers, parsed
    finally:
        connection.close()


def ask(port: int, **request: Any) -> dict[str, Any]:
    status, _, reply = send(port, "POST", "/v1/answer", json.dumps({"question": "Who?"} | request))
    assert status == 200, reply
    return reply


def test_answer_cites_its_passages_most_evidence_first(port: int) -> None:
    reply = ask(port, question="  Who built the lighthouse? ")
    assert (reply["answer"], reply["score"], reply["mode"], reply["model"]) == ("Ada Berg", -0.25, "binary", "double")
    assert [passage["id"] for passage in reply["passages"]] == ["p2", "p3", "p1"]
    best = reply["passages"][0]
    assert (best["title"], best["text"], best["retrieval_score"]) == (TITLES[2], TEXTS[2], 12.0)
    assert best["evidence"] == pytest.approx(0.6)
    assert [TEXTS[2][start:end] for start, end in best["highlights"]] == ["Ada\n Berg", "ADA-BERG"]
    assert reply["passages"][1]["highlights"] == []


def test_quotation_is_cited_by_its_place(port: int, reader: FakeReader) -> None:
    assert not {"citation", "no_answer"} & ask(port).keys()
    start = TEXTS[2].index("ADA-BERG")
    reader.span = Span(1, start, start + 3)  # in the second passage read, p2: part of one of two occurrences
    try:
        reply = ask(port)
    finally:
        reader.span = None
    assert reply["citation"] == {"id": "p2", "start": start, "end": start + 3} and reply["no_answer"] == 0.25
    best = reply["passages"][0]
    assert [TEXTS[2][start:end] for start, end in best["highlights"]] == ["Ada\n Berg", "ADA"]


def test_answer_says_what_it_cost(port: int) -> None:
    reply = ask(port)
    assert list(reply["timings"]) == [
        "retrieve", "load", "tokenize", "expand", "encode", "project", "decode", "total",
    ]  # fmt: skip
    assert reply["timings"]["encode"] == 0.003
    assert all(seconds > 0 for seconds in reply["timings"].values())
    assert (reply["tokens_read"], reply["bits_read"]) == (3 * TOKENS, 3 * TOKENS * D)


def test_question_reaches_the_reader_as_asked(port: int, reader: FakeReader) -> None:
    ask(port, question=" Who? ", max_new_tokens=7, top_k=2)
    question, source, mode, max_new_tokens = reader.asked[-1]
    assert (question, source.ids, mode, max_new_tokens) == ("Who?", ("p3", "p2"), "binary", 7)


def test_ids_are_read_once_each_and_have_no_retrieval_score(port: int, reader: FakeReader) -> None:
    reply = ask(port, ids=["p1", "p0", "p1"])
    assert reader.asked[-1][1].ids == ("p1", "p0")
    assert {passage["id"]: "retrieval_score" in passage for passage in reply["passages"]} == {"p0": False, "p1": False}


def test_store_without_index_reads_what_is_named(reader: FakeReader) -> None:
    service = make_service(reader)
    service.index = None
    service.warm_up()
    with serving(service) as port:
        assert ask(port, ids=["p0"])["answer"] == "Ada Berg"
        status, _, reply = send(port, "POST", "/v1/answer", '{"question": "Who?"}')
    assert (status, reply["error"]["code"]) == (400, "no_index")


def test_inline_passages_go_to_the_reader_as_text(port: int, reader: FakeReader) -> None:
    reply = ask(port, passages=[{"text": "Ada Berg."}, {"id": "x", "title": "T", "text": "No one."}])
    assert reader.asked[-1][1] == (Passage("1", "", "Ada Berg."), Passage("x", "T", "No one."))
    assert [passage["highlights"] for passage in reply["passages"]] == [[], [[0, 8]]]
    assert (reply["timings"]["retrieve"], reply["timings"]["load"]) == (0, 0)


@pytest.mark.parametrize("mode", ["float", "full"])
def test_other_modes_read_the_stored_texts(port: int, reader: FakeReader, mode: str) -> None:
    reply = ask(port, mode=mode, ids=["p3"])
    assert reader.asked[-1][1:3] == ((Passage("p3", TITLES[3], TEXTS[3]),), mode)
    assert (reply["mode"], reply["bits_read"], reply["tokens_read"]) == (mode, 0, TOKENS)


def test_mode_of_the_server_is_the_default(reader: FakeReader) -> None:
    with serving(make_service(reader, mode="full")) as port:
        assert ask(port)["mode"] == "full"
        assert 'data-mode="full"' in send(port, "GET", "/")[2]


def test_store_without_text_can_only_be_read_as_bits(reader: FakeReader) -> None:
    with serving(make_service(reader, texts=[""] * 4)) as port:
        assert [passage["text"] for passage in ask(port)["passages"]] == ["", "", ""]
        status, _, reply = send(port, "POST", "/v1/answer", '{"question": "Who?", "mode": "float"}')
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
    ({"passages": [PLAIN, {"text": " "}]}, 400, "blank_passage", "passage 2"),
    ({"ids": ["p0", "p9"]}, 404, "unknown_id", "p9"),
    ({"question": "xyzzy"}, 404, "no_passages", "no passage"),
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
def test_bad_request_is_told_why(port: int, request_: dict[str, Any], status: int, code: str, part: str) -> None:
    got, headers, reply = send(port, "POST", "/v1/answer", json.dumps({"question": "Who?"} | request_))
    error = reply["error"]
    assert (got, sorted(error), error["code"]) == (status, ["code", "message", "type"], code)
    assert part in error["message"] and "/secret" not in error["message"]
    assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("body", "kind"), [("{", "application/json"), ("[]", "application/json"), ('{"question": "Who?"}', "text/plain")]
)
def test_body_that_is_no_request_is_malformed(port: int, body: str, kind: str) -> None:
    status, _, reply = send(port, "POST", "/v1/answer", body, {"Content-Type": kind})
    assert (status, reply["error"]["code"]) == (422, "malformed")


def test_deep_nesting_is_no_server_error(port: int) -> None:
    status, _, reply = send(port, "POST", "/v1/answer", "[" * 9_000)
    assert (status // 100, reply["error"]["type"]) == (4, "invalid_request_error")


@pytest.mark.parametrize("chunked", [False, True])
def test_body_over_the_limit_is_refused(port: int, chunked: bool) -> None:
    text = json.dumps({"question": "Who?", "passages": [{"text": "x" * 10_000}]}).encode()
    status, _, reply = send(port, "POST", "/v1/answer", iter([text[:9_000], text[9_000:]]) if chunked else text)
    assert (status, reply["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/v1/answer", 405, "method_not_allowed"),
    ],
)
def test_wrong_address_has_the_same_shape(port: int, method: str, path: str, status: int, code: str) -> None:
    got, _, reply = send(port, method, path)
    assert (got, reply["error"]["code"]) == (status, code)


def test_refusal_by_the_reader_is_passed_on(port: int, reader: FakeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise InputError("the question has 83 tokens, over 40")

    monkeypatch.setattr(reader, "during", refuse)
    status, _, reply = send(port, "POST", "/v1/answer", '{"question": "Who?"}')
    assert (status, reply["error"]["message"]) == (400, "the question has 83 tokens, over 40")


def test_failure_tells_nothing_to_the_outside(port: int, reader: FakeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "during", lambda: Path("/secret/place").read_text(encoding="utf-8"))
    status, headers, reply = send(port, "POST", "/v1/answer", '{"question": "Who?"}')
    assert (status, reply["error"]["type"], reply["error"]["code"]) == (500, "server_error", "internal_error")
    assert "secret" not in json.dumps(reply) and "default-src 'none'" in headers["content-security-policy"]


def test_health_answers_while_the_reader_reads(port: int, reader: FakeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = threading.Event()
    monkeypatch.setattr(reader, "during", reading.set)
    reader.gate.clear()
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(ask, port)
        try:
            assert reading.wait(WAIT)
            assert send(port, "GET", "/health")[2] == {"status": "ok", "model": "double", "passages": 4}
            assert not slow.done()
        finally:
            reader.gate.set()
        assert slow.result()["answer"] == "Ada Berg"


def test_questions_are_read_one_at_a_time(port: int, reader: FakeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = threading.Lock()

    def overlap() -> None:
        assert inside.acquire(blocking=False)
        time.sleep(0.02)
        inside.release()

    monkeypatch.setattr(reader, "during", overlap)
    with ThreadPoolExecutor(4) as pool:
        assert {reply["answer"] for reply in pool.map(lambda _: ask(port), range(4))} == {"Ada Berg"}


def test_page_allows_its_own_script_and_nothing_else(port: int) -> None:
    status, headers, page = send(port, "GET", "/")
    policy = headers["content-security-policy"]
    assert status == 200 and policy.startswith("default-src 'none';") and "unsafe" not in policy
    for tag in ("script", "style"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert f"{tag}-src 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" in policy
    unwanted = r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|insertAdjacentHTML|document\.write| style=| on\w+="
    assert re.findall(unwanted, page) == []


def test_page_carries_the_examples_escaped(reader: FakeReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("btr.serve.service.EXAMPLES", {"Who is </script>\"'& she?": "p0"})
    with serving(make_service(reader)) as port:
        page = send(port, "GET", "/")[2]
    assert 'data-examples="[&quot;Who is &lt;/script&gt;\\&quot;&#x27;&amp; she?&quot;]"' in page


def test_page_has_no_examples_for_another_corpus(port: int) -> None:
    assert 'data-examples="[]"' in send(port, "GET", "/")[2]


def test_examples_are_questions_of_the_sample_corpus() -> None:
    lines = (ROOT / "corpus" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    asked = {record["question"]: record["passage"] for record in map(json.loads, lines)}
    assert {question: asked.get(question) for question in EXAMPLES} == EXAMPLES
