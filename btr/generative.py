"""How a generative reader (T5) takes text in and gives answers out: `question: … title: … context: …`, then words."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from btr.answer import Answer, Memory, Stopwatch, read_off
from btr.config import Mode
from btr.decoding import greedy
from btr.fid import FiD
from btr.layout import MergedRows
from btr.merge import Tokens, concatenate, shrink


class Generative:
    """Text in and out for `FiD`."""

    family = "generative"

    def __init__(self, model: FiD, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def question_ids(self, question: str) -> list[int]:
        """Tokenize `question: …`, without end of sequence."""
        return self.tokenizer.encode(f"question: {question}", add_special_tokens=False).ids

    def passage_ids(self, passages: Sequence[tuple[str, str]], limit: int) -> tuple[list[list[int]], int]:
        """Tokenize (title, text) as `title: … context: …` with end of sequence; and count those cut to the limit."""
        texts = [f"title: {title} context: {text}" for title, text in passages]
        found = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        eos, room = self.model.t5.config.eos_token_id, limit - 1
        return [[*e.ids[:room], eos] for e in found], sum(len(e.ids) > room for e in found)

    def answer(
        self, memories: Sequence[tuple[Tensor | MergedRows, Memory]], mode: Mode, max_new_tokens: int, watch: Stopwatch
    ) -> list[Answer]:
        """Decode the answers of several questions together, greedily.

        Each has its memory, (tokens, D) or merged by one schedule, and what it holds.
        """
        t5, held = self.model.t5, [holding for _, holding in memories]
        plain = [memory for memory, _ in memories if isinstance(memory, Tensor)]
        merged = [memory for memory, _ in memories if isinstance(memory, MergedRows)]
        with watch("merge" if merged else "decode"):
            seen = self._levels(merged, held) if merged else [self._padded(plain)] * len(t5.decoder.layers)
        with watch("decode"):
            generation = greedy(t5, seen, max_new_tokens, not merged or merged[0].schedule.proportional)
        eos = t5.config.eos_token_id
        return [
            read_off(generation, b, holding, self.tokenizer, eos, mode, watch.seconds) for b, holding in enumerate(held)
        ]

    @staticmethod
    def _padded(memories: Sequence[Tensor]) -> Tokens:
        """Return the memories side by side, (B, M, D)."""
        sizes = torch.tensor([len(states) for states in memories])
        together = len(memories) > 1  # padding copies
        states = torch.nn.utils.rnn.pad_sequence(list(memories), batch_first=True) if together else memories[0][None]
        return Tokens.of(states, sizes, 0)

    @staticmethod
    def _levels(merged: Sequence[MergedRows], held: Sequence[Memory]) -> list[Tokens]:
        """Return what each decoder layer looks at, merged across the passages of each question."""
        counts = [len(holding.lengths) for holding in held]
        first = [sum(counts[:b]) for b in range(len(counts))]
        parts = [part for one in merged for part in one.parts]
        rows = [[start + n for n in batch] for start, one in zip(first, merged, strict=True) for batch in one.numbers]
        return shrink(concatenate(parts, rows, counts), merged[0].schedule.decoder)
