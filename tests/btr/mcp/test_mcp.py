"""`btr mcp`, asked by the SDK's own client: in this process, and as an assistant starts it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from btr.corpus import Passage
from btr.precompute import __main__ as precompute
from btr.reader import Reader
from btr.serve import AnswerRequest, Service, Settings, load
from btr.store import __main__ as store

mcp = pytest.importorskip("mcp", reason="an optional extra: pip install 'btr-reader[mcp]'")
if not hasattr(mcp, "Client"):
    pytest.skip("the SDK is older than 2", allow_module_level=True)

from mcp import Client, StdioServerParameters  # noqa: E402

from btr.mcp.__main__ import main  # noqa: E402
from btr.mcp.tools import make_server  # noqa: E402

WAIT = 900  # seconds, for what takes a few on a machine with nothing else to do


@pytest.fixture(scope="module")
def folder(
    span_reader: Reader, tiny_reader: Reader, tiny_passages: list[Passage], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A span reader and a T5 with a store of each, and a store of the first without index."""
    folder = tmp_path_factory.mktemp("mcp")
    lines = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in tiny_passages]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, reader, flags in (("bert", span_reader, []), ("t5", tiny_reader, []), ("bare", None, ["--no-index"])):
        if reader is not None:
            reader.save_pretrained(folder / name)
        made_by = ["--reader", str(folder / ("bert" if reader is None else name)), *flags]
        assert precompute.main([str(folder / "corpus.jsonl"), "--store", str(folder / f"{name}.btr"), *made_by]) == 0
    return folder


def open_service(folder: Path, name: str, **settings: Any) -> Service:
    return load(Settings(store=folder / f"{name}.btr", top=3, **settings))


def talk(server: Any, conversation: Callable[[Client], Awaitable[Any]]) -> Any:
    """Connect to a server, and return what the conversation does."""

    async def connected() -> Any:
        async with Client(server) as client:
            return await conversation(client)

    return asyncio.run(asyncio.wait_for(connected(), WAIT))


def call(server: Any, tool: str, **arguments: Any) -> Any:
    """Return the structured content of one call, or the text of its error."""
    result = talk(server, lambda client: client.call_tool(tool, arguments))
    return result.content[0].text if result.is_error else result.structured_content


def test_reader_that_abstains_gives_its_guess_apart(folder: Path) -> None:
    question = "Who built the lighthouse?"
    told = call(make_server(open_service(folder, "bert")), "answer", question=question)
    assert told["answer"] and told["best_guess"] is None
    shy = call(make_server(open_service(folder, "bert", no_answer_above=0.0)), "answer", question=question)
    assert (shy["answer"], shy["best_guess"]) == ("", told["answer"])


def test_answer_is_that_of_the_reader(folder: Path) -> None:
    service = open_service(folder, "bert")
    question = "Who built the lighthouse?"
    found = service.opened.index.search([question], 3)[0][0]  # type: ignore[union-attr]
    source = service.opened.store.at(found.tolist())
    answer = service.reader.answer(question, source, mode="binary", max_new_tokens=32)
    reply = call(make_server(service), "answer", question=question)
    assert (reply["answer"], reply["no_answer"], reply["score"]) == (answer.text, answer.no_answer, answer.score)
    cited = reply["citation"]
    assert cited["text"][cited["start"] : cited["end"]] == reply["answer"]
    [kept] = service.opened.store.get([cited["id"]]).texts
    assert cited["text"] == kept and reply["question_cut"] is False


def test_reader_that_writes_cites_the_passage_with_most_evidence(folder: Path) -> None:
    service = open_service(folder, "t5")
    cited = call(make_server(service), "answer", question="Who built the lighthouse?")["citation"]
    [reply] = service.answer([AnswerRequest(question="Who built the lighthouse?")])
    best = reply.passages[0]  # type: ignore[union-attr]
    assert cited == {"id": best.id, "title": best.title, "text": best.text, "start": None, "end": None}


@pytest.mark.parametrize("passages", [["Ada saw it."], [{"text": "Ada saw it.", "title": "It"}]])
def test_answer_from_passages_of_ones_own(folder: Path, passages: list[Any]) -> None:
    cited = call(make_server(open_service(folder, "bare")), "answer", question="Who saw it?", passages=passages)
    assert cited["citation"]["id"] == "1" and cited["citation"]["text"] == "Ada saw it."


def test_search_finds_what_the_index_finds(folder: Path) -> None:
    service = open_service(folder, "bert")
    ((ordinals, scores),) = service.opened.index.search(["mules and salt"], 2)  # type: ignore[union-attr]
    found = call(make_server(service), "search", query="mules and salt", top=2)["passages"]
    assert [one["id"] for one in found] == list(service.opened.store.at(ordinals.tolist()).ids)
    assert [one["score"] for one in found] == scores.tolist() and "mule" in found[0]["text"]
    assert call(make_server(service), "search", query="xyzzy")["passages"] == []


def test_question_without_a_passage_is_answered_so(folder: Path) -> None:
    reply = call(make_server(open_service(folder, "bert")), "answer", question="xyzzy")
    assert (reply["answer"], reply["no_answer"], reply["citation"]) == ("", 1.0, None)


@pytest.mark.parametrize(
    ("store", "tool", "arguments", "said"),
    [
        ("bert", "answer", {"question": " "}, "the question is blank"),
        ("bert", "answer", {"question": "Who?", "passages": []}, "passages must be of length 1 to 100, not 0"),
        ("bert", "answer", {}, "Field required"),
        ("bert", "search", {"query": "salt", "top": 0}, "greater than or equal to 1"),
        ("bare", "search", {"query": "salt"}, "the store has no index"),
        ("bare", "answer", {"question": "Who?"}, "the store has no index"),
    ],
)
def test_fault_is_an_error_of_the_protocol(folder: Path, store: str, tool: str, arguments: Any, said: str) -> None:
    assert said in call(make_server(open_service(folder, store)), tool, **arguments)


def test_tools_say_what_they_take_and_give(folder: Path) -> None:
    listed = talk(make_server(open_service(folder, "bare")), lambda client: client.list_tools()).tools
    taken = {tool.name: (set(tool.input_schema["properties"]), tool.input_schema["required"]) for tool in listed}
    assert taken == {"answer": ({"question", "passages"}, ["question"]), "search": ({"query", "top"}, ["query"])}
    assert {"answer", "no_answer", "citation"} <= set(listed[0].output_schema["properties"])
    assert all(tool.annotations.read_only_hint and tool.description for tool in listed)


def test_next_answer_knows_what_the_store_got(folder: Path, tmp_path: Path) -> None:
    made = [str(folder / "corpus.jsonl"), "--reader", str(folder / "bert"), "--store", str(tmp_path / "new.btr")]
    assert precompute.main(made) == 0
    server = make_server(open_service(tmp_path, "new"))
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "q", "title": "Zeppelins", "text": "Zeppelins float."}))

    async def before_and_after(client: Client) -> list[list[str]]:
        seen = []
        for change in (True, False):
            found = (await client.call_tool("search", {"query": "zeppelins"})).structured_content
            seen.append([one["id"] for one in (found or {})["passages"]])
            if change:
                assert store.main(["add", str(tmp_path / "new.btr"), str(tmp_path / "more.jsonl")]) == 0
        return seen

    assert talk(server, before_and_after) == [[], ["q"]]


def test_command_speaks_the_protocol_and_prints_nothing_else(folder: Path) -> None:
    command = ["-m", "btr", "mcp", str(folder / "bert.btr"), "--reader", str(folder / "bert")]
    started = StdioServerParameters(command=sys.executable, args=command, cwd=folder)
    reply = call(started, "answer", question="Who built the lighthouse?")
    assert reply["citation"]["text"][reply["citation"]["start"] : reply["citation"]["end"]] == reply["answer"]
    ended = subprocess.run([sys.executable, *command], input="", capture_output=True, text=True, cwd=folder)
    assert (ended.returncode, ended.stdout) == (0, "") and "answers are served" in ended.stderr


def test_user_mistake_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder / "none.btr")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: no store at ") and err.count("\n") == 1


def test_missing_sdk_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "btr.mcp.tools", None)
    assert main(["any.btr"]) == 2
    assert "pip install 'btr-reader[mcp]'" in capsys.readouterr().err
