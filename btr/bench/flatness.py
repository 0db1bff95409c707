"""Time questions over passages that were never read together before, beside one combination read again and again.

A reader that kept something for a combination of passages would be sooner the second time, or grow; here the same work
is to take the same time, from the first combination to the last.
"""

import argparse
import statistics
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from btr.bench.contenders import make_texts, store_of
from btr.errors import InputError
from btr.progress import Progress
from btr.reader import Reader
from btr.storage import Store

POOL = 1000  # passages that combinations are drawn from
PARTS = 10
EVERY = 5  # new combinations to one that is read again


def measure(reader: Reader, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time `options.combinations` questions in mode binary, by tenths: median seconds, and MiB that the process holds.

    Raises:
        InputError: too few of them, or more passages a question than there are.
    """
    count, N = options.combinations, options.passages[0]
    if count < PARTS * EVERY or N > POOL:
        raise InputError(
            f"--combinations {count} --passages {N}: use {PARTS * EVERY} or more, and at most {POOL} passages"
        )
    questions, passages = make_texts(reader, options, POOL)
    store_of(reader, passages, folder / "pool.btr")
    rng, seen = np.random.default_rng(0), set[tuple[int, ...]]()
    with Store.open(folder / "pool.btr", reader.fingerprint) as store:
        ids = list(store.ids())

        def ask(chosen: tuple[int, ...]) -> float:
            began = perf_counter()
            reader.answer(questions[0], store.get([ids[i] for i in chosen]), "binary", options.new_tokens)
            return perf_counter() - began

        def draw() -> tuple[int, ...]:
            while (chosen := tuple(sorted(rng.choice(POOL, N, replace=False).tolist()))) in seen:
                pass
            seen.add(chosen)
            return chosen

        first = draw()
        for _ in range(EVERY):
            ask(first)  # not counted: kernels are compiled, pages are read
        rows: list[dict[str, Any]] = []
        report = Progress("combinations:", 0, count, "questions")
        for part in range(PARTS):
            new, again = [], []
            for n in range(part * count // PARTS, (part + 1) * count // PARTS):
                new.append(ask(draw()))
                if n % EVERY == 0:
                    again.append(ask(first))
                report(1)
            rows.append(
                {
                    "questions": (part + 1) * count // PARTS,
                    "new": round(statistics.median(new), 5),
                    "again": round(statistics.median(again), 5),
                    "mib": memory("VmRSS") // 2**20,
                }
            )
        report.show(last=True)
    return rows


def memory(kind: str) -> int:
    """Return the bytes that this process holds now (VmRSS) or held at most (VmHWM); 0 where no system tells."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:")), 0)


def table(rows: list[dict[str, Any]]) -> str:
    """Lay out the figures for people."""
    lines = ["questions    new, ms  first again, ms  new / again     MiB"]
    for row in rows:
        ratio = row["new"] / row["again"]
        cells = (row["questions"], 1000 * row["new"], 1000 * row["again"], ratio, row["mib"])
        lines.append("{:9,} {:10.2f} {:16.2f} {:12.3f} {:7,}".format(*cells))
    return "\n".join(lines)
