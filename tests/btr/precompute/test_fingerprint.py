"""What a store depends on: an interrupted run is gone on with by the same reader, corpus and options alone."""

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest

from btr.precompute.run import describe, parse
from btr.storage import Settings

READER: dict[str, Any] = {
    "fingerprint": "3f2a", "tokenizer_hash": "77aa", "k": 2, "max_passage_tokens": 320, "bits": 48, "D": 64,
    "vocab_size": 300,
}  # fmt: skip


def settings(flags: str = "", corpus_hash: str = "0b0b", **other: Any) -> Settings:
    """Describe a run with some flags, by a reader that differs in something."""
    given = READER | other
    config = SimpleNamespace(k=given.pop("k"), max_passage_tokens=given.pop("max_passage_tokens"))
    model = SimpleNamespace(vocab_size=given.pop("vocab_size"))
    reader: Any = SimpleNamespace(config=config, model=model, **given)
    return describe(parse(["corpus", *flags.split()]), reader, corpus_hash)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"fingerprint": "91bc"}, "fingerprint"),
        ({"tokenizer_hash": "91bc"}, "tokenizer_hash"),
        ({"k": 3}, "k"),
        ({"max_passage_tokens": 99}, "max_passage_tokens"),
        ({"bits": 64}, "D"),
        ({"D": 96}, "width"),
        ({"vocab_size": 301}, "vocab_size"),
        ({"corpus_hash": "91bc"}, "corpus_hash"),
        ({"flags": "--shard-passages 7"}, "shard_passages"),
        ({"flags": "--limit 7"}, "options"),
        ({"flags": "--words 50"}, "options"),
        ({"flags": "--dtype bfloat16"}, "options"),
        ({"flags": "--no-text"}, "options"),
        ({"flags": "--k 2"}, "options"),
    ],
)
def test_run_with_something_else_is_another(change: dict[str, Any], field: str) -> None:
    mine, other = settings(), settings(**change)
    assert mine != other
    assert [one.name for one in fields(Settings) if getattr(mine, one.name) != getattr(other, one.name)] == [field]


@pytest.mark.parametrize("flags", ["", "--workers 3", "--no-index", "--json", "--store s.btr", "--no-resume"])
def test_what_changes_no_bit_is_no_difference(flags: str) -> None:
    assert settings(flags) == settings()
