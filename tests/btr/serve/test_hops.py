"""Answers in several hops over HTTP: the trace, what is asked and read, refusals, streams, a client that left."""

import http.client
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from btr.reader.answer import Answer, Span
from btr.serve import Dispatcher

ADA, SECOND = "Ada\n Berg built the first lighthouse; ADA-BERG lamps 🚢 followed.", "A harbour wall, drawn by Ada Berg,"


class Following:
    """Find p3 and p2 for the question, p2 and p1 for what was found in p2, and the same again for p1's."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __len__(self) -> int:
        return 4

    def search(self, questions: Sequence[str], top: int) -> list[tuple[np.ndarray, np.ndarray]]:
        self.asked += questions
        found = (
            [] if "xyzzy" in questions[0] else [2, 1] if "Ada\n" in questions[0] or SECOND in questions[0] else [3, 2]
        )
        return [(np.array(found[:top], np.int64), np.array(found[:top], np.float32) + 10) for _ in questions]


@pytest.fixture
def index() -> Following:
    return Following()


@pytest.fixture
def desk_(kit: Any, reader: Any, index: Following) -> Dispatcher:
    """A dispatcher whose reader has its evidence in the first word of the second passage."""
    answer = reader.answer

    def told(question: str, source: Any, mode: str, most: int) -> Answer:
        found = answer(question, source, mode, most)
        evidence = [np.zeros(kit.TOKENS, np.float32) for _ in range(len(source))]
        evidence[-1][1] = 1.0
        return replace(found, token_evidence=tuple(evidence))

    reader.answer = told
    reader.passage_ids = lambda passages: ([[0] * kit.TOKENS for _ in passages], 0)
    reader._text = SimpleNamespace(text_places=lambda title, text, ids: [(n, 3 + n) for n in range(len(ids))])
    dispatcher: Dispatcher = kit.make_desk(reader)
    object.__setattr__(dispatcher.service.opened, "index", index)
    return dispatcher


@pytest.fixture
def port(kit: Any, desk_: Dispatcher) -> Iterator[int]:
    """The port of its server."""
    with kit.serving(desk_) as taken:
        yield taken


def test_trace_tells_every_step(kit: Any, port: int, reader: Any, index: Following) -> None:
    reply = kit.ask(port, hops=3, top_k=2)
    first, second = f"Who? Lighthouses {ADA}", f"Who? Harbours {kit.TEXTS[1]}"
    assert index.asked == ["Who?", first, second]
    assert [(step["query"], step["ids"], step["title"], step["sentence"]) for step in reply["trace"]] == [
        ("Who?", ["p3", "p2"], "Lighthouses", ADA),
        (first, ["p2", "p1"], "Harbours", kit.TEXTS[1]),
    ]
    assert all(step["answer"] == "Ada Berg" for step in reply["trace"])
    assert [asked[0] for asked in reader.asked] == ["Who?", "Who?"]  # the question itself, whatever was searched for
    assert sorted(passage["id"] for passage in reply["passages"]) == ["p1", "p2"]
    assert {passage["id"]: passage["retrieval_score"] for passage in reply["passages"]} == {"p2": 12.0, "p1": 11.0}
    assert reply["tokens_read"] == 4 * kit.TOKENS and reply["bits_read"] == 4 * kit.TOKENS * kit.D
    assert reply["timings"]["encode"] == 2 * 0.003 and reply["batch"] == 1


def test_step_that_abstains_has_its_best_guess_apart(kit: Any, port: int, reader: Any) -> None:
    reader.span = Span(1, 0, 3)  # 25 % likely that no passage answers
    reply = kit.ask(port, hops=3, top_k=2, no_answer_above=0.2)
    told = [(step["answer"], step["best_guess"], step["no_answer"]) for step in reply["trace"]]
    assert told == [("", "Ada Berg", 0.25)] * 2 and (reply["answer"], reply["best_guess"]) == ("", "Ada Berg")
    sure = kit.ask(port, hops=3, top_k=2, no_answer_above=0.25)["trace"]
    assert [step["answer"] for step in sure] == ["Ada Berg"] * 2 and not any("best_guess" in step for step in sure)


def test_guesses_change_nothing_but_the_time(kit: Any, port: int, index: Following, desk_: Dispatcher) -> None:
    plain = kit.ask(port, hops=3, top_k=2)
    known: list[list[int]] = []

    def among(query: str, ordinals: np.ndarray, top: int) -> Any:
        known.append(ordinals.tolist())
        return np.array([0, 1], np.int64), np.ones(2, np.float32)  # wrong

    verbs = {"prepare": str, "search_prepared": index.search, "among": among, "depth": lambda top, most: top}
    for name, verb in verbs.items():
        setattr(index, name, verb)
    desk_.service.pace.stride = lambda: 1  # type: ignore[method-assign]
    sooner = kit.ask(port, hops=3, top_k=2)
    assert known[0] == [2, 3] and len(known) == 2  # what was come across
    counted = kit.send(port, "GET", "/metrics")[2]
    assert 'btr_hop_guesses_total{outcome="accepted"} 0.0' in counted
    assert 'btr_hop_guesses_total{outcome="rejected"} 2.0' in counted
    assert {name: sooner[name] for name in sooner if name != "timings"} == {
        name: plain[name] for name in plain if name != "timings"
    }


def test_words_of_a_step_are_not_told(port: int, reader: Any) -> None:
    reader.pieces = ("ada", " Be")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=900)
    body = json.dumps({"question": "Who?", "hops": 2, "top_k": 2, "stream": True})
    connection.request("POST", "/v1/answer", body, {"Content-Type": "application/json"})
    text = connection.getresponse().read().decode()
    connection.close()
    assert "event: reading" in text and "event: text" not in text


def test_one_hop_has_no_trace(kit: Any, port: int, index: Following) -> None:
    assert "trace" not in kit.ask(port, hops=1, top_k=2) and index.asked == ["Who?"]


def test_nothing_found_is_no_answer(kit: Any, port: int) -> None:
    reply = kit.ask(port, question="xyzzy", hops=3)
    assert (reply["answer"], reply["passages"], reply["trace"], reply["no_answer"]) == ("", [], [], 1.0)


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"hops": 0}, 422, "hops: a number of at least 1"),
        ({"hops": 9}, 422, "hops: a number of at most 8"),
        ({"hops": 2, "ids": ["p1"]}, 400, "hops search the store; leave out ids, or hops"),
        ({"hops": 2, "passages": [{"text": "a"}]}, 400, "hops search the store; leave out passages, or hops"),
    ],
)
def test_hops_that_cannot_be_made_are_refused(
    kit: Any, port: int, request_: dict[str, Any], status: int, message: str
) -> None:
    found, _, reply = kit.send(port, "POST", "/v1/answer", {"question": "Who?"} | request_)
    assert found == status and message in reply["error"]["message"]


def test_store_without_texts_is_refused(kit: Any, reader: Any) -> None:
    dispatcher = kit.make_desk(reader)
    dispatcher.service.opened.store.manifest.options = {"text": False}
    with kit.serving(dispatcher) as port:
        status, _, reply = kit.send(port, "POST", "/v1/answer", {"question": "Who?", "hops": 2})
    assert status == 400 and "keeps no texts, of which further queries are made" in reply["error"]["message"]


def test_stream_tells_what_each_step_reads(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=900)
    body = json.dumps({"question": "Who?", "hops": 2, "top_k": 2, "stream": True})
    connection.request("POST", "/v1/answer", body, {"Content-Type": "application/json"})
    text = connection.getresponse().read().decode()
    connection.close()
    told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    read = [[passage["id"] for passage in one["passages"]] for one in told if set(one) == {"passages"}]
    assert read == [["p3", "p2"], ["p2", "p1"]] and len(told[-1]["trace"]) == 2


def test_search_that_fails_is_a_fault_of_the_server(kit: Any, port: int, index: Following) -> None:
    def fail(questions: Sequence[str], top: int) -> Any:
        raise RuntimeError("the disk of /secret/place")

    index.search = fail  # type: ignore[method-assign]
    status, _, reply = kit.send(port, "POST", "/v1/answer", {"question": "Who?", "hops": 2})
    assert status == 500 and "secret" not in reply["error"]["message"]


def test_nobody_searches_for_who_has_left(kit: Any, port: int, reader: Any, index: Following) -> None:
    reader.during = reader.gate.clear  # held up as soon as it reads
    status, _, reply = kit.send(port, "POST", "/v1/answer", {"question": "Who?", "hops": 3, "top_k": 2, "timeout": 0.2})
    assert status == 503 and reply["error"]["code"] == "deadline_exceeded"
    reader.during = lambda: None
    reader.gate.set()
    assert kit.ask(port, question="Next?", top_k=2)["answer"] == "Ada Berg"
    assert index.asked == ["Who?", "Next?"]
