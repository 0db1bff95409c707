"""Draw what was measured, as SVG: no number is given here, and the same rows give the same bytes.

Each picture has its own background, so that its text can be read on any page, and turns dark where pages are.
"""

import math
import textwrap
from collections.abc import Callable
from html import escape
from typing import Any

Row = dict[str, Any]
Groups = dict[str, list[Row]]  # the rows of every group, by its name
Scale = Callable[[float], float]
Lines = dict[str, tuple[str, str, int]]  # of every contender: its label, colour, and how far the label is moved down

# class: what it colours, on a light and on a dark page
COLOURS = {
    "back": ("#ffffff", "#0d1117"),
    "grid": ("#d8dee4", "#30363d"),
    "ink": ("#1f2328", "#e6edf3"),
    "mute": ("#59636e", "#9198a1"),
    "blue": ("#0969da", "#58a6ff"),
    "amber": ("#9a6700", "#d8a31c"),
    "green": ("#1a7f37", "#3fb950"),
    "plum": ("#8250df", "#bc8cff"),
}
FONTS = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"


def log_scale(low: float, high: float, start: float, end: float) -> Scale:
    """Return where a value stands between `start` and `end`, in equal steps for equal ratios."""
    return lambda value: start + (end - start) * math.log(value / low) / math.log(high / low)


class Sheet:
    """Collect the marks of a picture, in pixels from the top left."""

    def __init__(self, width: int, height: int, title: str, about: str) -> None:
        """Begin with the background, the title and the line below it."""
        self.size = (width, height)
        self.title = title
        self.marks: list[str] = []
        self.box(0.5, 0.5, width - 1, height - 1, "back", round=6, edge="grid")
        self.text(24, 34, title, size=16, bold=True)
        self.text(24, 54, about, "mute", size=12.5)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        colour: str = "ink",
        size: float = 12,
        anchor: str = "",
        bold: bool = False,
    ) -> None:
        """Write words on the line at `y`; `anchor` may be middle or end."""
        more = f' text-anchor="{anchor}"' * bool(anchor) + ' font-weight="600"' * bold
        self.marks.append(f'<text class="{colour}" x="{x:.1f}" y="{y:.1f}" font-size="{size:g}"{more}>{words}</text>')

    def words(self, x: float, y: float, *parts: tuple[str, str, int]) -> None:
        """Write (words, colour, gap before them) one after the other."""
        spans = "".join(f'<tspan class="{colour}" dx="{gap}">{escape(words)}</tspan>' for words, colour, gap in parts)
        self.text(x, y, spans)

    def line(self, points: list[tuple[float, float]], colour: str, width: float = 1, dash: str = "") -> None:
        """Join points by a line."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        more = f' stroke-dasharray="{dash}"' * bool(dash)
        self.marks.append(f'<polyline class="{colour}-line" points="{path}" stroke-width="{width:g}"{more}/>')

    def dot(self, x: float, y: float, colour: str, radius: float = 4, hollow: bool = False) -> None:
        """Draw a point."""
        kind = f'class="back {colour}-edge"' if hollow else f'class="{colour}"'
        self.marks.append(f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>')

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, round: float = 0, edge: str = ""
    ) -> None:
        """Draw a rectangle."""
        kind = f"{colour} {edge}-edge" if edge else colour
        place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.marks.append(f'<rect class="{kind}" {place}' + f' rx="{round:g}"' * bool(round) + "/>")

    def finish(self, caption: str) -> str:
        """Return the picture, with a caption at its bottom."""
        width, height = self.size
        for line, words in enumerate(reversed(textwrap.wrap(caption, width // 7))):
            self.text(24, height - 18 - 16 * line, words, "mute", size=11.5)
        sides = [
            "\n".join(
                f"  .{name} {{ fill: {colour} }} .{name}-line {{ fill: none; stroke: {colour} }}"
                f" .{name}-edge {{ stroke: {colour}; stroke-width: 1.5 }}"
                for name, colour in ((name, pair[side]) for name, pair in COLOURS.items())
            )
            for side in (0, 1)
        ]
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
                f' viewBox="0 0 {width} {height}" role="img" font-family="{FONTS}">',
                f"<title>{self.title}</title>",
                f"<desc>{caption}</desc>",
                f"<style>\n{sides[0]}\n  @media (prefers-color-scheme: dark) {{\n{sides[1]}\n  }}\n</style>",
                *self.marks,
                "</svg>\n",
            ]
        )


def draw_bytes(groups: Groups) -> str:
    """Draw what is kept of the exact match against the bytes that are kept of a token."""
    about = "SQuAD, gold passage among 10: exact match in % of that of the same weights reading in full"
    sheet = Sheet(800, 464, "Accuracy kept, by bytes a token", about)
    left, right, top, bottom = 72.0, 764.0, 84.0, 340.0
    across = log_scale(10, 1000, left, right)

    def up(value: float) -> float:
        return bottom - (value - 88) / (102 - 88) * (bottom - top)

    for value in range(88, 103, 2):
        sheet.line([(left, up(value)), (right, up(value))], "mute" if value == 100 else "grid")
        sheet.text(left - 8, up(value) + 4, f"{value} %", "mute", anchor="end")
    for size in (10, 20, 50, 100, 200, 500, 1000):
        sheet.text(across(size), bottom + 20, f"{size:,}", "mute", anchor="middle")
        sheet.line([(across(size), bottom), (across(size), bottom + 4)], "mute")
    sheet.text((left + right) / 2, bottom + 40, "bytes a token, in memory (log scale)", "mute", anchor="middle")
    sheet.text(across(200), up(100) - 7, "read in full: nothing kept", "mute", anchor="middle")

    rows = {row.get("key"): row for row in groups["answers-squad"]}
    ends = []
    for key in ("float", "binary"):
        x, (kept, low, high) = across(rows[key]["bytes"]), rows[key]["own"]
        sheet.line([(x, up(low)), (x, up(high))], "blue", 1.5)
        sheet.dot(x, up(kept), "blue", 5.5)
        ends.append((x, up(kept)))
    sheet.line(ends, "blue", 1.5)
    sheet.text(ends[0][0] - 12, ends[0][1] - 16, "16-bit floats", "blue", 13, "end", bold=True)
    sheet.text(ends[1][0] + 12, ends[1][1] - 20, "shipped reader: 120 bits, trained", "blue", 13, bold=True)

    fitted = groups["bits-fitted"]
    [whole] = [row["em"] for row in fitted if row.get("key") == "full"]
    places = [(across(row["bytes"]), up(100 * row["em"] / whole), row["what"]) for row in fitted if "bytes" in row]
    sheet.line([place[:2] for place in places], "amber", 1.5, "5 4")
    for x, y, _ in places:
        sheet.dot(x, y, "amber")
    for x, y, label in places[1:]:
        sheet.text(x + 9, y + 15, f"{label}, only fitted", "amber")

    [paper] = [row for row in groups["bytes-compared"] if row["key"] == "paper"]
    x, y = across(paper["bytes"]), up(paper["kept_above"])
    sheet.line([(x, y), (x, y - 24)], "plum", 1.5)
    sheet.line([(x - 4, y - 19), (x, y - 25), (x + 4, y - 19)], "plum", 1.5)
    sheet.dot(x, y, "plum", 4.5, hollow=True)
    sheet.text(x + 10, y - 23, f"the paper's T5, its tasks: over {paper['kept_above']} %", "plum")
    return sheet.finish(
        "Bars: 95 % bootstrap intervals; 765 questions; machine C (AMD EPYC, 2 cores, no GPU). Dashed: signs"
        " fitted to the states of a plain reader whose weights stay as they are. The paper (arXiv 2310.01329): 127 GB"
        " for 3.2 billion tokens, and the accuracy of its abstract; not measured here."
    )


def draw_lines(sheet: Sheet, across: Scale, up: Scale, rows: list[Row], lines: Lines) -> None:
    """Draw the speed of contenders against the number of passages, each with its label at the end."""
    for name, (label, colour, shift) in lines.items():
        found = [(across(row["passages"]), up(row["rows"][name]["times_transformers"])) for row in rows]
        sheet.line(found, colour, 2)
        for x, y in found:
            sheet.dot(x, y, colour, 3.5)
        sheet.text(found[-1][0] + 9, found[-1][1] + 4 + shift, label, colour, 12.5, bold=True)


def draw_speed(groups: Groups) -> str:
    """Draw the speed-up against the number of passages for a T5, and by mode for the shipped reader."""
    about = "times as fast as transformers with the same weights, passages and tokens, on CPUs (log scales)"
    sheet = Sheet(980, 496, "Speed-up over reading everything anew", about)
    top, bottom = 112.0, 376.0
    up = log_scale(1, 32, bottom, top)
    panels = ((64.0, 234.0, "T5-base, all passages read"), (350.0, 520.0, "T5-base, four read to the end"))
    for left, right, name in (*panels, (686.0, 956.0, "Shipped reader's shape, 40 passages")):
        sheet.text(left, top - 20, name, size=13, bold=True)
        for value in (1, 2, 4, 8, 16, 32):
            sheet.line([(left, up(value)), (right, up(value))], "mute" if value == 1 else "grid")
            sheet.text(left - 8, up(value) + 4, f"{value}×", "mute", anchor="end")
    for left, right, _ in panels:
        across = log_scale(5, 100, left + 8, right - 8)
        for count in (5, 10, 20, 40, 100):
            sheet.text(across(count), bottom + 20, f"{count}", "mute", anchor="middle")
        sheet.text((left + right) / 2, bottom + 40, "passages", "mute", anchor="middle")

    base = [row for row in groups["speed-t5"] if row["shape"] == "T5-base"]
    across = log_scale(5, 100, panels[0][0] + 8, panels[0][1] - 8)
    draw_lines(
        sheet,
        across,
        up,
        base,
        {"full": ("full", "mute", 0), "float": ("float", "amber", -7), "binary": ("binary", "blue", 8)},
    )

    base = [row for row in groups["speed-few"] if row["shape"] == "T5-base"]
    names = {
        "binary": ("binary, all read", "blue", 0),
        "pruned": ("prune=4", "green", 5),
        "pruned-int8": ("prune=4, int8", "plum", -5),
    }
    across = log_scale(5, 100, panels[1][0] + 8, panels[1][1] - 8)
    for row in base:
        for name, (_, colour, _) in names.items():
            if "run" in row:
                sheet.dot(across(row["passages"]), up(row["rows"][name]["times_transformers"]), colour, 3, hollow=True)
    draw_lines(sheet, across, up, [row for row in base if "run" not in row], names)

    shipped = groups["speed-shipped"][1:]
    labels = (("full", "mute"), ("float", "amber"), ("binary", "blue"), ("prune=4", "green"), ("full of 4", "mute"))
    for place, (row, (label, colour)) in enumerate(zip(shipped, labels, strict=True)):
        x, speed = 713.0 + 54 * place, row["times_transformers"]
        low, high = row["other_runs"]
        sheet.line([(x, up(min(low, speed))), (x, up(max(high, speed)))], colour, 2)
        sheet.dot(x, up(speed), colour, 4.5)
        sheet.text(x, up(max(high, speed)) - 10, f"{speed:.1f}×", colour, anchor="middle", bold=True)
        sheet.text(x, bottom + 20, label, colour, 11.5, "middle")
    return sheet.finish(
        "Machine B (Intel Xeon with AMX, 2 cores, no GPU); bfloat16, random weights, passages of 160 tokens. T5-base:"
        " k = 9 of 12 layers, 8 new tokens, medians of 3; a line is one run, hollow points are others. Shipped reader:"
        " k = 1 of 6, medians of 15; bars reach to what other runs had. Mode full keeps nothing; prune=4 and full of 4"
        " read four passages, chosen by their bits."
    )


# a phase of the picture: those of an answer's timings, and its colour
PHASES = (
    ("load", ("tokenize", "load", "expand"), "mute"),
    ("look", ("look",), "amber"),
    ("encode", ("encode",), "blue"),
    ("decode", ("decode",), "green"),
)


def draw_bars(sheet: Sheet, top: float, rows: list[tuple[str, Row]], unit: float) -> None:
    """Draw a bar of phases for every contender, `unit` seconds long a pixel, with the numbers behind it."""
    for place, (name, row) in enumerate(rows):
        x, y = 196.0, top + 30 * place
        sheet.text(x - 10, y + 15, name, anchor="end")
        words = [(f"{1000 * row['seconds']:,.0f} ms", "ink", 0)]
        if not row["phases"]:
            sheet.box(x, y, row["seconds"] / unit, 20, "grid")
            x += row["seconds"] / unit
        for phase, parts, colour in PHASES:
            seconds = sum(row["phases"].get(part, 0) for part in parts)
            if seconds:
                sheet.box(x, y, seconds / unit, 20, colour)
                x += seconds / unit
                words.append((f"{phase} {1000 * seconds:,.0f}", colour, 10))
        sheet.words(x + 8, y + 15, *words)


def draw_phases(groups: Groups) -> str:
    """Draw where the time of a question goes."""
    about = "one question over 40 passages, milliseconds by phase; each half has its own scale"
    sheet = Sheet(980, 600, "Where the time of a question goes", about)
    [row] = [row for row in groups["speed-few"] if row["shape"] == "T5-base" and "transformers" in row["rows"]]
    names = {
        "transformers": "transformers FiD",
        "full": "full",
        "float": "float",
        "binary": "binary",
        "int8": "binary, int8",
        "pruned": "prune=4",
        "pruned-int8": "prune=4, int8",
    }
    sheet.text(24, 92, "T5-base, random weights, 8 new tokens", size=13, bold=True)
    draw_bars(sheet, 106, [(label, row["rows"][name]) for name, label in names.items()], 2.85 / 680)
    sheet.text(24, 346, "Shipped reader's shape, random weights", size=13, bold=True)
    labels = ("transformers BERT", "full", "float", "binary", "prune=4", "full of 4, chosen by bits")
    draw_bars(sheet, 360, list(zip(labels, groups["speed-shipped"], strict=True)), 0.247 / 480)
    return sheet.finish(
        "Machine B (Intel Xeon with AMX, 2 cores, no GPU); bfloat16. Medians of 3 (T5-base, k = 9 of 12) and of 15"
        " (shipped reader, k = 1 of 6). load: tokens, the store, bits to states; look: choosing four passages. The"
        " phases of transformers are not told apart."
    )


PICTURES: dict[str, Callable[[Groups], str]] = {
    "bytes-accuracy": draw_bytes,
    "speed": draw_speed,
    "phases": draw_phases,
}
