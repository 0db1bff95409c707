"""Answers that are told as they come: with a double first, then with a real, tiny T5."""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from btr.corpus import Passage
from btr.model.decoding import StepDecoder
from btr.precompute import __main__ as precompute
from btr.reader import Reader
from btr.serve import AnswerRequest, Dispatcher, OpenStore, Service, Settings
from btr.serve.queue import Job
from btr.serve.schema import AnswerResponse, RequestError
from btr.serve.streams import Ears, rest

ASKED = {"question": "Who?", "stream": True}


def events(response: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    """Yield the (name, data) of server-sent events as they come."""
    name = ""
    for line in iter(response.readline, b""):
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)
            name = ""


def begin(port: int, body: dict[str, Any], path: str = "/v1/answer") -> tuple[Any, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=900)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection, connection.getresponse()


def test_words_come_before_the_answer_is_done(port: int, reader: Any) -> None:
    reader.pieces = ("ada", " Be")
    reader.end.clear()
    connection, response = begin(port, ASKED)
    with closing(connection):
        assert (response.status, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert response.headers["x-request-id"] and response.headers["x-accel-buffering"] == "no"
        stream = events(response)
        said = [next(stream) for _ in range(3)]
        assert said[0][0] == "reading" and [p["id"] for p in said[0][1]["passages"]] == ["p3", "p2", "p1"]
        assert said[1:] == [("text", {"text": "ada"}), ("text", {"text": " Be"})]
        reader.end.set()
        [(name, reply)] = list(stream)
    assert name == "answer" and reply["answer"] == "Ada Berg" and reply["passages"] and reply["timings"]["total"] > 0


def test_end_of_an_openai_stream_says_what_is_left(kit: Any, port: int, reader: Any) -> None:
    reader.pieces = ("ada", " Be")
    body = {"model": "double", "prompt": "Who?", "stream": True}
    connection, response = begin(port, body, "/v1/completions")
    with closing(connection):
        lines = response.read().decode().split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert lines[-2:] == ["data: [DONE]", ""]
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["ada", " Be", "rg", ""]
    assert [len(chunk["citations"]) for chunk in chunks] == [3, 3, 3, 3]
    assert ["quote" in chunk["citations"][0] for chunk in chunks] == [False, False, True, True]


@pytest.mark.parametrize(
    ("answer", "said", "left"),
    [("Ada Berg", "", "Ada Berg"), ("Ada Berg", "ada b", "erg"), ("Ada", "ada", ""), ("Ada", "Bob", ""), ("", "", "")],
)
def test_rest_is_what_follows(answer: str, said: str, left: str) -> None:
    assert rest(answer, said) == left


def test_refused_before_it_begins_is_a_status_and_after_it_an_event(
    kit: Any, port: int, reader: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for body, status in (({"question": " "}, 400), ({"question": "?", "ids": ["q"]}, 404)):
        assert kit.send(port, "POST", "/v1/answer", ASKED | body)[0] == status
    assert kit.send(port, "POST", "/v1/answer/batch", {"questions": [ASKED]})[0] == 422

    def fail() -> None:
        raise RuntimeError("/secret/place")

    reader.during = fail
    connection, response = begin(port, ASKED)
    with closing(connection):
        *_, (name, reply) = list(events(response))
    assert (name, reply["error"]["code"]) == ("error", "internal_error") and "secret" not in json.dumps(reply)
    assert 'btr_errors_total{code="internal_error"} 1.0' in kit.send(port, "GET", "/metrics")[2]


def test_stream_that_outlasts_its_time_says_so(port: int, reader: Any) -> None:
    reader.pieces = ("Ada",)
    reader.end.clear()
    connection, response = begin(port, ASKED | {"timeout": 0.3})
    with closing(connection):
        names = [name if name != "error" else data["error"]["code"] for name, data in events(response)]
    reader.end.set()
    assert names == ["reading", "text", "deadline_exceeded"]


@pytest.fixture(scope="module")
def service(
    tiny_readers: dict[str, Reader], tiny_passages: list[Passage], tmp_path_factory: pytest.TempPathFactory
) -> Service:
    """A tiny T5, and a store of it."""
    folder = tmp_path_factory.mktemp("streams")
    lines = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in tiny_passages]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tiny_readers["1.1"].save_pretrained(folder / "t5")
    store = folder / "t5.btr"
    made = [str(folder / "corpus.jsonl"), "--reader", str(folder / "t5"), "--store", str(store)]
    assert precompute.main(made) == 0
    reader = Reader.from_pretrained(folder / "t5")
    return Service(reader, OpenStore.open(store, reader), Settings(store=store), model="t5")


def test_words_of_a_batch_go_to_who_asked(service: Service) -> None:
    asked = [AnswerRequest(question=q, ids=[i]) for q, i in (("salt", "p0"), ("?", "none"), ("Who eats fish?", "p1"))]
    told: list[list[tuple[str, Any]]] = [[] for _ in asked]

    def ear(n: int) -> Callable[[str, Any], None]:
        return lambda name, said: told[n].append((name, said))

    jobs = [Job(one, 1, 1, 0.0, time.monotonic() + 60, n, tell=ear(n)) for n, one in enumerate(asked)]
    replies = service.answer(asked, Ears(jobs))
    assert isinstance(replies[1], RequestError) and told[1] == []
    for n in (0, 2):
        reply = replies[n]
        assert isinstance(reply, AnswerResponse) and reply.batch == 2
        words = [said["text"] for name, said in told[n] if name == "text"]
        assert len(words) > 3 and rest(reply.answer, "".join(words)) == ""
        assert "".join(words).casefold() == reply.answer.casefold()
        phases = [said["phase"] for name, said in told[n] if name == "phase"]
        assert phases[-1] == "decode" and {"tokenize", "expand", "encode"} < set(phases)
    assert [said["passages"][0]["id"] for name, said in [*told[0], *told[2]] if name == "reading"] == ["p0", "p1"]


def test_openai_client_gets_a_t5_word_by_word(kit: Any, service: Service) -> None:
    openai = pytest.importorskip("openai", reason="the official client is not installed (pip install openai)")
    with (
        kit.serving(Dispatcher(service)) as port,
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
    ):
        call = {"model": "t5", "messages": [{"role": "user", "content": "What eats fish?"}], "max_tokens": 12}
        call["extra_body"] = {"ids": ["p0"]}
        whole = client.chat.completions.create(**call)
        chunks = list(client.chat.completions.create(**call, stream=True))
    words = [chunk.choices[0].delta.content for chunk in chunks]
    assert len(words) > 4 and words[-1] is None and chunks[-1].choices[0].finish_reason == "length"
    assert "".join(words[:-1]).casefold() == whole.choices[0].message.content.casefold()
    assert all(chunk.citations for chunk in chunks) and chunks[-1].citations == whole.citations


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_is_decoded_no_further_and_others_are(
    kit: Any, service: Service, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    steps, step = 0, StepDecoder.step

    def slow(self: StepDecoder, token: Any, t: int) -> Any:
        nonlocal steps
        steps += 1
        time.sleep(0.02)
        return step(self, token, t)

    monkeypatch.setattr(StepDecoder, "step", slow)
    dispatcher = Dispatcher(service)
    with kit.serving(dispatcher) as port, ThreadPoolExecutor() as pool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=900)
        sent = {"question": "What eats fish?", "ids": ["p0"], "stream": stream, "max_new_tokens": 128}
        connection.request("POST", "/v1/answer", json.dumps(sent), {"Content-Type": "application/json"})
        if stream:
            next(one for one in events(connection.getresponse()) if one[0] == "text")
        until = time.monotonic() + 60
        while not steps and time.monotonic() < until:
            time.sleep(0.01)
        connection.close()
        other = pool.submit(kit.ask, port, ids=["p0"], max_new_tokens=3)
        assert other.result()["answer_tokens"] == 3
        assert steps < 100 and "btr_abandoned_total 1.0" in kit.send(port, "GET", "/metrics")[2]
