"""Stores whose blocks are of version 1: read as they are, and what is written anew is of version 2."""

import hashlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest

from btr.storage import Encoded, ResumeMismatch, Settings, Store
from btr.storage.format import chain, header_bytes
from btr.storage.living import compact, edit
from btr.storage.manifest import read_json, write_json
from btr.storage.shard import ShardWriter

Write, Make = Callable[..., Path], Callable[..., Encoded]


def first_record(encoded: Encoded, i: int) -> bytes:
    """Return a record as the first version wrote it, D = 65."""
    rows = slice(*encoded.offsets[i : i + 2].tolist())
    strings = [column[i].encode() for column in (encoded.ids, encoded.titles, encoded.texts)]
    signs = encoded.packed[rows].view(np.uint8)[:, :9].tobytes()
    rest = struct.pack("<IIII", encoded.lengths[i], *map(len, strings)) + b"".join(strings) + signs
    rest += encoded.scale[rows].tobytes() + encoded.token_ids[rows].astype("<u2").tobytes()
    return struct.pack("<I", zlib.crc32(rest)) + rest


def first_block(records: list[bytes]) -> bytes:
    """Return a block as the first version wrote it."""
    size = header_bytes(len(records))
    offsets = [size + sum(map(len, records[:i])) for i in range(len(records) + 1)]
    head = struct.pack("<4sBBHI", b"BTRB", 1, 2, len(records), 65) + struct.pack(f"<{len(offsets)}I", *offsets)
    return head + struct.pack("<I", zlib.crc32(head)) + b"".join(records)


def turn_back(path: Path, encoded: Encoded) -> None:
    """Write the only shard of a store, of blocks of 8, as the first version did."""
    (data,) = path.rglob("data.mdb")
    blocks = [[first_record(encoded, i) for i in range(a, min(a + 8, 20))] for a in range(0, 20, 8)]
    digest = bytes(32)
    with lmdb.open(str(data.parent), max_dbs=3) as environment:
        names = [environment.open_db(name) for name in (b"blocks", b"meta")]
        with environment.begin(write=True) as txn:
            for number, records in enumerate(blocks):
                block = first_block(records)
                digest = chain(digest, block)
                txn.put(struct.pack(">Q", number), block, db=names[0])
            txn.put(b"content", digest.hex().encode(), db=names[1])
            txn.delete(b"codebook", db=names[1])
    (data.parent / "lock.mdb").unlink()
    tokens, texts = encoded.num_tokens, encoded.titles + encoded.texts
    parts = {"signs": 9 * tokens, "scalars": 2 * tokens, "token_ids": 2 * tokens, "text": sum(map(len, texts))}
    parts |= {"ids": sum(map(len, encoded.ids)), "block_headers": 20 * 20 + sum(header_bytes(len(b)) for b in blocks)}
    manifest = read_json(path / "manifest.json")
    content = data.read_bytes()
    manifest["shards"][0] |= {"content_hash": digest.hex(), "part_bytes": parts, "data_bytes": len(content)}
    manifest["shards"][0] |= {"data_hash": hashlib.sha256(content).hexdigest()}
    write_json(path / "manifest.json", manifest)


@pytest.fixture
def old(tmp_path: Path, write: Write, passages: Make) -> Path:
    path = write(tmp_path / "old")
    turn_back(path, passages(range(20)))
    return path


def test_it_is_read_and_verified(old: Path, passages: Make, same: Callable[..., None]) -> None:
    with Store.open(old) as store:
        same(store.get(["p3", "p19", "p0"]), passages(range(20)).select([3, 19, 0]))
        same(store.at(range(20)), passages(range(20)))
        assert list(store.verify()) == []


def test_what_is_compacted_is_coded_and_the_same(old: Path, passages: Make, same: Callable[..., None]) -> None:
    with edit(old) as editor:
        editor.commit(editor.delete([4]))
        assert compact(editor) == (1, 4)
    with Store.open(old) as store:
        same(store.at(range(19)), passages(range(20)).select([*range(4), *range(5, 20)]))
        assert list(store.verify()) == []
        assert store.manifest.part_bytes["token_ids"] < 2 * store.manifest.tokens


def test_a_shard_begun_by_it_is_not_gone_on_with(
    tmp_path: Path, settings: Callable[..., Settings], passages: Make
) -> None:
    with ShardWriter(tmp_path / "s", settings()) as writer:
        writer.append(passages(range(5)), 5)
    with lmdb.open(str(tmp_path / "s"), max_dbs=3) as environment:
        meta = environment.open_db(b"meta")
        with environment.begin(write=True) as txn:
            txn.delete(b"codebook", db=meta)
    with pytest.raises(ResumeMismatch, match="begun by an older btr"):
        ShardWriter(tmp_path / "s", settings())
