"""The stages as values, and the modes they draw."""

import random
from collections import Counter

import pytest

from btr.train.stages import STAGES, Stage


def test_stages_are_those_of_the_paper() -> None:
    assert list(STAGES) == ["reader", "decomposed", "binarized"]
    assert all(stage.name == name for name, stage in STAGES.items())
    modes = {name: [mode for mode, _ in stage.modes] for name, stage in STAGES.items()}
    assert modes == {"reader": ["full"], "decomposed": ["float"], "binarized": ["binary"]}
    assert {name: stage.distillation for name, stage in STAGES.items() if stage.distillation} == {"decomposed": 1}
    assert {name: stage.recovery for name, stage in STAGES.items() if stage.recovery} == {"binarized": 1}


def test_modes_have_their_shares() -> None:
    stage = Stage("any", (("binary", 6.0), ("full", 3.0), ("float", 1.0)))
    rng = random.Random(0)
    found = Counter(stage.mode(rng.random()) for _ in range(10_000))
    for mode, share in (("binary", 0.6), ("full", 0.3), ("float", 0.1)):
        assert abs(found[mode] / 10_000 - share) < 0.02  # four standard deviations


@pytest.mark.parametrize(("draw", "mode"), [(0.0, "binary"), (0.2499, "binary"), (0.25, "full"), (0.9999, "full")])
def test_mode_changes_at_its_share(draw: float, mode: str) -> None:
    assert Stage("any", (("binary", 1.0), ("full", 3.0))).mode(draw) == mode


def test_every_draw_gives_a_mode() -> None:
    stage = Stage("any", (("binary", 0.1), ("full", 0.2), ("float", 0.3)))
    assert stage.mode(1 - 2**-53) == "float"
