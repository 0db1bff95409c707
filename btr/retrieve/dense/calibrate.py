"""Find the dense score below which a passage is not worth reading."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btr.corpus import read_questions
from btr.errors import InputError
from btr.metrics import holds_answer
from btr.retrieve.dense.build import is_store
from btr.retrieve.fusion import Choice, open_retriever
from btr.storage import Store


def calibrate(
    path: Path, questions: str, keep: float, top: int, limit: int | None, kind: str | None, encoder: str | None
) -> dict[str, Any]:
    """Set the highest threshold at which `keep` of the questions that found an answer keep one; returns the figures.

    It is written into the store for the kind and encoder it was found with.

    Raises:
        InputError: nothing to calibrate on, or an index is missing.
    """
    if not is_store(path):
        raise InputError(f"{path} is not a finished store, whose texts tell which passages hold an answer")
    retriever = open_retriever(path, kind, encoder, threshold=False)
    if retriever.dense is None:
        raise InputError(f"{path} is searched by BM25, whose scores say nothing across questions; build a dense index")
    asked = [question for question in read_questions(questions, limit=limit) if question.answers]
    texts = [question.question for question in asked]
    hits = [ordinals for ordinals, _ in retriever.search(texts, top)]
    scores = retriever.dense.score(texts, hits)
    with Store.open(path) as store:
        holding = [
            np.array([holds_answer(text, question.answers) for text in store.at(row.tolist()).texts], bool)
            for question, row in zip(asked, hits, strict=True)
        ]
    threshold = choose(scores, holding, keep)
    Choice(retriever.choice.kind, retriever.choice.encoder, threshold).write(path)
    return {"threshold": threshold, "top": top, "questions": len(asked), **effect(scores, holding, threshold)}


def choose(scores: list[NDArray[np.float32]], holding: list[NDArray[np.bool_]], keep: float) -> float:
    """Return the highest threshold that keeps an answer for a share of those with one; the first passage always stays.

    Raises:
        InputError: no question has an answer among its passages.
    """
    reached = [
        np.inf if held[0] else row[held].max() for row, held in zip(scores, holding, strict=True) if held.any()
    ]  # fmt: skip
    if not reached:
        raise InputError("no question has an answer among its passages; give questions of this corpus")
    allowed = int((1 - keep) * len(reached) + 1e-9)  # how many may lose theirs
    threshold = sorted(reached)[allowed]
    return float(threshold if np.isfinite(threshold) else max(row.max() for row in scores if len(row)))


def effect(
    scores: list[NDArray[np.float32]], holding: list[NDArray[np.bool_]], threshold: float
) -> dict[str, float | int]:
    """Return what a threshold does: questions with an answer before, the share that keep one, passages read."""
    kept = [(row >= threshold) | (np.arange(len(row)) == 0) for row in scores]
    found = [held.any() for held in holding]
    still = [(held & read).any() for held, read in zip(holding, kept, strict=True)]
    return {
        "found": int(sum(found)),
        "kept": float(sum(still) / max(sum(found), 1)),
        "read": float(np.mean([read.sum() for read in kept])),
    }
