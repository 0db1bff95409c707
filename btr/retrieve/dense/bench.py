"""Measure an index: recall by floats, by bits and rescored, for one or several encoders of questions; bytes; speed.

A question counts if one of the 100 best passages by BM25 or by the index's own encoder in floats (rescored, where none
are kept) holds an answer: the others have no support in the corpus that anybody could find. Retention is over the same
questions, against the index's own encoder in floats.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from btr import kernels
from btr.corpus import Question, read_questions
from btr.errors import InputError
from btr.metrics import bootstrap, holds_answer, mean
from btr.retrieve.bm25 import BM25
from btr.retrieve.dense.build import is_store
from btr.retrieve.dense.encoder import Encoder
from btr.retrieve.dense.index import Dense, Search
from btr.retrieve.fusion import DENSE, WORDS, fuse
from btr.storage import Store

RECALL_AT = (1, 5, 20, 40)  # passages
POOL = 100  # passages a question that say whether it counts
LATENCY = 200  # questions, one at a time
SPEED_TOP = 40
RUNS = 5

Say = Callable[[str], None]


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    command.add_argument("questions", nargs="+", metavar="QUESTIONS", help="files of questions with answers")
    about = "encoders of questions to compare; default: the store's own"
    command.add_argument("--encoders", nargs="*", default=[], metavar="E", help=about)
    command.add_argument("--limit", type=int, metavar="N", help="questions of each file; default: all")
    command.add_argument("--no-speed", action="store_true", help="measure recall and latency alone")


@dataclass
class Judge:
    """Tells which passages of a store hold an answer to a question, and remembers it."""

    store: Store
    questions: list[Question]
    known: list[dict[int, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known = [{} for _ in self.questions]

    def holds(self, number: int, ordinals: Sequence[int]) -> list[bool]:
        """Tell of each passage whether it holds an answer to question `number`."""
        known = self.known[number]
        if new := [i for i in ordinals if i not in known]:
            texts = self.store.at(new).texts
            answers = self.questions[number].answers
            known |= {i: holds_answer(text, answers) for i, text in zip(new, texts, strict=True)}
        return [known[i] for i in ordinals]

    def hits(self, numbers: Sequence[int], lists: Sequence[NDArray[np.int64]], k: int) -> list[float]:
        """Return for each question 1.0 if one of its first k passages holds an answer, else 0.0."""
        return [float(any(self.holds(n, row[:k].tolist()))) for n, row in zip(numbers, lists, strict=True)]


def measure(options: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Measure everything; returns the figures.

    Raises:
        InputError: no store with texts, no question that counts, an encoder that is not aligned.
    """
    path = Path(options.store)
    if not is_store(path):
        raise InputError(f"{path} is not a finished store, whose texts tell which passages hold an answer")
    asked = [q for name in options.questions for q in read_questions(name, limit=options.limit) if q.answers]
    own = Dense.open(path / DENSE, options.encoder)
    exact: Search = "float" if own.plan.floats else "rescored"
    texts = [question.question for question in asked]
    with Store.open(path) as store:
        judge = Judge(store, asked)
        words = [row for row, _ in BM25.open(path / WORDS).search(texts, POOL)] if (path / WORDS).is_dir() else None
        pools = [row for row, _ in own.search(texts, POOL, exact)]
        pools = pools if words is None else [np.union1d(a, b) for a, b in zip(pools, words, strict=True)]
        counted = [n for n, row in enumerate(pools) if any(judge.holds(n, row.tolist()))]
        if not counted:
            raise InputError("no question has an answer in a passage found; give questions of this corpus")
        say(f"{len(counted):,} of {len(asked):,} questions have an answer in a passage found")
        rows, base = [], None
        for name in [options.encoder, *options.encoders]:
            index = own if name == options.encoder else Dense.open(path / DENSE, name)
            row, found = measure_encoder(index, exact, judge, counted, words if base is None else None)
            base = base or found
            rows.append(row | {"retained": retained(found, base)})
            say(f"measured {row['encoder']}")
    facts = {
        "store": str(path), "passages": len(own), "questions": len(asked), "counted": len(counted),
        "exact": exact, "bytes": own.quantizer.bytes, "float_bytes": 4 * own.plan.dimension, "rows": rows,
        "threads": torch.get_num_threads(), "codes": own.plan.codes,
    }  # fmt: skip
    return facts if options.no_speed else facts | {"speed": measure_speed(own, texts[:LATENCY], say)}


Found = dict[str, dict[int, list[float]]]  # search: passages: whether each question that counts found an answer


def measure_encoder(
    index: Dense, exact: str, judge: Judge, counted: Sequence[int], words: list[NDArray[np.int64]] | None
) -> tuple[dict[str, Any], Found]:
    """Return the figures of one encoder of questions; words: BM25's lists, to be measured too and fused."""
    texts = [judge.questions[n].question for n in counted]
    queries, top = index.encoder.embed(texts, "query"), max(RECALL_AT)
    ways: list[Search] = ["rescored", "binary"] if exact != "float" else ["float", "rescored", "binary"]
    every: dict[str, list[NDArray[np.int64]]] = {}
    for way in ways:
        every[way] = [row for row, _ in index.search_vectors(queries, top, way)]
    if words is not None:
        deep = [row for row, _ in index.search_vectors(queries, POOL)]
        every["BM25"] = [words[n] for n in counted]
        every["BM25 + rescored"] = [fuse(both, top)[0] for both in zip(every["BM25"], deep, strict=True)]
    found: Found = {way: {k: judge.hits(counted, rows, k) for k in RECALL_AT} for way, rows in every.items()}
    encoder = index.encoder
    facts = {
        "encoder": encoder.name, "layers": encoder.model.bert.config.num_hidden_layers,
        "parameters": sum(p.numel() for p in encoder.model.parameters()), "ms": latency(encoder, texts[:LATENCY]),
        "recall": {way: {str(k): percent(values) for k, values in at.items()} for way, at in found.items()},
    }  # fmt: skip
    return facts, found


def percent(values: Sequence[float]) -> list[float]:
    """Return the mean of values and its 95 % interval, in per cent."""
    return [round(100 * value, 2) for value in (mean(values), *bootstrap(values))]


def retained(found: Found, base: Found) -> dict[str, dict[str, float | None]]:
    """Return each recall in per cent of that of the index's own encoder by the first, exact search; None of nothing."""
    against = next(iter(base.values()))
    return {
        way: {
            str(k): round(100 * mean(values) / base_mean, 1) if (base_mean := mean(against[k])) else None
            for k, values in at.items()
        }
        for way, at in found.items()
    }


def share(kept: float | None) -> str:
    """Write what was retained; of a recall of 0 nothing can be."""
    return "–" if kept is None else f"{kept:.1f} %"


def latency(encoder: Encoder, texts: Sequence[str]) -> float:
    """Return the median milliseconds of embedding one question."""
    encoder.embed(texts[:3])
    seconds = []
    for text in texts:
        began = time.perf_counter()
        encoder.embed([text])
        seconds.append(time.perf_counter() - began)
    return round(1000 * statistics.median(seconds), 3)


def measure_speed(index: Dense, texts: Sequence[str], say: Say) -> list[dict[str, Any]]:
    """Time every way of searching embedded questions in turn, RUNS times; faiss and usearch where installed.

    Ours and theirs must find the same distances.
    """
    queries = index.encoder.embed(texts, "query")
    codes = np.ascontiguousarray(index._files["codes-0.bin"])
    packed, top = kernels.pack(index.quantizer.rotate(queries)), min(SPEED_TOP, len(index))
    ways: dict[str, Callable[[], Any]] = {"bits, btr": lambda: kernels.nearest_k(packed, codes, top)[1]}
    ways |= others(packed, codes, top)
    ways["bits and rescored, btr"] = lambda: index.search_vectors(queries, top)
    if index.plan.floats:
        ways["floats, exact"] = lambda: index.search_vectors(queries, top, "float")
    expected = ways["bits, btr"]()
    for name in ways:
        if name.startswith("bits, ") and not np.array_equal(np.sort(ways[name](), axis=1), expected):
            say(f"warning: {name} finds other distances")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(RUNS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    return [
        {"way": name, "questions_per_second": [round(len(texts) / s, 1) for s in quantiles(times)]}
        for name, times in seconds.items()
    ]


def quantiles(times: Sequence[float]) -> list[float]:
    """Return the median, greatest and least time."""
    return [statistics.median(times), max(times), min(times)]


def others(packed: NDArray[np.uint64], codes: NDArray[np.uint64], top: int) -> dict[str, Callable[[], Any]]:
    """Return exhaustive searches of faiss and usearch over the same bits, of those that are installed."""
    asked, rows = packed.view(np.uint8), codes.view(np.uint8)
    found: dict[str, Callable[[], Any]] = {}
    if faiss := load("faiss"):
        flat = faiss.IndexBinaryFlat(8 * rows.shape[1])
        flat.add(rows)
        found["bits, faiss binary flat"] = lambda: flat.search(asked, top)[0]
    if usearch := load("usearch.index"):
        more = {"metric": usearch.MetricKind.Hamming, "exact": True, "threads": torch.get_num_threads()}
        found["bits, usearch exact"] = lambda: usearch.search(rows, asked, top, **more).distances.astype(np.int32)
    return found


def load(name: str) -> Any:
    """Import a module that need not be installed; None if it is not, or is broken."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def table(facts: dict[str, Any]) -> str:
    """Lay out the figures for people."""
    lines = [
        f"{facts['store']}: {facts['passages']:,} passages, {facts['bytes']} bytes each (float32: "
        f"{facts['float_bytes']:,}); {facts['counted']:,} of {facts['questions']:,} questions count; "
        f"{facts['threads']} threads",
        "",
        f"{'encoder':<28}{'layers':>7}{'ms':>8}  {'search':<16}" + "".join(f"{f'@{k}':>20}" for k in RECALL_AT),
    ]
    for row in facts["rows"]:
        for number, (way, at) in enumerate(row["recall"].items()):
            head = "" if number else f"{row['encoder'][:27]:<28}{row['layers']:>7}{row['ms']:>8.2f}"
            cells = (f"{at[k][0]:.1f} ({share(row['retained'][way][k])})" for k in at)
            lines.append(f"{head:<43}  {way:<16}" + "".join(f"{cell:>20}" for cell in cells))
    lines += ["", "recall, % (of the first row's, %); ms: one question embedded, median"]
    for row in facts.get("speed", []):
        median, least, most = row["questions_per_second"]
        lines.append(f"{row['way']:<28}{median:>12,.0f} questions/s ({least:,.0f} to {most:,.0f})")
    return "\n".join(lines)
