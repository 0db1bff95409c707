"""What the tests of training share: the sample corpus, a vocabulary learnt from it, and tiny readers."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from btr.corpus import Passage, read_passages
from btr.model.config import T5_SHAPES, ReaderConfig
from btr.model.fid import FiD
from btr.model.t5 import T5
from btr.train.initialise import initialise
from btr.train.tokenizer import train_tokenizer

CORPUS = Path(__file__).resolve().parents[2] / "corpus"


@pytest.fixture(scope="session")
def passages() -> list[Passage]:
    return list(read_passages(CORPUS))


@pytest.fixture(scope="session")
def tokenizer_file(passages: list[Passage], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary under another name than tokenizer.json."""
    path = tmp_path_factory.mktemp("vocabulary") / "words.json"
    train_tokenizer(passages, 400, path)
    return path


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_file))


@pytest.fixture
def rng() -> random.Random:
    return random.Random(0)


@pytest.fixture
def make_reader() -> Callable[..., FiD]:
    """Make a tiny reader of 64 tokens: 4 encoder layers, the lower k apart, with no two norms alike."""

    def make(k: int = 2, calibration: str = "channel", seed: int = 0, **shape: object) -> FiD:
        t5 = T5(replace(T5_SHAPES["tiny"], **({"vocab_size": 64} | shape)))
        initialise(t5, seed)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in t5.named_parameters():
            if "norm" in name:
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        return FiD(t5, ReaderConfig(k=k, calibration=calibration))  # type: ignore[arg-type]

    return make
