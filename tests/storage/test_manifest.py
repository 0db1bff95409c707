"""The bytes of the manifest, and what it refuses."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from btr.storage import Corrupt, Manifest, NotAStore, Store
from btr.storage.manifest import read_json

GOLDEN = """{
  "fingerprint": "3f2a",
  "tokenizer_hash": "77aa",
  "k": 9,
  "D": 768,
  "vocab_size": 32128,
  "max_passage_tokens": 320,
  "corpus_hash": "c0de",
  "width": 768,
  "passages_per_block": 64,
  "shard_passages": 65536,
  "options": {
    "limit": null
  },
  "corpus": "my corpus",
  "reader": "readers/base",
  "format_version": 2,
  "generation": 3,
  "shards": [
    {
      "name": "00000-0a1b2c3d",
      "passages": 2,
      "tokens": 250,
      "cut": 1,
      "duplicates": 0,
      "part_bytes": {
        "signs": 24000,
        "scalars": 500,
        "token_ids": 500,
        "text": 1300,
        "ids": 4,
        "block_headers": 68
      },
      "content_hash": "00ff",
      "data_bytes": 65536,
      "data_hash": "11ee",
      "deleted": 1,
      "deleted_tokens": 100,
      "deletions": "DELETIONS"
    }
  ],
  "indexed": 2,
  "created_by": "btr 0.1.0"
}""".replace("DELETIONS", "ab" * 32)


def test_golden_manifest() -> None:
    manifest = Manifest.from_json(json.loads(GOLDEN))
    assert json.dumps(asdict(manifest), indent=2) == GOLDEN
    assert (manifest.k, manifest.D, manifest.sign_bytes, manifest.token_width) == (9, 768, 96, 2)
    assert (manifest.passages, manifest.ordinals, manifest.tokens, manifest.cut) == (1, 2, 150, 1)
    assert manifest.shards[0].deletions_file == "abababababababab.deleted"


def test_content_hash_is_that_of_shards_and_deletions() -> None:
    data = json.loads(GOLDEN)
    hashes = set()
    for change in ({}, {"content_hash": "00fe"}, {"deleted": 0, "deletions": ""}, {"data_hash": "22"}):
        hashes.add(Manifest.from_json({**data, "shards": [{**data["shards"][0], **change}]}).content_hash)
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "missing or unknown keys: ['surprise']"),
        ({"k": "nine"}, "values of the wrong type: ['k']"),
        ({"k": True}, "values of the wrong type: ['k']"),
        ({"k": -1}, "values of the wrong type: ['k']"),
        ({"D": 0}, "D = 0 must be 1..2^32-1"),
        ({"D": 1 << 40}, "D = 1099511627776 must be 1..2^32-1"),
        ({"shards": "none"}, "values of the wrong type: ['shards']"),
        ({"shards": [3]}, "no JSON object"),
        ({"indexed": 3}, "3 passages are indexed, the store has only 2"),
    ],
)
def test_refuses_a_manifest_it_does_not_understand(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Corrupt) as caught:
        Manifest.from_json({**json.loads(GOLDEN), **change})
    assert message in str(caught.value)
    with pytest.raises(Corrupt, match="no JSON object"):
        Manifest.from_json([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../../etc"}, "'../../etc' is no name of a shard"),
        ({"passages": 1 << 50}, "passages of 26372 bytes are not in a file of 65536"),
        ({"data_bytes": 26000}, "passages of 26372 bytes are not in a file of 26000"),
        ({"part_bytes": {"signs": 1}}, "part_bytes are not the bytes of"),
        ({"part_bytes": dict.fromkeys(("signs", "scalars", "token_ids", "text", "ids", "block_headers"), -1)}, "part_"),
        ({"deleted": 3}, "more is deleted than it holds"),
        ({"deleted": 0}, "0 deleted, in a bitmap of hash"),
        ({"content_hash": "\ud800"}, "values of the wrong type: ['content_hash']"),
        ({"data_hash": "x"}, "content_hash or data_hash is none in hex"),
        ({"deletions": "../x"}, "1 deleted, in a bitmap of hash '../x'"),
    ],
)
def test_refuses_a_shard_that_cannot_be(change: dict[str, Any], message: str) -> None:
    data = json.loads(GOLDEN)
    with pytest.raises(Corrupt) as caught:
        Manifest.from_json({**data, "shards": [{**data["shards"][0], **change}]})
    assert message in str(caught.value)


def test_refuses_a_shard_twice() -> None:
    data = json.loads(GOLDEN)
    with pytest.raises(Corrupt, match="shard 00000-0a1b2c3d stands there twice"):
        Manifest.from_json({**data, "shards": data["shards"] * 2})


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 10_000, '"' + "\\ud800", "\xff"])
def test_json_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(Corrupt, match=r"x\.json is not JSON"):
        read_json(tmp_path / "x.json")


def test_a_store_of_format_1_says_how_to_rebuild(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "s")
    data = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**data, "format_version": 1}))
    command = f"python -m btr.precompute 'my corpus' --reader readers/base --store {path}.new"
    with pytest.raises(NotAStore) as caught:
        Store.open(path)
    assert str(caught.value).endswith(f"build it anew, beside this one, with: {command}")
