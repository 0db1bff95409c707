"""Devices and precisions, chosen by name or by what is here."""

from pathlib import Path

import pytest
import torch

from btr.errors import InputError
from btr.model import devices
from btr.model.devices import choose_device, choose_dtype
from btr.reader import Reader
from btr.retrieve.dense.encoder import Encoder

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> int:
    """Two CUDA devices that torch seems to see."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: CUDA)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    return 2


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No accelerator."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.mark.parametrize("asked", ["cuda", "cuda:0", "mps", torch.device("cuda", 1)])
def test_a_device_that_is_not_here_is_one_line(asked: str | torch.device, alone: None, tmp_path: Path) -> None:
    kind = torch.device(asked).type
    with pytest.raises(InputError) as caught:
        Reader.from_pretrained(tmp_path / "none", device=asked)  # said before anything is read
    said = str(caught.value)
    assert said.startswith(f"torch {torch.__version__} sees no {kind} device here, there is cpu; use device cpu")
    assert "\n" not in said
    with pytest.raises(InputError, match=f"sees no {kind} device"):
        Encoder.from_pretrained(str(tmp_path / "none"), device=asked)


def test_another_kind_than_the_one_here_is_refused(gpus: int) -> None:
    with pytest.raises(InputError, match="sees no mps device here, there is cpu and cuda; "):
        choose_device("mps")
    with pytest.raises(InputError, match=r"device is cuda:2, torch sees 2 of them, numbered from 0; use cuda:0"):
        choose_device("cuda:2")


@pytest.mark.parametrize("asked", ["gpu", "", "cuda:x", "cuda:-1"])
def test_what_torch_does_not_know_is_refused(asked: str) -> None:
    with pytest.raises(InputError, match=f"device is '{asked}', which torch does not know; there is cpu"):
        choose_device(asked)


def test_auto_is_the_accelerator_or_the_cpu(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("auto") == choose_device("cuda") == CUDA
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == choose_device("cpu:0") == CPU


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n", "bfloat16"),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", "bfloat16"),
        ("flags\t\t: fpu avx512f avx512_vnni\n", "float32"),  # emulated there
        ("model name : not_avx512_bf16\n", "float32"),
        (None, "float32"),  # a system that does not tell
    ],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(
    flags: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader_folder: Path
) -> None:
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(devices, "PROCESSOR", tmp_path / "cpuinfo")
    assert choose_dtype("auto", CPU) == wanted
    assert Reader.from_pretrained(reader_folder, dtype="auto").model.dtype == devices.DTYPES[wanted]


def test_auto_on_a_gpu_is_what_it_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    for able, wanted in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert choose_dtype("auto", CUDA) == wanted
    assert choose_dtype("auto", torch.device("mps")) == "float32"


def test_a_precision_that_is_named_is_kept() -> None:
    assert [choose_dtype(name, CPU) for name in devices.DTYPES] == list(devices.DTYPES)
    with pytest.raises(InputError, match="dtype is 'float16'; use float32, bfloat16, int8 or auto"):
        choose_dtype("float16", CPU)


def test_int8_is_for_processors_that_multiply_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "PROCESSOR", tmp_path / "cpuinfo")
    for flags, able in (("avx512_vnni", True), ("avx_vnni", True), ("amx_int8", True), ("avx512f", False)):
        (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags}\n")
        assert devices.multiplies_int8(CPU) == (able and torch.backends.mkldnn.is_available())
    with pytest.raises(InputError, match=r"dtype is int8, which the cpu here has no instructions for \(VNNI, AMX\)"):
        choose_dtype("int8", CPU)
    with pytest.raises(InputError, match="dtype is int8, which the cuda here has no instructions for"):
        choose_dtype("int8", CUDA)
