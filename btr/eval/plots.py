"""Draw an evaluation: accuracy against throughput and bytes (the paper's Figure 3), its sweep (Figure 4); a bench."""

from pathlib import Path
from typing import Any

from btr.errors import InputError
from btr.eval.figures import way

SUFFIXES = (".png", ".pdf", ".svg")
COLOURS = {
    "full": "#444444",
    "float": "#1f77b4",
    "binary": "#d62728",
    "transformers": "#9467bd",
    "merged": "#ff7f0e",
    "pruned": "#2ca02c",
}
MARKS = ("o", "s", "^", "D", "v", "P")  # one for each reader
TITLES = {"em": "exact match, %", "accuracy": "accuracy, %"}


def check(path: str) -> None:
    """Refuse what cannot be drawn.

    Raises:
        InputError: matplotlib is not installed, or the name ends in no format that it writes.
    """
    try:
        import matplotlib  # noqa: F401  # optional, and slow to import
    except ImportError as error:
        raise InputError(f"--plot {path} needs matplotlib; install it with: pip install matplotlib") from error
    if Path(path).suffix.lower() not in SUFFIXES:
        raise InputError(f"--plot {path}: not a picture; end the name in {', '.join(SUFFIXES)}")


def draw(figures: dict[str, Any], path: str) -> None:
    """Write the picture: two panels, and two more below them where several numbers of passages were read."""
    from matplotlib.figure import Figure

    rows = figures["rows"]
    sweep = len({row["passages"] for row in rows}) > 1
    figure = Figure(figsize=(11, 9.4 if sweep else 5), layout="constrained")
    panels = figure.subplots(2 if sweep else 1, 2, squeeze=False)
    draw_speed(panels[0][0], rows)
    draw_bytes(panels[0][1], rows)
    if sweep:
        draw_sweep(panels[1][0], rows, metric_of(rows), TITLES[metric_of(rows)])
        draw_sweep(panels[1][1], rows, "questions_per_second", "questions a second")
    title = "{task}, {questions} questions, passages: {passages_from}, {dtype}, {threads} threads; bars: 95 % intervals"
    figure.suptitle(title.format(**figures), fontsize=10)
    handles, labels = panels[0][0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=len(unique))
    figure.savefig(path, dpi=120)


def metric_of(rows: list[dict[str, Any]]) -> str:
    """Return the metric that rows are compared by."""
    return "em" if "em" in rows[0] else "accuracy"


def style(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how a row is drawn: a colour for the mode, a mark for the reader, hollow where passages were pruned."""
    readers = list(dict.fromkeys(r["reader"] for r in rows))
    mode = way(row)
    label = mode if len(readers) == 1 else f"{mode}, {row['reader']}"
    fill = {"fillstyle": "none"} if mode != row["mode"] else {}
    marker = MARKS[readers.index(row["reader"]) % len(MARKS)]
    return {"color": COLOURS[row["mode"]], "marker": marker, "label": label, **fill}


def series(rows: list[dict[str, Any]], name: str) -> list[list[dict[str, Any]]]:
    """Return the rows that have a figure, those of one reader, mode and pruning together."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row[name] is not None:
            groups.setdefault((row["reader"], way(row)), []).append(row)
    return list(groups.values())


def bars(rows: list[dict[str, Any]], name: str) -> list[list[float]]:
    """Return the arms of the intervals below and above their values, (2, rows), as matplotlib wants them."""
    figures = [row[name] for row in rows]
    return [[max(f[0] - f[1], 0.0) for f in figures], [max(f[2] - f[0], 0.0) for f in figures]]


def draw_speed(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw accuracy against questions a second: a point a row, those of a mode joined."""
    from matplotlib.ticker import LogLocator

    metric, counts = metric_of(rows), sorted({row["passages"] for row in rows})
    for place, mine in enumerate(series(rows, "questions_per_second")):
        x, marks = [row["questions_per_second"] for row in mine], style(mine[0], rows)
        axes.errorbar(x, [row[metric][0] for row in mine], yerr=bars(mine, metric), capsize=3, lw=1, **marks)
        side = {"xytext": (-5, -11), "ha": "right"} if place % 2 else {"xytext": (5, 5)}  # two modes are often as fast
        for row, speed in zip(mine, x, strict=True):
            if len(counts) > 1:
                at = {"textcoords": "offset points", "fontsize": 8, "color": marks["color"], **side}
                axes.annotate(f"N={row['passages']}", (speed, row[metric][0]), **at)
    axes.set(
        xlabel="questions a second (one at a time)", ylabel=TITLES[metric], title=f"accuracy and speed, N={counts[0]}"
    )
    if len(counts) > 1:
        axes.set(xscale="log", xlabel="questions a second (one at a time; log)", title="accuracy and speed")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)


def draw_bytes(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Draw accuracy against bytes, at the largest number of passages; a row that stores nothing is a line across."""
    metric, most = metric_of(rows), max(row["passages"] for row in rows)
    shown = [row for row in rows if row["passages"] == most]
    for row in shown:
        marks = style(row, rows)
        if row["bytes_per_token"]:
            axes.errorbar([row["bytes_per_token"]], [row[metric][0]], yerr=bars([row], metric), capsize=3, **marks)
        else:
            axes.axhline(row[metric][0], color=marks["color"], linestyle="--", linewidth=1)
            at = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points"}
            axes.annotate(f"{marks['label']}: nothing stored", (0.52, row[metric][0]), fontsize=8, **at)
    sizes = sorted({row["bytes_per_token"] for row in shown if row["bytes_per_token"]})
    axes.set(xlabel="bytes per stored token (log)", ylabel=TITLES[metric], title=f"accuracy and bytes, N={most}")
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    axes.margins(x=0.25)
    axes.grid(alpha=0.3)


def draw_sweep(axes: Any, rows: list[dict[str, Any]], name: str, title: str) -> None:
    """Draw a line a mode: a figure against the number of passages."""
    counts, lines = sorted({row["passages"] for row in rows}), series(rows, name)
    for place, mine in enumerate(lines):
        x = [row["passages"] for row in mine]
        if isinstance(mine[0][name], list):  # moved a little aside, or the intervals lie on each other
            aside = (place - (len(lines) - 1) / 2) * 0.012 * (counts[-1] - counts[0])
            values = [row[name][0] for row in mine]
            axes.errorbar([n + aside for n in x], values, yerr=bars(mine, name), capsize=3, **style(mine[0], rows))
        else:
            axes.plot(x, [row[name] for row in mine], **style(mine[0], rows))
    axes.set(xlabel="passages a question", ylabel=title, title=f"{title.split(',')[0]} by passages")
    axes.set_xticks(counts)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def draw_bench(figures: dict[str, Any], path: str) -> None:
    """Write the picture of a bench: seconds against the number of passages, and where they go at the largest."""
    from matplotlib.figure import Figure

    sizes = figures["sizes"]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    lines, stacks = figure.subplots(1, 2)
    counts = [size["passages"] for size in sizes]
    for name in sizes[0]["rows"]:
        rows = [size["rows"][name] for size in sizes]
        middle = [row["seconds"] for row in rows]
        arms = [[row["seconds"] - row["least"] for row in rows], [row["most"] - row["seconds"] for row in rows]]
        lines.errorbar(counts, middle, yerr=arms, capsize=3, marker="o", label=name, color=COLOURS.get(name))
    lines.set(xlabel="passages a question", ylabel="seconds a question", title="median; bars: least and most")
    lines.set_xticks(counts)
    lines.set_ylim(bottom=0)
    lines.grid(alpha=0.3)
    lines.legend()
    rows = sizes[-1]["rows"]
    left = dict.fromkeys(rows, 0.0)
    for phase in dict.fromkeys(phase for row in rows.values() for phase in row["phases"]):
        widths = [row["phases"].get(phase, 0.0) for row in rows.values()]
        stacks.barh(list(rows), widths, left=list(left.values()), label=phase)
        left = {name: left[name] + width for name, width in zip(rows, widths, strict=True)}
    rest = [max(row["seconds"] - left[name], 0.0) for name, row in rows.items()]
    stacks.barh(list(rows), rest, left=list(left.values()), color="#bbbbbb", label="not divided")
    stacks.invert_yaxis()
    stacks.set(xlabel="seconds a question", title=f"by phase, N={counts[-1]}")
    stacks.legend(fontsize=8)
    title = "{reader}, k {k}, rows of {row_tokens} tokens, {new_tokens} new, {questions} together, {dtype}"
    figure.suptitle(title.format(**figures), fontsize=10)
    figure.savefig(path, dpi=120)
