"""Two encoders in one folder: what stands in it, and that sentence-transformers routes by it."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from btr.retrieve.dense.encoder import Embedder, Encoder
from btr.retrieve.dense.routed import save_routed

TEXTS = ["Who built the lighthouse?", "salt and mules", "the grey heron nests in the reeds " * 4]


@pytest.fixture(scope="module")
def passages(encoder_folder: Path) -> Encoder:
    return Encoder.from_pretrained(str(encoder_folder))


@pytest.fixture(scope="module")
def queries(encoder_folder: Path) -> Encoder:
    """The same BERT without normalising, and with a linear layer: other vectors of the same width."""
    other = Encoder.from_pretrained(str(encoder_folder))
    model = Embedder(other.model.bert, other.model.recipe)
    model.projection = nn.Linear(64, 64)
    return Encoder(model, other.tokenizer, "queries")


def test_every_module_has_its_folder(queries: Encoder, passages: Encoder, tmp_path: Path) -> None:
    save_routed(queries, passages, tmp_path)
    router = json.loads((tmp_path / "router_config.json").read_text())
    paths = ["query_0_Transformer", "query_1_Pooling", "query_2_Dense", "query_3_Normalize"]
    other = ["document_0_Transformer", "document_1_Pooling", "document_2_Normalize"]
    assert router["structure"] == {"query": paths, "document": other}
    assert sorted(router["types"]) == sorted(paths + other)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted(paths + other)
    for path in (paths[0], other[0]):
        assert (tmp_path / path / "model.safetensors").exists() and (tmp_path / path / "tokenizer.json").exists()


def test_sentence_transformers_routes(queries: Encoder, passages: Encoder, tmp_path: Path) -> None:
    package = pytest.importorskip("sentence_transformers")
    save_routed(queries, passages, tmp_path)
    model = package.SentenceTransformer(str(tmp_path), device="cpu")
    asked, read, plain = model.encode_query(TEXTS), model.encode_document(TEXTS), model.encode(TEXTS)
    np.testing.assert_allclose(asked, queries.embed(TEXTS), atol=2e-6)
    np.testing.assert_allclose(read, passages.embed(TEXTS, "passage"), atol=2e-6)
    np.testing.assert_array_equal(plain, read)
    assert np.abs(asked - read).max() > 0.01
