"""Fusion-in-Decoder with a BERT for its encoder: the decoder of a T5 writes the answer. Tensors only.

A token of the memory is BERT's state and, for passage tokens, a linear map of what is known of them: their embeddings
and those of their neighbours. With these a decoder can copy in one look, as an induction head does (Olsson et al. 2022,
arXiv 2209.11895): it looks for the place whose previous token is the one just written, and finds what comes next; so it
learns to from thousands of questions, not from millions. The embeddings are BERT's own, and so is the head, tied to
them. Layers 1..k and what they need are those of a span reader, whose store serves both.

Shapes: B questions, N passages, S answer tokens, V vocabulary, the others as in `btr.model.split`.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from btr.model.bert import Bert
from btr.model.binarize import Known
from btr.model.config import ReaderConfig, T5Config
from btr.model.merge import Schedule, Tokens
from btr.model.split import SplitBert
from btr.model.t5 import T5


class BertFiD(SplitBert):
    """A split BERT and a T5 without encoder layers: its final norm ends ours, its decoder writes."""

    def __init__(self, bert: Bert, decoder: T5Config, config: ReaderConfig) -> None:
        """Build on a BERT, whose embeddings the decoder shares; `decoder` is a T5 with num_layers 0."""
        super().__init__(bert, config)
        if config.unread:
            raise ValueError("unread tokens are known to span readers alone; leave `unread` empty for one that writes")
        shape = {"num_layers": 0, "d_model": bert.config.hidden_size, "vocab_size": bert.config.vocab_size}
        wrong = [f"{name} {getattr(decoder, name)}" for name, value in shape.items() if getattr(decoder, name) != value]
        if wrong or not decoder.tied_head:
            raise ValueError(f"the decoder has {wrong[0] if wrong else 'a head of its own'}; expected {shape}, tied")
        self.t5 = T5(decoder)
        self.t5.embedding.weight = self.t5.head.weight = bert.embedding.weight
        del self.t5.encoder.position_bias  # of no layer
        self.words = nn.Linear(3 * self.width, self.width, bias=False)

    @property
    def joint(self) -> int:
        """n - k, the layers that see question and passage together."""
        return self.bert.config.num_hidden_layers - self.config.k

    def told(self, known: Known, passage: Tensor) -> Tensor:
        """Return what memory tokens are told of the words there, (..., T, D): 0 where `passage`, bool, is not."""
        return self.words(known.features()) * passage[..., None]

    def finish(self, states: Tensor, told: Tensor) -> Tensor:
        """Make memory of BERT's states and of what they are told, (..., T, D) both."""
        return self.t5.encoder.finish(states + told.to(states.dtype))

    def ended(self, states: Tensor, ids: Tensor, passage: Tensor) -> Tensor:
        """Make memory of the last states of rows (R, T, D)."""
        return self.finish(states, self.told(Known.of_rows(ids, passage, self.embedding), passage))

    def merging(self, tokens: Tokens, schedule: Schedule, normed: Tensor | None = None) -> Tokens:
        """Run layers k+1..n as `join` does, merging passage tokens on the way; to states, not yet to memory."""
        return self.bert.merging(tokens, self.config.k, schedule)

    def finish_merged(self, tokens: Tokens, ids: Tensor, passage: Tensor) -> Tokens:
        """Make memory of states as `merging` leaves them; a token is told the mean of what is in it.

        ids (R, T0), passage bool (R, T0): of the rows before any token was merged.
        """
        told = self.told(Known.of_rows(ids, passage, self.embedding), passage)
        (R, T, D), owner = tokens.hidden.shape, tokens.owner
        place = torch.where(owner < 0, T, owner)[..., None].expand(-1, -1, D)  # padding goes into one more, left out
        sums = told.new_zeros(R, T + 1, D).scatter_add_(1, place, told)[:, :T]
        mean = sums / tokens.sizes.clamp(min=1)[..., None]
        return replace(tokens, hidden=self.finish(tokens.hidden, mean))

    def answer_logits(self, memory: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        """Score labels (B, S) from memory (R, T, D) as (B, S, V); R a multiple of B, rows of a question adjacent."""
        B, (_, T, D) = labels.shape[0], memory.shape
        mask = torch.arange(T, device=memory.device)[None] < lengths[:, None]
        return self.t5.answer_logits(labels, memory.reshape(B, -1, D), mask.reshape(B, -1))
