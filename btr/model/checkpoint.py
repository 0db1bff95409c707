"""Reader folders: Hugging Face T5, BERT and MPNet checkpoints in and out, plus what binarization adds.

A folder holds `config.json`, `model.safetensors` (transformers' names), `tokenizer.json`, and for a BTR reader
`btr_config.json` and `btr.safetensors` (the binarizer's values), and `skim.safetensors` if it can prune. transformers
reads the same folder as a plain T5, or a plain BertForQuestionAnswering or MPNetForQuestionAnswering. (One of a BERT
that writes is of no kind that transformers has: its config.json is that of an encoder-decoder, a BERT and a T5 without
encoder layers.)
"""

import hashlib
import importlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch import Tensor, nn

from btr.errors import InputError
from btr.model.bert import Bert
from btr.model.bert_fid import BertFiD
from btr.model.binarize import Binarizer
from btr.model.config import BertConfig, Calibration, ConfigError, ReaderConfig, T5Config
from btr.model.fid import FiD
from btr.model.kinds import Model
from btr.model.marks import marks
from btr.model.parameter_names import (
    HEAD,
    bert_tensors,
    fit,
    fit_bert,
    fit_written,
    t5_name,
    t5_tensors,
    written_tensors,
)
from btr.model.pruning import Pruner
from btr.model.span_head import SpanReader
from btr.model.split import SplitBert
from btr.model.t5 import T5
from btr.model.weights import first_line, read_json, read_tensors, read_weights, refuse_pointer

PRUNER = "skim.safetensors"


def load_t5(folder: Path, dtype: torch.dtype) -> T5:
    """Build a T5 from a Hugging Face folder.

    Raises:
        InputError: tensors missing, of other shapes or of more layers than config.json says, or a dtype other than
            float32 and bfloat16.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise InputError(f"dtype is {dtype}; T5 overflows in float16: use float32 or bfloat16")
    tensors = {t5_name(name): tensor for name, tensor in read_tensors(folder).items()}
    shared = tensors.get("shared.weight", tensors.get("encoder.embed_tokens.weight"))
    head = tensors.get("lm_head.weight")
    # Read the tensors, not the flag: tied heads are often saved twice, untied ones under a config that says tied.
    tied = head is None or (shared is not None and torch.equal(head.float(), shared.float()))
    try:
        config = T5Config.from_hf(read_json(folder / "config.json"), tied)
        if not config.num_layers:
            raise ConfigError("num_layers is 0; use a T5 with an encoder")
        with torch.device("meta"):
            model = T5(config)
    except (ConfigError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder / 'config.json'}: {first_line(error)}") from error
    found, wrong = fit(model, tensors | ({} if shared is None else {"shared.weight": shared}))
    if wrong:
        raise InputError(
            f"{folder}: {len(wrong)} tensors are missing or do not fit config.json ({wrong[0]}); "
            "copy the checkpoint again"
        )
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in found.items()}, assign=True, strict=False)
    if tied:
        model.head.weight = model.embedding.weight
    return model.eval()


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load tokenizer.json, or make it of a BERT's vocab.txt, or of a T5's spiece.model by way of transformers.

    Raises:
        InputError: none is there, or it is damaged.
    """
    path = folder / "tokenizer.json"
    if path.exists():
        refuse_pointer(path)
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:
            raise InputError(f"{path}: not a tokenizer ({first_line(error)}); copy the file again") from error
    pieces = folder / "spiece.model"
    if not pieces.exists():
        if (folder / "vocab.txt").exists():
            return load_wordpiece(folder)
        cure = "save the tokenizer next to config.json"
        raise InputError(f"{folder}: no tokenizer.json, vocab.txt or spiece.model; {cure}")
    refuse_pointer(pieces)
    missing = [name for name in ("sentencepiece", "google.protobuf") if not importable(name)]
    if missing:
        raise InputError(
            f"{pieces}: converting it needs {' and '.join(missing)}; pip install sentencepiece protobuf, "
            "or save tokenizer.json beside it"
        )
    from transformers import AutoTokenizer  # slow to import, rarely needed

    try:
        return AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer
    except Exception as error:  # what it says is about the ways it tried after this one
        raise InputError(f"{pieces}: not a SentencePiece model; copy the file again") from error


def load_wordpiece(folder: Path) -> Tokenizer:
    """Make the tokenizer of a BERT from vocab.txt, and from what tokenizer_config.json says of case and accents.

    Raises:
        InputError: a vocabulary without BERT's special tokens.
    """
    path, settings = folder / "vocab.txt", folder / "tokenizer_config.json"
    refuse_pointer(path)
    facts = read_json(settings) if settings.exists() else {}
    try:
        return BertWordPieceTokenizer(
            str(path),
            lowercase=facts.get("do_lower_case", True),
            strip_accents=facts.get("strip_accents"),
            handle_chinese_chars=facts.get("tokenize_chinese_chars", True),
        )._tokenizer
    except Exception as error:  # what is not there, or not UTF-8
        raise InputError(f"{path}: not a BERT's vocabulary ({first_line(error)}); copy the file again") from error


def importable(name: str) -> bool:
    """Tell whether a module can be imported."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def load_span(folder: Path, dtype: torch.dtype, config: ReaderConfig, new_head: bool) -> SpanReader:
    """Build a span reader from a Hugging Face BERT or MPNet; `new_head`: one without a head for spans gets a new one.

    Raises:
        InputError: as `load_t5`, or no head.
    """
    try:
        with torch.device("meta"):
            model = SpanReader(Bert(BertConfig.from_hf(read_json(folder / "config.json"))), config)
    except (ConfigError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: {first_line(error)}") from error
    weights = read_tensors(folder)
    if f"{HEAD}.weight" not in weights:
        if not new_head:
            raise InputError(
                f"{folder}: a BERT without a head for spans ({HEAD}); train one with: python -m btr.train reader "
                f"--reader {folder}"
            )
        drawn = torch.randn(2, model.width, generator=torch.Generator().manual_seed(0))
        weights |= {f"{HEAD}.weight": 0.02 * drawn, f"{HEAD}.bias": torch.zeros(2)}
    fill(model, fit_bert(model, weights), folder, dtype)
    return model.eval()


def load_bert_fid(folder: Path, dtype: torch.dtype, config: ReaderConfig) -> BertFiD:
    """Build a BERT that writes from a folder of `save_reader`.

    Raises:
        InputError: as `load_t5`.
    """
    shapes = read_json(folder / "config.json")
    try:
        encoder, decoder = (shapes.get(name) or {} for name in ("encoder", "decoder"))
        with torch.device("meta"):
            model = BertFiD(Bert(BertConfig.from_hf(encoder)), T5Config.from_hf(decoder, True), config)
    except (ConfigError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{folder}: {first_line(error)}") from error
    fill(model, fit_written(model, read_tensors(folder)), folder, dtype)
    model.t5.embedding.weight = model.t5.head.weight = model.bert.embedding.weight
    return model.eval()


def fill(model: SplitBert, fitted: tuple[dict[str, Tensor], list[str]], folder: Path, dtype: torch.dtype) -> None:
    """Give a model of the meta device the tensors that were found for it, and a binarizer of numbers.

    Raises:
        InputError: some are missing or do not fit.
    """
    found, wrong = fitted
    if wrong:
        raise InputError(
            f"{folder}: {len(wrong)} tensors are missing or do not fit config.json ({wrong[0]}); "
            "copy the checkpoint again"
        )
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in found.items()}, assign=True, strict=False)
    config = model.config
    model.binarizer = Binarizer(model.width, config.calibration, bits=config.bits)


def load_reader(
    folder: Path, dtype: torch.dtype, k: int | None, calibration: Calibration | None = None, new_head: bool = False
) -> Model:
    """Build the model of a reader folder, T5 or BERT as config.json says.

    A plain checkpoint gets k (None: full mode only) and an uncalibrated binarizer; one of a reader keeps its own.

    Raises:
        InputError: as `load_t5` and `load_span`, or a k that contradicts the folder or the number of layers.
    """
    settings = folder / "btr_config.json"
    try:
        plain = ReaderConfig(k=k or 0, calibration=calibration or "channel")
        config = ReaderConfig.from_dict(read_json(settings)) if settings.exists() else plain
        if k is not None and k != config.k:
            raise ConfigError(
                f"k is {config.k} in btr_config.json and {k} was asked for; leave k out, or train a reader with k = {k}"
            )
        model: Model
        kind = read_json(folder / "config.json").get("model_type")
        if kind == "encoder-decoder":
            model = load_bert_fid(folder, dtype, config)
        elif kind in ("bert", "mpnet"):
            model = load_span(folder, dtype, config, new_head)
        else:
            model = FiD(load_t5(folder, dtype), config)
    except (ConfigError, ValueError, TypeError) as error:
        raise InputError(f"{folder}: {error}") from error
    if settings.exists() and config.k:
        load_binarizer(model, folder / "btr.safetensors")
        if (folder / PRUNER).exists():
            model.pruner = load_pruner(model, folder / PRUNER)
    return model.eval()


def configured(model: Model, config: ReaderConfig) -> Model:
    """Return the same weights under other settings, with a new binarizer if k or the calibration is another.

    Raises:
        ValueError: the encoder has no layer k+1.
    """
    other: Model
    if isinstance(model, FiD):
        other = FiD(model.t5, config)
    elif isinstance(model, BertFiD):
        other = BertFiD(model.bert, model.t5.config, config)
        other.t5, other.words = model.t5, model.words
    else:
        other = SpanReader(model.bert, config)
        other.head = model.head
    mine, theirs = model.config, config
    if (mine.k, mine.calibration, mine.bits) == (theirs.k, theirs.calibration, theirs.bits):
        other.binarizer = model.binarizer
    return other


def load_binarizer(model: Model, path: Path) -> None:
    """Fill the binarizer from a file; InputError names it."""
    if not path.exists():
        raise InputError(
            f"{path.parent}: btr_config.json has k = {model.config.k} but {path.name} is missing; copy it too"
        )
    values = read_weights(path)
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    expected = {name: tuple(value.shape) for name, value in model.binarizer.state_dict().items()}
    if shapes != expected:
        raise InputError(f"{path}: holds {shapes}, expected {expected}; copy the file again")
    model.binarizer.load_state_dict(values)


def load_pruner(model: Model, path: Path) -> Pruner | None:
    """Read the pruner of a reader; None if it was fitted to other weights, as before more training.

    Raises:
        InputError: the file is damaged, or of another width.
    """
    weight = read_weights(path).get("weight")
    if weight is None or weight.shape != (model.width + 1,):
        found = None if weight is None else tuple(weight.shape)
        raise InputError(f"{path}: holds weights {found}, expected ({model.width + 1},); copy the file again")
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("fitted_to") != fitted_to(model):
            return None
    pruner = Pruner(model.width)
    pruner.weight.copy_(weight)
    return pruner


def save_pruner(model: Model, folder: Path) -> None:
    """Write the pruner of a reader, and which weights it was fitted to."""
    assert model.pruner is not None
    tensors(folder / PRUNER, {"weight": model.pruner.weight}, fitted_to=fitted_to(model))


def fitted_to(model: Model) -> str:
    """Return what tells weights from others that a `Pruner` is fitted to, as bfloat16: layer k+1 and the last one."""
    parts: dict[str, nn.Module]
    if isinstance(model, FiD):
        parts = {"layer": model.t5.encoder.layers[model.config.k], "decoder": model.t5.decoder.layers[-1]}
    elif isinstance(model, BertFiD):
        parts = {"layer": model.bert.layers[model.config.k], "decoder": model.t5.decoder.layers[-1]}
    else:
        parts = {"layer": model.bert.layers[model.config.k], "head": model.head}
    named = [
        (f"{part}.{name}", p.bfloat16()) for part, module in parts.items() for name, p in module.named_parameters()
    ]
    return digest(named)


def save_reader(model: Model, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a reader folder; every file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, FiD):
        shape, weights = model.t5.config.to_hf(), t5_tensors(model.t5)
        special = {"eos_token": tokenizer.id_to_token(model.t5.config.eos_token_id)}
    else:
        shape, weights = model.bert.config.to_hf(), bert_tensors(model)
        if isinstance(model, BertFiD):
            shape = {"model_type": "encoder-decoder", "encoder": shape, "decoder": model.t5.config.to_hf()}
            weights = written_tensors(model)
        special = {**marks(tokenizer)}
    special["pad_token"] = tokenizer.id_to_token(model.pad_token_id)
    write(folder / "config.json", json.dumps(shape | {"dtype": str(model.dtype).removeprefix("torch.")}, indent=2))
    write(folder / "tokenizer.json", tokenizer.to_str())
    facts = {"tokenizer_class": "PreTrainedTokenizerFast"} | special
    write(folder / "tokenizer_config.json", json.dumps(facts, indent=2))
    tensors(folder / "model.safetensors", weights)
    if model.config.k:
        wide = model.dtype if model.config.calibration == "predictive" else torch.float32  # matrices, as weights are
        values = {
            name: tensor.to(wide if tensor.dim() > 1 else torch.float32).contiguous()
            for name, tensor in model.binarizer.state_dict().items()
        }
        tensors(folder / "btr.safetensors", values)
    if model.pruner is not None:
        save_pruner(model, folder)
    save_config(model.config, folder)


def save_config(config: ReaderConfig, folder: Path) -> None:
    """Write the settings of a reader."""
    write(folder / "btr_config.json", json.dumps(asdict(config), indent=2))


def write(path: Path, text: str) -> None:
    """Write a text file by way of a temporary one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def tensors(path: Path, values: dict[str, Tensor], **facts: str) -> None:
    """Write a safetensors file by way of a temporary one, reaching the disk before the rename."""
    temporary = path.with_name(path.name + ".tmp")
    save_file(values, temporary, metadata={"format": "pt", **facts})
    temporary.chmod(0o644)  # safetensors lets only the owner read
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def digest(values: Iterable[tuple[str, Tensor]], *texts: str) -> str:
    """Return 16 hexadecimal digits of SHA-256 over named tensors (as float32) and texts."""
    hasher = hashlib.sha256()
    for text in texts:
        hasher.update(text.encode() + b"\0")
    for name, value in values:
        hasher.update(name.encode() + b"\0" + value.detach().float().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()[:16]
