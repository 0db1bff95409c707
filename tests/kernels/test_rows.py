"""Hold what takes one row through a decoder to float64: both back ends, bfloat16 and int8, one thread and two."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from btr import kernels
from btr.kernels import Matrix, Norm
from btr.kernels.reference import narrow, numbers, widen

EPS = 2**-24  # half a last place of float32, relative


def draw(rng: np.random.Generator, rows: int, width: int, kind: str) -> Matrix:
    if kind == "int8":
        return Matrix(rng.integers(-127, 128, (rows, width)).astype(np.int8), rng.uniform(0.5, 2, rows).astype("f4"))
    return Matrix(narrow(rng.normal(size=(rows, width)).astype("f4")), np.ones(rows, np.float32))


def whole(matrix: Matrix) -> NDArray[np.float64]:
    return numbers(matrix.values).astype(np.float64) * matrix.scale[:, None]


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("rows", "width", "groups"), [(6, 1, 3), (12, 65, 1), (66, 127, 3), (1040, 256, 4)])
def test_products_are_those_of_float64(
    back_end: str, kind: str, threads: int, rows: int, width: int, groups: int
) -> None:
    rng = np.random.default_rng(rows)
    matrix = draw(rng, rows, width, kind)
    x = rng.normal(size=(groups, width)).astype(np.float32)
    parts = whole(matrix).reshape(groups, -1, width)
    found = kernels.multiply(matrix, x, threads).reshape(groups, -1)
    bound = (width + 2) * EPS * np.einsum("goi,gi->go", abs(parts), abs(x))  # as many roundings as additions, and two
    assert (abs(found - np.einsum("goi,gi->go", parts, x)) <= bound).all()
    y = rng.normal(size=rows).astype(np.float32)
    found = kernels.multiply_back(matrix, y, groups, threads)
    by_group = y.reshape(groups, -1)
    bound = (rows // groups + 2) * EPS * np.einsum("goi,go->gi", abs(parts), abs(by_group))
    assert (abs(found - np.einsum("goi,go->gi", parts, by_group)) <= bound).all()


def normed(row: Any, norm: Norm) -> Any:
    return row / np.sqrt((row**2).mean() + norm.eps) * norm.weight


def softmax(scores: Any) -> Any:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("threads", [1, 2])
def test_sublayers_are_those_of_float64(back_end: str, threads: int) -> None:
    rng = np.random.default_rng(4)
    H, d, D, M, S, F = 3, 8, 40, 70, 4, 50
    q, k, v = (draw(rng, H * d, D, "bfloat16") for _ in range(3))
    o, wi, gate, wo = (
        draw(rng, D, H * d, "int8"),
        draw(rng, F, D, "int8"),
        draw(rng, F, D, "bfloat16"),
        draw(rng, D, F, "int8"),
    )
    norm = Norm(rng.uniform(0.1, 0.3, D).astype(np.float32), np.float32(1e-6))
    row = rng.normal(size=D).astype(np.float32)
    bias = rng.normal(size=(H, S, S)).astype(np.float32)
    keys, values = rng.normal(size=(2, H, S, d)).astype(np.float32)
    x = normed(row.astype(np.float64), norm)

    before = [part[:, :2].astype(np.float64) for part in (keys, values)]
    new = [(whole(part) @ x).reshape(H, 1, d) for part in (k, v)]
    seen_keys, seen_values = (np.concatenate(pair, 1) for pair in zip(before, new, strict=True))
    weights = softmax(np.einsum("hd,hsd->hs", (whole(q) @ x).reshape(H, d), seen_keys) + bias[:, 2, :3])
    expected = row + whole(o) @ np.einsum("hs,hsd->hd", weights, seen_values).reshape(-1)
    found = row.copy()
    kernels.self_attend(found, norm, kernels.Attention(q, k, v, o), keys, values, bias, 2, threads)
    assert found == pytest.approx(expected, abs=2e-5 * abs(expected).max())
    assert keys[:, 2] == pytest.approx(new[0][:, 0], abs=1e-5)

    there, what = (narrow(rng.normal(size=(H, M, d)).astype(np.float32)) for _ in range(2))
    shift, attended = rng.normal(size=M).astype(np.float32), np.full(M, 0.5, np.float32)
    shift[-5:] = np.float32(-3e38)  # padding
    weights = softmax(np.einsum("hd,hmd->hm", (whole(q) @ x).reshape(H, d), widen(there).astype("f8")) + shift)
    expected = row + whole(o) @ np.einsum("hm,hmd->hd", weights, widen(what).astype("f8")).reshape(-1)
    found = row.copy()
    kernels.cross_attend(found, norm, q, o, there, what, shift, attended, threads)
    assert found == pytest.approx(expected, abs=2e-5 * abs(expected).max())
    assert attended == pytest.approx(0.5 + weights.mean(0), abs=1e-6) and (attended[-5:] == 0.5).all()

    with np.errstate(invalid="ignore"):  # some patterns are signalling NaNs
        table = widen(np.arange(2**16, dtype=np.uint16)) * np.float32(0.5)  # halving tells what was looked up
    opened = widen(narrow((whole(gate) @ x).astype(np.float32))) * 0.5
    for one, inner in ((None, np.maximum(whole(wi) @ x, 0)), (gate, whole(wi) @ x * opened)):
        expected, found = row + whole(wo) @ inner, row.copy()
        kernels.feed_forward(found, norm, wi, wo, one, table, threads)
        # a gate that lies on the edge between two bfloat16 may be rounded to the other, 2^-8 of it off
        assert found == pytest.approx(expected, abs=(2e-5 if one is None else 2e-3) * abs(expected).max())


def test_matrices_that_are_none_are_refused() -> None:
    good, x = Matrix(np.ones((4, 3), np.int8), np.ones(4, np.float32)), np.ones((1, 3), np.float32)
    for values in (good.values.astype(np.int16), good.values[:, ::2], good.values[0]):
        with pytest.raises(ValueError, match="expected C-contiguous uint16 or int8"):
            kernels.multiply(good._replace(values=values), x)
    with pytest.raises(ValueError, match=r"scale is float32 \(3,\), expected"):
        kernels.multiply(good._replace(scale=good.scale[:3]), x)
    with pytest.raises(ValueError, match="4 rows, which 3 groups do not share"):
        kernels.multiply_back(good, good.scale, 3)
    with pytest.raises(ValueError, match=r"x is float32 \(1, 2\), expected"):
        kernels.multiply(good, x[:, :2].copy())
