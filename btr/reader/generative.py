"""How a generative reader takes text in and gives answers out: `question: … title: … context: …`, then words.

With a T5 for its encoder, that is; with a BERT, in that one's rows, and then what was copied is quoted.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from btr.model.bert_fid import BertFiD
from btr.model.binarize import Known
from btr.model.config import Mode
from btr.model.decoding import Generation, greedy
from btr.model.fid import FiD
from btr.model.int8_decoding import Matrices
from btr.model.layout import MergedRows
from btr.model.merge import Tokens, concatenate, shrink
from btr.reader.answer import Answer, Listener, Memory, Span, Stopwatch, read_off
from btr.reader.rows import BertRows
from btr.words import WIDEST, end_of_letter, readable

SHORT = 16  # tokens
WHOLE = re.compile(r"\W?$")  # what may stand beside a whole word: a character of no word, or nothing
LEAST = 1e-6  # evidence
HEAD = "title: {} context: "
Memories = Sequence[tuple[Tensor | MergedRows, Memory]]
Choices = Sequence[Sequence[str]] | None  # of each question


class Dictation:
    """Tell a listener how B answers go on, from their tokens; half of a character waits for the other half."""

    def __init__(self, tokenizer: Tokenizer, count: int, listener: Listener) -> None:
        self.tokenizer, self.listener = tokenizer, listener
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.said = [""] * count

    def __call__(self, step: Tensor) -> Tensor:
        """Take the next token of each answer, (B,); returns which are still wanted, bool (B,)."""
        for b, token in enumerate(step.tolist()):
            self.tokens[b].append(token)
            text, said = self.tokenizer.decode(self.tokens[b]).removeprefix("##"), self.said[b]
            if len(text) > len(said) and text.startswith(said) and not text.endswith("\ufffd"):
                self.said[b] = text
                self.listener.words(b, text[len(said) :])
        return torch.tensor([self.listener.wanted(b) for b in range(len(self.said))], device=step.device)


class Generative:
    """Text in and out for `FiD`."""

    family = "generative"

    def __init__(self, model: FiD | BertFiD, tokenizer: Tokenizer) -> None:
        self.t5, self.tokenizer = model.t5, tokenizer
        self.rounded: Matrices | None = None

    def question_ids(self, question: str) -> list[int]:
        """Tokenize `question: …`, without end of sequence."""
        return self.tokenizer.encode(f"question: {question}", add_special_tokens=False).ids

    def passage_ids(self, passages: Sequence[tuple[str, str]], limit: int) -> tuple[list[list[int]], int]:
        """Tokenize (title, text) as `title: … context: …` with end of sequence; and count those cut to the limit."""
        most = WIDEST * limit  # of what may be longer than memory, no more is copied
        wholes = [f"{HEAD.format(title[:most])}{text[:most]}" for title, text in passages]
        texts = [readable(whole, limit) for whole in wholes]
        found = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        eos, room = self.t5.config.eos_token_id, limit - 1
        cut = sum(len(e.ids) > room or text is not whole for e, text, whole in zip(found, texts, wholes, strict=True))
        return [[*e.ids[:room], eos] for e in found], cut

    def text_places(self, title: str, text: str, ids: np.ndarray) -> list[tuple[int, int]]:
        """Return, of each token of a passage that is of its text, its place and where in the text it ends."""
        head = HEAD.format(title)
        offsets = self.tokenizer.encode(readable(head + text, len(ids)), add_special_tokens=False).offsets
        return [(n, end - len(head)) for n, (_, end) in enumerate(offsets[: len(ids) - 1]) if end > len(head)]

    def answer(
        self, memories: Memories, mode: Mode, max_new_tokens: int, watch: Stopwatch, choices: Choices = None
    ) -> list[Answer]:
        """Decode the answers of several questions together, greedily; or take the likeliest of each one's choices.

        Each has its memory, (tokens, D) or merged by one schedule, and what it holds.
        """
        if choices is not None:
            return self._choose(memories, mode, watch, choices)
        generation = self._decode(memories, max_new_tokens, watch)
        eos = self.t5.config.eos_token_id
        return [
            read_off(generation, b, holding, self.tokenizer, eos, mode, watch.seconds)
            for b, (_, holding) in enumerate(memories)
        ]

    def _choose(
        self, memories: Memories, mode: Mode, watch: Stopwatch, choices: Sequence[Sequence[str]]
    ) -> list[Answer]:
        """Score the choices of each question as answers; its answer is the one whose tokens are likeliest in all."""
        eos = self.t5.config.eos_token_id
        written = [[*self.tokenizer.encode(text, add_special_tokens=False).ids, eos] for row in choices for text in row]
        length = max(map(len, written))
        given = torch.tensor([row + [eos] * (length - len(row)) for row in written])
        copies = [memory for memory, row in zip(memories, choices, strict=True) for _ in row]
        generation = self._decode(copies, length, watch, given)
        totals, found, start = generation.log_probability.sum(1), [], 0
        for row in choices:
            likely = totals[start : start + len(row)].softmax(0)
            b = start + int(likely.argmax())
            answer = read_off(generation, b, copies[b][1], self.tokenizer, eos, mode, watch.seconds)
            found.append(replace(answer, text=row[b - start], choices=tuple(likely.tolist())))
            start += len(row)
        return found

    def _decode(
        self, memories: Memories, max_new_tokens: int, watch: Stopwatch, given: Tensor | None = None
    ) -> Generation:
        """Decode an answer from each memory, or score the one given."""
        t5, held = self.t5, [holding for _, holding in memories]
        plain = [memory for memory, _ in memories if isinstance(memory, Tensor)]
        merged = [memory for memory, _ in memories if isinstance(memory, MergedRows)]
        with watch("merge" if merged else "decode"):
            seen = self._levels(merged, held) if merged else [self._padded(plain)] * len(t5.decoder.layers)
        with watch("decode"):
            listener = watch.listener if given is None else None
            heard = Dictation(self.tokenizer, len(held), listener) if listener else None
            proportional = not merged or merged[0].schedule.proportional
            return greedy(t5, seen, max_new_tokens, proportional, self.rounded, heard, given)

    def passage_score(self, states: Tensor, held: Memory) -> Tensor:
        """Return what speaks for each passage: the logarithm of its evidence for a short answer, (N,) float32."""
        [answer] = self.answer([(states, held)], "binary", SHORT, Stopwatch())
        return torch.from_numpy(answer.evidence).clamp(min=LEAST).log()

    @staticmethod
    def _padded(memories: Sequence[Tensor]) -> Tokens:
        """Return the memories side by side, (B, M, D)."""
        sizes = torch.tensor([len(states) for states in memories], device=memories[0].device)
        together = len(memories) > 1  # padding copies
        states = torch.nn.utils.rnn.pad_sequence(list(memories), batch_first=True) if together else memories[0][None]
        return Tokens.of(states, sizes, 0)

    @staticmethod
    def _levels(merged: Sequence[MergedRows], held: Sequence[Memory]) -> list[Tokens]:
        """Return what each decoder layer looks at, merged across the passages of each question."""
        counts = [holding.read for holding in held]
        first = [sum(counts[:b]) for b in range(len(counts))]
        parts = [part for one in merged for part in one.parts]
        rows = [[start + n for n in batch] for start, one in zip(first, merged, strict=True) for batch in one.numbers]
        return shrink(concatenate(parts, rows, counts), merged[0].schedule.decoder)


class BertGenerative(BertRows, Generative):
    """Text in and out for `BertFiD`."""

    def __init__(self, model: BertFiD, tokenizer: Tokenizer) -> None:
        BertRows.__init__(self, tokenizer)
        Generative.__init__(self, model, tokenizer)
        self.model = model

    def answer(
        self, memories: Memories, mode: Mode, max_new_tokens: int, watch: Stopwatch, choices: Choices = None
    ) -> list[Answer]:
        """As `Generative.answer`; an answer that stands in a passage is quoted from there, unless it was chosen."""
        with watch("decode"):
            told = [(self._told(states, held), held) for states, held in memories]
        found = super().answer(told, mode, max_new_tokens, watch, choices)
        if choices is not None:
            return found
        return [self._quoted(answer, held) for answer, (_, held) in zip(found, told, strict=True)]

    def _told(self, states: Tensor | MergedRows, held: Memory) -> Tensor | MergedRows:
        """Make memory of BERT's states, (tokens, D) or merged."""
        read = [ids for ids, length in zip(held.ids, held.lengths, strict=True) if length]
        asked = np.zeros(held.question, np.int64)
        rows = [torch.from_numpy(np.concatenate((asked, ids.astype(np.int64)))) for ids in read]
        if isinstance(states, MergedRows):
            pairs = zip(states.parts, states.numbers, strict=True)
            return replace(states, parts=[self._merged(part, [rows[n] for n in batch], held) for part, batch in pairs])
        passage = torch.cat([torch.arange(len(row)) >= held.question for row in rows]).to(states.device)
        ends = np.cumsum([len(row) for row in rows])
        begins = torch.from_numpy(np.concatenate([(start, start + held.question) for start in (0, *ends[:-1])]))
        known = Known.of_passages(torch.cat(rows).to(states.device), begins.to(states.device), self.model.embedding)
        return self.model.finish(states, self.model.told(known, passage))

    def _merged(self, part: Tokens, rows: list[Tensor], held: Memory) -> Tokens:
        """Make memory of merged rows."""
        ids = torch.zeros(part.owner.shape, dtype=torch.long)
        for laid, row in zip(ids, rows, strict=True):
            laid[: len(row)] = row
        index = torch.arange(ids.shape[1])[None]
        passage = (index >= held.question) & (index < torch.tensor([len(row) for row in rows])[:, None])
        device = part.hidden.device
        return self.model.finish_merged(part, ids.to(device), passage.to(device))

    def _quoted(self, answer: Answer, held: Memory) -> Answer:
        """Return an answer as the text with the most evidence that holds its tokens writes it, and where."""
        if not answer.tokens:
            return answer
        for n in np.argsort(-answer.evidence, kind="stable"):
            text = readable(held.passages[n][1], self.model.config.max_passage_tokens)
            begun = self.begins(held.ids[n])
            places = find(held.ids[n][begun:], answer.tokens)
            offsets = self.tokenizer.encode(text, add_special_tokens=False).offsets if places else []
            for place in places:
                if place + len(answer.tokens) <= len(offsets):
                    start = offsets[place][0]
                    end = end_of_letter(text, offsets[place + len(answer.tokens) - 1][1])
                    if WHOLE.match(text[max(start - 1, 0) : start]) and WHOLE.match(text[end : end + 1]):
                        return replace(answer, text=text[start:end], span=Span(int(n), start, end))
        return replace(answer, text=answer.text.removeprefix("##"))


def find(ids: np.ndarray, wanted: Sequence[int]) -> list[int]:
    """Return where the wanted tokens stand one after another in ids (T,)."""
    if len(ids) < len(wanted):
        return []
    windows = np.lib.stride_tricks.sliding_window_view(ids, len(wanted))
    found: list[int] = np.flatnonzero((windows == np.array(wanted)).all(1)).tolist()
    return found
