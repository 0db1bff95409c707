"""Batches: what is encoded does not depend on the number of threads, so not on the number of workers either."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from btr.corpus import Passage
from btr.model.layout import FEW, steady
from btr.reader import Reader
from btr.retrieve.dense.encoder import Encoder

THREADS = (1, 2, 6, 16)
PASSAGES = [Passage(str(n), "", " ".join(["mule salt heron bridge reeds"] * n)[: 5 * n]) for n in range(1, 25)]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", ["tiny_reader", "span_reader"])
def test_states_of_few_tokens_are_those_of_one_thread(family: str, request: pytest.FixtureRequest) -> None:
    reader: Reader = request.getfixturevalue(family)
    found = []
    for count in THREADS:
        torch.set_num_threads(count)
        parts = [reader.encode_passages([passage], mode="float") for passage in PASSAGES]
        assert torch.get_num_threads() == count
        found.append(np.concatenate([part.states for part in parts if part.states is not None]))
    lengths = {part.num_tokens for part in parts}
    assert lengths & {5, 6, 7} and lengths & {9, 10, 11}  # rows that MKL divides otherwise among two threads
    assert all(np.array_equal(states, found[0]) for states in found[1:])


def test_vectors_of_few_tokens_are_those_of_one_thread(encoder_folder: Path) -> None:
    encoder, found = Encoder.from_pretrained(str(encoder_folder)), []
    for count in THREADS:
        torch.set_num_threads(count)
        found.append(np.concatenate([encoder.embed([passage.text], "passage") for passage in PASSAGES]))
    assert all(np.array_equal(vectors, found[0]) for vectors in found[1:])


def test_few_tokens_have_one_thread_and_many_all() -> None:
    torch.set_num_threads(2)
    for tokens, expected in ((1, 1), (FEW - 1, 1), (FEW, 2)):
        with steady(tokens):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), steady(1):
        raise KeyError
    assert torch.get_num_threads() == 2
