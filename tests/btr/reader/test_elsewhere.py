"""Readers and encoders on another device than the CPU: what they make there is what they make here."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_flatten, tree_map

from btr import kernels
from btr.corpus import Passage
from btr.errors import InputError
from btr.model.binarize import LARGEST_SCALE
from btr.model.checkpoint import configured
from btr.model.config import MODES
from btr.reader import Answer, Reader
from btr.reader.expansion import with_kernels, with_torch
from btr.retrieve.dense.encoder import Encoder

PLACE = torch.device("cuda")  # of tensors that pretend
QUESTIONS = ["Who built the lighthouse?", "What do herons eat in hard winters, and where do they nest?"]
FREE = ("torch.Tensor.cpu", "torch.Tensor.tolist", "torch.Tensor.item", "torch.Tensor.__deepcopy__")
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


class Elsewhere(Tensor):
    """A tensor that pretends to lie on another device; the CPU computes with it.

    As on a GPU, it meets nothing that lies on the CPU, but numbers and indices, and NumPy does not see it.
    """

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return compute(func, tuple(args), kwargs or {})


class Pretence(TorchFunctionMode):
    """Sees what is made there."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        flat = tree_flatten((args, kwargs or {}))[0]
        pretends = any(isinstance(value, Elsewhere) or is_place(value) for value in flat)
        return compute(func, tuple(args), kwargs or {}) if pretends else func(*args, **(kwargs or {}))


def is_place(value: Any) -> bool:
    return isinstance(value, torch.device) and value == PLACE


def here(value: Any) -> Any:
    """Return what the CPU is to compute with."""
    if is_place(value):
        return torch.device("cpu")
    return value.as_subclass(Tensor) if isinstance(value, Elsewhere) else value


def there(value: Any) -> Any:
    return value.as_subclass(Elsewhere) if isinstance(value, Tensor) else value


def compute(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute with tensors that are there, or are to be."""
    name = resolve_name(func) or str(func)
    with torch._C.DisableTorchFunction():
        if name == "torch.Tensor.device.__get__":
            return PLACE
        flat = tree_flatten((args, kwargs))[0]
        tensors = [value for value in flat if isinstance(value, Tensor)]
        named = [value for value in flat if isinstance(value, torch.device)]
        lie = {isinstance(value, Elsewhere) for value in tensors if value.dim() or isinstance(value, Elsewhere)}
        if name == "torch.Tensor.numpy":
            raise TypeError("can't convert a tensor that is elsewhere to numpy; use .cpu() first")
        if lie == {True, False} and not (func in INDEXING and isinstance(args[0], Elsewhere)):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device")
        found = func(*tree_map(here, args), **tree_map(here, kwargs))
        goes = False if name in FREE[:3] else is_place(named[0]) if named else True in lie
        return tree_map(there, found) if goes else found


def moved(module: nn.Module) -> Any:
    """Return a copy of a module that is there."""
    copied = copy.deepcopy(module)
    for part in copied.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(there(value.detach()), requires_grad=False)
        for name, buffer in part._buffers.items():
            part._buffers[name] = there(buffer)
    return copied


@pytest.fixture(params=["t5-1.0", "t5-1.1", "span", "predictive", "writing", "bfloat16"])
def reader(
    request: pytest.FixtureRequest,
    tiny_readers: dict[str, Reader],
    tiny_passages: list[Passage],
) -> Reader:
    """Each family of readers, which can prune where one can."""
    name = request.param
    if name == "t5-1.0":
        return tiny_readers["1.0"]
    if name in ("t5-1.1", "bfloat16"):
        found: Reader = request.getfixturevalue("pruning_t5")
        return found if name == "t5-1.1" else Reader(copy.deepcopy(found.model).bfloat16(), found.tokenizer)
    if name == "writing":
        return request.getfixturevalue("pruning_writer")
    if name == "span":
        return request.getfixturevalue("pruning_reader")
    span: Reader = request.getfixturevalue("span_reader")
    config = replace(span.config, calibration="predictive", bits=40)
    made = Reader(configured(copy.deepcopy(span.model), config), span.tokenizer)
    made.calibrate(tiny_passages)
    return made


def same(ours: Answer, theirs: Answer) -> bool:
    facts = [(a.text, a.score, a.tokens, a.span, a.no_answer, a.read) for a in (ours, theirs)]
    shares = [np.concatenate((a.evidence, *a.token_evidence)).tolist() for a in (ours, theirs)]
    return facts[0] == facts[1] and shares[0] == shares[1]


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_those_of_the_cpu(reader: Reader, tiny_passages: list[Passage], mode: Any) -> None:
    wanted = reader.answer_batch(QUESTIONS, [tiny_passages, tiny_passages[1:3]], mode, 6)
    kept = None if mode == "full" else reader.encode_passages(tiny_passages, mode)  # bits that were made here
    with Pretence():
        other = Reader(moved(reader.model), reader.tokenizer)
        assert other.device == PLACE
        found = other.answer_batch(QUESTIONS, [kept or tiny_passages, tiny_passages[1:3]], mode, 6)
    assert all(map(same, wanted, found))


def test_what_is_pruned_and_merged_is_that_of_the_cpu(reader: Reader, tiny_passages: list[Passage]) -> None:
    ways: list[dict[str, Any]] = []
    if reader.prunes:
        ways += [{"prune": 2, "mode": mode} for mode in ("binary", "full")]
    if reader.family == "generative":
        schedule = reader.schedule("every", 0.3, 1)
        merges = (schedule, replace(schedule, bits=0.3, proportional=False))
        ways += [{"merge": merge, "mode": "binary"} for merge in merges]
    ways = [way | {"max_new_tokens": 6} for way in ways]
    wanted = [reader.answer(QUESTIONS[1], tiny_passages, **way) for way in ways]
    with Pretence():
        other = Reader(moved(reader.model), reader.tokenizer)
        assert all(
            same(other.answer(QUESTIONS[1], tiny_passages, **way), one) for way, one in zip(ways, wanted, strict=True)
        )
    if reader.prunes:
        ours = reader.pruning_samples(QUESTIONS[0], tiny_passages)
        with Pretence():
            theirs = other.pruning_samples(QUESTIONS[0], tiny_passages)
        assert all(not isinstance(b, Elsewhere) and torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_is_kept_is_what_the_cpu_keeps(reader: Reader, tiny_passages: list[Passage]) -> None:
    bits, states = reader.encode_passages(tiny_passages), reader.encode_passages(tiny_passages, "float")
    with Pretence():
        other = Reader(moved(reader.model), reader.tokenizer)
        found, floats = other.encode_passages(tiny_passages), other.encode_passages(tiny_passages, "float")
        assert other.fingerprint == reader.fingerprint
        other.calibrate(tiny_passages[:3])
    assert found.packed is not None and floats.states is not None
    assert np.array_equal(found.packed, bits.packed) and np.array_equal(found.scale, bits.scale)
    assert np.array_equal(floats.states, states.states)
    again = Reader(copy.deepcopy(reader.model), reader.tokenizer)
    again.calibrate(tiny_passages[:3])
    mean = other.model.binarizer.mean
    assert isinstance(mean, Elsewhere) and torch.equal(mean.cpu(), again.model.binarizer.mean)


def test_a_decoder_is_rounded_on_the_cpu_alone(tiny_reader: Reader) -> None:
    with Pretence(), pytest.raises(InputError, match="for the CPU, this one is on cuda"):
        Reader(moved(tiny_reader.model), tiny_reader.tokenizer).round_decoder()


def test_vectors_are_those_of_the_cpu(encoder_folder: Path, tiny_passages: list[Passage]) -> None:
    encoder, texts = Encoder.from_pretrained(str(encoder_folder)), [p.text for p in tiny_passages]
    wanted = encoder.embed(texts)
    with Pretence():
        encoder.model = moved(encoder.model)
        assert np.array_equal(encoder.embed(texts), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 8, 63, 64, 65, 384])
def test_bits_are_expanded_to_what_the_kernels_make_of_them(width: int, dtype: torch.dtype) -> None:
    drawn = np.random.default_rng(width)
    packed = kernels.pack(drawn.standard_normal((40, width)))
    packed[0] = ~np.uint64(0)  # padding bits are not read
    mean, magnitude = (torch.from_numpy(drawn.standard_normal(width).astype(np.float32)) for _ in range(2))
    mean[0], magnitude[0] = 1.0, 1.0  # one of its values is 0
    scale = torch.from_numpy(drawn.standard_normal(40).astype(np.float32) * 2)
    scale[:6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, LARGEST_SCALE])
    scale[6:8] = torch.tensor([1e-40, 3e38])
    for given in (None, scale):
        ours, theirs = (way(packed, mean, magnitude, given, dtype) for way in (with_torch, with_kernels))
        whole = torch.int32 if dtype == torch.float32 else torch.int16
        assert ours.dtype == dtype and torch.equal(ours.view(whole), theirs.view(whole))


@pytest.mark.cuda
def test_a_gpu_answers_as_the_cpu(tiny_reader: Reader, reader_folder: Path, tiny_passages: list[Passage]) -> None:
    reader = Reader.from_pretrained(reader_folder, device="cuda")
    for mode in MODES:
        ours, theirs = (one.answer(QUESTIONS[0], tiny_passages, mode) for one in (reader, tiny_reader))
        assert ours.text == theirs.text
        assert ours.score == pytest.approx(theirs.score, rel=1e-3)
