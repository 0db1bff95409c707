"""How a span reader (BERT) gives answers out: a span of one passage.

Start and end are each one probability distribution over the texts of all passages and, for "no answer", the first token
of every row. The answer is the likeliest pair within one passage, quoted by its character offsets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from btr.model.config import Mode
from btr.model.layout import MergedRows
from btr.model.span_head import SpanReader
from btr.reader.answer import Answer, Memory, Span, Stopwatch
from btr.reader.rows import BertRows
from btr.words import end_of_letter, readable

SHORT = 16  # tokens
LEAST = -100.0  # the least score, and logits, that of passages without a token to point at


@dataclass(frozen=True)
class Pointable:
    """Where a question's memory may be pointed at; N passages, C tokens of their texts.

    first (rows,): memory token that says "no answer here", one for each row that was read. starts (N,): where the text
    begins among the tokens of its passage; counts (N,): its tokens in the memory, 0 where it was not read. places (C,):
    memory tokens of the texts; passage (C,): whose; tokens (C,): which of its passage.
    """

    first: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    places: np.ndarray
    passage: np.ndarray
    tokens: np.ndarray


class Extractive(BertRows):
    """Text in and out for `SpanReader`."""

    family = "extractive"

    def __init__(self, model: SpanReader, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self.model = model

    def answer(
        self, memories: Sequence[tuple[Tensor | MergedRows, Memory]], mode: Mode, max_new_tokens: int, watch: Stopwatch
    ) -> list[Answer]:
        """Point out the answers of several questions, of at most `max_new_tokens` tokens each."""
        plain = [(states, held) for states, held in memories if isinstance(states, Tensor)]  # nothing here is merged
        return [self._point(states, held, mode, max_new_tokens, watch) for states, held in plain]

    def _point(self, states: Tensor, held: Memory, mode: Mode, most: int, watch: Stopwatch) -> Answer:
        with watch("decode"):
            where = self._pointable(held)
            N, rows = len(where.starts), len(where.first)
            allowed = torch.from_numpy(np.concatenate((where.first, where.places))).to(states.device)
            logits = self.model.point(states[allowed])
            start, end = (values.cpu().double().log_softmax(0).numpy() for values in logits)
            looked = (np.exp(start[rows:]) + np.exp(end[rows:])) / 2
            evidence = np.bincount(where.passage, looked, minlength=N)
            a, b, score = best_span(start[rows:], end[rows:], where.passage, most)
        text, tokens, span = self._quote(held, where, a, b) if a <= b else ("", (), None)
        score = max(score, LEAST)  # finite without any token too
        return Answer(
            text, score, mode, dict(watch.seconds), tokens,
            (evidence / max(evidence.sum(), 1e-300)).astype(np.float32),
            tuple(per_token(where, looked, n, len(ids)) for n, ids in enumerate(held.ids)),
            span, calibrated(min(float(np.exp(start[:rows]).sum()), 1.0), self.model.config.no_answer_calibration),
            rows,
        )  # fmt: skip

    def _pointable(self, held: Memory) -> Pointable:
        """Find the tokens of passage texts: between the first [SEP] of a passage and its last token."""
        lengths = np.array(held.lengths)
        first, read = np.cumsum(lengths) - lengths, lengths > 0
        starts = np.array([self.begins(ids) for ids in held.ids])
        seen = [np.flatnonzero(part[:-1]) for part in held.seen]
        before = np.array([int(np.searchsorted(part, start)) for part, start in zip(seen, starts, strict=True)])
        tokens = [part[skip:] if was else part[:0] for part, skip, was in zip(seen, before, read, strict=True)]
        counts = np.array([len(part) for part in tokens])
        passage = np.repeat(np.arange(len(first)), counts)
        inside = np.arange(len(passage)) - np.repeat(np.cumsum(counts) - counts, counts)
        places = inside + (first + held.question + before)[passage]
        return Pointable(first[read], starts, counts, places, passage, np.concatenate(tokens))

    def passage_score(self, states: Tensor, held: Memory) -> Tensor:
        """Return what speaks for each passage: the logits of start and end of its best short span, (N,) float32."""
        where = self._pointable(held)
        places = torch.from_numpy(where.places).to(states.device)
        start, end = (values.cpu().numpy() for values in self.model.point(states[places]))
        ends = np.cumsum(where.counts)
        parts = [slice(stop - count, stop) for stop, count in zip(ends, where.counts, strict=True)]
        best = [best_span(start[part], end[part], where.passage[part], SHORT)[2] for part in parts]
        return torch.tensor(best, dtype=torch.float32).clamp(min=LEAST)

    def _quote(self, held: Memory, where: Pointable, a: int, b: int) -> tuple[str, tuple[int, ...], Span | None]:
        """Return tokens a..b of the texts as they are written, their ids, and where they stand.

        A text that was not kept is decoded, from the beginning of a word on, and stands nowhere.
        """
        n = int(where.passage[a])
        start, stop = int(where.tokens[a]), int(where.tokens[b]) + 1
        tokens = held.ids[n][start:stop].tolist()
        text, begun = readable(held.passages[n][1], self.model.config.max_passage_tokens), int(where.starts[n])
        offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets
        if stop - begun > len(offsets):
            while start > begun and (self.tokenizer.id_to_token(int(held.ids[n][start])) or "").startswith("##"):
                start -= 1  # a span may begin within a word, an answer does not
            tokens = held.ids[n][start:stop].tolist()
            return self.tokenizer.decode(tokens).removeprefix("##"), tuple(tokens), None
        span = Span(n, offsets[start - begun][0], end_of_letter(text, offsets[stop - begun - 1][1]))
        return text[span.start : span.end], tuple(tokens), span


def calibrated(no_answer: float, line: tuple[float, float] | None) -> float:
    """Return a probability whose log-odds lie on a line (slope, intercept) over those of `no_answer`; None: itself."""
    if line is None or not 0 < no_answer < 1:
        return min(no_answer, 1.0)  # a sum of probabilities, rounded
    slope, intercept = line
    return 1 / (1 + math.exp(min(slope * (math.log1p(-no_answer) - math.log(no_answer)) - intercept, 700.0)))


def per_token(where: Pointable, looked: np.ndarray, n: int, length: int) -> np.ndarray:
    """Return what was looked at (C,) of passage n, over all its tokens: float32 (length,)."""
    mine = where.passage == n
    row = np.zeros(length, np.float32)
    row[where.tokens[mine]] = looked[mine]
    return row


def best_span(start: np.ndarray, end: np.ndarray, passage: np.ndarray, most: int) -> tuple[int, int, float]:
    """Return (a, b, start[a] + end[b]) of the likeliest span a <= b < a + most within one passage; arrays are (C,).

    Equal spans go to the shorter, then to the earlier; without any token, a is greater than b.
    """
    best = (0, -1, -np.inf)
    for longer in range(min(most, len(start))):
        total = start[: len(start) - longer] + end[longer:]
        total = np.where(passage[: len(start) - longer] == passage[longer:], total, -np.inf)
        a = int(total.argmax())
        if total[a] > best[2]:
            best = (a, a + longer, float(total[a]))
    return best
