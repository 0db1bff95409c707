"""Articles that were divided into pieces: replaced and deleted as one, and nothing of anybody else's with them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from btr.corpus import Passage
from btr.precompute import __main__ as precompute
from btr.reader import Reader
from btr.storage import Store
from btr.storage.living import edit
from btr.store import __main__ as command
from btr.store.articles import held
from btr.store.updates import put

Bring = Callable[..., list[str]]


def text(count: int, word: str = "w") -> str:
    return " ".join(f"{word}{n}" for n in range(count))


@pytest.fixture
def bring(span_reader: Reader, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bring:
    """Build a store of articles (id: text), or bring them into it; returns the ids that it holds then."""
    span_reader.save_pretrained(tmp_path / "reader")
    store = tmp_path / "s.btr"

    def write(articles: dict[str, str], *more: str) -> list[str]:
        rows = [{"id": name, "title": "T", "text": words} for name, words in articles.items()]
        (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        arguments = [str(tmp_path / "corpus.jsonl"), "--reader", str(tmp_path / "reader")]
        return build_or_bring(store, arguments, *more)

    return write


def build_or_bring(store: Path, arguments: list[str], verb: str = "upsert", *more: str) -> list[str]:
    """Build a store, or bring into it if it is there; returns the ids that it holds then."""
    if store.exists():
        assert command.main([verb, str(store), *arguments, *more]) == 0
    else:
        assert precompute.main([*arguments, "--store", str(store), "--words", "10", "--no-index"]) == 0
    return ids(store)


def ids(path: Path) -> list[str]:
    with Store.open(path) as store:
        live = [n for n in range(store.manifest.ordinals) if not store.deleted([n])[0]]
        return sorted(store.at(live).ids)


def pieces(name: str, count: int) -> list[str]:
    return [f"{name}:{number}" for number in range(count)]


def test_new_version_takes_the_place_of_all_pieces(bring: Bring, tmp_path: Path) -> None:
    assert bring({"a": text(40), "b": text(30), "c": text(5)}) == [*pieces("a", 4), *pieces("b", 3), "c"]
    assert bring({"a": text(25, "v")}) == [*pieces("a", 3), *pieces("b", 3), "c"]  # shorter
    assert bring({"a": text(3)}) == ["a", *pieces("b", 3), "c"]  # no longer divided
    assert bring({"a": text(20), "c": text(5)}) == [*pieces("a", 2), *pieces("b", 3), "c"]  # divided again
    assert bring({"a": text(20), "b": text(30)}) == [*pieces("a", 2), *pieces("b", 3), "c"]  # the same
    assert bring({"c": text(40), "a": text(2)}, "upsert", "--limit", "3") == [
        *pieces("a", 2),
        *pieces("b", 3),
        "c",
        "c:0",
        "c:1",
        "c:2",
    ]


def test_article_is_deleted_by_its_id(bring: Bring, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bring({"a": text(40), "b:0": text(10), "b:1": text(9), "c": text(5), "d:0": text(10), "d:2": text(10)})
    store = str(tmp_path / "s.btr")
    capsys.readouterr()
    assert command.main(["delete", store, "a", "a:1"]) == 0
    assert "4 deleted" in capsys.readouterr().out
    assert command.main(["delete", store, "d"]) == 2  # d:0 alone is no article that was divided
    assert command.main(["delete", store, "d:0", "c"]) == 0
    assert ids(tmp_path / "s.btr") == ["b:0", "b:1", "d:2"]


def test_passages_that_somebody_else_has_numbered_stay(bring: Bring) -> None:
    """Own ids like those of pieces: not replaced by others of their kind, nor by an article unless cut as btr cuts."""
    bring({"x:0": text(10), "x:1": text(10), "x:2": text(7), "y:0": text(9), "y:1": text(9)})
    assert bring({"x:0": text(9), "x:1": text(10)}) == ["x:0", "x:1", "x:2", "y:0", "y:1"]
    assert bring({"y": text(4)}) == ["x:0", "x:1", "x:2", "y", "y:0", "y:1"]


def test_article_that_is_there_is_not_added_in_another_version(
    bring: Bring, capsys: pytest.CaptureFixture[str]
) -> None:
    before = bring({"a": text(40), "b": text(5)})
    capsys.readouterr()
    longer = {"a": text(60), "b": text(30)}
    assert bring(longer, "add") == before
    assert "9 there already" in capsys.readouterr().out
    assert bring({"a": text(4), "c": text(4)}, "add") == [*before, "c"]


# Documents, which are divided by their headings


@pytest.fixture
def documents(span_reader: Reader, tmp_path: Path) -> Callable[..., list[str]]:
    """Build a store of a folder of documents, or bring it in; returns the ids that it holds then."""
    span_reader.save_pretrained(tmp_path / "reader")
    store = tmp_path / "s.btr"

    def write(files: dict[str, str], *more: str) -> list[str]:
        for name, content in files.items():
            (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "docs" / name).write_text(content)
        arguments = [str(tmp_path / "docs"), "--reader", str(tmp_path / "reader")]
        return build_or_bring(store, arguments, *more)

    return write


def markdown(*sections: str) -> str:
    return "".join(f"# {name}\n{text(6, name)}\n" for name in sections)


def test_edited_document_takes_the_place_of_all_its_pieces(documents: Bring, tmp_path: Path) -> None:
    assert documents({"a/x.md": markdown("A", "B", "C"), "y.md": markdown("D", "E")}) == [
        *pieces("a/x.md", 3),
        *pieces("y.md", 2),
    ]
    assert documents({"a/x.md": markdown("A", "F")}) == [*pieces("a/x.md", 2), *pieces("y.md", 2)]
    with Store.open(tmp_path / "s.btr") as store:
        found = store.get(pieces("a/x.md", 2))
    assert found.titles == ("x.md > A", "x.md > F") and found.texts == (text(6, "A"), text(6, "F"))
    assert documents({"a/x.md": markdown("A")}) == ["a/x.md", *pieces("y.md", 2)]
    assert documents({"a/x.md": markdown("A", "B")}) == [*pieces("a/x.md", 2), *pieces("y.md", 2)]


def test_document_that_is_there_is_not_added_in_another_version(documents: Bring) -> None:
    before = documents({"x.md": markdown("A", "B"), "y.md": markdown("D")})
    assert documents({"x.md": markdown("A", "B", "C"), "z.md": markdown("E")}, "add") == sorted([*before, "z.md"])


def test_document_is_deleted_by_its_id(documents: Bring, tmp_path: Path) -> None:
    documents({"a/x.md": markdown("A", "B", "C"), "y.md": markdown("D", "E")})
    assert command.main(["delete", str(tmp_path / "s.btr"), "a/x.md"]) == 0
    assert ids(tmp_path / "s.btr") == pieces("y.md", 2)


def test_document_is_replaced_and_deleted_where_a_few_passages_are_put(
    documents: Bring, span_reader: Reader, tmp_path: Path
) -> None:
    """As it is over HTTP."""
    documents({"x.md": markdown("A", "B", "C"), "y.md": markdown("D", "E")})
    with edit(tmp_path / "s.btr") as editor:
        counts = put(editor, span_reader, [Passage("x.md", "x.md", "Owls hunt.")])
        with editor.view.read() as reading:
            assert len(held(reading, "y.md", 10)) == 2
    assert (counts["added"], counts["deleted"]) == (1, 3)
    assert ids(tmp_path / "s.btr") == ["x.md", *pieces("y.md", 2)]


def test_store_is_made_what_the_corpus_is(bring: Bring, capsys: pytest.CaptureFixture[str]) -> None:
    bring({"a": text(40), "b": text(30), "c": text(5), "d": text(5)})
    capsys.readouterr()
    assert bring({"a": text(25), "c": text(5), "e": text(5)}, "upsert", "--mirror") == [*pieces("a", 3), "c", "e"]
    assert "5 that the corpus does not hold deleted" in capsys.readouterr().out


def test_mirror_does_not_go_with_a_limit(bring: Bring, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = bring({"a": text(5), "b": text(5)})
    arguments = [str(tmp_path / "s.btr"), str(tmp_path / "corpus.jsonl"), "--mirror", "--limit", "1"]
    assert command.main(["upsert", *arguments]) == 2
    assert "--mirror would delete what --limit leaves out" in capsys.readouterr().err
    assert ids(tmp_path / "s.btr") == before


def test_fields_that_were_named_are_those_of_later_changes(span_reader: Reader, tmp_path: Path) -> None:
    span_reader.save_pretrained(tmp_path / "reader")
    corpus, store = tmp_path / "c.jsonl", str(tmp_path / "s.btr")
    corpus.write_text(json.dumps({"key": "a", "body": text(40)}))
    named = ["--id", "key", "--text", "body", "--words", "10", "--no-index"]
    made = [str(corpus), "--reader", str(tmp_path / "reader")]
    assert precompute.main([*made, "--store", store, *named]) == 0
    corpus.write_text(json.dumps({"key": "a", "body": text(20)}))
    assert command.main(["upsert", store, *made]) == 0
    assert ids(tmp_path / "s.btr") == pieces("a", 2)
