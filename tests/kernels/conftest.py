"""What the tests of kernels share: each of their laws is held against both back ends."""

from collections.abc import Iterator

import pytest

from btr import kernels


@pytest.fixture(scope="module", params=("numba", "numpy"))
def back_end(request: pytest.FixtureRequest) -> Iterator[str]:
    before = kernels.backend()
    kernels.use(request.param)
    yield request.param
    kernels.use(before)
