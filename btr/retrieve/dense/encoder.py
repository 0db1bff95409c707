"""Turn texts into vectors with a BERT, as sentence-transformers and Contriever (arXiv 2112.09118) do.

A folder is a Hugging Face BERT and, where it comes from sentence-transformers, `modules.json` with what follows the
BERT: pooling, at most one linear layer, normalisation. Without it: the mean over tokens, as it is (Contriever's).
`btr_encoder.json` lists the encoders whose vectors this one's may be compared with; KALE and LEAF write it.

Shapes: N texts, R rows of a batch, T tokens, H width of the BERT, D width of a vector.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from btr.errors import InputError
from btr.model.bert import Bert
from btr.model.checkpoint import digest, load_tokenizer, tensors, write
from btr.model.config import BertConfig, ConfigError
from btr.model.devices import DTYPES, choose_device, choose_dtype
from btr.model.layout import length_batches, pad, steady
from btr.model.marks import marks
from btr.model.parameter_names import bert_tensors, fit_bert
from btr.model.weights import read_json, read_tensors, resolve
from btr.words import WIDEST

Kind = Literal["query", "passage"]

BATCH_TOKENS = 8192  # padding counted
LONGEST = 512  # tokens, where the folder does not say
MODULES = "modules.json"
OWN = "btr_encoder.json"


@dataclass(frozen=True)
class Recipe:
    """What is done to a BERT's output; prompts stand before queries and passages (E5's, for example)."""

    pooling: Literal["mean", "cls"] = "mean"
    normalise: bool = False
    max_tokens: int = LONGEST
    query_prompt: str = ""
    passage_prompt: str = ""


class Embedder(nn.Module):
    """A BERT, pooling, and a linear layer where there is one."""

    def __init__(self, bert: Bert, recipe: Recipe, dimension: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.bert, self.recipe = bert, recipe
        self.projection = None if dimension is None else nn.Linear(bert.config.hidden_size, dimension, bias=bias)

    @property
    def dimension(self) -> int:
        """D."""
        return self.bert.config.hidden_size if self.projection is None else self.projection.out_features

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Embed tokens (R, T), of which the first lengths (R,) count: float32 (R, D)."""
        T = ids.shape[1]
        real = torch.arange(T, device=ids.device)[None] < lengths[:, None]
        mask = None if bool(real.all()) else real[:, None]
        zero = torch.zeros_like(ids[:1])
        hidden = self.bert(self.bert.embed(ids, torch.arange(T, device=ids.device)[None], zero), mask)
        if self.recipe.pooling == "cls":
            pooled = hidden[:, 0].float()
        else:
            pooled = (hidden.float() * real[..., None]).sum(1) / lengths[:, None]
        if self.projection is not None:
            pooled = self.projection(pooled.to(self.projection.weight.dtype)).float()
        return F.normalize(pooled, dim=1) if self.recipe.normalise else pooled


class Encoder:
    """An embedder with its tokenizer.

    fingerprint: of all that its vectors depend on but the precision they are computed in.
    aligned: fingerprints of encoders whose vectors of passages its vectors of queries may be compared with.
    """

    def __init__(
        self, model: Embedder, tokenizer: Tokenizer, name: str, fingerprint: str = "", aligned: Sequence[str] = ()
    ) -> None:
        """Use `from_pretrained`."""
        self.model, self.tokenizer, self.name = model.eval(), prepared(tokenizer, model.recipe), name
        self.aligned = tuple(aligned)
        self.fingerprint = fingerprint or identify(model, self.tokenizer)
        if not self.tokenizer.encode("").ids:
            cure = "save it with a post-processor that adds [CLS] and [SEP]"
            raise InputError(f"{name}: the tokenizer makes nothing of an empty text; {cure}")

    @classmethod
    def from_pretrained(cls, path_or_id: str, dtype: str = "float32", device: str | torch.device = "cpu") -> Self:
        """Load a folder or a hub id; dtype and device as of a reader.

        Raises:
            InputError: not there, damaged, or not an encoder that this implementation knows; no such device or dtype.
        """
        place = choose_device(device)
        precision = DTYPES[choose_dtype(dtype, place)]
        folder = resolve(path_or_id)
        model, tokenizer = load_embedder(folder), load_tokenizer(folder)
        if tokenizer.get_vocab_size() > model.bert.config.vocab_size:
            raise InputError(
                f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} pieces, the model "
                f"{model.bert.config.vocab_size} rows; copy the tokenizer that belongs to the model"
            )
        aligned = read_json(folder / OWN).get("aligned", []) if (folder / OWN).exists() else []
        encoder = cls(model, tokenizer, Path(path_or_id).name, aligned=[str(one) for one in aligned])
        encoder.model.to(place, precision)
        return encoder

    @property
    def dimension(self) -> int:
        """D."""
        return self.model.dimension

    def serves(self, fingerprint: str) -> bool:
        """Tell whether queries of this encoder may be compared with passages of that one."""
        return fingerprint == self.fingerprint or fingerprint in self.aligned

    def tokenize(self, texts: Sequence[str], kind: Kind) -> list[list[int]]:
        """Return the ids of each text, cut to the recipe's length."""
        recipe = self.model.recipe
        prompt = recipe.query_prompt if kind == "query" else recipe.passage_prompt
        most = WIDEST * recipe.max_tokens
        return [row.ids for row in self.tokenizer.encode_batch([prompt + text[:most] for text in texts])]

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], kind: Kind = "query") -> NDArray[np.float32]:
        """Embed texts in batches of like length: float32 (N, D)."""
        ids = self.tokenize(texts, kind)
        vectors = np.empty((len(ids), self.dimension), np.float32)
        for batch in length_batches([len(row) for row in ids], BATCH_TOKENS):
            place = self.model.bert.embedding.weight.device
            rows, lengths = pad([ids[i] for i in batch], self.model.bert.config.pad_token_id, place)
            with steady(rows.numel()):
                vectors[batch] = self.model(rows, lengths).cpu().numpy()
        return vectors

    def save(self, folder: Path, facts: dict[str, Any] | None = None) -> None:
        """Write a folder that sentence-transformers can read too; facts: how it was made, for `btr_encoder.json`."""
        self.save_transformer(folder)
        recipe = self.model.recipe
        prompts = {"query": recipe.query_prompt, "passage": recipe.passage_prompt}
        write(folder / "config_sentence_transformers.json", json.dumps({"prompts": prompts}))
        write(folder / MODULES, json.dumps(save_modules(self.model, folder), indent=2))
        write(folder / OWN, json.dumps({"aligned": list(self.aligned), **(facts or {})}, indent=2))

    def save_transformer(self, folder: Path) -> None:
        """Write the BERT, the tokenizer and the greatest length."""
        folder.mkdir(parents=True, exist_ok=True)
        model = self.model
        write(folder / "config.json", json.dumps(model.bert.config.to_hf(), indent=2))
        write(folder / "tokenizer.json", self.tokenizer.to_str())
        special = marks(self.tokenizer) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        write(folder / "tokenizer_config.json", json.dumps(special, indent=2))
        prefix = f"{model.bert.config.family}."
        named = {name.removeprefix(prefix): value for name, value in bert_tensors(model).items()}
        tensors(folder / "model.safetensors", named)
        write(folder / "sentence_bert_config.json", json.dumps({"max_seq_length": model.recipe.max_tokens}))


def prepared(tokenizer: Tokenizer, recipe: Recipe) -> Tokenizer:
    """Cut at the recipe's length and do not pad, whatever the file says (all-MiniLM-L6-v2's pads all to 128)."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(recipe.max_tokens)
    return tokenizer


def identify(model: Embedder, tokenizer: Tokenizer) -> str:
    """Return 16 hexadecimal digits over weights, tokenizer and recipe."""
    recipe = json.dumps(asdict(model.recipe), sort_keys=True)
    return digest(sorted(model.state_dict().items()), tokenizer.to_str(), recipe, str(model.bert.config))


def load_embedder(folder: Path) -> Embedder:
    """Build the model of a folder, in float32.

    Raises:
        InputError: tensors missing or of other shapes, or a module that this implementation does not know.
    """
    recipe, dense = read_recipe(folder)
    transformer = next((folder / "0_Transformer" for _ in [0] if (folder / "0_Transformer").is_dir()), folder)
    weights = read_tensors(transformer)
    try:
        with torch.device("meta"):
            model = Embedder(Bert(BertConfig.from_hf(read_json(transformer / "config.json"))), recipe)
    except (ConfigError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: {error}") from error
    found, wrong = fit_bert(model, weights)
    if wrong:
        raise InputError(
            f"{folder}: {len(wrong)} tensors are missing or do not fit config.json ({wrong[0]}); "
            "copy the checkpoint again"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()}, assign=True)
    if recipe.max_tokens > model.bert.config.room:
        model.recipe = replace(recipe, max_tokens=model.bert.config.room)
    if dense is not None:
        model.projection = load_linear(dense, model.bert.config.hidden_size)
    return model.eval()


def load_linear(folder: Path, width: int) -> nn.Linear:
    """Load the linear layer of a folder of sentence-transformers' Dense; InputError names it."""
    values = read_tensors(folder)
    weight, bias = values.get("linear.weight"), values.get("linear.bias")
    if weight is None or weight.shape[1:] != (width,):
        shape = "missing" if weight is None else tuple(weight.shape)
        raise InputError(f"{folder}: linear.weight is {shape}, expected (D, {width}); copy the checkpoint again")
    linear = nn.Linear(width, len(weight), bias=bias is not None)
    linear.load_state_dict({name.removeprefix("linear."): value.float() for name, value in values.items()})
    return linear


def read_recipe(folder: Path) -> tuple[Recipe, Path | None]:
    """Read what follows the BERT: the recipe, and the folder of a linear layer if there is one.

    Raises:
        InputError: a module or a way of pooling that this implementation does not know.
    """
    if not (folder / MODULES).exists():
        return Recipe(), None
    recipe = Recipe(max_tokens=read_length(folder))
    dense, without = None, None
    for module in read_modules(folder):
        kind, path = str(module.get("type")).rpartition(".")[2], folder / str(module.get("path", ""))
        if kind == "Pooling":
            recipe = replace(recipe, pooling=read_pooling(path / "config.json"))
            without = path if read_json(path / "config.json").get("include_prompt") is False else None
        elif kind == "Dense":
            if not str(read_json(path / "config.json").get("activation_function", "")).endswith("Identity"):
                raise InputError(f"{path}: a linear layer with an activation, which is not supported; use another")
            dense = path
        elif kind == "Normalize":
            recipe = replace(recipe, normalise=True)
        elif kind != "Transformer":
            raise InputError(f"{folder / MODULES}: module {kind!r}; known: Transformer, Pooling, Dense, Normalize")
    prompts = folder / "config_sentence_transformers.json"
    given = read_json(prompts).get("prompts") or {} if prompts.exists() else {}
    passage = given.get("passage") or given.get("document") or ""
    recipe = replace(recipe, query_prompt=given.get("query") or "", passage_prompt=passage)
    if without and (recipe.query_prompt or recipe.passage_prompt):
        raise InputError(f"{without}: pools over all but the prompt, which is not supported; use another encoder")
    return recipe, dense


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """Read modules.json, a list of objects; InputError names it."""
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / MODULES}: cannot be read as JSON ({error}); copy the file again") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise InputError(f"{folder / MODULES}: not a list of modules; copy the file again")
    return modules


def read_pooling(path: Path) -> Literal["mean", "cls"]:
    """Read which pooling a folder wants."""
    found = read_json(path)
    given = found.get("pooling_mode")  # sentence-transformers 5.4 and later; before it, a flag for each kind
    named = [name for name, value in found.items() if name.startswith("pooling_mode_") and value is True]
    flags = [name.removeprefix("pooling_mode_") for name in named]
    chosen = [str(name) for name in given] if isinstance(given, list) else [str(given)] if given else flags
    chosen = sorted(name.removesuffix("_tokens").removesuffix("_token") for name in chosen)
    if chosen == ["mean"]:
        return "mean"
    if chosen == ["cls"]:
        return "cls"
    raise InputError(f"{path}: pooling {', '.join(chosen) or 'unnamed'}; known: mean, cls")


def read_length(folder: Path) -> int:
    """Read the greatest number of tokens; LONGEST where the folder names none."""
    path = folder / "sentence_bert_config.json"
    length = read_json(path).get("max_seq_length") if path.exists() else None
    return length if isinstance(length, int) and length > 2 else LONGEST


def save_modules(model: Embedder, folder: Path, route: str = "") -> list[dict[str, Any]]:
    """Write the folders of what follows the BERT, named with a route where there are several; returns modules.json."""
    kinds = ["Transformer", "Pooling", *["Dense"] * (model.projection is not None)]
    kinds += ["Normalize"] * model.recipe.normalise
    paths = [f"{route}{number}_{kind}" if number or route else "" for number, kind in enumerate(kinds)]
    mean = model.recipe.pooling == "mean"
    pooling = {"word_embedding_dimension": model.bert.config.hidden_size}
    pooling |= {"pooling_mode_mean_tokens": mean, "pooling_mode_cls_token": not mean}
    for kind, path in zip(kinds, paths, strict=True):
        (folder / path).mkdir(exist_ok=True)
        if kind == "Pooling":
            write(folder / path / "config.json", json.dumps(pooling))
        if kind == "Dense" and model.projection is not None:
            layer = model.projection
            shape = {"in_features": layer.in_features, "out_features": layer.out_features}
            more = {"bias": layer.bias is not None, "activation_function": "torch.nn.modules.linear.Identity"}
            write(folder / path / "config.json", json.dumps(shape | more))
            state = {f"linear.{name}": value.contiguous() for name, value in layer.state_dict().items()}
            tensors(folder / path / "model.safetensors", state)
    return [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
