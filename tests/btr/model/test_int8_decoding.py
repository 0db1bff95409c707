"""One answer by a decoder rounded to int8: what its rounded weights would have PyTorch write, few memories or many."""

import copy

import pytest
import torch
import torch.nn.functional as F

from btr.corpus import Passage
from btr.errors import InputError
from btr.model import elementwise
from btr.model import int8_decoding as single
from btr.model.decoding import greedy
from btr.model.merge import Tokens
from btr.model.t5 import T5, Linear
from btr.reader import Reader


def with_rounded_weights(t5: T5, projected: bool) -> T5:
    """Return a copy whose decoder has the weights that int8 stands for, but for those a memory was projected with."""
    other = copy.deepcopy(t5)
    plain = [part for layer in other.decoder.layers for part in (layer.cross.k, layer.cross.v) if projected]
    for part in [*other.decoder.modules(), other.head]:
        if isinstance(part, Linear) and all(part is not one for one in plain):
            matrix = single.rounded(part)
            weight = torch.from_numpy(matrix.values).float() * torch.from_numpy(matrix.scale)[:, None]
            part.weight = torch.nn.Parameter(weight)
    return other


@pytest.mark.parametrize("few", [0, 2048])
def test_answer_is_that_of_the_rounded_weights(
    tiny_readers: dict[str, Reader], shape: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "FEW", few)
    t5 = tiny_readers[shape].model.t5  # type: ignore[union-attr]
    assert isinstance(t5, T5)
    memory = torch.randn(1, 30, t5.config.d_model, generator=torch.Generator().manual_seed(8)).bfloat16().float()
    levels = [Tokens.of(memory, torch.tensor([27]), 0)] * len(t5.decoder.layers)
    found, other = greedy(t5, levels, 10, True, single.Matrices.of(t5)), with_rounded_weights(t5, few > 0)
    monkeypatch.setattr(
        elementwise, "gelu", lambda x, kind, times: F.gelu(x.bfloat16(), approximate=kind).float() * times
    )
    with torch.no_grad():
        for layer in other.decoder.layers:
            for part in (layer.cross.k, layer.cross.v) if few else ():  # keys and values are rounded to bfloat16
                part.register_forward_hook(lambda _module, _x, out: out.bfloat16().float())
        mask = torch.arange(30)[None] < 27
        scores = other.answer_logits(found.tokens, memory, mask)[0].log_softmax(-1)
    assert found.tokens[0].tolist() == scores.argmax(-1).tolist()
    # a sum in another order may round to another bfloat16, 2^-8 of it, here and there
    assert found.log_probability[0].tolist() == pytest.approx(scores.amax(-1).tolist(), abs=5e-3)
    expected = greedy(other, levels, 10).attention[0]  # which asks the memory itself
    assert found.attention[0].tolist() == pytest.approx(expected.tolist(), abs=0.01)
    assert found.attention[0, 27:].tolist() == [0.0] * 3 and float(found.attention.sum()) == pytest.approx(1, abs=1e-5)


def test_matrix_is_rounded_by_half_a_step_at_most() -> None:
    linear = Linear(70, 9)
    with torch.no_grad():
        linear.weight[3] = 0
    matrix = single.rounded(linear)
    off = torch.from_numpy(matrix.values).float() * torch.from_numpy(matrix.scale)[:, None] - linear.weight
    assert (off.abs().amax(1) <= torch.from_numpy(matrix.scale) * 0.5001).all() and off[3].abs().max() == 0
    assert abs(matrix.values[[0, 1, 8]]).max(1).tolist() == [127] * 3


def test_rounded_reader_writes_single_answers_only(
    tiny_reader: Reader, span_reader: Reader, tiny_passages: list[Passage], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(tiny_reader.model, tiny_reader.tokenizer)
    reader.round_decoder()
    steps: list[int] = []
    step = single.Int8Decoder.step
    monkeypatch.setattr(single.Int8Decoder, "step", lambda self, token, t: (steps.append(t), step(self, token, t))[1])
    questions = ["Who built the lighthouse?", "salt"]
    together = reader.answer_batch(questions, [tiny_passages] * 2, "binary", 4)
    plain = tiny_reader.answer_batch(questions, [tiny_passages] * 2, "binary", 4)
    assert not steps and [a.tokens for a in together] == [a.tokens for a in plain]
    alone = reader.answer(questions[0], tiny_passages, "binary", 4)
    assert steps and alone.read == 5 and float(alone.evidence.sum()) == pytest.approx(1, abs=1e-5)
    assert reader.fingerprint == tiny_reader.fingerprint
    with pytest.raises(InputError, match="has no decoder to round"):
        span_reader.round_decoder()
