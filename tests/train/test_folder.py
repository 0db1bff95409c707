"""What a run leaves on disk: whole, of one run alone, and the best reader at all times."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from btr.errors import InputError
from btr.train.folder import RunFolder

SETTINGS = {"stage": "reader", "batch": 16, "questions": ["nq.jsonl of 5 bytes=1"], "weights": {"task": 1.0}}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def writer(text: str) -> Callable[[Path], None]:
    """Stand in for what writes a reader."""

    def write(path: Path) -> None:
        path.mkdir(exist_ok=True)
        (path / "reader").write_text(text)

    return write


def test_what_is_saved_is_loaded(folder: RunFolder) -> None:
    assert folder.load(SETTINGS) is None
    folder.save({"settings": SETTINGS, "step": 3, "student": {"weight": torch.arange(3.0)}})
    state = folder.load(SETTINGS)
    assert state is not None and state["step"] == 3 and state["student"]["weight"].tolist() == [0, 1, 2]
    assert [path.name for path in folder.path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"batch": 8}, "made with batch 16, this run has batch 8; use the same settings or another --out"),
        (
            {"questions": ["nq.jsonl of 6 bytes=1"]},
            "made with questions ['nq.jsonl of 5 bytes=1'], this run has questions ['nq.jsonl of 6 bytes=1'];",
        ),
        ({"weights": {"task": 2.0}}, "made with weights {'task': 1.0}, this run has weights {'task': 2.0};"),
        ({"rotation": True}, "made with rotation None, this run has rotation True;"),
        ({"stage": "joint", "batch": 4}, "made with stage reader, batch 16, this run has stage joint, batch 4;"),
    ],
)
def test_checkpoint_of_other_settings_is_refused(folder: RunFolder, changed: dict[str, object], expected: str) -> None:
    folder.save({"settings": SETTINGS})
    with pytest.raises(InputError) as refused:
        folder.load({**SETTINGS, **changed})
    assert expected in str(refused.value)


def test_settings_that_are_gone_are_refused(folder: RunFolder) -> None:
    folder.save({"settings": {**SETTINGS, "blanks": 0.5}})
    with pytest.raises(InputError, match=r"made with blanks 0\.5, this run has blanks None"):
        folder.load(SETTINGS)


@pytest.mark.parametrize("kept", [0, 100])
def test_damaged_checkpoint_is_refused(folder: RunFolder, kept: int) -> None:
    folder.save({"settings": SETTINGS, "student": torch.zeros(1000)})
    folder.checkpoint.write_bytes(folder.checkpoint.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"checkpoint.pt: damaged .*--no-resume"):
        folder.load(SETTINGS)


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="run: is a file; give a folder"):
        RunFolder(tmp_path / "run").check()
    RunFolder(tmp_path / "new").check()
    RunFolder(tmp_path).check()


def test_metrics_hold_every_step_once(folder: RunFolder) -> None:
    folder.keep_steps(3)
    assert not folder.metrics.exists()
    for take, steps in ((1, (1, 2, 3)), (2, (3, 4, 5))):
        for step in steps:
            folder.add_line({"step": step, "task": take})
    with folder.metrics.open("a") as file:
        file.write('{"step": 6, "ta')
    folder.keep_steps(4)
    assert [json.loads(line) for line in folder.metrics.read_text().splitlines()] == [
        {"step": 1, "task": 1},
        {"step": 2, "task": 1},
        {"step": 3, "task": 2},
        {"step": 4, "task": 2},
    ]
    folder.keep_steps(0)
    assert folder.metrics.read_text() == ""


def test_best_is_the_last_one_kept(folder: RunFolder) -> None:
    best = folder.path / "best"
    for step in (5, 10, 10):
        folder.keep_best(writer(f"of {step}"), step)
        assert (best / "reader").read_text() == f"of {step}"
        assert sorted(path.name for path in folder.path.iterdir()) == ["best", f"best-at-{step}"]
    folder.forget()
    assert list(folder.path.iterdir()) == []


def test_best_is_there_while_a_better_one_is_written(folder: RunFolder) -> None:
    folder.keep_best(writer("first"), 5)

    def fail(path: Path) -> None:
        writer("half")(path)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.keep_best(fail, 10)
    assert (folder.path / "best" / "reader").read_text() == "first"
    (folder.path / "best-at-10" / "left over").write_text("")
    folder.keep_best(writer("second"), 10)
    assert [path.name for path in (folder.path / "best").iterdir()] == ["reader"]
    assert (folder.path / "best" / "reader").read_text() == "second"


def test_run_can_be_moved(folder: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder.keep_best(writer("best"), 5)
    moved = folder.path.rename(tmp_path_factory.mktemp("elsewhere") / "run")
    assert (moved / "best" / "reader").read_text() == "best"
