"""Predictive signs: what is expected of tokens, how much better fewer bits do, and that rows and stores agree."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from btr import kernels
from btr.corpus import Passage
from btr.model.binarize import Binarizer, Known
from btr.model.checkpoint import configured
from btr.model.config import ConfigError, ReaderConfig
from btr.reader import Reader

V, D, M = 50, 24, 4000


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_known(passage: int = 20) -> Known:
    ids = torch.randint(V, (M,), generator=torch.Generator().manual_seed(1))
    return Known.of_passages(ids, torch.arange(0, M, passage), normal(V, D))


def states(known: Known, noise: float) -> torch.Tensor:
    """Make states that depend on a token and its neighbours, linearly, and on chance."""
    return 1 + known.features() @ normal(3 * D, D, seed=2) + noise * normal(M, D, seed=3)


def error(binarizer: Binarizer, u: torch.Tensor, known: Known) -> float:
    """Return the share of the variance of u that its bits leave."""
    with torch.no_grad():
        return float((u - binarizer(u, known)[0]).square().mean() / (u - u.mean(0)).square().mean())


def test_features_are_the_token_and_its_neighbours_in_the_passage() -> None:
    embedding = torch.arange(1.0, 5.0)[:, None]
    known = Known.of_passages(torch.tensor([0, 1, 2, 3, 0]), torch.tensor([0, 3]), embedding)
    assert known.features().tolist() == [[1, 0, 2], [2, 1, 3], [3, 2, 0], [4, 0, 1], [1, 4, 0]]


def test_rows_know_what_flat_passages_know() -> None:
    """A question before a passage and padding behind it are no neighbours."""
    embedding = normal(9, D)
    ids = torch.tensor([[7, 1, 2, 3, 0], [8, 8, 4, 5, 6]])
    passage = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]).bool()
    flat = Known.of_passages(torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([0, 3]), embedding)
    assert torch.equal(Known.of_rows(ids, passage, embedding).features()[passage], flat.features())


def test_expected_is_the_linear_map_of_the_features() -> None:
    known, binarizer = make_known(), Binarizer(D, "predictive")
    binarizer.context.data = normal(3 * D, D, seed=4)
    binarizer.mean.data = normal(D, seed=5)
    expected = binarizer.mean + known.features() @ torch.cat(binarizer.context.chunk(3), 1).T
    assert torch.allclose(binarizer.expected(known), expected, atol=1e-4)  # sums of 72 products of about 1


def test_calibration_finds_what_tokens_tell() -> None:
    known = make_known()
    u, binarizer = states(known, 0.1), Binarizer(D, "predictive", bits=4)
    binarizer.calibrate(u, known)
    # What is left is noise: 0.01 of a variance of about 3 * 24, and the regression of 4,000 tokens adds 2 % of itself.
    assert error(binarizer, u, known) < 1.1 * 0.01 / (3 * D)
    z = (u - binarizer.expected(known)) @ binarizer.code.T
    assert torch.allclose(z.abs().mean(0), torch.ones(4), atol=1e-3)


def test_more_bits_leave_less_and_a_quarter_does_better_than_all_without_prediction() -> None:
    known = make_known()
    u = states(known, 4.0)
    left = []
    for bits in (6, 12, D):
        binarizer = Binarizer(D, "predictive", bits=bits)
        binarizer.calibrate(u, known)
        left.append(error(binarizer, u, known))
    channel = Binarizer(D)
    channel.calibrate(u)
    assert left[2] < left[1] < left[0] < error(channel, u, known)


def test_bits_are_those_of_the_forward_pass_and_rebuild_it() -> None:
    known, binarizer = make_known(), Binarizer(D, "predictive", bits=10)
    u = states(known, 2.0)
    binarizer.calibrate(u, known)
    u_hat, b = binarizer(u, known)
    assert b.shape == (M, 10) and torch.equal(b > 0, binarizer.signs(u, known))
    assert torch.allclose(binarizer.rebuild(b, known), u_hat, atol=1e-4)
    packed = kernels.pack(binarizer.signs(u, known).numpy())
    assert np.array_equal(kernels.unpack(packed, 10), b.detach().numpy())


def test_gradients_reach_all_that_is_trained() -> None:
    known, binarizer = make_known(), Binarizer(D, "predictive", bits=10)
    u = states(known, 2.0).requires_grad_()
    binarizer.calibrate(u.detach(), known)
    binarizer(u, known)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [u, *binarizer.parameters()])


def test_tokens_must_be_known_and_bits_must_fit() -> None:
    with pytest.raises(ValueError, match="needs to know the tokens"):
        Binarizer(D, "predictive").signs(normal(3, D))
    with pytest.raises(ValueError, match=f"bits is {D + 1}, the reader is {D} wide"):
        Binarizer(D, "predictive", bits=D + 1)
    with pytest.raises(ConfigError, match="only 'predictive' takes bits"):
        ReaderConfig(k=1, bits=8)


@pytest.fixture
def predictive(span_reader: Reader, tiny_passages: list[Passage]) -> Reader:
    """The tiny span reader with 40 predictive bits a token."""
    model = configured(span_reader.model, replace(span_reader.config, calibration="predictive", bits=40))
    reader = Reader(model, span_reader.tokenizer)
    reader.calibrate(tiny_passages)
    return reader


def test_reader_keeps_fewer_bits_and_answers_the_same_from_a_folder(
    predictive: Reader, tiny_passages: list[Passage], tmp_path: Path
) -> None:
    encoded = predictive.encode_passages(tiny_passages)
    assert (encoded.D, encoded.packed.shape[1]) == (40, 1) and predictive.bits == 40
    answer = predictive.answer("What is salt?", encoded)
    predictive.save_pretrained(tmp_path / "reader")
    again = Reader.from_pretrained(tmp_path / "reader")
    assert again.fingerprint == predictive.fingerprint
    assert np.array_equal(again.encode_passages(tiny_passages).packed, encoded.packed)
    other = again.answer("What is salt?", encoded)
    assert (other.text, other.score) == (answer.text, answer.score)


def test_bits_do_not_depend_on_the_passages_beside(predictive: Reader, tiny_passages: list[Passage]) -> None:
    whole = predictive.encode_passages(tiny_passages)
    alone = [predictive.encode_passages([passage]) for passage in tiny_passages]
    differ = [int((np.bitwise_count(whole.select([i]).packed ^ one.packed)).sum()) for i, one in enumerate(alone)]
    assert sum(differ) <= 2  # of thousands: one that lies on its threshold but for the last digit


def test_fingerprint_depends_on_what_is_expected(predictive: Reader) -> None:
    before = predictive.fingerprint
    for parameter in predictive.model.binarizer.parameters():
        parameter.data[..., 0] += 1
        after = Reader(predictive.model, predictive.tokenizer).fingerprint
        assert after != before
        before = after
