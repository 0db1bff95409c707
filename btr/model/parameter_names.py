"""Our names of tensors and transformers': of its T5, BERT and MPNet with their heads."""

import re
from typing import cast

import torch
from torch import Tensor, nn

from btr.model.bert import Bert
from btr.model.bert_fid import BertFiD
from btr.model.t5 import T5

BERT = {
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "wi": "intermediate.dense",
    "wo": "output.dense",
    "norm": "output.LayerNorm",
}
BERT_TOP = {
    "embedding": "word_embeddings",
    "positions": "position_embeddings",
    "segments": "token_type_embeddings",
    "embedding_norm": "LayerNorm",
}
QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
MPNET = BERT | {"out": "attention.attn.o", "attention_norm": "attention.LayerNorm"}
MPNET_QKV = ("attention.attn.q", "attention.attn.k", "attention.attn.v")
HEAD = "qa_outputs"
OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of checkpoints from TensorFlow


def hf_name(name: str, gated: bool) -> str:
    """Translate one of our tensor names to transformers' T5 name."""
    if name in ("embedding.weight", "head.weight"):
        return {"embedding.weight": "shared.weight", "head.weight": "lm_head.weight"}[name]
    stack, rest = name.split(".", 1)
    if rest == "norm.weight":
        return f"{stack}.final_layer_norm.weight"
    if rest == "position_bias.table.weight":
        return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    match = re.fullmatch(r"layers\.(\d+)\.(\w+?)(_norm)?\.(?:(\w+)\.)?weight", rest)
    if match is None:
        raise KeyError(f"no transformers name for {name!r}")
    layer, part, norm, matrix = match.groups()
    index = {"attention": 0, "cross": 1, "ffn": 1 if stack == "encoder" else 2}[part]
    where = f"{stack}.block.{layer}.layer.{index}"
    if norm:
        return f"{where}.layer_norm.weight"
    if part == "ffn":
        return (
            f"{where}.DenseReluDense.{ {'wo': 'wo', 'gate': 'wi_0', 'wi': 'wi_1' if gated else 'wi'}[matrix] }.weight"
        )
    return f"{where}.{'SelfAttention' if part == 'attention' else 'EncDecAttention'}.{matrix}.weight"


def fit(model: T5, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Find each parameter of a T5 among tensors under transformers' names; returns ours -> tensor, and misfits."""
    names = {name: hf_name(name, model.config.gated) for name, _ in model.named_parameters()}
    found, wrong = {}, []
    for name, parameter in model.named_parameters():
        tensor = tensors.get(names[name])
        if tensor is None or tensor.shape != parameter.shape:
            there = "missing" if tensor is None else tuple(tensor.shape)
            wrong.append(f"{names[name]} is {there}, expected {tuple(parameter.shape)}")
        else:
            found[name] = tensor
    # Old checkpoints have a position table in the cross-attention too, which nothing reads.
    layers = (name for name in tensors if ".block." in name and "relative_attention_bias" not in name)
    wrong += [f"{name} is of no layer there" for name in sorted(set(layers) - set(names.values()))]
    return found, wrong


def t5_tensors(model: T5) -> dict[str, Tensor]:
    """Return the tensors of a T5 under transformers' names; a tied head is left out."""
    gated = model.config.gated
    return {hf_name(name, gated): parameter.detach().contiguous() for name, parameter in model.named_parameters()}


WORDS = "words.weight"
SHARED = "embeddings.word_embeddings.weight"


def fit_written(model: BertFiD, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Find each parameter of a BERT that writes: its BERT, its T5 without encoder layers, and what joins them."""
    family = model.bert.config.family
    bert = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{family}.")}
    shared = bert.get(f"{family}.{SHARED}")
    found, wrong = fit_bert(model, bert)
    rest = {name: tensor for name, tensor in tensors.items() if name not in bert}
    theirs, more = fit(model.t5, rest | ({} if shared is None else {"shared.weight": shared}))
    if WORDS not in rest or rest[WORDS].shape != model.words.weight.shape:
        more.append(f"{WORDS} is missing or does not fit, expected {tuple(model.words.weight.shape)}")
    else:
        found[WORDS] = rest[WORDS]
    found |= {f"t5.{name}": tensor for name, tensor in theirs.items() if name != "embedding.weight"}
    return found, wrong + more


def written_tensors(model: BertFiD) -> dict[str, Tensor]:
    """Return the tensors of a BERT that writes: transformers' names of its BERT and of its T5; the embedding once."""
    decoder = {name: tensor for name, tensor in t5_tensors(model.t5).items() if name != "shared.weight"}
    return bert_tensors(model) | decoder | {WORDS: model.words.weight.detach().contiguous()}


def bert_names(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Map each of our names to transformers' of the tensors that, one below the other, make it up."""
    family = family_of(model)
    parts, fused = (MPNET, MPNET_QKV) if family == "mpnet" else (BERT, QKV)
    names: dict[str, tuple[str, ...]] = {}
    for name, _ in model.named_parameters():
        part, _, kind = name.rpartition(".")
        place = part.split(".")
        if place[0] == "head":
            names[name] = (f"{HEAD}.{kind}",)
        elif len(place) == 2:
            names[name] = (f"{family}.embeddings.{BERT_TOP[place[1]]}.{kind}",)
        elif place[:2] == ["bert", "relative"]:
            names[name] = (f"{family}.encoder.relative_attention_bias.{kind}",)
        elif place[0] == "bert":
            layer = f"{family}.encoder.layer.{place[2]}"
            theirs = fused if place[3] == "qkv" else (parts[place[3]],)
            names[name] = tuple(f"{layer}.{part}.{kind}" for part in theirs)
    return names


def family_of(model: nn.Module) -> str:
    """Return how transformers' names of the tensors of a model's BERT begin."""
    return cast("Bert", model.bert).config.family


def bert_name(name: str, family: str = "bert") -> str:
    """Return the name of today of a tensor of a BERT, alone or under a head."""
    for old, new in OLD.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name if name.startswith((f"{family}.", HEAD)) else f"{family}.{name}"


def t5_name(name: str) -> str:
    """Return transformers' name of a tensor of a T5, which Fusion-in-Decoder's own code wraps on its encoder."""
    if name.startswith("encoder.encoder."):
        name = re.sub(r"^(encoder\.block\.\d+\.)module\.", r"\1", name.removeprefix("encoder."))
    return name


def fit_bert(model: nn.Module, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Find each parameter of BERT and of the head among tensors; returns ours -> tensor, and misfits."""
    family = family_of(model)
    there = {bert_name(name, family): value for name, value in tensors.items()}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    found, wrong, used = {}, [], set()
    for name, parts in bert_names(model).items():
        used |= set(parts)
        missing = [part for part in parts if part not in there]
        if missing:
            wrong.append(f"{missing[0]} is missing, expected {name} {tuple(shapes[name])}")
            continue
        tensor = torch.cat([there[part] for part in parts]) if len(parts) > 1 else there[parts[0]]
        if tensor.shape != shapes[name]:
            wrong.append(f"{parts[0]} makes {tuple(tensor.shape)}, expected {tuple(shapes[name])}")
        found[name] = tensor
    more = (name for name in there if ".layer." in name and name not in used)
    return found, wrong + [f"{name} is of no layer there" for name in sorted(more)]


def bert_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of BERT and of the head under the names of transformers' model with a head for spans."""
    parameters = dict(model.named_parameters())
    found = {}
    for name, parts in bert_names(model).items():
        for part, tensor in zip(parts, parameters[name].detach().chunk(len(parts)), strict=True):
            found[part] = tensor.contiguous()
    return found
