"""The stages as values, and the modes they draw."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from btr.errors import InputError
from btr.train.stages import STAGES, Stage


def test_stages_are_those_of_the_paper_and_one_of_ours() -> None:
    assert all(stage.name == name for name, stage in STAGES.items())
    modes = {name: [mode for mode, _ in stage.modes] for name, stage in STAGES.items()}
    assert modes == {"reader": ["full"], "decomposed": ["float"], "binarized": ["binary"], "joint": ["binary"]}
    assert {name: stage.losses for name, stage in STAGES.items()} == {
        "reader": ("task",),
        "decomposed": ("task", "distillation"),
        "binarized": ("task", "recovery"),
        "joint": ("task", "distillation", "answers", "recovery"),
    }
    assert all(set(stage.weights.values()) == {1.0} for stage in STAGES.values())
    assert [name for name, stage in STAGES.items() if stage.needs_teacher] == ["decomposed", "joint"]


def test_losses_without_weight_are_not_computed() -> None:
    stage = replace(STAGES["joint"], weights={"recovery": 0.0, "cross": 0.5, "task": 2.0, "distillation": 1.0})
    assert stage.losses == ("task", "distillation", "cross") and stage.needs_teacher
    assert replace(stage, distill="off").losses == ("task", "cross")
    assert not replace(stage, distill="off", weights={"task": 1.0, "distillation": 1.0}).needs_teacher


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"weights": {"taks": 1.0}},
            r"a loss is called 'taks'; known: task, distillation, answers, cross, copying, recovery",
        ),
        ({"weights": {"task": -1.0}}, r"the weight of 'task' is -1.0; give 0 or more"),
        ({"weights": {"task": float("nan")}}, r"the weight of 'task' is nan; give 0 or more"),
        ({"distill": "some"}, r"distill is 'some'; known: off, all, top"),
        ({"straight_through": "sign"}, r"straight_through is 'sign'; known: tanh, clipped"),
        ({"top_ratio": 1.5}, r"top_ratio is 1.5; give a share between 0 and 1"),
    ],
)
def test_stage_that_cannot_be_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(STAGES["joint"], **changed)


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
