"""The joint layers in int8: products within what rounding allows, rows apart, and bits that stay as they are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from btr.corpus import Passage
from btr.model.bert import Stacked
from btr.model.config import MODES
from btr.model.fid import FiD
from btr.model.int8_encoding import Int8Linear, dequantize, quantize
from btr.reader import Reader

pytestmark = pytest.mark.int8


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 7, 700])
def test_products_are_as_near_as_half_steps_allow(bias: bool, dtype: torch.dtype, tokens: int) -> None:
    torch.manual_seed(tokens)
    linear, x = nn.Linear(96, 130, bias=bias).to(dtype), torch.randn(tokens, 96).to(dtype)
    with torch.inference_mode():
        x[0] *= 1000  # which the rows beside it are not to suffer from
        found = Int8Linear(linear)(x).double()
        weight, wide = linear.weight.double(), x.double()
        exact = wide @ weight.T + (linear.bias.double() if bias else 0)
    steps = weight.abs().amax(1) / 127, wide.abs().amax(1, keepdim=True) / 127
    # each factor is half a step off, and a little: its step is rounded to float32
    off = wide.abs().sum(1, keepdim=True) * steps[0] + steps[1] * weight.abs().sum(1) + 96 * steps[1] * steps[0] / 2
    # the sum is rounded to the dtype, and again with its bias
    rounding = 3 * torch.finfo(dtype).eps * (exact.abs() + off + 1)
    assert ((found - exact).abs() <= 0.5001 * off + rounding).all()
    assert off[1:].mean() < 0.5 if tokens > 1 else True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear, x = Int8Linear(nn.Linear(96, 160).to(dtype)), torch.randn(1024, 96).to(dtype)
    with torch.inference_mode():
        x[5], x[6, 3] = 1e6, torch.inf
        together = linear(x)
        assert together[6].isnan().all() and not together[7:].isnan().any()
        for start, stop in ((0, 1), (3, 6), (7, 900)):
            assert torch.equal(linear(x[start:stop]), together[start:stop])


def test_some_outputs_alone_are_those_of_all() -> None:
    torch.manual_seed(0)
    plain, x = Stacked(32, 96), torch.randn(3, 5, 32)
    rounded = Int8Linear(plain)
    with torch.inference_mode():
        assert torch.equal(rounded.part(x, 32, 96), rounded(x)[..., 32:])
        torch.testing.assert_close(plain.part(x, 32, 96), plain(x)[..., 32:])


def test_kernels_and_pytorch_quantize_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, shift = torch.randn(300, 256).bfloat16(), torch.randn(256)
    x[3], x[4, 5], x[5] = 0, torch.nan, x[5] * 2**-110
    with torch.inference_mode():
        codes, step = quantize(x)
        back = dequantize(x.clone(), step, shift)
        monkeypatch.setattr("btr.model.int8_encoding.possible", lambda _x: False)
        found = quantize(x)
        assert torch.equal(codes, found[0]) and torch.equal(step.nan_to_num(-1), found[1].nan_to_num(-1))
        assert torch.equal(back.nan_to_num(-1), dequantize(x, step, shift).nan_to_num(-1))


@pytest.mark.parametrize("family", ["t5", "span", "writing"])
def test_a_rounded_reader_keeps_bits_and_weights(
    family: str, tiny_readers: dict[str, Reader], shape: str, span_reader: Reader, writing_reader: Reader,
    tiny_passages: list[Passage], tmp_path: Path,
) -> None:  # fmt: skip
    reader = {"t5": tiny_readers[shape], "span": span_reader, "writing": writing_reader}[family]
    reader.save_pretrained(tmp_path / "plain")
    plain = Reader.from_pretrained(tmp_path / "plain", dtype="float32")
    rounded = Reader.from_pretrained(tmp_path / "plain", dtype="float32")
    rounded.round_weights()
    model, k = rounded.model, rounded.config.k
    layers = list(model.t5.encoder.layers if isinstance(model, FiD) else model.bert.layers)
    in_int8 = [any(isinstance(part, Int8Linear) for part in layer.modules()) for layer in layers]
    assert in_int8 == [n >= k for n in range(len(layers))] and k > 0
    assert rounded.fingerprint == plain.fingerprint
    found, expected = (r.encode_passages(tiny_passages) for r in (rounded, plain))
    assert found.packed is not None and expected.packed is not None and (found.packed == expected.packed).all()
    for mode in MODES:
        one, other = (r.answer("Who built the lighthouse?", tiny_passages, mode, 4) for r in (rounded, plain))
        # of random weights: what is far apart is not the same reader
        assert one.evidence.tolist() == pytest.approx(other.evidence.tolist(), abs=0.1)
    rounded.round_weights()  # once more changes nothing
    again = rounded.answer("Who built the lighthouse?", tiny_passages, "binary", 4)
    rounded.save_pretrained(tmp_path / "again")
    for file in (tmp_path / "plain").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    int8 = Reader.from_pretrained(tmp_path / "again", dtype="int8")
    assert int8.model.dtype == Reader.from_pretrained(tmp_path / "again", dtype="auto").model.dtype
    assert again.evidence.sum() == pytest.approx(1, abs=1e-5) and int8.answer("salt", tiny_passages).evidence.size == 5


def test_pruning_looks_in_int8_too(
    span_reader: Reader, tiny_passages: list[Passage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from btr.model.pruning import Pruner

    span_reader.save_pretrained(tmp_path / "reader")
    reader = Reader.from_pretrained(tmp_path / "reader")
    reader.model.pruner = Pruner(reader.D)
    reader.round_weights()
    asked: list[tuple[int, int]] = []
    part: Callable[..., torch.Tensor] = Int8Linear.part
    monkeypatch.setattr(Int8Linear, "part", lambda self, x, *ends: (asked.append(ends), part(self, x, *ends))[1])
    assert reader.answer("salt", tiny_passages, "binary", prune=2).read == 2
    assert asked and {stop for _, stop in asked} == {reader.D, 3 * reader.D}
