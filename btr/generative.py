"""How a generative reader (T5) takes text in and gives answers out: `question: … title: … context: …`, then words."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from btr.answer import Answer, Memory, Stopwatch, read_off
from btr.config import Mode
from btr.fid import FiD


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
        self, memories: Sequence[tuple[Tensor, Memory]], mode: Mode, max_new_tokens: int, watch: Stopwatch
    ) -> list[Answer]:
        """Decode the answers of several questions together, greedily; each memory is (tokens, D) and what it holds."""
        t5 = self.model.t5
        with watch("project"):
            sizes = torch.tensor([len(states) for states, _ in memories])
            memory = torch.nn.utils.rnn.pad_sequence([states for states, _ in memories], batch_first=True)
            projected = t5.decoder.project(memory)
        with watch("decode"):
            mask = torch.arange(memory.shape[1])[None] < sizes[:, None]
            generation = t5.greedy(mask, projected, max_new_tokens)
        eos = t5.config.eos_token_id
        return [
            read_off(generation, b, held, self.tokenizer, eos, mode, watch.seconds)
            for b, (_, held) in enumerate(memories)
        ]
