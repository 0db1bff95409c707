"""Several processes that share a step learn what one would alone."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from btr.errors import InputError
from btr.train.processes import Alone, join_processes

CORPUS = Path(__file__).resolve().parents[2] / "corpus"


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    found = join_processes(False)
    assert type(found) is Alone and (found.count, found.index) == (1, 0)
    weight = torch.ones(2, requires_grad=True)
    (3 * weight).sum().backward()
    found.sum_gradients([weight])
    assert weight.grad is not None and weight.grad.tolist() == [3, 3]
    assert found.sum(torch.tensor([1.0, 2.0])).tolist() == [1, 2]


@pytest.mark.parametrize("asked", [True, False])
def test_without_accelerate_there_is_a_message(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.setenv("WORLD_SIZE", "1" if asked else "2")
    with pytest.raises(InputError, match="several processes need accelerate; pip install accelerate"):
        join_processes(asked)


def test_two_processes_learn_what_one_does(tokenizer_file: Path, tmp_path: Path) -> None:
    """Two processes with a piece each, and one with both: sums of two are the same in any order, so to the bit."""
    pytest.importorskip("accelerate")
    given = [
        *("binarized", "--shape", "tiny", "--k", "2", "--tokenizer", str(tokenizer_file), "--text", str(CORPUS)),
        *("--batch", "2", "--passages", "2", "--row-tokens", "48", "--question-tokens", "16", "--steps", "4"),
        *("--warmup", "1", "--matrices", "adamw"),
    ]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared |= {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "btr.train", *given, "--out", str(tmp_path / "two")]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "wrote" in said[0] and "step" not in said[1]  # the first alone reports
    # in a process of its own: what ran before in one can change the last digit of a sum
    alone = [sys.executable, "-m", "btr.train", *given, "--accumulate", "2", "--out", str(tmp_path / "one")]
    subprocess.run(alone, check=True, capture_output=True)
    two, one = ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("two", "one"))
    assert [json.loads(line) for line in two] == [json.loads(line) for line in one]
    for file in ("model.safetensors", "btr.safetensors"):
        weights, wanted = (load_file(tmp_path / name / "reader" / file) for name in ("two", "one"))
        assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
