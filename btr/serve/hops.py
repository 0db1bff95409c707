"""Answer a question of several hops."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btr.corpus import Passage
from btr.hops.answer import Hopping, Step, learner
from btr.hops.pace import Pace
from btr.reader import Answer, Reader
from btr.reader.kept import KeptRows
from btr.retrieve.bm25 import Hits
from btr.serve.chosen import Chosen
from btr.serve.opened import OpenStore
from btr.serve.queue import late
from btr.serve.schema import AnswerRequest, AnswerResponse, Hop, RequestError
from btr.serve.streams import Ears
from btr.storage import Encoded


def check_hops(opened: OpenStore, request: AnswerRequest) -> None:
    """Refuse more than one hop over passages that are named, or over a store of which no query can be made.

    Raises:
        RequestError: 400.
    """
    if request.hops == 1:
        return
    given = [name for name in ("ids", "passages") if getattr(request, name) is not None]
    if given:
        raise RequestError(400, f"hops search the store; leave out {given[0]}, or hops", "conflict", param="hops")
    if opened.store.manifest.options.get("text") is False:
        message = "the store keeps no texts, of which further queries are made; leave hops out"
        raise RequestError(400, message, "no_texts", param="hops")


@dataclass
class Hopped:
    """Hold what several hops came to: what was read last, or why nothing was; its answer; the steps and their costs."""

    chosen: Chosen | Exception
    answer: Answer | None = None
    steps: tuple[Step, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    tokens: int = 0  # read in all steps

    def tell(self, reply: AnswerResponse | Exception, above: float | None) -> AnswerResponse | Exception:
        """Add the trace to a reply, and what the earlier steps took; above: the `no_answer` of no more than a guess."""
        if isinstance(reply, Exception):
            return reply
        told = [step.abstaining(above) for step in self.steps]
        trace = [Hop(**asdict(step) | {"ids": list(step.ids)}) for step in told]
        bits = reply.bits_read // max(reply.tokens_read, 1) * self.tokens
        counts = {"tokens_read": self.tokens, "bits_read": bits}
        return reply.model_copy(update={"trace": trace, "timings": reply.timings | self.seconds} | counts)


class Quiet(Ears):
    """Hear of a step that may not be the last, so of no words: they may not be those of the answer."""

    def words(self, b: int, text: str) -> None:
        """Keep to itself how the answer of a step goes on."""


class Hops:
    """Search and read for one question; seconds add up."""

    def __init__(
        self, opened: OpenStore, read: Callable[[Chosen, KeptRows], Answer | Exception], ears: Ears | None
    ) -> None:
        self.opened, self.answer, self.ears = opened, read, ears
        self.index: Any = opened.index
        self.seconds: dict[str, float] = {}
        self.tokens: dict[tuple[str, ...], int] = {}  # of the passages of a step

    def run(self, reader: Reader, request: AnswerRequest, top: int, pace: Pace) -> Hopped:
        """Take the steps.

        Raises:
            RequestError: nobody waits for the answer any more, or it cannot be had.
            Exception: what a search or a reading failed with.
        """
        hopping = Hopping(request.question.strip(), self.read, self.load, learner(reader), request.hops)
        known = pace if hasattr(self.index, "prepare") else None
        found = hopping.finish(*hopping.run(self, top, known))
        if found.answer is None or found.passages is None:
            return Hopped(Chosen((), timings=self.seconds), seconds=self.seconds)
        passages = _passages(found.passages)
        chosen = Chosen(passages, found.passages, found.scores, self.seconds)
        tokens = sum(self.tokens[step.ids] for step in found.steps)  # not of what was read by a wrong guess
        return Hopped(chosen, found.answer, found.steps, self.seconds, tokens)

    def search(self, questions: Sequence[str], top: int) -> list[Hits]:
        """Search the store, as long as somebody waits for the answer."""
        return self._search(partial(self.index.search, questions, top))

    def prepare(self, question: str) -> Any:
        """Return what a query is searched by."""
        return self.index.prepare(question)

    def search_prepared(self, questions: Sequence[Any], top: int) -> list[Hits]:
        """Search the store for prepared queries, as `search`."""
        return self._search(partial(self.index.search_prepared, questions, top))

    def among(self, question: Any, ordinals: NDArray[np.int64], top: int) -> Hits:
        """Find the best of few passages."""
        hits: Hits = self.index.among(question, ordinals, top)
        return hits

    def depth(self, top: int, most: int) -> int:
        """Return how many may be asked for without changing the first `top`."""
        depth: int = self.index.depth(top, most)
        return depth

    def __len__(self) -> int:
        return len(self.index)

    def _search(self, search: Callable[[], list[Hits]]) -> list[Hits]:
        if self.ears is not None and not self.ears.wanted(0):
            raise late()
        began = perf_counter()
        hits = search()
        self._add({"retrieve": perf_counter() - began})
        return hits

    def load(self, ordinals: list[int]) -> Encoded:
        """Take passages from the store."""
        began = perf_counter()
        found = self.opened.store.at(ordinals)
        self._add({"load": perf_counter() - began})
        return found

    def read(self, found: Encoded, kept: KeptRows) -> Answer:
        """Answer from passages, of which some were read before."""
        passages = _passages(found)
        if self.ears is not None:
            self.ears.reading(0, passages)
        answer = self.answer(Chosen(passages, found), kept)
        if isinstance(answer, Exception):
            raise answer
        self._add(answer.timings)
        self.tokens[found.ids] = sum(len(part) for part in answer.token_evidence)
        return answer

    def _add(self, seconds: dict[str, float]) -> None:
        for phase, more in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + more


def _passages(found: Encoded) -> tuple[Passage, ...]:
    return tuple(map(Passage, found.ids, found.titles, found.texts))
