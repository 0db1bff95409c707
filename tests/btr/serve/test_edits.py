"""Passages put into the store and deleted over HTTP, with a real, tiny reader: the very next answer knows it."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from btr.corpus import Passage
from btr.precompute import __main__ as precompute
from btr.reader import Reader
from btr.retrieve import indexed
from btr.retrieve.dense.writer import Plan
from btr.serve import Dispatcher, OpenStore, Service, Settings, dispatch, edits
from btr.serve.keys import Keys
from btr.serve.schema import Removal, UpsertRequest
from btr.storage import Store
from btr.storage.living import edit
from btr.store import updates as living

NEW = {"id": "new/1", "title": "Otters", "text": "The otter of Vellin sleeps on its back."}


@pytest.fixture(scope="module")
def folder(span_reader: Reader, tiny_passages: list[Passage], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader and a store of it, with the passages p0, p1, p2 and p4."""
    folder = tmp_path_factory.mktemp("edits")
    lines = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in tiny_passages if p.id != "p3"]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    span_reader.save_pretrained(folder / "bert")
    made = [str(folder / "corpus.jsonl"), "--reader", str(folder / "bert"), "--store", str(folder / "bert.btr")]
    assert precompute.main(made) == 0
    return folder


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "bert.btr", tmp_path / "store.btr"))


def make_desk(folder: Path, store: Path, keys: Keys | None = None, **settings: Any) -> Dispatcher:
    reader = Reader.from_pretrained(folder / "bert")
    given = Settings(**({"store": store, "editable": True, "max_passages": 10} | settings))
    return Dispatcher(Service(reader, OpenStore.open(store, reader), given, model="bert"), keys)


@pytest.fixture
def live(kit: Any, folder: Path, store: Path) -> Iterator[tuple[Dispatcher, int]]:
    """A dispatcher whose store may be changed, and its port."""
    made = make_desk(folder, store)
    with kit.serving(made) as port:
        yield made, port


def put(kit: Any, port: int, *passages: dict[str, str], method: str = "PUT") -> Any:
    return kit.send(port, method, "/v1/passages", {"passages": list(passages)})


def found(kit: Any, port: int, question: str) -> list[str]:
    """Return the ids that a search finds; none if no passage shares a word."""
    status, _, reply = kit.send(port, "POST", "/v1/answer", {"question": question, "top_k": 5})
    return [] if status == 404 else [passage["id"] for passage in reply["passages"]]


def test_next_answer_sees_what_was_put_replaced_and_deleted(
    kit: Any, live: tuple[Dispatcher, int], caplog: pytest.LogCaptureFixture
) -> None:
    made, port = live
    assert found(kit, port, "otter") == []
    status, _, reply = put(kit, port, NEW, {"id": "p1", "text": "Ada Berg kept bees."}, method="POST")
    changed = {"added": 1, "replaced": 1, "same": 0, "cut": 0, "deleted": 0, "passages": 5, "unindexed": 0}
    assert (status, reply) == (200, changed)
    assert (found(kit, port, "otter"), found(kit, port, "bees"), found(kit, port, "lamp")) == (["new/1"], ["p1"], [])
    assert kit.ask(port, ids=["new/1"])["passages"][0]["text"] == NEW["text"]
    assert kit.send(port, "GET", "/v1/passages/new/1")[2]["title"] == "Otters"
    assert put(kit, port, NEW)[2] == changed | {"added": 0, "replaced": 0, "same": 1}
    status, _, reply = kit.send(port, "DELETE", "/v1/passages/new/1")
    assert (status, reply["deleted"], reply["passages"]) == (200, 1, 4)
    assert found(kit, port, "otter") == [] and kit.send(port, "GET", "/v1/passages/new/1")[0] == 404
    with caplog.at_level(logging.ERROR, "btr.serve"):
        assert kit.send(port, "DELETE", "/v1/passages/new/1")[2]["error"]["code"] == "unknown_id"
    assert not caplog.records  # a refusal is nobody's failure
    text = kit.send(port, "GET", "/metrics")[2]
    assert 'btr_edits_total{kind="added"} 1.0' in text and 'btr_edits_total{kind="deleted"} 1.0' in text
    assert "btr_passages 4.0" in text and kit.send(port, "GET", "/info")[2]["editable"]
    with Store.open(made.service.opened.store.path) as kept:
        assert list(kept.verify()) == []


def test_long_text_is_divided_and_what_it_was_before_makes_room(kit: Any, live: tuple[Dispatcher, int]) -> None:
    made, port = live
    before = made.service.opened.store

    def text(*counts: int) -> str:
        return " ".join(f"otter{part}" for part, count in enumerate(counts) for _ in range(count))

    def kept() -> dict[str, str]:
        with Store.open(before.path) as store:
            assert list(store.verify()) == []
            return {name: store.get([name]).texts[0] for name in store.ids() if name.startswith("long")}

    def counts(reply: dict[str, int]) -> list[int]:
        return [reply[name] for name in ("added", "replaced", "same", "deleted", "passages")]

    three = {f"long:{part}": text(*[100 * (n == part) for n in range(3)]) for part in range(3)}
    assert counts(put(kit, port, {"id": "long", "text": "short at first"})[2]) == [1, 0, 0, 0, 5]
    assert counts(put(kit, port, {"id": "long", "text": text(100, 100, 100)})[2]) == [3, 0, 0, 1, 7]
    assert kept() == three and found(kit, port, "otter1") == ["long:1"]
    assert counts(put(kit, port, {"id": "long", "text": text(100, 100, 100)})[2]) == [0, 0, 3, 0, 7]
    assert counts(put(kit, port, {"id": "long", "text": text(100, 90)})[2]) == [0, 1, 1, 1, 6]
    assert kept()["long:1"] == three["long:1"].rsplit(" ", 10)[0] and len(kept()) == 2
    clash = put(kit, port, {"id": "long", "text": text(100, 100)}, {"id": "long:1", "text": "of another"})
    assert clash[0] == 400 and "is that of a passage and of a piece of a longer one" in clash[2]["error"]["message"]
    assert counts(put(kit, port, {"id": "long", "text": "short again"})[2]) == [1, 0, 0, 2, 5]
    assert kept() == {"long": "short again"}
    put(kit, port, *({"id": f"long:{n}", "text": f"chapter {n}, of its own"} for n in range(2)))
    assert counts(put(kit, port, {"id": "long", "text": "and again"})[2]) == [0, 1, 0, 0, 7]
    assert kit.send(port, "DELETE", "/v1/passages/long")[2]["deleted"] == 1 and len(kept()) == 2
    put(kit, port, {"id": "long", "text": text(100, 100)})
    assert kit.send(port, "DELETE", "/v1/passages/long")[2]["deleted"] == 2 and kept() == {}


def test_bits_are_those_that_the_reader_makes(kit: Any, live: tuple[Dispatcher, int], span_reader: Reader) -> None:
    made, port = live
    put(kit, port, NEW)
    kept = made.service.opened.store.get(["new/1"])
    expected = span_reader.encode_passages([Passage(NEW["id"], NEW["title"], NEW["text"])])
    assert np.array_equal(kept.packed, expected.packed) and np.array_equal(kept.scale, expected.scale)
    assert kit.ask(port, question="Who sleeps?", ids=["new/1"])["passages"][0]["id"] == "new/1"


def test_off_unless_enabled_and_behind_keys(kit: Any, folder: Path, store: Path, tmp_path: Path) -> None:
    with kit.serving(make_desk(folder, store, editable=False)) as port:
        for status, _, reply in (put(kit, port, NEW), kit.send(port, "DELETE", "/v1/passages/p1")):
            assert (status, reply["error"]["code"]) == (403, "not_editable") and "--editable" in reply["error"][
                "message"
            ]
    (tmp_path / "keys").write_text("k" * 20, encoding="utf-8")
    with kit.serving(make_desk(folder, store, Keys.read(tmp_path / "keys"))) as port:
        assert (put(kit, port, NEW)[0], kit.send(port, "DELETE", "/v1/passages/p1")[0]) == (401, 401)
    assert len(Store.open(store)) == 4


@pytest.mark.parametrize(
    ("passages", "status", "code"),
    [
        ([NEW, NEW | {"text": "another"}], 400, "duplicate_id"),
        ([NEW, {"id": "b", "text": " \n"}], 400, "blank_passage"),
        ([{"id": " ", "text": "a"}], 400, "blank_passage"),
        ([{"id": "é" * 256, "text": "a"}], 400, "invalid_value"),
        ([{"id": "a\nb", "text": "a"}], 400, "invalid_value"),
        ([{"id": "a\x85", "text": "a"}], 400, "invalid_value"),
        ([NEW | {"id": str(n)} for n in range(11)], 400, "out_of_range"),
        ([], 422, "malformed"),
        ([{"id": "a"}], 422, "malformed"),
        ([{"id": True, "text": "a"}], 422, "malformed"),
        ([{"id": "\ud800", "text": "a"}], 422, "malformed"),
    ],
)
def test_bad_passages_change_nothing(
    kit: Any, live: tuple[Dispatcher, int], passages: list[Any], status: int, code: str
) -> None:
    before = live[0].service.opened.store.manifest
    got, _, reply = put(kit, live[1], *passages)
    assert (got, reply["error"]["code"]) == (status, code)
    assert Store.open(live[0].service.opened.store.path).manifest == before


def test_an_edit_costs_what_is_read_of_it(folder: Path, store: Path) -> None:
    service = make_desk(folder, store).service
    most = service.reader.config.max_passage_tokens

    def cost(*texts: str) -> int:
        passages = [{"id": str(n), "title": "abcd", "text": text} for n, text in enumerate(texts)]
        return edits.edit_cost(service, UpsertRequest.model_validate({"passages": passages}))

    assert cost("abcdefgh") == 3 + 4
    assert cost("x" * 100_000) == most  # one word: one passage, cut
    assert cost(" ".join(["salt"] * 300)) == 3 * (503 // 4 + 4)  # pieces of 100 words, all read
    assert cost("x" * 100_000, "abcdefgh") == most + 7
    assert edits.edit_cost(service, Removal(id="p1")) == 0


def test_last_passage_stays(kit: Any, live: tuple[Dispatcher, int]) -> None:
    for number in range(3):
        assert kit.send(live[1], "DELETE", f"/v1/passages/p{number}")[0] == 200
    status, _, reply = kit.send(live[1], "DELETE", "/v1/passages/p4")
    assert (status, reply["error"]["code"]) == (409, "last_passage")
    assert kit.ask(live[1], ids=["p4"])["passages"]


def test_second_writer_is_told_at_once(kit: Any, live: tuple[Dispatcher, int], store: Path) -> None:
    with edit(store) as editor:
        began = time.monotonic()
        for status, headers, reply in (put(kit, live[1], NEW), kit.send(live[1], "DELETE", "/v1/passages/p1")):
            assert (status, reply["error"]["code"], headers["retry-after"]) == (409, "store_busy", "5")
            assert str(store) not in json.dumps(reply)
        assert time.monotonic() - began < 10
        editor.commit(editor.delete([0]))
    assert put(kit, live[1], NEW)[2]["passages"] == 4  # what the other did is known too
    assert kit.send(live[1], "GET", "/v1/passages/p0")[0] == 404


def test_edit_that_outlasts_its_time_is_not_called_undone(
    kit: Any, live: tuple[Dispatcher, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(service: Service, asked: Any) -> Any:
        time.sleep(0.5)
        return real(service, asked)

    real = dispatch.apply_edit
    monkeypatch.setattr(dispatch, "apply_edit", slow)
    live[0].service.settings = live[0].service.settings.model_copy(update={"timeout": 0.2})
    status, _, reply = put(kit, live[1], NEW)
    assert (status, reply["error"]["code"]) == (503, "unconfirmed")
    time.sleep(1)
    assert kit.send(live[1], "GET", "/v1/passages/new/1")[0] == 200


def test_edit_that_was_not_begun_in_time_is_not_done(kit: Any, reader: Any) -> None:
    made = kit.make_desk(reader, editable=True, timeout=0.3)
    reader.gate.clear()
    with kit.serving(made) as port, ThreadPoolExecutor() as pool:
        first = pool.submit(kit.send, port, "POST", "/v1/answer", {"question": "Who?"})
        while made.queue.reading == 0:
            time.sleep(0.01)
        status, _, reply = put(kit, port, NEW)
        assert (status, reply["error"]["code"]) == (503, "deadline_exceeded")
        reader.gate.set()
        assert first.result()[0] == 503


def test_store_that_is_gone_cannot_be_changed(kit: Any, live: tuple[Dispatcher, int], store: Path) -> None:
    store.rename(store.with_name("away.btr"))
    status, _, reply = put(kit, live[1], NEW)
    assert (status, reply["error"]["code"]) == (500, "not_writable") and str(store) not in json.dumps(reply)
    assert found(kit, live[1], "lamp") == ["p1"]


def test_many_edits_leave_few_shards_and_all_is_found(
    kit: Any, live: tuple[Dispatcher, int], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("btr.store.updates.MANY", 4)
    for number in range(12):
        put(kit, live[1], {"id": f"n{number}", "text": f"salt word{number}"}, {"id": "again", "text": f"turn{number}"})
    manifest = Store.open(store).manifest
    assert len(manifest.shards) <= 6 and manifest.indexed == 4 and manifest.passages == 4 + 13
    assert [found(kit, live[1], f"word{number}") for number in range(12)] == [[f"n{number}"] for number in range(12)]
    assert (found(kit, live[1], "turn11"), found(kit, live[1], "turn10")) == (["again"], [])
    with Store.open(store) as kept:
        assert list(kept.verify()) == []


def test_small_shards_that_an_index_knows_are_not_joined(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("btr.store.updates.MANY", 1)
    reader, dense = Reader.from_pretrained(folder / "bert"), store / "dense"
    for number in range(4):
        with edit(store) as editor:
            living.put(editor, reader, [Passage(f"n{number}", "", f"salt {number}")])

    def tidied() -> list[str]:
        with edit(store) as editor:
            edits._tidy(editor)
            return [shard.name for shard in editor.manifest.shards]

    dense.mkdir()
    state = {"format": 1, "passages": 6, "plan": asdict(Plan("encoder", "f", 64)), "shards": []}
    (dense / "progress.json").write_text(json.dumps(state))
    before = tidied()
    assert len(before) == 5  # of 4, 1, 1, 1 and 1 passages, while an index is being built
    (dense / "index.json").write_text("{")
    (dense / "progress.json").unlink()
    with caplog.at_level(logging.WARNING, "btr.serve"):
        assert tidied() == before
    assert "small shards were not joined" in caplog.text
    (dense / "index.json").write_text(json.dumps(state))
    after = tidied()
    assert (len(after), after[:3]) == (4, before[:3])
    shutil.rmtree(dense)
    assert len(tidied()) == 2 and tidied()[0] == before[0]  # that of BM25


def test_what_search_does_not_find_is_counted(
    kit: Any, live: tuple[Dispatcher, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(indexed, "MOST", 2)
    assert put(kit, live[1], NEW)[2]["unindexed"] == 0
    with caplog.at_level(logging.INFO, "btr.serve"):
        assert put(kit, live[1], {"id": "b", "text": "a heron"}, {"id": "c", "text": "a stork"})[2]["unindexed"] == 2
    assert found(kit, live[1], "otter") == ["new/1"] and found(kit, live[1], "stork") == []
    assert any("does not know the last 2 passages" in record.getMessage() for record in caplog.records)
    edited = next(record for record in caplog.records if record.getMessage() == "edited")
    assert edited.fields["added"] == 2 and "stork" not in caplog.text  # type: ignore[attr-defined]


DIE = """
import os, signal, sys
from btr import serve
from btr.storage import living

original = living.write_manifest
def write(path, manifest):
    if sys.argv[1] == "after":
        original(path, manifest)
    os.kill(os.getpid(), signal.SIGKILL)
living.write_manifest = write
sys.exit(serve.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_in_an_edit_the_store_is_whole(kit: Any, folder: Path, store: Path, when: str) -> None:
    words = [sys.executable, "-c", DIE, when, str(store), "--reader", str(folder / "bert"), "--port", "0", "--editable"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])
            with pytest.raises(OSError):
                put(kit, port, NEW, {"id": "p1", "text": "Ada Berg kept bees."})
            assert process.wait(kit.WAIT) == -signal.SIGKILL
        finally:
            process.kill()
    with Store.open(store) as kept:
        assert list(kept.verify()) == []
        assert (len(kept), kept.get(["p1"]).texts[0].endswith("bees.")) == (
            (4, False) if when == "before" else (5, True)
        )
    with kit.serving(make_desk(folder, store)) as port:
        assert put(kit, port, NEW)[2]["same"] == (when == "after")
        assert found(kit, port, "otter") == ["new/1"]
    assert len(list((store / "shards").iterdir())) == 2  # nothing of the killed edit is left


def test_records_are_put_as_files_have_them(kit: Any, live: tuple[Dispatcher, int]) -> None:
    status, _, reply = put(kit, live[1], {"id": 3, "title": None, "text": "Tea is made from leaves.", "url": "x"})
    assert (status, reply["added"]) == (200, 1)
    found = kit.send(live[1], "GET", "/v1/passages/3")[2]
    assert (found["id"], found["title"], found["text"]) == ("3", "", "Tea is made from leaves.")
