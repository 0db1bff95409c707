"""Trim the vocabulary of a BERT to the pieces that a text uses: in a small BERT half of the weights are embeddings.

Kept are the most frequent pieces, all special tokens and all single characters of Latin scripts and punctuation: a
word whose piece is gone falls into smaller ones, down to letters, and not to [UNK]. WordPiece takes the longest piece
that it knows, so a word whose pieces are all kept has the same pieces as before.
"""

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, processors
from torch import Tensor

from btr.errors import InputError
from btr.model.checkpoint import load_tokenizer, tensors
from btr.model.marks import marks
from btr.model.weights import read_json, read_tensors

BATCH = 2048  # texts counted at a time


def trim(folder: Path, texts: Iterable[str], keep: int, out: Path) -> float:
    """Write the BERT of a folder with `keep` pieces to a new folder; returns the share of the texts' tokens kept whole.

    Raises:
        InputError: a tokenizer that is not WordPiece, a `keep` out of range, or `out` is there already.
    """
    if out.exists():
        raise InputError(f"{out} is there already; give another name")
    tokenizer = load_tokenizer(folder)
    vocabulary = tokenizer.get_vocab()
    spec = json.loads(tokenizer.to_str())
    begins, parts = (marks(tokenizer)[name] for name in ("cls_token", "sep_token"))
    if spec["model"]["type"] != "WordPiece" or not vocabulary.keys() >= {begins, parts}:
        what = f"{spec['model']['type']} with {len(vocabulary.keys() & {begins, parts})} of {begins} and {parts}"
        raise InputError(f"{folder}: the tokenizer is {what}, not the WordPiece of a BERT; give a BERT")
    special = {token["content"] for token in spec["added_tokens"]} | {spec["model"]["unk_token"], begins, parts}
    counts = count(tokenizer, texts)
    kept = choose(vocabulary, special, counts, keep)
    building = out.with_name(out.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    renumber(spec, kept, begins, parts).save(str(building / "tokenizer.json"))
    if (folder / "tokenizer_config.json").exists():
        shutil.copy(folder / "tokenizer_config.json", building)
    rows = torch.tensor([vocabulary[piece] for piece in kept])
    tensors(building / "model.safetensors", cut(read_tensors(folder), rows))
    config = read_json(folder / "config.json") | {"vocab_size": len(kept)}
    (building / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    building.rename(out)
    return sum(counts[piece] for piece in kept) / max(counts.total(), 1)


def count(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """Count the pieces of texts."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text
    counts: Counter[int] = Counter()
    stream = iter(texts)
    while batch := list(itertools.islice(stream, BATCH)):
        for found in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            counts.update(found.ids)
    return Counter({tokenizer.id_to_token(n) or "": number for n, number in counts.items()})


def choose(vocabulary: Mapping[str, int], special: Collection[str], counts: Counter[str], keep: int) -> list[str]:
    """Choose `keep` pieces, in the order they had; of equally frequent ones, those that came earlier.

    Raises:
        InputError: fewer than what has to be kept, or more than there are.
    """
    ordered = sorted(vocabulary, key=lambda piece: vocabulary[piece])
    needed = {piece for piece in ordered if piece in special or is_letter(piece.removeprefix("##"))}
    if not len(needed) <= keep <= len(ordered):
        raise InputError(
            f"keep is {keep}; the vocabulary has {len(ordered)} pieces, of which {len(needed)} (special tokens and "
            "single characters) have to stay: give a number between"
        )
    ranked = sorted((piece for piece in ordered if piece not in needed), key=lambda piece: -counts[piece])
    chosen = needed | set(ranked[: keep - len(needed)])
    return [piece for piece in ordered if piece in chosen]


def is_letter(piece: str) -> bool:
    """Tell whether a piece is one character of a Latin script or a mark of punctuation (U+0000-024F, U+2010-206F)."""
    return len(piece) == 1 and (ord(piece) < 0x250 or 0x2010 <= ord(piece) < 0x2070)


def renumber(spec: dict[str, Any], kept: list[str], begins: str, parts: str) -> Tokenizer:
    """Build the tokenizer that knows these pieces alone, numbered in their order, from another's JSON."""
    ids = {piece: n for n, piece in enumerate(kept)}
    added = [token | {"id": ids[token["content"]]} for token in spec["added_tokens"]]
    changed = {"model": spec["model"] | {"vocab": ids}, "added_tokens": added, "post_processor": None}
    tokenizer = Tokenizer.from_str(json.dumps(spec | changed | {"padding": None, "truncation": None}))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begins} $A {parts}",
        pair=f"{begins} $A {parts} $B:1 {parts}:1",
        special_tokens=[(token, ids[token]) for token in (begins, parts)],
    )
    return tokenizer


def cut(weights: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Keep these rows of what has a row for each piece: the embedding, and a head that predicts pieces."""
    found = {}
    for name, tensor in weights.items():
        if name.endswith("position_ids"):
            continue  # numbers in a row, which old checkpoints keep and nothing reads
        of_pieces = name.endswith("word_embeddings.weight") or ("predictions" in name and len(tensor) > int(rows.max()))
        found[name] = (tensor[rows] if of_pieces else tensor).contiguous()
    return found
