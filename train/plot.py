"""Draw the curves of a run: losses by step, and dev figures where they were measured; and a calibration."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from btr.errors import InputError

APART = {"step", "mode", "dev", "gradient"}  # keys of a line that are no losses
Bin = tuple[float, float, int]  # mean of what was predicted, share observed, how many
WINDOWS = 200  # points of a curve, each the mean of as many steps


def read_curves(path: Path) -> tuple[dict[str, list[tuple[float, float]]], dict[str, list[tuple[float, float]]]]:
    """Read metrics.jsonl: by loss (step, mean over a window of steps), and by dev figure (step, per cent).

    A loss that is 0 throughout is left out: the stage has none.
    """
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = [name for name in (lines[0] if lines else {}) if name not in APART]
    losses = {name: smooth([(line["step"], line[name]) for line in lines if line[name]]) for name in names}
    measured = [(line["step"], line["dev"]) for line in lines if "dev" in line]
    known = [name for name in ("em", "f1", "accuracy") if measured and name in measured[0][1]]
    dev = {name: [(step, figures[name]) for step, figures in measured if name in figures] for name in known}
    return {name: curve for name, curve in losses.items() if curve}, dev


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average points over windows of as many, so that about WINDOWS are left."""
    size = -(-len(points) // WINDOWS)
    windows = [points[i : i + size] for i in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in windows]


def draw_curves(metrics: Path, image: Path, title: str) -> None:
    """Draw metrics.jsonl as a PNG.

    Raises:
        InputError: matplotlib is not installed.
    """
    losses, dev = read_curves(metrics)
    figure = new_figure(8, 3 * (1 + bool(dev)))
    upper, *lower = figure.subplots(1 + bool(dev), 1, squeeze=False)[:, 0]
    upper.set_title(title)
    curves(upper, losses, "loss", ".")
    if losses:
        upper.set_yscale("log")
    for axes in lower:
        curves(axes, dev, "dev, per cent", "o")
    save(figure, image)


def draw_reliability(before: Sequence[Bin], after: Sequence[Bin], image: Path) -> None:
    """Draw how often nothing answered against how sure a reader was of it, before it was calibrated and after, as PNG.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = new_figure(5, 5)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, found, marker in (("as the reader says", before, "x"), ("calibrated", after, "o")):
        predicted, observed, n = zip(*found, strict=True)
        axes.plot(predicted, observed, marker=marker, label=name)
        if found is after:
            for place in zip(n, predicted, observed, strict=True):
                axes.annotate(place[0], place[1:], textcoords="offset points", xytext=(4, -11), fontsize=8)
    axes.set(xlabel="no_answer, mean of a tenth", ylabel="share that no passage answers", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, image)


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure; InputError without matplotlib."""
    try:
        from matplotlib.figure import Figure  # slow to import, and optional; a Figure alone needs no display
    except ImportError as error:
        raise InputError("no plot without matplotlib; pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, image: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    temporary = image.with_name(image.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(image)


def curves(axes: Any, named: Mapping[str, Sequence[tuple[float, float]]], label: str, marker: str) -> None:
    """Draw curves by name into axes."""
    for name, points in named.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker, linestyle="-", markersize=3, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    if named:
        axes.legend()
