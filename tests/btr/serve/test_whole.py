"""The whole server with real, tiny readers: batches, damage, hostile requests, sudden death."""

import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from btr import serve
from btr.corpus import Passage
from btr.precompute import __main__ as precompute
from btr.reader import Reader
from btr.serve import AnswerRequest, Dispatcher, OpenStore, Service, Settings
from btr.serve.schema import AnswerResponse, RequestError
from btr.storage import Store

IDS = ["p0", "p1", "p2", "p4"]
QUESTIONS = ("Who built the lighthouse?", "What eats fish?", "How deep is the harbour of Vellin?", "salt")


@pytest.fixture(scope="module")
def folder(
    tiny_readers: dict[str, Reader], pruning_reader: Reader, tiny_passages: list[Passage], tmp_path_factory: Any
) -> Path:
    """Two readers, `t5` and `bert`, and a store of each, two passages to a block."""
    folder = tmp_path_factory.mktemp("whole")
    lines = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in tiny_passages]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, reader in (("t5", tiny_readers["1.1"]), ("bert", pruning_reader)):
        reader.save_pretrained(folder / name)
        made = [str(folder / "corpus.jsonl"), "--reader", str(folder / name), "--store", str(folder / f"{name}.btr")]
        assert precompute.main(made) == 0
    return folder


def open_service(folder: Path, name: str, **settings: Any) -> Service:
    reader = Reader.from_pretrained(folder / name)
    store = Path(settings.pop("store", folder / f"{name}.btr"))
    return Service(reader, OpenStore.open(store, reader), Settings(store=store, **settings), model=name)


@pytest.mark.parametrize("mode", ["binary", "float", "full"])
@pytest.mark.parametrize("name", ["t5", "bert"])
def test_answers_read_together_are_those_read_alone(folder: Path, name: str, mode: Any) -> None:
    service = open_service(folder, name)
    asked = [AnswerRequest(question=q, top_k=n, mode=mode) for n, q in enumerate(QUESTIONS, 1)]
    alone = [one for request in asked for one in service.answer([request])]
    for one, other in zip(service.answer(asked), alone, strict=True):
        assert isinstance(one, AnswerResponse) and isinstance(other, AnswerResponse)
        assert (one.batch, other.batch) == (4, 1)
        same = ("answer", "citation", "tokens_read", "bits_read", "answer_tokens")
        assert [getattr(one, field) for field in same] == [getattr(other, field) for field in same]
        assert [p.id for p in one.passages] == [p.id for p in other.passages]
        # A span reader reads each by itself. T5's decoder sums over padding that is masked to exact zeros, in another
        # order: some 1e2 float32 additions of values near 1, 6e-8 each, in logits; twice that in their differences.
        assert one.score == other.score if name == "bert" else one.score == pytest.approx(other.score, abs=1e-4)


def test_merging_is_within_limits_and_apart_from_plain_reading(folder: Path) -> None:
    service = open_service(folder, "t5")
    merged = AnswerRequest(question=QUESTIONS[0], merge_ratio=0.2)
    assert service.kind(merged) != service.kind(AnswerRequest(question=QUESTIONS[0]))
    [reply] = service.answer([merged])
    assert isinstance(reply, AnswerResponse)
    [refused] = open_service(folder, "bert").answer([merged])
    assert isinstance(refused, RequestError) and refused.status == 400 and "merges no tokens" in refused.message


def test_choices_are_answered_by_the_likeliest(folder: Path) -> None:
    service, given = open_service(folder, "t5"), ["yes", "no", "salt"]
    asked = [AnswerRequest(question=q, ids=IDS, choices=given[:n]) for n, q in enumerate(QUESTIONS[:2], 2)]
    assert service.kind(asked[0]) == service.kind(asked[1]) != service.kind(AnswerRequest(question=QUESTIONS[0]))
    kept = service.opened.store.get(IDS)
    for request, reply in zip(asked, service.answer(asked), strict=True):
        alone = service.reader.answer(request.question, kept, "binary", choices=request.choices)
        assert isinstance(reply, AnswerResponse) and reply.batch == 2
        assert reply.answer == alone.text and reply.choices == pytest.approx(alone.choices, abs=1e-4)
    [refused] = open_service(folder, "bert").answer(asked[:1])
    assert isinstance(refused, RequestError) and refused.status == 400 and "chooses nothing" in refused.message


def test_pruning_is_within_limits_and_the_servers_unless_asked(folder: Path) -> None:
    service = open_service(folder, "bert", prune=2)
    service.warm_up()
    plain, asked = AnswerRequest(question=QUESTIONS[0], ids=IDS), AnswerRequest(question=QUESTIONS[0], ids=IDS, prune=1)
    whole = AnswerRequest(question=QUESTIONS[0], ids=IDS, mode="full")
    assert len({service.kind(request) for request in (plain, asked, whole)}) == 3
    chosen, all_of_them = asked.model_copy(update={"mode": "full"}), asked.model_copy(update={"prune": 0})
    for request, read in ((plain, 2), (asked, 1), (whole, 4), (chosen, 1), (all_of_them, 4)):
        service.check(request)
        [reply] = service.answer([request])
        assert isinstance(reply, AnswerResponse) and reply.read == read
        assert sorted(p.id for p in reply.passages) == IDS and sum(p.evidence > 0 for p in reply.passages) == read
        assert reply.citation is not None and reply.passages[0].evidence > 0
        [quoted] = [p for p in reply.passages if p.id == reply.citation.id]
        assert quoted.text[reply.citation.start : reply.citation.end] == reply.answer and quoted.evidence > 0
    with pytest.raises(RequestError, match="leave prune out"):
        open_service(folder, "t5").check(asked)
    with pytest.raises(RequestError, match="has no skim"):
        open_service(folder, "t5", prune=2).warm_up()


def flip(store: Path, text: bytes) -> None:
    """Change one bit of the file, behind the server's back, where `text` stands."""
    (data,) = store.glob("shards/*/data.mdb")
    with open(data, "r+b") as file:
        where = file.read().index(text)
        file.seek(where)
        file.write(bytes([text[0] ^ 1]))


def test_damaged_passage_fails_alone_and_clearly(kit: Any, folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "damaged.btr"
    shutil.copytree(folder / "t5.btr", store)
    dispatcher = Dispatcher(open_service(folder, "t5", store=store))
    with kit.serving(dispatcher) as port:
        assert kit.ask(port, ids=["p1"])["passages"][0]["id"] == "p1"
        flip(store, b"Ada Berg built")
        both = {"questions": [{"question": "Who?", "ids": ["p1", "p0"]}, {"question": "Who?", "ids": ["p0"]}]}
        items = kit.send(port, "POST", "/v1/answer/batch", both)[2]["results"]
        assert items[0]["error"]["code"] == "damaged_passage" and items[1]["answer"]["passages"][0]["id"] == "p0"
        for method, path, body in (
            ("POST", "/v1/answer", {"question": "Who?", "ids": ["p1"]}), ("GET", "/v1/passages/p1", None),
        ):  # fmt: skip
            status, _, reply = kit.send(port, method, path, body)
            assert (status, reply["error"]["code"]) == (500, "damaged_passage")
            assert "damaged in the store" in reply["error"]["message"] and str(tmp_path) not in json.dumps(reply)
        assert kit.ask(port, ids=["p0"])["mode"] == "binary"


def test_store_behind_a_link_is_replaced_without_dropping_a_question(kit: Any, folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "live.btr"
    link.symlink_to(folder / "t5.btr")
    dispatcher = Dispatcher(open_service(folder, "t5", store=link))
    shutil.copytree(folder / "t5.btr", tmp_path / "next.btr")
    with kit.serving(dispatcher) as port:
        link.unlink()
        link.symlink_to(folder / "bert.btr")  # of another reader
        assert not dispatcher.reload() and kit.ask(port, ids=["p1"])["passages"]
        link.unlink()
        link.symlink_to(tmp_path / "next.btr")
        assert dispatcher.reload() and dispatcher.service.opened.store.path == (tmp_path / "next.btr").resolve()
        assert kit.ask(port, ids=["p1"])["passages"]


HOSTILE = int(os.environ.get("HOSTILE_REQUESTS", "1500"))
PIECES: tuple[Any, ...] = (
    None, True, 0, -1, 1 << 70, 1e308, "", " ", "x" * 3000, "\x00", "\ud800", [], [[]], {}, {"a": 1}, "binary", ["p1"],
)  # fmt: skip
FIELDS = (
    *("question", "top_k", "ids", "passages", "mode", "merge_ratio", "prune", "max_new_tokens", "timeout"),
    *("messages", "n", "stream", "choices"),
)
PATHS = (
    "/v1/answer", "/v1/answer/batch", "/v1/chat/completions", "/v1/completions", "/v1/passages", "/v1/passages/x",
    "/v1/models/x",
)  # fmt: skip
PASSAGE_PATHS = ("/v1/passages", "/v1/passages/p1", "/v1/passages/x", "/v1/passages/%00%ff", "/v1/passages/..%2f")


def malform(random: random.Random, paths: tuple[str, ...] = PATHS) -> tuple[str, str, bytes]:
    """Make a request that is most likely wrong: (method, path, body)."""
    path = random.choice(paths)
    body: Any = {random.choice(FIELDS): random.choice(PIECES) for _ in range(random.randrange(4))}
    if random.random() < 0.5:
        body = {
            "question": "Who?",
            "model": "t5",
            "prompt": "Who?",
            "messages": [{"role": "user", "content": "?"}],
        } | body
    if path in PASSAGE_PATHS:
        parts = [{name: random.choice(PIECES) for name in ("id", "title", "text")} for _ in range(2)]
        sound = {
            "id": random.choice(("p1", "x", "y")),
            "text": random.choice((f"salt {random.random()}", "fish " * 400)),
        }
        more = random.choice(([], parts, [sound | parts[0]], [parts]))
        body = {"passages": [sound, *more]} | random.choice(({}, body))
    if random.random() < 0.2:
        body = random.choice((body, [body], {"questions": [body, random.choice(PIECES)]}))
    text = json.dumps(body).encode()
    if random.random() < 0.3:
        cut = random.randrange(len(text))
        text = random.choice((text[:cut], text[:cut] + b"\xff" + text[cut:], b"[" * 5000, b"\x00"))
    weights = (2, 1, 2, 2, 1) if path in PASSAGE_PATHS else (8, 1, 1, 1, 1)
    method = random.choices(("POST", "GET", "PUT", "DELETE", "BREW"), weights)[0]
    return method, path, text


def send_malformed(port: int, count: int, paths: tuple[str, ...]) -> set[int]:
    """Send so many requests and return the statuses; none may be the server's fault."""
    made, statuses = random.Random(6), set()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=900)) as connection:
        for _ in range(count):
            method, path, body = malform(made, paths)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            try:
                response = connection.getresponse()
            except http.client.RemoteDisconnected:  # it was idle for too long while all of this process was stopped
                connection.close()
                connection.request(method, path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
            text = response.read()
            statuses.add(response.status)
            assert response.status < 500, (method, path, body, text)
            assert response.status == 200 or json.loads(text)["error"]["message"]
    return statuses


def test_malformed_requests_are_never_the_server_s_fault(kit: Any, reader: Any) -> None:
    with kit.serving(kit.make_desk(reader)) as port:
        assert {400, 403, 404, 405, 422} <= send_malformed(port, HOSTILE, PATHS)


def test_malformed_edits_leave_the_store_whole(kit: Any, folder: Path, tmp_path: Path) -> None:
    store = shutil.copytree(folder / "bert.btr", tmp_path / "edited.btr")
    service = open_service(folder, "bert", store=store, editable=True, max_passages=3)
    with kit.serving(Dispatcher(service)) as port:
        assert {200, 400, 404, 405, 422} <= send_malformed(port, HOSTILE // 3, PATHS + 3 * PASSAGE_PATHS)
        kept = Store.open(store)
        assert kept.manifest.generation > HOSTILE // 500 and len(kept) == service.passages
        assert list(kept.verify()) == [] and "p0" in kept.ids()
        assert kit.ask(port, ids=["p0"])["passages"][0]["id"] == "p0"


@contextmanager
def command(folder: Path, *flags: str, store: str = "t5.btr") -> Iterator[tuple[Any, int]]:
    """Run the command, and give its process and port once it serves."""
    words = [sys.executable, "-m", "btr.serve", store, "--reader", "t5", "--port", "0", *flags]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.kill()


def test_files_cut_under_the_server_do_not_kill_it(kit: Any, folder: Path, tmp_path: Path) -> None:
    store = shutil.copytree(folder / "t5.btr", tmp_path / "cut.btr")
    (data,), (words,) = store.glob("shards/*/data.mdb"), store.glob("bm25/*/data.csc.index.npy")

    def failed(port: int, method: str, path: str, **body: Any) -> str:
        status, _, reply = kit.send(port, method, path, body or None)
        assert status == 500 and str(tmp_path) not in json.dumps(reply)
        return str(reply["error"]["code"])

    with command(folder, store=str(store)) as (process, port):
        kit.ask(port, ids=["p1"])
        for file, ids in ((data, ["p1"]), (words, None)):
            whole = file.read_bytes()
            os.truncate(file, 0)
            for _ in range(3):
                assert failed(port, "POST", "/v1/answer", question=QUESTIONS[0], ids=ids) == "damaged_store"
            if file == data:
                assert failed(port, "GET", "/v1/passages/p1") == "damaged_store"
            assert kit.send(port, "GET", "/health")[0] == 200
            file.write_bytes(whole)  # the same file, whole again
            assert kit.ask(port, question=QUESTIONS[0], ids=ids)["passages"]
        assert process.poll() is None


def test_killed_server_starts_again_and_drains_when_asked(kit: Any, folder: Path) -> None:
    with command(folder) as (process, port):
        kit.ask(port, ids=["p1"])
        process.kill()
        assert process.wait(kit.WAIT) == -signal.SIGKILL
    assert list(Store.open(folder / "t5.btr").verify()) == []
    with command(folder) as (process, port):
        kit.ask(port, ids=["p1"])
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        kit.ask(port, ids=["p1"])
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # the door stays open for a second, so that a balancer sees it
        status, headers, _ = kit.send(port, "GET", "/ready")
        assert (status, headers["retry-after"]) == (503, "5")
        _, log = process.communicate(timeout=kit.WAIT)
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert process.returncode == 0 and events.index("reloaded") < events.index("draining")


def test_plain_t5_is_split_where_the_store_says(
    tiny_folders: dict[str, Path], tiny_passages: list[Passage], tmp_path: Path
) -> None:
    lines = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in tiny_passages]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    plain, store = str(tiny_folders["1.1"]), tmp_path / "plain.btr"
    made = [str(tmp_path / "corpus.jsonl"), "--reader", plain, "--k", "2", "--store", str(store)]
    assert precompute.main(made) == 0
    service = serve.load(Settings(store=store, reader=plain))
    assert service.reader.config.k == 2
    service.warm_up()
