"""BERT's encoder (Devlin et al. 2019, arXiv 1810.04805), equal to transformers' BertModel without its pooler.

Post-norm layers, exact GELU, learned absolute positions. Positions and segments are inputs, never taken from the
tensor's index: a passage stands at a fixed offset, so that it can be read before any question is known.

MPNet (Song et al. 2020, arXiv 2004.09297) is one without segments, with T5's bias of distances in all layers. Distances
are those of the rows as they are laid out, a passage right after its question: within a passage they are the same
wherever it stands.

Shapes: R rows, T tokens, D width, H heads.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from btr.model import elementwise
from btr.model.bias import PositionBias, mask_bias
from btr.model.config import BertConfig, MPNetConfig
from btr.model.merge import Schedule, Tokens, merge


class Stacked(nn.Linear):
    """Linear maps of the same inputs, one after the other."""

    def part(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Map (..., inputs) to the outputs from `start` to `stop` alone."""
        return F.linear(x, self.weight[start:stop], self.bias[start:stop])


class Layer(nn.Module):
    """Self-attention and feed-forward, each added to its input and then normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        D = config.hidden_size
        self.heads = config.num_attention_heads
        self.qkv = Stacked(D, 3 * D)
        self.out = nn.Linear(D, D)
        self.attention_norm = nn.LayerNorm(D, config.layer_norm_eps)
        self.wi = nn.Linear(D, config.intermediate_size)
        self.wo = nn.Linear(config.intermediate_size, D)
        self.norm = nn.LayerNorm(D, config.layer_norm_eps)

    def forward(self, hidden: Tensor, mask: Tensor | None, first: int | None = None) -> Tensor:
        """Map hidden (R, T, D), or its `first` tokens alone, (R, first, D).

        mask: bool (R, 1, 1 or T, T), True where a token may look, or what is added to the scores, (R|1, H|1, 1 or T,
        T), as `Bert.scores` gives it; None: everywhere.
        """
        attended = self.attend(hidden, mask) if first is None else self.attend_first(hidden, mask, first)
        return self.feed(self.attention_norm(hidden[:, :first] + self.out(attended)))

    def feed(self, hidden: Tensor) -> Tensor:
        """Run the second half, on what attention has left."""
        return self.norm(hidden + self.wo(elementwise.gelu(self.wi(hidden))))

    def attend(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Return what the heads gather, (R, T, D); mask as in `forward`."""
        R, T, D = hidden.shape
        q, k, v = self.qkv(hidden).view(R, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, mask)
        return attended.transpose(1, 2).reshape(R, T, D)

    def attend_first(self, hidden: Tensor, mask: Tensor | None, first: int) -> Tensor:
        """Return what the heads gather from all tokens (R, T, D) for the `first` ones, (R, first, D)."""
        R, T, D = hidden.shape
        q = self.qkv.part(hidden[:, :first], 0, D).view(R, first, self.heads, D // self.heads)
        k, v = self.qkv.part(hidden, D, 3 * D).view(R, T, 2, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        mask = None if mask is None else mask[:, :, :first]
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, mask)
        return attended.transpose(1, 2).reshape(R, first, D)


class Bert(nn.Module):
    """Embeddings and layers."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        D = config.hidden_size
        self.embedding = nn.Embedding(config.vocab_size, D)
        self.positions = nn.Embedding(config.max_position_embeddings, D)
        self.segments = nn.Embedding(config.type_vocab_size, D) if config.segmented else None
        self.embedding_norm = nn.LayerNorm(D, config.layer_norm_eps)
        self.relative = PositionBias(config, bidirectional=True) if isinstance(config, MPNetConfig) else None
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.embedding.weight.dtype

    def embed(self, ids: Tensor, positions: Tensor, segments: Tensor) -> Tensor:
        """Embed tokens: three int64 tensors that broadcast to (R, T) -> (R, T, D)."""
        words = self.embedding(ids) if self.segments is None else self.embedding(ids) + self.segments(segments)
        return self.embedding_norm(words + self.positions(positions + self.config.first_position))

    def below(self, k: int | None) -> list[nn.Module]:
        """Return all that states after layer k (None: the last) depend on."""
        parts = [self.embedding, self.positions, self.segments, self.embedding_norm, *self.layers[:k], self.relative]
        return [part for part in parts if part is not None]

    def scores(self, mask: Tensor | None, T: int) -> Tensor | None:
        """Return what layers take as mask of rows of T tokens, of a mask bool (R, 1 or T, T), or None."""
        if self.relative is None:
            return None if mask is None else mask[:, None]
        index = torch.arange(T, device=self.embedding.weight.device)[None]
        bias = self.relative(index, index)
        return bias if mask is None else bias.masked_fill(~mask[:, None], torch.finfo(bias.dtype).min)

    def forward(self, hidden: Tensor, mask: Tensor | None, first: int = 0, last: int | None = None) -> Tensor:
        """Run layers first+1..last (None: to the end) on hidden (R, T, D).

        mask: bool (R, 1 or T, T), True where a token may look; None: everywhere.
        """
        mask = self.scores(mask, hidden.shape[1])
        for layer in self.layers[first:last]:
            hidden = layer(hidden, mask)
        return hidden

    def merging(self, tokens: Tokens, start: int, schedule: Schedule) -> Tokens:
        """Run the layers from `start` on, merging between the two halves of each as the schedule has it."""
        bias = None
        for layer, ratio in zip(cast("Sequence[Layer]", self.layers[start:]), schedule.encoder, strict=True):
            hidden = tokens.hidden
            if bias is None:
                sizes = tokens.sizes if schedule.proportional and tokens.merged else None
                bias = mask_bias(tokens.mask, hidden.dtype, sizes)
                if self.relative is not None:
                    bias = bias + self.relative(tokens.positions, tokens.positions)
            states = layer.attention_norm(hidden + layer.out(layer.attend(hidden, bias)))
            attended = replace(tokens, hidden=states)
            tokens = merge(attended, ratio)
            bias = bias if tokens is attended else None
            tokens = replace(tokens, hidden=layer.feed(tokens.hidden))
        return tokens
