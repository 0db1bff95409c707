"""The encoder: equal to transformers with the pooling of sentence-transformers; folders in and out; refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from btr.errors import InputError
from btr.retrieve.dense.encoder import Encoder

if TYPE_CHECKING:
    from transformers import BertForQuestionAnswering

TEXTS = ["Who built the lighthouse?", "salt", "The grey heron nests in the reeds and eats fish, frogs, mice.", ""]
DENSE = "torch.nn.modules.linear.Identity"


def modules(*kinds: str) -> list[dict[str, Any]]:
    return [
        {"idx": n, "path": f"{n}_{kind}" if n else "", "type": f"sentence_transformers.models.{kind}"}
        for n, kind in enumerate(kinds)
    ]


def put(folder: Path, name: str, value: object) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))


@pytest.fixture
def folder(encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(encoder_folder, tmp_path / "encoder")
    return tmp_path / "encoder"


def by_transformers(bert: "BertForQuestionAnswering", encoder: Encoder, texts: list[str]) -> NDArray[np.float32]:
    """Mean-pooled states of transformers' own BertModel, one text at a time: no padding to get wrong."""
    rows = []
    for ids in encoder.tokenize(texts, "query"):
        with torch.no_grad():
            rows.append(bert.bert(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy())
    return np.stack(rows)


def test_encoder_without_modules_is_contrievers_mean(folder: Path, tiny_bert: "BertForQuestionAnswering") -> None:
    (folder / "modules.json").unlink()
    encoder = Encoder.from_pretrained(str(folder))
    assert encoder.model.recipe.max_tokens == 400  # the BERT's positions, fewer than the usual 512
    vectors = encoder.embed(TEXTS)
    assert (vectors.dtype, vectors.shape) == (np.float32, (4, 64))
    np.testing.assert_allclose(vectors, by_transformers(tiny_bert, encoder, TEXTS), atol=2e-5)


def test_encoder_follows_sentence_transformers(folder: Path, tiny_bert: "BertForQuestionAnswering") -> None:
    encoder = Encoder.from_pretrained(str(folder))
    assert max(map(len, encoder.tokenize(["salt " * 99], "query"))) == 48
    expected = by_transformers(tiny_bert, encoder, TEXTS)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.embed(TEXTS), expected, atol=2e-6)


def test_encoder_in_bfloat16_is_near(folder: Path) -> None:
    exact, rough = (Encoder.from_pretrained(str(folder), dtype) for dtype in ("float32", "bfloat16"))
    assert exact.fingerprint == rough.fingerprint
    assert (exact.embed(TEXTS) * rough.embed(TEXTS)).sum(1).min() > 0.999


def test_encoder_takes_the_first_token_and_prompts(folder: Path, tiny_bert: "BertForQuestionAnswering") -> None:
    put(folder, "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    put(folder, "modules.json", modules("Transformer", "Pooling"))
    put(folder, "config_sentence_transformers.json", {"prompts": {"query": "who ", "document": "salt "}})
    encoder = Encoder.from_pretrained(str(folder))
    assert encoder.tokenize(["built"], "query") == [encoder.tokenizer.encode("who built").ids]
    assert encoder.tokenize(["built"], "passage") == [encoder.tokenizer.encode("salt built").ids]
    with torch.no_grad():
        ids = torch.tensor(encoder.tokenize(["built"], "query"))
        expected = tiny_bert.bert(ids).last_hidden_state[0, 0].numpy()
    np.testing.assert_allclose(encoder.embed(["built"])[0], expected, atol=2e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", ["mean"]])
def test_pooling_may_be_named_as_sentence_transformers_does_now(pooling: str | list[str], folder: Path) -> None:
    """From 5.4 on: a name, and types in other modules."""
    kind = pooling if isinstance(pooling, str) else pooling[0]
    flags = {"pooling_mode_mean_tokens": kind == "mean", "pooling_mode_cls_token": kind == "cls"}
    put(folder, "1_Pooling/config.json", flags)
    expected = Encoder.from_pretrained(str(folder)).embed(TEXTS)
    put(folder, "1_Pooling/config.json", {"embedding_dimension": 64, "pooling_mode": pooling, "include_prompt": True})
    places = {"Transformer": "base.modules.transformer", "Pooling": "sentence_transformer.modules.pooling"}
    named = json.loads((folder / "modules.json").read_text())
    for module in named:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.{places.get(kind, 'base.modules')}.{kind}"
    put(folder, "modules.json", named)
    assert np.array_equal(Encoder.from_pretrained(str(folder)).embed(TEXTS), expected)


def test_pooling_without_the_prompt_is_refused_where_there_is_one(folder: Path) -> None:
    put(folder, "1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False})
    Encoder.from_pretrained(str(folder))
    put(folder, "config_sentence_transformers.json", {"prompts": {"query": "who "}})
    with pytest.raises(InputError, match="pools over all but the prompt"):
        Encoder.from_pretrained(str(folder))


def test_encoder_survives_the_disk(folder: Path, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(str(folder))
    encoder.model.projection = torch.nn.Linear(64, 24)
    made = Encoder(encoder.model, encoder.tokenizer, "made", aligned=["0123"])
    made.save(tmp_path / "made", {"method": "by hand"})
    again = Encoder.from_pretrained(str(tmp_path / "made"))
    assert (again.fingerprint, again.aligned, again.dimension) == (made.fingerprint, ("0123",), 24)
    assert made.fingerprint != encoder.fingerprint
    assert np.array_equal(again.embed(TEXTS), made.embed(TEXTS))
    kinds = [module["type"].rpartition(".")[2] for module in json.loads((tmp_path / "made/modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert json.loads((tmp_path / "made" / "2_Dense/config.json").read_text())["activation_function"] == DENSE


def test_saved_encoder_is_read_by_transformers(folder: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    encoder = Encoder.from_pretrained(str(folder))
    encoder.save(tmp_path / "saved")
    model = BertModel.from_pretrained(tmp_path / "saved", add_pooling_layer=False).eval()
    with torch.no_grad():
        hidden = model(torch.tensor(encoder.tokenize(TEXTS[:1], "query"))).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(encoder.embed(TEXTS[:1])[0], (hidden / hidden.norm()).numpy(), atol=2e-6)


def test_batches_do_not_change_a_vector(folder: Path) -> None:
    encoder = Encoder.from_pretrained(str(folder))
    together = encoder.embed(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(encoder.embed([text])[0], vector, atol=2e-6)
    assert encoder.embed([]).shape == (0, 64)


WRONG: list[tuple[Callable[[Path], None], str]] = [
    (lambda f: put(f, "modules.json", modules("Transformer", "CNN")), "module 'CNN'; known: Transformer"),
    (lambda f: put(f, "modules.json", {"a": 1}), "not a list of modules"),
    (lambda f: (f / "modules.json").write_text("["), "cannot be read as JSON"),
    (lambda f: put(f, "1_Pooling/config.json", {"pooling_mode_max_tokens": True}), "pooling max; known: mean, cls"),
    (lambda f: put(f, "1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}), "pooling max, mean; known"),
    (lambda f: put(f, "1_Pooling/config.json", {"embedding_dimension": 64}), "pooling unnamed; known"),
    (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    (lambda f: (f / "config.json").unlink(), "no config.json"),
    (lambda f: put(f, "config.json", {"model_type": "roberta"}), "model_type is 'roberta', expected 'bert' or 'mpnet'"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_folder_is_refused(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(folder)
    with pytest.raises(InputError, match=message):
        Encoder.from_pretrained(str(folder))


def test_tokenizer_that_adds_nothing_is_refused(folder: Path) -> None:
    put(folder, "tokenizer.json", json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None})
    with pytest.raises(InputError, match="the tokenizer makes nothing of an empty text"):
        Encoder.from_pretrained(str(folder))


def test_activation_is_refused(folder: Path) -> None:
    put(folder, "modules.json", modules("Transformer", "Pooling", "Dense"))
    put(folder, "2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"})
    with pytest.raises(InputError, match="a linear layer with an activation"):
        Encoder.from_pretrained(str(folder))
