"""The curves of a run: what is read from metrics.jsonl, and that a picture comes of it."""

import json
import sys
from pathlib import Path

import pytest

from btr.errors import InputError
from btr.train.plot import draw_curves, read_curves, smooth


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.jsonl"
    lines = []
    for step in range(1, 7):
        line: dict[str, object] = {"step": step, "mode": "full", "task": 1 / step, "recovery": 0.0, "gradient": 2.0}
        if step % 3 == 0:
            line["dev"] = {"em": 10.0 * step, "f1": 12.0 * step, "n": 5, "mode": "full"}
        lines.append(json.dumps(line) + "\n")
    path.write_text("".join(lines))
    return path


def test_curves_are_the_losses_and_the_figures(metrics: Path) -> None:
    losses, dev = read_curves(metrics)
    assert losses == {"task": [(step, 1 / step) for step in range(1, 7)]}  # recovery is 0 throughout: there is none
    assert dev == {"em": [(3, 30.0), (6, 60.0)], "f1": [(3, 36.0), (6, 72.0)]}


def test_long_curves_are_averaged() -> None:
    points = [(float(step), float(step % 2)) for step in range(1000)]
    found = smooth(points)
    assert len(found) == 200
    assert found[0] == (2.0, 0.4) and found[-1] == (997.0, 0.6)
    assert smooth([]) == []


@pytest.mark.parametrize("lines", [6, 2, 0])
def test_picture_is_drawn(metrics: Path, tmp_path: Path, lines: int) -> None:
    pytest.importorskip("matplotlib")
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:lines]))
    draw_curves(metrics, tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_without_matplotlib_there_is_a_message(metrics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        draw_curves(metrics, tmp_path / "curves.png", "a run")
    assert not (tmp_path / "curves.png").exists()
