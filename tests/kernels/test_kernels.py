"""Hold both back ends to one set of laws, to bitarray, and to each other; D straddles the 64-bit word."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitarray import bitarray
from bitarray.util import count_xor
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from btr import kernels

BACK_ENDS = ("numba", "numpy")
DIMENSIONS = (1, 63, 64, 65, 127, 128, 768, 1000)
TILE = 1024  # rows of b that the Numba back end compares at a time
DTYPES = (np.bool_, np.int8, np.uint8, np.int64, np.uint64, np.float16, np.float32, np.float64)
LAWS = settings(max_examples=60, deadline=None)

every_d = pytest.mark.parametrize("D", DIMENSIONS)
# Signed zeros, subnormals, infinities and NaNs of both signs, quiet and signalling, are where back ends would part.
POSITIVE = "0 1 7fffff 800000 3f800000 3f808000 3f818000 7f7fffff 7f800000 7f800001 7fc00000 7fffffff"
SPECIAL = np.array([int(bits, 16) for bits in POSITIVE.split()], np.uint32)
SPECIAL = np.concatenate([SPECIAL, SPECIAL | 0x80000000]).view(np.float32)


def random_values(seed: int, *shape: int) -> NDArray[np.float32]:
    """Return floats of any bits at all, a fifth of them special."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**32, shape, np.uint32).view(np.float32)
    return np.where(rng.random(shape) < 0.2, rng.choice(SPECIAL, shape), values)


def random_words(seed: int, rows: int, D: int) -> NDArray[np.uint64]:
    return kernels.pack(np.random.default_rng(seed).random((rows, D)) < 0.5)


def oracle(signs: NDArray[Any]) -> list[bitarray]:
    return [bitarray((row > 0).tolist(), endian="little") for row in signs]


def test_golden_words(back_end: str) -> None:
    signs = np.zeros((4, 70), np.int8)
    signs[0, 0] = signs[1, 63] = signs[2, 64] = 1
    signs[3, [0, 2, 8, 62, 65, 69]] = 1
    words = [[1, 0], [1 << 63, 0], [0, 1], [0x4000000000000105, 0x22]]
    packed = kernels.pack(signs)
    assert packed.dtype == np.uint64
    assert packed.tolist() == words
    assert packed[3].astype("<u8").tobytes() == bytes.fromhex("0501000000000040 2200000000000000")
    assert np.array_equal(kernels.unpack(np.array(words, np.uint64), 70), np.where(signs > 0, 1, -1))


@every_d
def test_pack_agrees_with_bitarray(back_end: str, D: int) -> None:
    signs = np.random.default_rng(D).standard_normal((5, D))
    expected = [row.tobytes().ljust(8 * -(-D // 64), b"\0") for row in oracle(signs)]
    assert [row.tobytes() for row in kernels.pack(signs).astype("<u8")] == expected


@every_d
def test_padding_is_clear_and_never_read(back_end: str, D: int) -> None:
    packed = kernels.pack(np.ones((3, D), bool))
    assert np.bitwise_count(packed).sum(axis=1).tolist() == [D, D, D]
    dirty = np.full_like(packed, 2**64 - 1)
    assert (kernels.unpack(dirty, D) == 1).all()
    one = np.ones(D, np.float32)
    assert np.array_equal(kernels.expand(dirty, D, one, one), kernels.expand(packed, D, one, one))


@given(signs=hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=1, max_dims=3, max_side=130)))
@LAWS
def test_round_trip_of_any_dtype(back_end: str, signs: NDArray[Any]) -> None:
    packed = kernels.pack(signs)
    assert packed.shape == (*signs.shape[:-1], -(-signs.shape[-1] // 64))
    unpacked = kernels.unpack(packed, signs.shape[-1])
    assert unpacked.dtype == np.int8 and np.array_equal(unpacked, np.where(signs > 0, 1, -1))
    assert np.array_equal(kernels.pack(unpacked), packed)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_zero_and_nan_count_as_minus_one(back_end: str, dtype: type) -> None:
    tiny = np.nextafter(dtype(0), dtype(1))
    values: NDArray[Any] = np.array([0.0, -0.0, np.nan, -np.nan, tiny, -tiny, np.inf, -np.inf], dtype)
    assert kernels.unpack(kernels.pack(values), 8).tolist() == [-1, -1, -1, -1, 1, -1, 1, -1]


def test_leading_dimensions_and_no_rows(back_end: str) -> None:
    signs = np.random.default_rng(0).standard_normal((2, 3, 4, 65)).astype(np.float32)
    packed = kernels.pack(signs)
    assert packed.shape == (2, 3, 4, 2)
    assert np.array_equal(packed[1, 2, 3], kernels.pack(signs[1, 2, 3]))
    assert np.array_equal(kernels.unpack(packed, 65)[1, 2], kernels.unpack(packed[1, 2], 65))
    assert kernels.pack(signs[:0]).shape == (0, 3, 4, 2)
    assert kernels.unpack(packed[:, :0], 65).shape == (2, 0, 4, 65)


@every_d
@pytest.mark.parametrize("scale", [None, np.float16, np.float32])
def test_expand_is_the_formula(back_end: str, D: int, scale: type | None) -> None:
    rng = np.random.default_rng(D)
    mean, magnitude = rng.standard_normal((2, D)).astype(np.float32)
    packed = random_words(D, 9, D)
    factors: NDArray[Any] | None = None if scale is None else rng.random(9).astype(scale)
    expected = mean + magnitude * kernels.unpack(packed, D).astype(np.float32)
    if factors is not None:
        expected = expected * factors.astype(np.float32)[:, None]
    values = kernels.expand(packed, D, mean, magnitude, factors)
    assert values.dtype == np.float32 and values.tobytes() == expected.tobytes()


# The bit, mean, magnitude and scale, and the bits of the value: an infinite scale keeps the product's sign, times 0 it
# is NaN, sum and product overflow, subnormals are kept, and -0 - 0 is -0.
EDGES = """
1 1 0 inf 7f800000    0 0 1 inf ff800000    1 1 0 nan 7fc00000    1 0 0 inf 7fc00000    0 inf inf 1 7fc00000
1 3e38 3e38 1 7f800000    0 -3e38 0 2 ff800000    1 1e-45 0 1 00000001    0 -0.0 0 1 80000000    1 -0.0 0 1 00000000
"""


def test_expand_at_the_edges_of_float32(back_end: str) -> None:
    for bit, *numbers, bits in map(str.split, EDGES.strip().replace("    ", "\n").splitlines()):
        mean, magnitude, scale = (np.array([float(text)], np.float32) for text in numbers)
        with np.errstate(all="raise"):
            value = kernels.expand(np.array([[int(bit)]], np.uint64), 1, mean, magnitude, scale)
        assert f"{value.view(np.uint32)[0, 0]:08x}" == bits, (bit, mean, magnitude, scale)


# Half a step goes to the even neighbour, past the largest comes infinity, and a NaN may hide in the lower half.
ROUNDED = """
3f800000 3f80   3f808000 3f80   3f818000 3f82   3f808001 3f81   3f817fff 3f81
7f7fffff 7f80   ff7f7fff ff7f   7f800000 7f80   ff800000 ff80   ffffffff 7fc0
7f800001 7fc0   80000000 8000   00008000 0000   00018000 0002   007fffff 0080
"""


def test_bfloat16_rounds_to_nearest_even(back_end: str) -> None:
    table = [int(bits, 16) for bits in ROUNDED.split()]
    mean, packed = np.array(table[::2], np.uint32).view(np.float32), np.zeros((1, 1), np.uint64)
    rounded = kernels.expand(packed, mean.size, mean, np.zeros_like(mean), bf16=True)
    assert rounded.dtype == np.uint16
    assert [f"{bits:04x}" for bits in rounded[0]] == [f"{bits:04x}" for bits in table[1::2]]


def test_bfloat16_agrees_with_torch(back_end: str) -> None:
    import torch

    mean = random_values(1, 1 << 16)
    zero, packed = np.zeros_like(mean), np.zeros((1, 1 << 10), np.uint64)
    rounded = torch.from_numpy(mean).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    expected = np.where(np.isnan(mean), 0x7FC0, rounded)  # torch has several NaNs
    assert np.array_equal(kernels.expand(packed, mean.size, mean, zero, bf16=True)[0], expected)


@every_d
def test_hamming_agrees_with_bitarray(back_end: str, D: int) -> None:
    left, right = np.random.default_rng(D).random((2, 7, D)) - 0.5
    expected = [[count_xor(x, y) for y in oracle(right)] for x in oracle(left)]
    distance = kernels.hamming(kernels.pack(left), kernels.pack(right))
    assert distance.dtype == np.int32 and distance.tolist() == expected


@given(words=st.integers(1, 17).flatmap(lambda w: hnp.arrays(np.uint64, st.tuples(st.integers(0, 9), st.just(w)))))
@LAWS
def test_hamming_is_a_metric(back_end: str, words: NDArray[np.uint64]) -> None:
    distance = kernels.hamming(words, words)
    assert np.array_equal(distance, distance.T)
    assert np.array_equal(distance == 0, (words[:, None] == words[None]).all(axis=2))
    assert (distance[:, None, :] <= distance[:, :, None] + distance[None, :, :]).all()
    assert (kernels.hamming(words, ~words) == 64 * words.shape[1] - distance).all()


@pytest.mark.parametrize("P", [1, 2, TILE - 1, TILE, TILE + 1, 2 * TILE + 7])
@pytest.mark.parametrize("D", [3, 65])  # at D = 3 every distance is tied hundreds of times
def test_nearest_is_the_first_least_distance(back_end: str, D: int, P: int) -> None:
    a, b = random_words(1, 130, D), random_words(2, P, D)
    distance = kernels.hamming(a, b)
    index, least = kernels.nearest(a, b)
    assert (index.dtype.name, least.dtype.name) == ("int64", "int32")
    assert np.array_equal(index, distance.argmin(axis=1))  # argmin gives the first
    assert np.array_equal(least, distance.min(axis=1))


def test_nearest_breaks_ties_downwards_across_tiles(back_end: str) -> None:
    b = np.full((3 * TILE, 2), 0xFF, np.uint64)
    b[[TILE + 3, TILE + 4, 2 * TILE + 3]] = 0
    index, distance = kernels.nearest(np.zeros((1, 2), np.uint64), b)
    assert (index.tolist(), distance.tolist()) == ([TILE + 3], [0])


def test_no_rows_give_empty_results(back_end: str) -> None:
    none, some = np.empty((0, 2), np.uint64), random_words(0, 3, 128)
    mean = np.ones(128, np.float32)
    assert kernels.expand(none, 128, mean, mean, np.empty(0, np.float32)).shape == (0, 128)
    assert kernels.expand(none, 128, mean, mean, bf16=True).shape == (0, 128)
    assert kernels.hamming(none, some).shape == (0, 3)
    assert kernels.hamming(some, none).shape == (3, 0)
    assert [found.shape for found in kernels.nearest(none, some)] == [(0,), (0,)]


def contrary(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield equal arrays that are transposed, strided, reversed, byte-swapped, unaligned, read-only."""
    yield np.asfortranarray(array)
    yield np.repeat(array, 2, axis=0)[::2]
    yield array[::-1].copy()[::-1]
    yield array.astype(array.dtype.newbyteorder())
    yield np.frombuffer(b"?" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


@pytest.mark.parametrize("which", range(5))
def test_memory_layout_changes_nothing(back_end: str, which: int) -> None:
    signs, (mean, magnitude), scale = random_values(0, 6, 130), random_values(1, 2, 130), random_values(2, 6)
    plain = (kernels.pack(signs), mean, magnitude, scale)
    words, m, a, s = [list(contrary(array))[which] for array in plain]
    assert np.array_equal(kernels.pack(list(contrary(signs))[which]), plain[0])
    assert np.array_equal(kernels.unpack(words, 130), kernels.unpack(plain[0], 130))
    for bf16 in (False, True):
        values = kernels.expand(words, 130, m, a, s, bf16)
        assert values.tobytes() == kernels.expand(plain[0], 130, mean, magnitude, scale, bf16).tobytes()
    assert np.array_equal(kernels.hamming(words, words), kernels.hamming(plain[0], plain[0]))
    assert np.array_equal(kernels.nearest(words, words), kernels.nearest(plain[0], plain[0]))


WORDS = np.zeros((3, 2), np.uint64)
FLOATS = np.zeros(100, np.float32)
MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: kernels.pack(np.zeros((2, 3), complex)), r"signs has dtype complex128, expected bool or a real"),
    (lambda: kernels.pack(np.zeros((), np.float32)), r"signs has shape \(\), expected \(..., D\) with D >= 1"),
    (lambda: kernels.pack(np.zeros((3, 0))), r"signs has shape \(3, 0\)"),
    (lambda: kernels.unpack(WORDS.astype(np.int64), 100), r"packed has dtype int64, expected uint64: make it with"),
    (lambda: kernels.unpack(WORDS, 129), r"packed has 2 words per token, D = 129 needs 3: pass the D"),
    (lambda: kernels.unpack(WORDS, 64), r"packed has 2 words per token, D = 64 needs 1"),
    (lambda: kernels.unpack(WORDS, 0), r"packed has 2 words per token, D = 0 needs 0"),
    (lambda: kernels.unpack(WORDS[:, :0], 1), r"packed has shape \(3, 0\), expected \(..., W\), W >= 1"),
    (lambda: kernels.expand(WORDS[0], 100, FLOATS, FLOATS), r"packed has shape \(2,\), expected \(rows, W\)"),
    (lambda: kernels.expand(WORDS, 100, FLOATS[1:], FLOATS), r"mean has shape \(99,\), expected \(100,\)"),
    (lambda: kernels.expand(WORDS, 100, FLOATS, FLOATS[None]), r"magnitude has shape \(1, 100\), expected \(100,\)"),
    (lambda: kernels.expand(WORDS, 100, FLOATS.astype(float), FLOATS), r"mean has dtype float64, expected float32: "),
    (lambda: kernels.expand(WORDS, 100, FLOATS, FLOATS, FLOATS), r"scale has shape \(100,\), expected \(3,\)"),
    (lambda: kernels.expand(WORDS, 100, FLOATS, FLOATS, [1] * 3), r"scale has dtype int64, expected float32 or float"),
    (lambda: kernels.hamming(WORDS, WORDS[:, :1]), r"a has 2 words per row, b has 1: compare tokens of the same D"),
    (lambda: kernels.hamming(WORDS[0], WORDS), r"a has shape \(2,\), expected \(rows, W\)"),
    (lambda: kernels.hamming(WORDS, FLOATS), r"b has dtype float32, expected uint64"),
    (lambda: kernels.nearest(WORDS, WORDS[:0]), r"b has shape \(0, 2\), expected P >= 1 rows"),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_say_what_both_values_and_the_cure(back_end: str, call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def every_result(rows: int, D: int) -> Iterator[tuple[str, bytes]]:
    """Yield a name and the bytes of every kernel's result, on random data full of special values."""
    signs, (mean, magnitude), scale = random_values(D, rows, D), random_values(1, 2, D), random_values(2, rows)
    packed = kernels.pack(signs)
    for view in (np.float32, np.float16, np.int32, np.int8, np.uint8):
        yield f"pack {view.__name__}", kernels.pack(signs.view(view)).tobytes()
    yield "unpack", kernels.unpack(packed, D).tobytes()
    for factors, bf16 in itertools.product((None, scale), (False, True)):
        yield f"expand {bf16=}", kernels.expand(packed, D, mean, magnitude, factors, bf16).tobytes()
    yield "hamming", kernels.hamming(packed, packed[::-1]).tobytes()
    yield "nearest", b"".join(found.tobytes() for found in kernels.nearest(packed, packed[1::2]))


@every_d
def test_back_ends_agree_to_the_bit(monkeypatch: pytest.MonkeyPatch, D: int) -> None:
    monkeypatch.setattr("btr.kernels.jit.WORTHWHILE", 0)  # every comparison of rows in parallel
    results = []
    for name in BACK_ENDS:
        monkeypatch.setattr(kernels, "_name", name)
        results.append(list(every_result(150, D)))
    for numba, numpy in zip(*results, strict=True):
        assert numba == numpy, numba[0]


def run_python(code: str, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k not in ("BTR_KERNELS", "NUMBA_NUM_THREADS")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


USE_ALL = """
import sys, numpy as np
from btr import kernels
assert "numba" not in sys.modules
name = kernels.backend()
packed = kernels.pack(np.ones((3, 70), np.float32))
kernels.unpack(packed, 70)
kernels.expand(packed, 70, np.ones(70, np.float32), np.ones(70, np.float32))
kernels.nearest(packed, packed)
print(name, "numba" in sys.modules)
"""


@pytest.mark.parametrize(("asked", "expected"), [("", "numba True"), ("numba", "numba True"), ("numpy", "numpy False")])
def test_environment_chooses_and_numba_is_imported_late(asked: str, expected: str) -> None:
    assert run_python(USE_ALL, **{"BTR_KERNELS": asked} if asked else {}) == expected


def test_unknown_back_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = r"'cuda', known are \['numba', 'numpy'\]: name one of these"
    with pytest.raises(ValueError, match=r"btr.kernels.use names the back end " + known):
        kernels.use("cuda")
    monkeypatch.setattr(kernels, "_name", None)
    monkeypatch.setenv("BTR_KERNELS", "cuda")
    with pytest.raises(ValueError, match=r"the environment variable BTR_KERNELS names the back end " + known):
        kernels.pack([True])


def test_without_numba_numpy_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_name", None)
    monkeypatch.delenv("BTR_KERNELS", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert kernels.backend() == "numpy"
    assert kernels.pack([True]).tolist() == [1]
    with pytest.raises(ImportError, match=r"names 'numba', which is not installed: pip install numba, or name 'numpy'"):
        kernels.use("numba")


def test_broken_numba_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 9')")
    for module in [name for name in sys.modules if name.split(".")[0] == "numba" or name == "btr.kernels.jit"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(kernels, "_name", None)
    monkeypatch.delenv("BTR_KERNELS", raising=False)
    with pytest.warns(UserWarning, match=r"Numba cannot be imported \(Numba needs NumPy 9\)"):
        assert kernels.backend() == "numpy"


MANY_ROWS = """
import numpy as np
from btr import kernels
from btr.kernels import jit
jit.WORTHWHILE = 0
kernels.use("numba")
words = np.random.default_rng(0).integers(0, 2**63, (1000, 3), np.uint64)
def sums():
    return int(kernels.hamming(words, words).sum(dtype=np.int64)), int(kernels.nearest(words, words[500:])[0].sum())
"""


def test_thread_count_changes_nothing() -> None:
    one, two = (run_python(MANY_ROWS + "print(sums())", NUMBA_NUM_THREADS=count) for count in "12")
    assert one == two


READ_ONLY = """
import tempfile
def refuse(*args, **kwargs):
    raise PermissionError("read-only")
tempfile.TemporaryFile = refuse  # what Numba tries a directory with: the one it is told, the source's, the user's
from btr.kernels import jit, pack
print(pack([1, -1, 1]), jit._pack_rows._cache.cache_path)
"""


def test_no_writable_cache_is_no_obstacle(tmp_path: Path) -> None:
    assert run_python(READ_ONLY, BTR_KERNELS="numba", NUMBA_CACHE_DIR=str(tmp_path)) == "[5] None"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_child_computes() -> None:
    # Numba's OpenMP layer aborts the child of a process that has run it.
    code = MANY_ROWS + "before = sums()\nimport os\npid = os.fork()\nif pid == 0:\n    os._exit(sums() != before)\n"
    assert run_python(code + "print(os.waitpid(pid, 0)[1])", NUMBA_NUM_THREADS="2") == "0"


AT_ONCE = """
from concurrent.futures import ThreadPoolExecutor
before = sums()
with ThreadPoolExecutor(4) as pool:
    print(set(pool.map(lambda _: sums() == before, range(40))))
"""


def test_threads_may_call_at_once() -> None:
    # Numba's workqueue layer aborts the process when two threads enter it.
    assert run_python(MANY_ROWS + AT_ONCE, NUMBA_NUM_THREADS="2", NUMBA_THREADING_LAYER="workqueue") == "{True}"
