"""A store with a dense index over HTTP and at the terminal: what shares no word is found, and what was just put."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from btr.ask import __main__ as ask
from btr.corpus import Passage
from btr.precompute import __main__ as precompute
from btr.reader import Reader
from btr.serve import Dispatcher, OpenStore, Service, Settings

NEW = {"id": "new", "title": "", "text": "Quagga xylem."}
STRANGE = "zyzzyva qwerty?"  # no passage has one of its words


@pytest.fixture(scope="module")
def built(
    span_reader: Reader, encoder_folder: Path, tiny_passages: list[Passage], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A reader, and a store of it that is searched by words and by meaning."""
    folder = tmp_path_factory.mktemp("meaning")
    lines = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in tiny_passages]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    span_reader.save_pretrained(folder / "bert")
    made = [str(folder / "corpus.jsonl"), "--reader", str(folder / "bert"), "--store", str(folder / "s.btr")]
    assert precompute.main([*made, "--dense", str(encoder_folder)]) == 0
    return folder


@pytest.fixture
def port(kit: Any, built: Path, tmp_path: Path) -> Iterator[int]:
    """The port of an editable server of a copy of the store."""
    store, reader = Path(shutil.copytree(built / "s.btr", tmp_path / "s.btr")), Reader.from_pretrained(built / "bert")
    settings = Settings(store=store, editable=True, max_passages=10)
    made = Dispatcher(Service(reader, OpenStore.open(store, reader), settings, model="bert"), None)
    with kit.serving(made) as port:
        yield port


@pytest.fixture
def unhushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the process as it was: warnings and logs are its own, and other tests'."""
    monkeypatch.setattr(ask, "hush", lambda: None)


def found(kit: Any, port: int, question: str, top: int) -> list[str]:
    status, _, reply = kit.send(port, "POST", "/v1/answer", {"question": question, "top_k": top})
    assert status == 200
    return sorted(passage["id"] for passage in reply["passages"])


def test_what_was_put_is_found_by_meaning_at_once(kit: Any, port: int, tiny_passages: list[Passage]) -> None:
    ids = found(kit, port, STRANGE, 10)
    assert {name.split(":")[0] for name in ids} == {passage.id for passage in tiny_passages}
    status, _, reply = kit.send(port, "PUT", "/v1/passages", {"passages": [NEW]})
    assert (status, reply["added"], reply["unindexed"]) == (200, 1, 0)
    assert found(kit, port, STRANGE, 10) == sorted([*ids, "new"])  # by its vector: no word is shared
    assert found(kit, port, "quagga", 1) == ["new"]  # first of both lists
    assert kit.send(port, "DELETE", "/v1/passages/new")[0] == 200
    assert found(kit, port, STRANGE, 10) == ids


def test_question_without_a_known_word_is_answered_at_the_terminal(
    built: Path, unhushed: None, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for given, read in (([], True), (["--retriever", "bm25"], False)):
        assert ask.main([str(built / "s.btr"), "--json", *given, STRANGE]) == 0
        told = json.loads(capsys.readouterr().out)
        assert bool(told["passages"]) == read
