"""What the modules of machine code share: a cache that knows its sources, a gate for parallel loops."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from btr.kernels import compiled

ROOT = Path(__file__).resolve().parents[2]
EXPAND = """
import numpy as np
from btr import kernels
from btr.kernels import compiled
one = np.ones(1, np.float32)
print(compiled.__file__)
print(kernels.expand(np.ones((1, 1), np.uint64), 1, one * np.float32(1.005859375), one * 0, bf16=True)[0, 0])
"""


def run(home: Path) -> list[str]:
    """Expand three quarters of a place above 1, with the kernels of `home`, in a process; returns what it printed."""
    environment = os.environ | {"PYTHONPATH": str(home), "NUMBA_CACHE_DIR": str(home / "cache"), "BTR_KERNELS": "numba"}
    done = subprocess.run([sys.executable, "-c", EXPAND], cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_changed_module_is_compiled_anew(tmp_path: Path) -> None:
    """The kernel stands in another module than what is changed, and that one keeps its time."""
    shutil.copytree(ROOT / "kernels", tmp_path / "btr" / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "btr" / "__init__.py").touch()
    path = tmp_path / "btr" / "kernels" / "compiled.py"
    assert run(tmp_path) == [str(path), str(0x3F81)]
    cached = set((tmp_path / "cache").rglob("*.nbi"))
    assert cached and run(tmp_path)[1] == str(0x3F81) and set((tmp_path / "cache").rglob("*.nbi")) == cached
    text = path.read_text(encoding="utf-8")
    assert "np.uint32(0x7FFF)" in text
    path.write_text(text.replace("np.uint32(0x7FFF)", "np.uint32(0)"), encoding="utf-8")
    assert run(tmp_path)[1] == str(0x3F80)  # rounds down


def test_gate_opens_again() -> None:
    """Also after a loop that fails, and not for a loop within one."""
    inner: list[bool] = []
    assert compiled.alone(lambda: inner.append(compiled.alone(lambda: None)))
    assert inner == [False]

    def fail() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        compiled.alone(fail)
    assert compiled.alone(lambda: None)


def test_parallel_loop_gives_back_the_threads() -> None:
    from numba import get_num_threads

    before, seen = get_num_threads(), []
    threads = min(2, int(compiled.config_.NUMBA_NUM_THREADS))
    if threads < 2:
        assert not compiled.in_parallel(lambda: None, 1)
        return
    assert compiled.in_parallel(lambda array: seen.append((get_num_threads(), len(array))), threads, np.zeros(3))
    assert seen == [(threads, 3)] and get_num_threads() == before


LOOP = """
import torch
from btr.kernels import compiled
torch.set_num_threads(2)
torch.get_num_threads()
print(compiled.in_parallel(lambda: None, 2), torch.get_num_threads(), compiled.get_num_threads())
"""
SERIAL = """
import numpy as np, torch
from numba import config, prange
from btr.kernels import compiled, sublayer
@compiled.compiled(parallel=True)
def kernel(many, array):
    if many:
        for n in prange(3):
            array[n] += 1
torch.set_num_threads(2)
torch.get_num_threads()
sublayer._run(kernel, 1, np.zeros(3))
print(True, torch.get_num_threads(), config.NUMBA_NUM_THREADS)
"""


@pytest.mark.parametrize("code", [LOOP, SERIAL])
def test_torch_keeps_its_threads(code: str) -> None:
    """Numba's first parallel loop starts as many as there are cores, and would leave torch with so many."""
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"NUMBA_NUM_THREADS": "3"}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "2", "3"], done.stderr


LOOPS = """
import sys
from numba import prange
from btr.kernels import sublayer
from btr.kernels.compiled import compiled
import numpy as np
@compiled(parallel=True)
def loop(array):
    for n in prange(array.size):
        array[n] += 1
@compiled()
def kernel(many, array):
    if many:
        loop(array)
    else:
        array[0] += 2
given = np.zeros(3)
loop(given) if sys.argv[1:] else sublayer._run(kernel, 1, given)
print(given.sum())
"""


def test_cached_kernel_that_may_call_a_loop_runs_without(tmp_path: Path) -> None:
    """Compiled where the loop came from the cache, it is cached without what starts the loop's threads."""
    (tmp_path / "loops.py").write_text(LOOPS, encoding="utf-8")
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "NUMBA_NUM_THREADS": "2"}
    for arguments, said in ((["loop"], "3.0"), ([], "2.0"), ([], "2.0")):
        command = [sys.executable, str(tmp_path / "loops.py"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.stdout.split() == [said], (done.returncode, done.stderr)
