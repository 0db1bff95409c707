"""A turned T5: the same answers from a turned stream, by way of the readers that are shipped."""

from pathlib import Path

import pytest
import torch

from btr.corpus import Passage
from btr.model.checkpoint import load_reader, save_reader
from btr.model.config import ReaderConfig
from btr.model.fid import FiD
from btr.reader import Reader
from btr.train.rotation import rotate, rotation

IDS = torch.randint(3, 150, (3, 11), generator=torch.Generator().manual_seed(1))
LENGTHS, ASKED = torch.tensor([11, 8, 6]), torch.tensor([4, 3, 5])
REAL = torch.arange(11)[None] < LENGTHS[:, None]
LABELS = torch.tensor([[5, 9, 1, -100], [7, 1, -100, -100], [8, 8, 8, 1]])


@pytest.fixture
def pair(tiny_readers: dict[str, Reader], shape: str) -> tuple[FiD, FiD]:
    """A reader of each shape, and the same turned."""
    model = tiny_readers[shape].model
    assert isinstance(model, FiD)
    return model, FiD(rotate(model.t5, 3), model.config).eval()


def test_rotation_is_orthogonal_and_its_seed_decides() -> None:
    Q = rotation(64, 3)
    assert torch.allclose(Q @ Q.T, torch.eye(64, dtype=torch.float64), atol=1e-12)
    assert torch.equal(Q, rotation(64, 3)) and not torch.allclose(Q, rotation(64, 4), atol=0.1)


@torch.no_grad()
def test_logits_stay_and_the_stream_turns(pair: tuple[FiD, FiD]) -> None:
    """Sums of 64 to 96 float32 products in another basis: some 1e-6 of the greatest."""
    model, turned = pair
    Q = rotation(64, 3).float()
    for mode in ("full", "float"):
        old, new = (reader.rows(IDS, LENGTHS, ASKED, mode) for reader in pair)
        stream = (old.apart @ Q.T)[REAL]
        assert (new.apart[REAL] - stream).abs().max() < 1e-5 * stream.abs().max()
        assert (old.apart[REAL] - stream).abs().max() > 0.1 * stream.abs().max()
        logits, expected = (
            reader.t5.answer_logits(LABELS, rows.memory, REAL) for reader, rows in ((turned, new), (model, old))
        )
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
def test_signs_are_taken_in_the_turned_basis(pair: tuple[FiD, FiD]) -> None:
    model, turned = pair
    hidden = model.lower(IDS, LENGTHS)
    unit = hidden / model.join_norm.rms(hidden)
    expected = (unit @ rotation(64, 3).float().T > 0)[REAL]
    found = turned.binarizer.signs(turned.normalised(turned.lower(IDS, LENGTHS)))[REAL]
    assert (found == expected).float().mean() > 0.999


def test_every_norm_and_a_tied_head_are_dealt_with(pair: tuple[FiD, FiD]) -> None:
    model, turned = pair
    assert turned.t5.head.weight is not turned.t5.embedding.weight
    for name, parameter in turned.t5.named_parameters():
        if "norm" in name:
            assert parameter.eq(1).all()
        elif "table" not in name:
            assert not torch.allclose(parameter, dict(model.t5.state_dict())[name], atol=1e-3), name


def test_turned_reader_is_saved_read_and_answers(
    pair: tuple[FiD, FiD], tiny_reader: Reader, tiny_passages: list[Passage], tmp_path: Path
) -> None:
    model, turned = pair
    save_reader(turned, tiny_reader.tokenizer, tmp_path / "turned")
    loaded = load_reader(tmp_path / "turned", torch.float32, None)
    assert isinstance(loaded, FiD) and loaded.config == ReaderConfig(**vars(model.config))
    question = "Who built the lighthouse?"
    before = Reader(model, tiny_reader.tokenizer).answer(question, tiny_passages, "full", 6)
    after = Reader(loaded, tiny_reader.tokenizer)
    assert after.answer(question, tiny_passages, "full", 6).tokens == before.tokens
    after.calibrate(tiny_passages)
    encoded = after.encode_passages(tiny_passages)
    held = after.answer(question, encoded, "binary", 6)
    assert held.tokens == after.answer(question, tiny_passages, "binary", 6).tokens
