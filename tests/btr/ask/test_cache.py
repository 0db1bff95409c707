"""The store of documents that are asked: made once, as new as they are, and nothing but its own is touched."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from btr.ask import __main__ as command
from btr.ask import cache, making
from btr.corpus import convert
from btr.errors import InputError
from btr.reader import Reader
from btr.storage import Store

Ask = Callable[..., list[str]]


@pytest.fixture(scope="module")
def reader(span_reader: Reader, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    span_reader.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the process as it was."""
    monkeypatch.setattr(command, "hush", lambda: None)
    monkeypatch.setattr(convert, "_folder", None)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "harbour.md").write_text("# Harbour\nThe harbour of Vellin was dug by hand.\n# Depth\nTwo ships deep.")
    (folder / "sub" / "salt.txt").write_text("Salt came over the hills on mules.")
    return folder


@pytest.fixture
def found(tmp_path: Path, reader: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Ask a question; returns the ids of the passages read."""

    def ask(*words: str, reader: Path = reader) -> list[str]:
        arguments = [*words, "--reader", str(reader), "--cache", str(tmp_path / "cache"), "--json"]
        assert command.main(arguments) == 0
        return sorted(passage["id"] for passage in json.loads(capsys.readouterr().out)["passages"])

    return ask


def all_ids(tmp_path: Path) -> list[str]:
    [path] = (tmp_path / "cache").glob("*/store.btr")
    with Store.open(path) as store:
        return sorted(store.at(list(store.live())).ids)


def test_documents_are_asked(found: Ask, docs: Path, tmp_path: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in docs.rglob("*"))
    assert found(str(docs), "Who dug the harbour?") == ["harbour.md"]
    assert found(str(docs), "mules?") == ["sub/salt.txt"]
    assert sorted((path, path.stat().st_mtime_ns) for path in docs.rglob("*")) == before


def test_documents_that_have_not_changed_are_not_read_again(
    found: Ask, docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(str(docs), "mules?")

    def refuse(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(making, "build", refuse)
    monkeypatch.setattr(making, "refresh", refuse)
    monkeypatch.chdir(docs)
    assert found(".", "mules?") == ["sub/salt.txt"]


def test_store_is_what_the_documents_are_now(
    found: Ask, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(str(docs), "mules?")
    monkeypatch.setattr(making, "build", lambda *_: pytest.fail("made anew"))
    (docs / "harbour.md").write_text("Dug by machines.")
    (docs / "heron.md").write_text("The heron nests in the reeds.")
    (docs / "sub" / "salt.txt").unlink()
    assert found(str(docs), "Where does the heron nest?") == ["heron.md"]
    assert all_ids(tmp_path) == ["harbour.md", "heron.md"]
    (docs / "heron.md").write_text("The heron nests in the reeds. ")  # the time is another, the passage the same
    assert found(str(docs), "heron") == ["heron.md"]


def test_store_of_another_reader_or_damaged_is_made_anew(found: Ask, docs: Path, tmp_path: Path, reader: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for file in reader.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    found(str(docs), "mules?", reader=own)
    changed = Reader.from_pretrained(own)
    changed.model.binarizer.mean.data += 1
    changed.save_pretrained(own)
    assert found(str(docs), "mules?", reader=own) == ["sub/salt.txt"]
    [manifest] = (tmp_path / "cache").glob("*/store.btr/manifest.json")
    manifest.write_text("{")
    os.utime(docs / "harbour.md", ns=(1, 1))
    assert found(str(docs), "mules?", reader=own) == ["sub/salt.txt"]


def test_run_that_was_killed_while_documents_changed_begins_anew(
    found: Ask, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("btr.storage.Building.finish", stop)
        with pytest.raises(KeyboardInterrupt):
            found(str(docs), "mules?")
    (docs / "more.md").write_text("More mules.")
    assert found(str(docs), "mules?") == ["more.md", "sub/salt.txt"]


def test_several_files_are_asked_together(found: Ask, docs: Path, tmp_path: Path) -> None:
    (docs / "sub" / "harbour.md").write_text("Another harbour.")
    files = [str(docs / "harbour.md"), str(docs / "sub" / "harbour.md"), str(docs / "sub" / "salt.txt")]
    assert found(*files, "mules?") == ["salt.txt"]
    assert all_ids(tmp_path) == ["1-harbour.md", "harbour.md", "salt.txt"]


def test_nothing_is_kept_where_that_is_said(
    docs: Path, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert command.main([str(docs), "mules?", "--reader", str(reader), "--no-cache"]) == 0
    assert "salt.txt" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists() and list((tmp_path / "temporary").iterdir()) == []
    assert command.main([str(docs), "mules?", "--reader", str(reader)]) == 0
    assert len(list((tmp_path / "cache" / "btr").iterdir())) == 1


def test_cache_stands_where_the_system_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache.default_cache() == tmp_path / ".cache" / "btr"
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache.default_cache() == tmp_path / "Library" / "Caches" / "btr"


def test_folder_with_a_manifest_of_its_own_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert not cache.is_store(tmp_path)
    (tmp_path / "half.btr.building").mkdir()
    assert cache.is_store(tmp_path / "half.btr")  # which is then refused as one that is not finished


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["none.md"], "none.md: there is no such file; name a store, one folder, or files, and one question"),
        (["docs", "docs/harbour.md"], "docs: a folder among others; name a store, one folder, or files"),
        (["empty"], "no passage to read|a folder without a file"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    docs: Path, sources: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(docs.parent)
    (docs.parent / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        cache.store_of([Path(source) for source in sources], None, Path("cache"))


def test_cache_that_cannot_be_written_names_the_cure(docs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\); give another folder with --cache"):
        cache.store_of([docs], None, tmp_path / "file")
