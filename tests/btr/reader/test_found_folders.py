"""Reader folders as they are found: BERTs with old names, FiD's own checkpoints, vocab.txt alone, Git LFS pointers."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from btr.errors import InputError
from btr.model.checkpoint import load_t5, load_tokenizer
from btr.reader import Reader
from btr.retrieve.dense.encoder import Encoder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


@pytest.fixture
def bert(bert_folder: Path, tmp_path: Path) -> Path:
    """A copy of a BERT's folder."""
    return Path(shutil.copytree(bert_folder, tmp_path / "bert"))


@pytest.fixture
def t5(tiny_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a plain T5's folder."""
    return Path(shutil.copytree(tiny_folders["1.0"], tmp_path / "t5"))


def rename(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    assert {change(name) for name in tensors} != set(tensors)
    save_file({change(name): tensor for name, tensor in tensors.items()}, path, {"format": "pt"})


def as_tensorflow(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_layer_norms_may_have_the_names_of_tensorflow(bert: Path) -> None:
    expected = Reader.from_pretrained(bert).model.state_dict()
    rename(bert, as_tensorflow)
    assert same(Reader.from_pretrained(bert).model.state_dict(), expected)


def test_layer_norms_of_an_encoder_may_too(encoder_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(encoder_folder, tmp_path / "encoder"))
    expected = Encoder.from_pretrained(str(folder)).fingerprint
    rename(folder, as_tensorflow)
    assert Encoder.from_pretrained(str(folder)).fingerprint == expected


@pytest.mark.parametrize("module", ["module.", ""])
def test_checkpoint_of_fusion_in_decoder_is_read(module: str, t5: Path) -> None:
    expected = load_t5(t5, torch.float32).state_dict()

    def wrapped(name: str) -> str:
        return re.sub(r"^encoder\.(block\.\d+\.)?", lambda m: f"encoder.encoder.{m[1] + module if m[1] else ''}", name)

    rename(t5, wrapped)
    assert same(load_t5(t5, torch.float32).state_dict(), expected)


@pytest.mark.parametrize("settings", [None, {"do_lower_case": False}])
def test_vocabulary_alone_makes_the_tokenizer(settings: dict[str, Any] | None, bert: Path) -> None:
    pieces = load_tokenizer(bert).get_vocab()
    (bert / "tokenizer.json").unlink()
    (bert / "tokenizer_config.json").unlink(missing_ok=True)
    (bert / "vocab.txt").write_text("\n".join(sorted(pieces, key=lambda piece: pieces[piece])), encoding="utf-8")
    if settings:
        (bert / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = load_tokenizer(bert)
    assert tokenizer.get_vocab() == pieces
    capital, small = (tokenizer.encode(text).ids for text in ("THE lighthouse", "the lighthouse"))
    assert (capital == small) == (settings is None)
    assert tokenizer.encode("the").ids[0] == pieces["[CLS]"] and Reader.from_pretrained(bert).family == "extractive"


def test_file_that_is_no_vocabulary_is_named(bert: Path) -> None:
    (bert / "tokenizer.json").unlink()
    (bert / "vocab.txt").write_text("salt\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"vocab\.txt: not a BERT's vocabulary"):
        load_tokenizer(bert)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_pointer_of_git_lfs_is_called_that(name: str, bert: Path) -> None:
    (bert / name).write_text(POINTER, encoding="utf-8")
    with pytest.raises(InputError, match=rf"{name}: a Git LFS pointer, .* git lfs pull"):
        Reader.from_pretrained(bert)


def test_model_of_another_kind_is_told_which_are_read(bert: Path) -> None:
    facts = json.loads((bert / "config.json").read_text(encoding="utf-8"))
    (bert / "config.json").write_text(json.dumps(facts | {"model_type": "distilbert"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"is 'distilbert'; btr reads T5 \('t5'\), 'bert' and 'mpnet'"):
        Reader.from_pretrained(bert)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, bert: Path) -> None:
    path = bert / "model.safetensors"
    tensors = load_file(path)
    tensors["qa_outputs.bias"][0] = value
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"1 tensors hold infinities or NaN \(qa_outputs.bias\)"):
        Reader.from_pretrained(bert)


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        ("bert", "num_attention_heads", 5),
        ("bert", "num_attention_heads", 0),
        ("bert", "hidden_size", -64),
        ("bert", "num_hidden_layers", 0),
        ("bert", "max_position_embeddings", 0),
        ("bert", "layer_norm_eps", float("nan")),
        ("bert", "layer_norm_eps", "small"),
        ("bert", "pad_token_id", -1),
        ("bert", "pad_token_id", 10**6),
        ("t5", "num_heads", 0),
        ("t5", "num_layers", 0),
        ("t5", "num_layers", 2.5),
        ("t5", "relative_attention_num_buckets", 0),
        ("t5", "relative_attention_max_distance", 8),
        ("t5", "dropout_rate", 1.5),
        ("t5", "layer_norm_epsilon", -1.0),
        ("t5", "eos_token_id", 10**6),
        ("t5", "decoder_start_token_id", -1),
    ],
)
def test_impossible_numbers_are_refused(family: str, name: str, value: Any, bert: Path, t5: Path) -> None:
    folder = {"bert": bert, "t5": t5}[family]
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(facts | {name: value}), encoding="utf-8")
    with pytest.raises(InputError, match=name) as refused:
        Reader.from_pretrained(folder)
    assert "\n" not in str(refused.value)
