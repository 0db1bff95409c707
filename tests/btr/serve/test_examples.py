"""The examples, against a server with doubles.  Not run here: btr.service."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from btr.corpus import Passage
from btr.mcp.__main__ import parse as parse_mcp
from btr.retrieve.bm25 import BM25, BM25Writer

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def url(kit: Any) -> Iterator[str]:
    """Where a server with doubles listens."""
    with kit.serving(kit.make_desk(kit.FakeReader())) as port:
        yield f"http://127.0.0.1:{port}"


def run(*words: str) -> str:
    """Run an example as its text says, and return what it printed."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("BTR_")}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=bare, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_code(code: str) -> str:
    """Run code that imports examples as modules, and return what it printed."""
    return run(sys.executable, "-c", f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n{code}")


QUESTION = "Who built the lighthouse?"


def test_curl(url: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("no curl on the PATH")
    assert '"passages":[{"id":' in run("sh", str(EXAMPLES / "ask.sh"), QUESTION, url)


def test_python_client(url: str) -> None:
    assert re.search(r"from \S+ \(.+\), [\d,]+ bits", run(sys.executable, str(EXAMPLES / "client.py"), QUESTION, url))


def test_openai_client(url: str) -> None:
    pytest.importorskip("openai", reason="the official client is not installed (pip install openai)")
    assert re.search(r"\n  \S+, .+: ", run(sys.executable, str(EXAMPLES / "openai_client.py"), QUESTION, url))


def test_haystack_component(url: str) -> None:
    """Run the class of haystack_component.py by itself."""
    pytest.importorskip("haystack", reason="Haystack is not installed (pip install haystack-ai)")
    asking = "from haystack_component import BTRReader; print(BTRReader(%r).run(%r)['answer'])"
    assert run_code(asking % (url, QUESTION))


def test_langchain_reader(url: str) -> None:
    """Ask the double through a chain of langchain_reader.py: what the retriever finds is what is read and cited."""
    pytest.importorskip("langchain_core", reason="LangChain is not installed (pip install langchain-core)")
    lines = run_code(f"""
from functools import partial
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_reader import BTRRetriever, read
retriever = BTRRetriever(url={url!r}, top=2)
for document in retriever.invoke({QUESTION!r}):
    print(document.id, document.metadata["title"], round(document.metadata["evidence"], 1))
chain = {{"question": RunnablePassthrough(), "documents": retriever}} | RunnableLambda(partial(read, url={url!r}))
print(*chain.invoke({QUESTION!r}).values())
""").splitlines()
    assert lines == ["p2 Lighthouses 0.6", "p3 Winds 0.4", "Ada Berg None None None"]


def test_llama_index_query_engine(url: str) -> None:
    """Ask the engine of llama_index_query_engine.py about the store, and about a node of one's own."""
    pytest.importorskip("llama_index.core", reason="LlamaIndex is not installed (pip install llama-index-core)")
    lines = run_code(f"""
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index_query_engine import BTRQueryEngine
class Own(BaseRetriever):
    def _retrieve(self, query):
        return [NodeWithScore(node=TextNode(id_="own", text="Ada Berg built it."))]
for engine in (BTRQueryEngine(url={url!r}, top=2), BTRQueryEngine(url={url!r}, retriever=Own())):
    response = engine.query({QUESTION!r})
    print(response, [(one.node_id, round(one.score, 1)) for one in response.source_nodes], response.metadata)
""").splitlines()
    told = "{'best_guess': None, 'citation': None, 'no_answer': None}"
    assert lines == [f"Ada Berg [('p2', 0.6), ('p3', 0.4)] {told}", f"Ada Berg [('own', 0.6)] {told}"]


def test_mcp_configuration_starts_a_command_that_there_is() -> None:
    [server] = json.loads((EXAMPLES / "mcp.json").read_text(encoding="utf-8"))["mcpServers"].values()
    command, *words = server["args"]
    assert (server["command"], command) == ("btr", "mcp")
    assert parse_mcp(words).store == Path(words[0])


def test_load(url: str) -> None:
    flags = ("--url", url, "--requests", "6", "--clients", "1,3")
    rows = run(sys.executable, str(EXAMPLES / "load.py"), *flags).splitlines()[1:]
    assert [(row.split()[0], row.split("  ")[-1]) for row in rows] == [("1", "6 x 200"), ("3", "6 x 200")]
    short = run(sys.executable, str(EXAMPLES / "load.py"), *flags, "--soak", "1")
    assert re.fullmatch(r"( +\d+ s +[\d.]+ MB  \{.*\}\n){2}", short), short


def test_load_stays_on_this_machine() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "load.py"), "--url", "http://192.0.2.1"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "no machine but this one" in done.stderr


def test_what_guesses_save_is_measured() -> None:
    """It stops where guesses change what is found."""
    flags = ("--steps", "3", "--rounds", "1", "--slower", "0.01")
    rows = [json.loads(line) for line in run(sys.executable, str(EXAMPLES / "speculation.py"), *flags).splitlines()]
    assert [row["stride"] for row in rows] == [0, 1, 0, 1, 1, 6, 5, 3]
    assert all(row["measured"] > 0 for row in rows)


def test_longer_index_finds_the_same(tmp_path: Path) -> None:
    """What examples/speculation.py searches, of so many rows: the ones it adds are never among the best."""
    spec = importlib.util.spec_from_file_location("speculation", EXAMPLES / "speculation.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    writer = BM25Writer.create_or_resume(tmp_path / "bm25", shard_size=20)
    writer.append([Passage(str(n), "", f"mill {n} was built {'by Berg ' * (n % 3)}of stone") for n in range(30)])
    writer.finish()
    short, question = BM25.open(tmp_path / "bm25"), ["mill of Berg"]
    for rows in (30, 31, 95):
        longer = example.longer_words(tmp_path, tmp_path / "bm25", rows)
        assert len(longer) == rows
        assert set(longer.search(question, 20)[0][0]) == set(short.search(question, 20)[0][0])
    every = longer.search(["mill"], 95)[0][0]
    assert sorted(every.tolist()) == list(range(95))


def test_every_example_compiles() -> None:
    for file in EXAMPLES.glob("*.py"):
        compile(file.read_text(encoding="utf-8"), str(file), "exec", dont_inherit=True)


def test_example_is_run_or_named_as_not_run() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    assert [file.name for file in EXAMPLES.iterdir() if file.is_file() and file.name not in tested] == []
