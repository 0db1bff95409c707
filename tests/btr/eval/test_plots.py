"""Pictures of an evaluation: the panels, what stands in them, what cannot be drawn."""

import sys
from pathlib import Path
from typing import Any

import pytest

from btr.errors import InputError
from btr.eval import plots


def make_row(mode: str, passages: int, reader: str = "mine", metric: str = "em") -> dict[str, Any]:
    kept = {"full": None, "float": 1536.0, "binary": 98.0}[mode]
    return {"reader": reader, "mode": mode, "passages": passages, metric: [40.0 + passages, 38.0, 52.0],
            "questions_per_second": 10.0 / passages, "bytes_per_token": kept}  # fmt: skip


def make_figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"task": "nq", "questions": 700, "passages_from": "wiki.btr by BM25", "dtype": "float32", "threads": 2,
            "rows": rows}  # fmt: skip


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    figure = pytest.importorskip("matplotlib.figure")
    found: list[Any] = []
    save = figure.Figure.savefig

    def keep(self: Any, *args: Any, **named: Any) -> None:
        found.append(self)
        save(self, *args, **named)

    monkeypatch.setattr(figure.Figure, "savefig", keep)
    return found


def test_two_panels_with_a_point_a_row(drawn: list[Any], tmp_path: Path) -> None:
    rows = [make_row(mode, 5) for mode in ("full", "float", "binary")]
    plots.draw(make_figures(rows), str(tmp_path / "figure.png"))
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    speed, size = drawn[0].axes
    assert speed.get_xlabel() == "questions a second (one at a time)" and speed.get_ylabel() == "exact match, %"
    assert [len(axes.containers) for axes in (speed, size)] == [3, 2]  # full stores nothing: a line across
    assert size.get_xlabel() == "bytes per stored token (log)" and size.get_xscale() == "log"
    assert "nq, 700 questions" in drawn[0].get_suptitle()
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["full", "float", "binary"]


def test_the_arms_are_the_interval(drawn: list[Any], tmp_path: Path) -> None:
    plots.draw(make_figures([make_row("binary", 5)]), str(tmp_path / "figure.svg"))
    for axes, x in zip(drawn[0].axes, (2.0, 98.0), strict=True):
        arms = axes.containers[0].lines[2][0].get_segments()[0]
        assert [tuple(point) for point in arms] == [(x, 38.0), (x, 52.0)]


def test_several_numbers_of_passages_are_a_sweep(drawn: list[Any], tmp_path: Path) -> None:
    rows = [
        make_row(mode, n, reader, "accuracy") for n in (1, 5) for reader in ("a", "b") for mode in ("full", "binary")
    ]
    plots.draw(make_figures(rows), str(tmp_path / "figure.png"))
    assert len(drawn[0].axes) == 4
    both, size, accuracy, speed = drawn[0].axes
    assert [text.get_text() for text in both.texts] == ["N=1", "N=5"] * 4 and both.get_xscale() == "log"
    assert size.get_title() == "accuracy and bytes, N=5" and [t.get_text() for t in size.get_xticklabels()] == ["98"]
    assert accuracy.get_xlabel() == "passages a question" and accuracy.get_ylabel() == "accuracy, %"
    assert len(accuracy.containers) == 4 and len(speed.lines) == 4
    assert list(speed.lines[0].get_xdata()) == [1, 5] and list(speed.lines[0].get_ydata()) == [10.0, 2.0]


def test_only_pictures_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    plots.check("figure.png")
    with pytest.raises(InputError, match=r"--plot figure\.jpeg2000: not a picture; end the name in \.png"):
        plots.check("figure.jpeg2000")


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="needs matplotlib; install it with: pip install matplotlib"):
        plots.check("figure.png")
