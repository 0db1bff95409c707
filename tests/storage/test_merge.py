"""Stores joined: what was deleted stays deleted, damage is not copied, and nothing is promised that is not there."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from btr.storage import Corrupt, Encoded, ReaderMismatch, Store
from btr.storage import merge as merging
from btr.storage.living import edit
from btr.storage.merge import merge

Make = Callable[..., Encoded]
Same = Callable[[Encoded, Encoded], None]
Write = Callable[..., Path]


def delete(path: Path, ordinals: Iterable[int]) -> None:
    with edit(path) as editor:
        editor.commit(editor.delete(ordinals))


def bitmaps(path: Path) -> set[str]:
    return {file.name for file in path.rglob("*.deleted*")}


@pytest.fixture
def two(tmp_path: Path, write: Write) -> tuple[Path, Path]:
    """Stores of p0 to p19, less p3 and p19, and of p0 to p24, less p1 and p21."""
    paths = write(tmp_path / "a"), write(tmp_path / "b", count=25)
    delete(paths[0], [3, 19])
    delete(paths[1], [1, 21])
    return paths


def test_deleted_passages_stay_deleted_and_the_first_of_two_is_kept(
    tmp_path: Path, two: tuple[Path, Path], passages: Make, same: Same
) -> None:
    merge(tmp_path / "out", two)
    numbers = [n for n in range(20) if n not in (3, 19)] + [3, 19, 20, 22, 23, 24]
    with Store.open(tmp_path / "out") as store:
        assert (len(store), list(store.verify())) == (24, [])
        same(store.at(list(store.live())), Encoded.concat([passages(range(n, n + 1)) for n in numbers]))
        assert bitmaps(store.path) == {shard.deletions_file for shard in store.manifest.shards}


@pytest.mark.parametrize("when", ["_drop_duplicates", "stale_bitmaps", "Building.finish"])
def test_stopped_anywhere_it_goes_on(
    tmp_path: Path, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    whole = merge(tmp_path / "whole", two)
    with monkeypatch.context() as patch:
        patch.setattr(f"btr.storage.merge.{when}", stop)
        with pytest.raises(KeyboardInterrupt):
            merge(tmp_path / "out", two)
    copied: list[Path] = []
    copy = merging._copy_file
    monkeypatch.setattr(merging, "_copy_file", lambda a, b: copied.append(b) or copy(a, b))
    assert merge(tmp_path / "out", two).content_hash == whole.content_hash
    assert "data.mdb" not in {file.name for file in copied}
    with Store.open(tmp_path / "out") as store:
        assert list(store.verify()) == []
        assert bitmaps(store.path) == {shard.deletions_file for shard in store.manifest.shards}


def test_damage_is_not_copied(tmp_path: Path, two: tuple[Path, Path]) -> None:
    (data,) = (two[1] / "shards").glob("*/data.mdb")
    content = bytearray(data.read_bytes())
    content[content.index(b"Title 13")] ^= 1
    data.write_bytes(content)
    with pytest.raises(Corrupt, match=rf"store {two[1]}, shard \S+: data_hash is .*, the manifest says .*; copy the"):
        merge(tmp_path / "out", two)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("order", [1, -1])
def test_stores_with_texts_and_without_are_not_joined(tmp_path: Path, write: Write, order: int) -> None:
    bare, whole = write(tmp_path / "bare", options={"text": False}), write(tmp_path / "whole", options={"text": True})
    message = rf"store {bare} keeps no texts, store {whole} does: .* with --no-text or without"
    with pytest.raises(ReaderMismatch, match=message):
        merge(tmp_path / "out", [bare, whole][::order])
    assert sorted(os.listdir(tmp_path)) == ["bare", "whole"]
    assert merge(tmp_path / "out", [bare]).options == {"text": False}
