"""What an operator sees: readiness, metrics, keys, ids of requests, reloads, and work that nobody waits for."""

import http.client
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from btr.errors import InputError
from btr.serve import OpenStore
from btr.serve.keys import Keys
from btr.serve.logs import JsonLines
from btr.serve.middleware import SPARE
from btr.storage import NotAStore


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for another thread."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def metric(kit: Any, port: int, line: str) -> float:
    """Return a number of /metrics; 0 where it was never counted."""
    found = re.search(rf"^{re.escape(line)} (\S+)$", kit.send(port, "GET", "/metrics")[2], re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.fixture
def busy(kit: Any, port: int, reader: Any, dispatcher: Any) -> Any:
    """Shut the gate while a first question is being read, and open it at the end."""
    reader.gate.clear()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(kit.ask, port)
        wait_until(lambda: dispatcher.queue.reading == 1)
        yield pool
        reader.gate.set()
        assert first.result()["answer"] == "Ada Berg"


def test_full_queue_is_429_and_says_when(kit: Any, port: int, dispatcher: Any, busy: Any) -> None:
    dispatcher.queue.size = 1
    waiting = busy.submit(kit.ask, port)
    wait_until(lambda: len(dispatcher.queue) == 1)
    status, headers, reply = kit.send(port, "POST", "/v1/answer", {"question": "Who?"})
    assert (status, reply["error"]["code"], reply["error"]["type"]) == (429, "queue_full", "rate_limit_error")
    assert int(headers["retry-after"]) >= 1
    assert kit.send(port, "GET", "/ready")[0] == 200
    assert metric(kit, port, 'btr_errors_total{code="queue_full"}') == 1
    assert metric(kit, port, "btr_queue_depth") == 1
    dispatcher.service.reader.gate.set()
    assert waiting.result()["timings"]["queue"] > 0


def test_question_whose_client_left_is_not_read(kit: Any, port: int, dispatcher: Any, reader: Any, busy: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/answer", '{"question": "Left?"}', {"Content-Type": "application/json"})
    wait_until(lambda: len(dispatcher.queue) == 1)
    connection.close()
    wait_until(lambda: len(dispatcher.queue) == 0)
    assert metric(kit, port, "btr_abandoned_total") == 1
    reader.gate.set()
    kit.ask(port)
    assert ["Left?"] not in reader.batches


def test_deadline_is_kept_while_the_reader_is_busy(
    kit: Any, port: int, dispatcher: Any, reader: Any, busy: Any
) -> None:
    status, headers, reply = kit.send(port, "POST", "/v1/answer", {"question": "Late?", "timeout": 0.05})
    assert (status, reply["error"]["code"]) == (503, "deadline_exceeded") and headers["retry-after"] == "1"
    wait_until(lambda: len(dispatcher.queue) == 0)
    reader.gate.set()
    kit.ask(port)
    assert ["Late?"] not in reader.batches


def test_what_waits_is_read_together(kit: Any, port: int, dispatcher: Any, reader: Any, busy: Any) -> None:
    several = [busy.submit(kit.ask, port, question=f"Who {n}?") for n in range(3)]
    wait_until(lambda: len(dispatcher.queue) == 3)
    reader.gate.set()
    assert {one.result()["batch"] for one in several} == {3}
    assert sorted(reader.batches[-1]) == ["Who 0?", "Who 1?", "Who 2?"]
    assert metric(kit, port, 'btr_batch_questions_bucket{le="2.0"}') == 1


def test_bad_question_of_a_batch_fails_alone(kit: Any, port: int, dispatcher: Any, reader: Any, busy: Any) -> None:
    def refuse() -> None:
        if any("bad" in question for question in reader.batches[-1]):
            raise InputError("the question has 83 tokens, over 40")

    reader.during = refuse
    plain = [{"question": question} for question in ("good 1", "bad", "xyzzy", " ")]
    body = {"questions": [*plain, {"question": "good 2", "top_k": 1}, {"question": "gone", "ids": ["p9"]}]}
    got = busy.submit(kit.send, port, "POST", "/v1/answer/batch", body)
    wait_until(lambda: len(dispatcher.queue) == 5)  # the blank one never stood in line
    reader.gate.set()
    status, _, reply = got.result()
    assert status == 200
    assert [(item.get("answer", {}).get("answer"), item.get("error", {}).get("code")) for item in reply["results"]] == [
        ("Ada Berg", None), (None, "invalid_value"), ("", None), (None, "blank_question"),
        ("Ada Berg", None), (None, "unknown_id"),
    ]  # fmt: skip


def test_batch_is_bounded(kit: Any, port: int) -> None:
    for count, status in ((0, 422), (33, 400), (32, 200)):
        body = {"questions": [{"question": "Who?"}] * count}
        assert kit.send(port, "POST", "/v1/answer/batch", body)[0] == status


def test_passage_is_looked_up(kit: Any, port: int) -> None:
    assert kit.send(port, "GET", "/v1/passages/p2")[2] == {
        "id": "p2", "title": kit.TITLES[2], "text": kit.TEXTS[2], "tokens": kit.TOKENS,
    }  # fmt: skip
    for path in ("p9", "a/b", "%00", "x" * 2000):
        status, _, reply = kit.send(port, "GET", f"/v1/passages/{path}")
        assert (status, reply["error"]["code"]) == (404, "unknown_id") and "secret" not in json.dumps(reply)


def test_info_says_what_is_served(kit: Any, port: int) -> None:
    info = kit.send(port, "GET", "/info")[2]
    assert (info["model"], info["passages"], info["mode"], info["limits"]["max_passages"]) == ("double", 4, "binary", 3)
    assert info["limits"] == {
        "max_body_bytes": 10_000, "max_question_chars": 200, "max_passages": 3, "max_new_tokens": 64,
        "max_questions": 32, "connections": 512, "receive_timeout": 20.0, "max_question_tokens": 64,
        "max_passage_tokens": 160, "max_stops": 4,
    }  # fmt: skip


def test_docs_list_every_route_and_load_nothing(kit: Any, port: int) -> None:
    status, headers, page = kit.send(port, "GET", "/docs")
    document = kit.send(port, "GET", "/openapi.json")[2]
    assert status == 200 and "script" not in page and not re.search(r"(src|href)=.https?:", page)
    assert all(f"{path}</code>" in page for path in document["paths"]) and "merge_ratio" in page
    assert page.count("<h3>NewPassage</h3>") == 1 and "`" not in page
    assert "style-src 'sha256-" in headers["content-security-policy"]
    assert {"429", "503", "401"} <= document["paths"]["/v1/answer"]["post"]["responses"].keys()


def test_request_has_an_id_and_times(kit: Any, port: int) -> None:
    given = {"Content-Type": "application/json", "X-Request-Id": "shop-17"}
    _, headers, _ = kit.send(port, "POST", "/v1/answer", '{"question": "Who?"}', given)
    assert headers["x-request-id"] == "shop-17"
    assert re.fullmatch(r"queue;dur=[\d.]+, compute;dur=[\d.]+", headers["server-timing"])
    for strange in ("a b", "x" * 65, "<script>"):
        headers = kit.send(port, "GET", "/health", None, {"X-Request-Id": strange})[1]
        assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])


def test_metrics_count_by_route_and_never_by_what_was_sent(kit: Any, port: int) -> None:
    kit.ask(port)
    for path in ("/etc/passwd", "/v1/passages/p1", "/v1/passages/p2"):
        kit.send(port, "GET", path)
    text = kit.send(port, "GET", "/metrics")[2]
    assert metric(kit, port, 'btr_requests_total{route="/v1/passages/{passage_id:path}",status="200"}') == 2
    assert 'route="none",status="404"' in text and "passwd" not in text
    assert metric(kit, port, 'btr_phase_seconds_count{phase="encode"}') == 1
    assert metric(kit, port, "btr_bits_read_total") == 3 * kit.TOKENS * kit.D


def test_ready_is_503_while_draining(kit: Any, port: int, dispatcher: Any) -> None:
    assert kit.send(port, "GET", "/ready")[0] == 200
    dispatcher.draining = True
    assert kit.send(port, "GET", "/health")[0] == 200
    for method, path, body in (("GET", "/ready", None), ("POST", "/v1/answer", {"question": "Who?"})):
        status, headers, reply = kit.send(port, method, path, body)
        assert (status, reply["error"]["code"], headers["retry-after"]) == (503, "draining", "5")


@pytest.fixture
def locked(kit: Any, reader: Any, tmp_path: Path) -> Any:
    """The port of a server with two keys."""
    file = tmp_path / "keys.txt"
    file.write_text("# first, then second\n\naaaaaaaaaaaaaaaaaaaa\n  bbbbbbbbbbbbbbbbbbbb \n", encoding="utf-8")
    with kit.serving(kit.make_desk(reader, keys=Keys.read(file))) as port:
        yield port


@pytest.mark.parametrize(
    ("given", "admitted"),
    [
        ("Bearer aaaaaaaaaaaaaaaaaaaa", True),
        ("bearer  bbbbbbbbbbbbbbbbbbbb", True),
        ("Bearer aaaaaaaaaaaaaaaaaaab", False),
        ("Basic aaaaaaaaaaaaaaaaaaaa", False),
        ("aaaaaaaaaaaaaaaaaaaa", False),
        ("Bearer # first, then second", False),
        ("Bearer \xff", False),
        ("", False),
    ],
)
def test_key_is_asked_for(kit: Any, locked: int, given: str, admitted: bool) -> None:
    for path in ("/v1/models", "/metrics", "/info", "/none"):
        status, headers, reply = kit.send(locked, "GET", path, None, {"Authorization": given})
        assert (status != 401) == admitted
        if not admitted:
            wrong = given.lower().startswith("bearer ") and bool(given[7:].strip())
            challenge, code = ('Bearer error="invalid_token"', "invalid") if wrong else ("Bearer", "missing")
            assert (headers["www-authenticate"], reply["error"]["type"]) == (challenge, "authentication_error")
            assert reply["error"]["code"] == f"{code}_api_key"
    assert [kit.send(locked, "GET", path)[0] for path in ("/", "/health", "/ready", "/docs")] == [200] * 4


def test_long_body_without_a_key_is_not_read(kit: Any, locked: int) -> None:
    assert kit.send(locked, "POST", "/v1/answer", "x" * 5000)[0] == 401


@pytest.mark.parametrize(
    ("text", "part"), [("", "holds no key"), ("short", "line 1"), ("# a\nwith a space in it", "line 2")]
)
def test_bad_key_file_is_refused(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "keys").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=part):
        Keys.read(tmp_path / "keys")
    with pytest.raises(InputError, match="cannot be read"):
        Keys.read(tmp_path / "none")


def test_reload_changes_the_store_between_batches(
    kit: Any, port: int, dispatcher: Any, reader: Any, busy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = kit.make_desk(reader, texts=("Ada Berg, new.",)).service.opened
    monkeypatch.setattr(OpenStore, "open", lambda path, reader, name, before: OpenStore(other.store, None))
    waiting = busy.submit(kit.ask, port, ids=["p0"])
    wait_until(lambda: len(dispatcher.queue) == 1)
    assert dispatcher.reload()
    reader.gate.set()
    assert waiting.result()["passages"][0]["text"] == "Ada Berg, new."
    assert reader.asked[0][1].texts[0] == kit.TEXTS[3]  # what was being read kept its store
    assert metric(kit, port, 'btr_reloads_total{outcome="done"}') == 1 and metric(kit, port, "btr_passages") == 1


def test_failed_reload_changes_nothing(kit: Any, port: int, dispatcher: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise NotAStore("it is not a store")

    monkeypatch.setattr(OpenStore, "open", refuse)
    assert not dispatcher.reload()
    assert kit.ask(port)["answer"] == "Ada Berg"
    assert metric(kit, port, 'btr_reloads_total{outcome="failed"}') == 1


def test_too_many_requests_at_once_are_refused(kit: Any, reader: Any) -> None:
    dispatcher = kit.make_desk(reader, connections=1)
    reader.gate.clear()
    with kit.serving(dispatcher) as port, ThreadPoolExecutor() as pool:
        first = pool.submit(kit.ask, port)
        wait_until(lambda: dispatcher.queue.reading == 1)
        status, _, reply = kit.send(port, "POST", "/v1/answer", {"question": "Who?"})
        assert (status, reply["error"]["code"]) == (503, "too_many_connections")
        reader.gate.set()
        assert first.result()["answer"] == "Ada Berg"


def test_too_many_connections_are_refused_in_the_usual_shape(kit: Any, reader: Any) -> None:
    dispatcher = kit.make_desk(reader, connections=1)
    with kit.serving(dispatcher) as port, ExitStack() as opened:
        for _ in range(2 + SPARE):
            opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        wait_until(lambda: dispatcher.connections == 2 + SPARE)
        status, headers, reply = kit.send(port, "GET", "/health")
        assert (status, reply["error"]["code"], headers["connection"]) == (503, "too_many_connections", "close")
        assert headers["retry-after"] == "1"
        opened.close()
        wait_until(lambda: dispatcher.connections == 0)
        assert kit.send(port, "GET", "/health")[0] == 200


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"])
def test_what_is_no_http_is_refused_in_the_usual_shape(kit: Any, port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=kit.WAIT) as client:
        client.sendall(sent)
        came = b"".join(iter(lambda: client.recv(4096), b""))
    head, _, body = came.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n") and b"Connection: close" in head
    assert json.loads(body)["error"]["code"] == "not_http"
    assert metric(kit, port, 'btr_errors_total{code="not_http"}') == 1


def test_log_is_json_and_keeps_questions_out(kit: Any, port: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "btr.serve"):
        kit.ask(port, question="What is my secret?")
        wait_until(lambda: bool(caplog.records))
    entry = json.loads(JsonLines().format(caplog.records[-1]))
    assert (entry["event"], entry["route"], entry["status"]) == ("request", "/v1/answer", 200)
    assert entry["compute_seconds"] >= 0 and "secret" not in caplog.text


def test_stop_while_reading_answers_first(kit: Any, reader: Any) -> None:
    dispatcher = kit.make_desk(reader)
    reader.gate.clear()
    with ThreadPoolExecutor() as pool:
        with kit.serving(dispatcher) as port:
            asked = pool.submit(kit.ask, port)
            wait_until(lambda: dispatcher.queue.reading == 1)
            threading.Timer(0.2, reader.gate.set).start()
        assert asked.result()["answer"] == "Ada Berg"


def test_port_is_open_while_the_reader_warms_up(kit: Any, reader: Any) -> None:
    dispatcher = kit.make_desk(reader, warm=False)
    reader.gate.clear()
    with kit.serving(dispatcher) as port, ThreadPoolExecutor() as pool:
        wait_until(lambda: bool(reader.batches))
        assert kit.send(port, "GET", "/health")[0] == 200
        status, headers, reply = kit.send(port, "GET", "/ready")
        assert (status, reply["error"]["code"], headers["retry-after"]) == (503, "warming_up", "1")
        assert metric(kit, port, "btr_ready") == 0
        waiting = pool.submit(kit.ask, port)
        wait_until(lambda: len(dispatcher.queue) == 1)
        reader.gate.set()
        assert waiting.result()["answer"] == "Ada Berg"
        assert kit.send(port, "GET", "/ready")[0] == 200 and metric(kit, port, "btr_ready") == 1
    assert reader.batches == [["What is this?"], ["Who?"]]


def test_warm_up_that_fails_is_told(kit: Any, reader: Any) -> None:
    def fail() -> None:
        raise RuntimeError("no answer to be had")

    reader.during = fail
    dispatcher = kit.make_desk(reader, warm=False)
    with kit.serving(dispatcher) as port:
        wait_until(lambda: dispatcher.fault is not None)
        assert "failed" in str(dispatcher.fault)
        assert kit.send(port, "GET", "/ready")[0] == 503
        assert kit.send(port, "POST", "/v1/answer", {"question": "Who?"})[0] == 503
