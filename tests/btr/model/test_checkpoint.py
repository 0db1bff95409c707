"""Reader folders: to transformers and back without a bit changed, what the fingerprint sees, and what is refused."""

import copy
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, T5ForConditionalGeneration

from btr.corpus import Passage
from btr.errors import InputError
from btr.model.checkpoint import load_reader, load_t5, load_tokenizer, save_reader
from btr.model.config import ReaderConfig, T5Config
from btr.model.fid import FiD
from btr.model.parameter_names import hf_name
from btr.model.t5 import T5
from btr.reader import Reader

IDS, LABELS = torch.tensor([[5, 9, 77, 140, 3, 1]]), torch.tensor([[8, 9, 1]])


@pytest.fixture
def folder(shape: str, tiny_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the shape's folder, as transformers wrote it."""
    return Path(shutil.copytree(tiny_folders[shape], tmp_path / "plain"))


@pytest.fixture
def saved(tiny_reader: Reader, tmp_path: Path) -> Path:
    """A reader's folder as we write it, split after layer 2 of 4."""
    tiny_reader.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@torch.no_grad()
def scores(model: T5ForConditionalGeneration) -> Tensor:
    return model(input_ids=IDS, labels=LABELS).logits


@torch.no_grad()
def our_scores(model: T5) -> Tensor:
    return model(IDS, torch.ones_like(IDS).bool(), LABELS)


def assert_equal(one: T5, two: T5) -> None:
    """Two models are of one shape and hold the same numbers."""
    assert one.config == two.config
    tensors, others = dict(one.named_parameters()), dict(two.named_parameters())
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_names_are_all_those_of_transformers(oracle: T5ForConditionalGeneration, folder: Path) -> None:
    ours = load_t5(folder, torch.float32)
    names = [hf_name(name, ours.config.gated) for name, _ in ours.named_parameters()]
    assert len(set(names)) == len(names) and set(names) == {name for name, _ in oracle.named_parameters()}
    with pytest.raises(KeyError, match="no transformers name"):
        hf_name("encoder.layers.0.bias", True)


def test_our_folder_is_a_model_of_transformers(oracle: T5ForConditionalGeneration, folder: Path) -> None:
    Reader.from_pretrained(folder, k=2).save_pretrained(folder.with_name("ours"))
    theirs = T5ForConditionalGeneration.from_pretrained(folder.with_name("ours")).eval()
    assert torch.equal(scores(theirs), scores(oracle))
    assert theirs.config.decoder_start_token_id == 0 and theirs.dtype is torch.float32
    text = "Ada Berg built the lighthouse."
    tokenizer = AutoTokenizer.from_pretrained(folder.with_name("ours"))
    assert tokenizer(text)["input_ids"] == load_tokenizer(folder).encode(text).ids
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "</s>")


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["relu", "gated-gelu"])
def test_every_mixture_of_the_shapes_can_be_saved(
    kind: str, tied: bool, scaled: bool, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    sizes = {"vocab_size": 256, "d_model": 16, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_decoder_layers": 1}
    torch.manual_seed(0)
    config = T5Config(
        **sizes, num_heads=4, feed_forward_proj=kind, tied_head=tied, scale_decoder_outputs=scaled, dropout_rate=0.0
    )
    ours = T5(config)
    save_reader(FiD(ours, ReaderConfig()), tiny_tokenizer, tmp_path)
    assert_equal(load_t5(tmp_path, torch.float32), ours)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.allclose(our_scores(ours.eval()), scores(theirs), rtol=1e-4, atol=1e-4)


def in_shards(model: T5ForConditionalGeneration, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3 and not (folder / "model.safetensors").exists()


def as_pickle(model: T5ForConditionalGeneration, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def as_pickles(model: T5ForConditionalGeneration, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    names = {}
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        names[name] = f"pytorch_model-{number % 3}.bin"
        path = folder / names[name]
        torch.save((torch.load(path) if path.exists() else {}) | {name: tensor}, path)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))


def with_every_copy(model: T5ForConditionalGeneration, folder: Path) -> None:
    """Save what is tied as often as it has names, as old versions did, and a table that nothing reads."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(32, 4)
    save_file(tensors, folder / "model.safetensors")


def without_shared(model: T5ForConditionalGeneration, folder: Path) -> None:
    with_every_copy(model, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["shared.weight"]
    save_file(tensors, folder / "model.safetensors")


def saying_tied(model: T5ForConditionalGeneration, folder: Path) -> None:
    """Say that the head is tied, whatever it is, and leave the scaling as it is."""
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"tie_word_embeddings": True, "scale_decoder_outputs": model.config.scale_decoder_outputs}
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("rewrite", [in_shards, as_pickle, as_pickles, with_every_copy, without_shared, saying_tied])
def test_checkpoint_is_the_same_however_it_is_written(
    rewrite: Callable[[T5ForConditionalGeneration, Path], None], oracle: T5ForConditionalGeneration, folder: Path
) -> None:
    plain = load_t5(folder, torch.float32)
    rewrite(oracle, folder)
    found = load_t5(folder, torch.float32)
    assert_equal(found, plain)
    assert (found.head.weight is found.embedding.weight) == found.config.tied_head == (not plain.config.gated)


def test_reader_saved_over_shards_is_the_one_that_is_read(oracle: T5ForConditionalGeneration, folder: Path) -> None:
    in_shards(oracle, folder)
    reader = Reader.from_pretrained(folder)
    with torch.no_grad():
        reader.model.t5.embedding.weight *= 2
    reader.save_pretrained(folder)
    assert_equal(load_t5(folder, torch.float32), reader.model.t5)


def test_bfloat16_goes_to_disk_and_back(folder: Path) -> None:
    reader = Reader.from_pretrained(folder, k=2, dtype="bfloat16")
    assert {p.dtype for p in reader.model.t5.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in reader.model.binarizer.parameters()} == {torch.float32}
    reader.save_pretrained(folder.with_name("half"))
    assert T5ForConditionalGeneration.from_pretrained(folder.with_name("half")).dtype is torch.bfloat16
    again = Reader.from_pretrained(folder.with_name("half"), dtype="bfloat16")
    assert_equal(again.model.t5, reader.model.t5)
    assert again.fingerprint == reader.fingerprint


def test_failed_save_leaves_the_old_reader(saved: Path, tiny_reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(values: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr("btr.model.checkpoint.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        tiny_reader.save_pretrained(saved)
    assert {name: (saved / name).read_bytes() for name in before} == before


PASSAGES = [Passage("a", "Salt", "Salt was carried over the hills."), Passage("b", "", "A mule takes forty kilos.")]


def test_reader_comes_back_as_it_was(saved: Path, tiny_reader: Reader) -> None:
    again = Reader.from_pretrained(saved)
    assert (again.fingerprint, again.tokenizer_hash, again.config) == (
        tiny_reader.fingerprint,
        tiny_reader.tokenizer_hash,
        tiny_reader.config,
    )
    assert again.config.k == 2 and again.name == str(saved)
    for mode in ("full", "float", "binary"):
        one, two = (reader.answer("salt", PASSAGES, mode, 8) for reader in (tiny_reader, again))
        assert (one.text, one.tokens, one.score) == (two.text, two.tokens, two.score)
    assert Reader.from_pretrained(saved, dtype="bfloat16").fingerprint == tiny_reader.fingerprint
    assert len(tiny_reader.fingerprint) == 16 and int(tiny_reader.fingerprint, 16) >= 0


def parts(model: FiD, below: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that stored bits depend on (below), or those that they do not."""
    for name, tensor in model.named_parameters():
        lower = name.startswith(
            ("t5.embedding", "t5.encoder.position_bias", "t5.encoder.layers.0", "t5.encoder.layers.1")
        )
        if (lower or name in ("t5.encoder.layers.2.attention_norm.weight", "binarizer.mean")) == below:
            yield name, tensor


@torch.no_grad()
def test_fingerprint_sees_what_bits_depend_on_and_nothing_else(tiny_reader: Reader) -> None:
    model = copy.deepcopy(tiny_reader.model)
    for below in (True, False):
        for name, tensor in parts(model, below):
            kept = tensor.clone()
            tensor.view(-1)[-1] += 0.5
            assert (Reader(model, tiny_reader.tokenizer).fingerprint != tiny_reader.fingerprint) == below, name
            tensor.copy_(kept)
    assert Reader(model, tiny_reader.tokenizer).fingerprint == tiny_reader.fingerprint
    config = model.t5.config
    for change in (
        {"scale_decoder_outputs": True, "decoder_start_token_id": 2, "dropout_rate": 0.3},
        {"eos_token_id": 2},
    ):
        model.t5.config = replace(config, **change)
        assert (Reader(model, tiny_reader.tokenizer).fingerprint != tiny_reader.fingerprint) == (
            "eos_token_id" in change
        )
    assert len(list(parts(model, True))) == 22 and len(list(parts(model, False))) > 30


def test_fingerprint_sees_split_and_tokenizer(tiny_folders: dict[str, Path], tiny_reader: Reader) -> None:
    found = {Reader.from_pretrained(tiny_folders["1.1"], k=k).fingerprint for k in (0, 1, 2, 3)}
    other = Tokenizer.from_str(tiny_reader.tokenizer.to_str())
    other.add_tokens(["lighthouse"])
    found |= {Reader(tiny_reader.model, other).fingerprint, tiny_reader.fingerprint}
    assert len(found) == 6


def test_calibration_changes_the_fingerprint(saved: Path) -> None:
    reader = Reader.from_pretrained(saved)
    before = reader.fingerprint
    reader.calibrate(PASSAGES)
    assert reader.fingerprint != before
    reader.save_pretrained(saved)
    assert Reader.from_pretrained(saved).fingerprint == reader.fingerprint


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop(path: Path, name: str) -> None:
    save_file({key: tensor for key, tensor in load_file(path).items() if key != name}, path)


def only_index(path: Path, text: str) -> None:
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(text)


DAMAGED = [
    (lambda f: (f / "config.json").unlink(), r"no config.json, so this is not a reader; pass a folder"),
    (lambda f: (f / "model.safetensors").unlink(), r"no model.safetensors or pytorch_model.bin; copy the weights next"),
    (lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer.json, vocab.txt or spiece.model; save the tokenizer"),
    (lambda f: (f / "btr.safetensors").unlink(), r"k = 2 but btr.safetensors is missing; copy it too"),
    (lambda f: cut(f / "config.json"), r"config.json: cannot be read as JSON \(.*\); fetch"),
    (lambda f: cut(f / "btr_config.json"), r"btr_config.json: cannot be read as JSON"),
    (lambda f: (f / "btr_config.json").write_text("[]"), r"btr_config.json: holds list, expected an object"),
    (lambda f: (f / "config.json").write_bytes(b"\xff"), r"config.json: cannot be read as JSON"),
    (lambda f: cut(f / "model.safetensors"), r"model.safetensors: damaged weights \(.+\); copy the file again"),
    (lambda f: cut(f / "btr.safetensors"), r"btr.safetensors: damaged weights \(.+\); copy the file again"),
    (lambda f: cut(f / "tokenizer.json"), r"tokenizer.json: not a tokenizer \(.+\); copy the file again"),
    (lambda f: as_empty_pickle(f), r"pytorch_model.bin: damaged weights \(.+\); copy the file again"),
    (lambda f: only_index(f, "{}"), r"index.json: has no weight_map"),
    (lambda f: only_index(f, '{"weight_map": {"a": "x.safetensors"}}'), r"x.safetensors: no such file; copy it next"),
    (
        lambda f: drop(f / "model.safetensors", "shared.weight"),
        r"1 tensors are missing .*shared.weight is missing, exp",
    ),
    (lambda f: drop(f / "btr.safetensors", "mean"), r"btr.safetensors: holds .*magnitude.*, expected .*mean"),
    (lambda f: more_pieces(f / "tokenizer.json"), r"the tokenizer has \d+ pieces, the model 256; copy the one"),
    (lambda f: edit(f / "config.json", d_ff=48), r"21 tensors .*is \(96, 64\), expected \(48, 64\)\); copy"),
    (lambda f: edit(f / "config.json", num_layers=3), r"block.3.layer.*is of no layer there"),
    (lambda f: edit(f / "config.json", model_type="bart"), r"config.json: model_type is 'bart'; btr reads T5"),
    (lambda f: edit(f / "config.json", d_model="64"), r"config.json: "),
    (lambda f: edit(f / "btr_config.json", colour=1), r"unknown keys in btr_config.json: colour"),
    (lambda f: edit(f / "btr_config.json", format_version=9), r"format 9 is newer than 1"),
    (lambda f: edit(f / "btr_config.json", k=4), r"k is 4, the encoder has 4 layers; choose 1 <= k <= 3"),
    (lambda f: edit(f / "btr_config.json", k="2"), r"k is '2'; use an integer"),
]


def more_pieces(path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([f"piece {n}" for n in range(300)])
    tokenizer.save(str(path))


def as_empty_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


@pytest.mark.parametrize(("damage", "message"), DAMAGED, ids=[message for _, message in DAMAGED])
def test_damaged_folder_is_named(damage: Callable[[Path], Any], message: str, saved: Path) -> None:
    damage(saved)
    with pytest.raises(InputError, match=message) as caught:
        Reader.from_pretrained(saved)
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


def test_pieces_that_cannot_be_converted_are_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (saved / "tokenizer.json").rename(saved / "spiece.model")
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(InputError, match=r"spiece.model: converting it needs .*protobuf; pip install sentencepiece"):
        Reader.from_pretrained(saved)


@pytest.mark.parametrize("name", ["/no/such/folder", "no such name", "no-such-reader", "owner/no-such-reader"])
def test_reader_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: no such folder") as caught:
        Reader.from_pretrained(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("k", [-1, 4, 99])
def test_split_outside_the_encoder_is_refused(tiny_folders: dict[str, Path], k: int) -> None:
    with pytest.raises(InputError, match=rf"k is {k}"):
        Reader.from_pretrained(tiny_folders["1.1"], k=k)


@pytest.mark.parametrize("k", [0, 1])
def test_split_that_contradicts_the_folder_is_refused(saved: Path, k: int) -> None:
    with pytest.raises(InputError, match=rf"k is 2 in btr_config.json and {k} was asked for; leave k out, or train"):
        Reader.from_pretrained(saved, k=k)
    assert Reader.from_pretrained(saved, k=2).config.k == 2


@pytest.mark.parametrize("dtype", ["float16", "half", "int4"])
def test_other_precisions_are_refused(saved: Path, dtype: str) -> None:
    with pytest.raises(InputError, match=rf"dtype is '{dtype}'; use float32, bfloat16, int8 or auto \(T5"):
        Reader.from_pretrained(saved, dtype=dtype)


def test_half_precision_weights_are_refused(saved: Path) -> None:
    with pytest.raises(InputError, match=r"dtype is torch.float16; T5 overflows in float16: use float32 or bfloat16"):
        load_reader(saved, torch.float16, None)


def test_half_precision_files_are_read_in_full(folder: Path, oracle: T5ForConditionalGeneration) -> None:
    plain = load_t5(folder, torch.float32)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / "model.safetensors")
    found = load_t5(folder, torch.float32)
    assert found.dtype is torch.float32 and found.config == plain.config
    assert torch.equal(found.embedding.weight, plain.embedding.weight.half().float())
