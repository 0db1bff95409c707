"""T5 as the reader needs it: positions as input, any layer as entry, memory of any length, attention given back.

One compact implementation of T5 1.0 and 1.1 (Raffel et al. 2020, arXiv 1910.10683; Shazeer 2020, arXiv 2002.05202 for
the gated form), equal to transformers' T5ForConditionalGeneration (tests/btr/test_t5.py holds it to that).

Shapes: B questions or rows, T tokens, S answer tokens, M memory tokens, D model width, H heads, d head width,
V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from btr.model import elementwise
from btr.model.bias import PositionBias, mask_bias
from btr.model.config import T5Config
from btr.model.merge import Schedule, Tokens, merge


def added(x: Tensor, hidden: Tensor) -> Tensor:
    """Add hidden to x; into x, which nothing else may hold, where no gradient needs it: new memory costs more.

    Under autocast the stream is wider, and x stays.
    """
    return hidden + x if torch.is_grad_enabled() or x.dtype != hidden.dtype else x.add_(hidden)


class Linear(nn.Linear):
    """A product without bias; of one row alone, as in decoding, a matrix-vector one, which reads the weights faster."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        if torch.is_grad_enabled() or x.numel() != self.in_features:
            return super().forward(x)
        return torch.mv(self.weight, x.reshape(-1)).view(*x.shape[:-1], -1)


class RMSNorm(nn.Module):
    """Scale by the root mean square, taken in float32; no mean, no bias (T5LayerNorm)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def rms(self, hidden: Tensor) -> Tensor:
        """Return sqrt(mean(hidden²) + eps), float32 (..., 1)."""
        return (hidden.float().pow(2).mean(-1, keepdim=True) + self.eps).sqrt()

    def forward(self, hidden: Tensor) -> Tensor:
        return elementwise.rms_norm(hidden, self.weight, self.eps)


class FeedForward(nn.Module):
    """ReLU (T5 1.0) or gated tanh-GELU (T5 1.1)."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi = Linear(config.d_model, config.d_ff)
        self.gate = Linear(config.d_model, config.d_ff) if config.gated else None
        self.wo = Linear(config.d_ff, config.d_model)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.wi(x)
        inner = F.relu(inner) if self.gate is None else elementwise.gelu(self.gate(x), "tanh", inner)
        return self.wo(self.dropout(inner))


class Attention(nn.Module):
    """Multi-head attention without 1/sqrt(d) and without biases; `bias` (B|1, H, Tq, Tk) carries positions and mask."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.dropout = config.dropout_rate
        self.q = Linear(config.d_model, inner)
        self.k = Linear(config.d_model, inner)
        self.v = Linear(config.d_model, inner)
        self.o = Linear(inner, config.d_model)

    def split(self, x: Tensor) -> Tensor:
        """View (B, T, H*d) as (B, H, T, d)."""
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def keys_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Project memory (B, M, D) to keys and values (B, H, M, d)."""
        return self.split(self.k(memory)), self.split(self.v(memory))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Attend from x (B, Tq, D) to projected keys and values; returns (B, Tq, D)."""
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(self.split(self.q(x)), keys, values, bias, dropout_p=dropout, scale=1.0)
        return self.o(mixed.transpose(1, 2).flatten(2))

    def attend_weights(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attend as `attend` does and give the weights (B, H, Tq, Tk) too."""
        scores = self.split(self.q(x)) @ keys.transpose(-1, -2)
        weights = (scores if bias is None else scores + bias).softmax(-1)
        return self.o((weights @ values).transpose(1, 2).flatten(2)), weights

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.attend(x, *self.keys_values(x), bias)


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout_rate)

    def attend(self, hidden: Tensor, bias: Tensor, normed: Tensor | None = None) -> Tensor:
        """Run the first half; `normed` replaces what the first norm would give (there the bits enter)."""
        normed = self.attention_norm(hidden) if normed is None else normed
        return added(self.dropout(self.attention(normed, bias)), hidden)

    def feed(self, hidden: Tensor) -> Tensor:
        """Run the second half."""
        return added(self.dropout(self.ffn(self.ffn_norm(hidden))), hidden)

    def forward(self, hidden: Tensor, bias: Tensor, normed: Tensor | None = None) -> Tensor:
        """Run one layer on (B, T, D); `normed` as in `attend`."""
        return self.feed(self.attend(hidden, bias, normed))

    def follow(self, hidden: Tensor, bias: Tensor, normed: Tensor) -> Tensor:
        """Run one layer on the first tokens alone, (B, first, D), under bias (B|1, H, first, T).

        normed (B, T, D): what the first norm gives of these and of all others that they look at.
        """
        first = hidden.shape[1]
        attended = self.attention.attend(normed[:, :first], *self.attention.keys_values(normed), bias)
        return self.feed(hidden + self.dropout(attended))


class DecoderLayer(nn.Module):
    """Pre-norm causal self-attention, attention to the memory, feed-forward."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.attention = Attention(config)
        self.cross_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.cross = Attention(config)
        self.ffn_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden: Tensor, bias: Tensor, memory: Tensor, memory_bias: Tensor | None) -> Tensor:
        """Run one layer on (B, S, D) against memory (B, M, D), all answer positions at once (training)."""
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), bias))
        crossed = self.cross.attend(self.cross_norm(hidden), *self.cross.keys_values(memory), memory_bias)
        hidden = hidden + self.dropout(crossed)
        return hidden + self.dropout(self.ffn(self.ffn_norm(hidden)))


class Encoder(nn.Module):
    """The encoder stack; runs any slice of its layers."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.position_bias = PositionBias(config, bidirectional=True)
        layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.layers = cast("Sequence[EncoderLayer]", layers)
        self.norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def bias(self, positions: Tensor, mask: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return the additive attention bias (B|1, H, T, T) of positions (B|1, T) under mask (B, T) or (B, T, T).

        sizes (B, T) as in `mask_bias`. One bias serves all rows that need no other.
        """
        bias = self.position_bias(positions, positions)
        if sizes is None and not torch.compiler.is_compiling() and mask.all():
            return bias
        return bias + mask_bias(mask, bias.dtype, sizes)

    def forward(
        self, hidden: Tensor, bias: Tensor, start: int = 0, stop: int | None = None, normed: Tensor | None = None
    ) -> Tensor:
        """Run layers start..stop-1 on (B, T, D), without the final norm.

        `normed` enters layer `start` after its first norm.
        """
        for layer in self.layers[start:stop]:
            hidden, normed = layer(hidden, bias, normed), None
        return hidden

    def finish(self, hidden: Tensor) -> Tensor:
        """Apply the final norm: hidden states become memory."""
        return self.dropout(self.norm(hidden))

    def merging(self, tokens: Tokens, start: int, schedule: Schedule, normed: Tensor | None = None) -> Tokens:
        """Run the layers from `start` on to memory, merging as the schedule has it; `normed` as in `forward`.

        A layer merges between its attention, where passage tokens have seen the question, and its feed-forward, by the
        states that this reads. Where nothing is merged, the memory is that of `forward` and `finish`.
        """
        bias = None
        for layer, ratio in zip(self.layers[start:], schedule.encoder, strict=True):
            if bias is None:
                sizes = tokens.sizes if schedule.proportional and tokens.merged else None
                bias = self.bias(tokens.positions, tokens.mask, sizes)
            attended = replace(tokens, hidden=layer.attend(tokens.hidden, bias, normed))
            normed, tokens = None, merge(attended, ratio, layer.ffn_norm.weight)
            bias = bias if tokens is attended else None
            tokens = replace(tokens, hidden=layer.feed(tokens.hidden))
        return replace(tokens, hidden=self.finish(tokens.hidden))


class Decoder(nn.Module):
    """The decoder stack, all positions of an answer at once; `btr.model.decoding` runs it one at a time."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.position_bias = PositionBias(config, bidirectional=False)
        layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_decoder_layers))
        self.layers = cast("Sequence[DecoderLayer]", layers)
        self.norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, hidden: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Run on embedded answers (B, S, D) with causal mask against memory (B, M, D), mask (B, M)."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        bias = self.position_bias(positions, positions)
        bias = bias + mask_bias((positions[:, None, :] <= positions[:, :, None]), bias.dtype)
        memory_bias = mask_bias(memory_mask, memory.dtype)
        for layer in self.layers:
            hidden = layer(hidden, bias, memory, memory_bias)
        return self.dropout(self.norm(hidden))


class T5(nn.Module):
    """Encoder, decoder, embedding and head."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.head = Linear(config.d_model, config.vocab_size)
        if config.tied_head:
            self.head.weight = self.embedding.weight

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights: float32 or bfloat16."""
        return self.embedding.weight.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) as (B, T, D)."""
        return self.encoder.dropout(self.embedding(ids))

    def logits(self, hidden: Tensor) -> Tensor:
        """Map decoder output (B, S, D) to scores (B, S, V)."""
        return self.head(hidden * self.config.d_model**-0.5 if self.config.scale_decoder_outputs else hidden)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode rows (B, T) under a mask (B, T) or (B, T, T): plain T5, positions 0..T-1. Returns memory (B, T, D)."""
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        return self.encoder.finish(self.encoder(self.embed(ids), self.encoder.bias(positions, mask)))

    def shift(self, labels: Tensor) -> Tensor:
        """Turn labels (B, S) into decoder input: start token first, -100 becomes padding."""
        start = labels.new_full((labels.shape[0], 1), self.config.decoder_start_token_id)
        shifted = torch.cat([start, labels[:, :-1]], 1)
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    def answer_logits(self, labels: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Score answers (B, S) given memory (B, M, D) with teacher forcing; returns (B, S, V)."""
        return self.logits(self.decoder(self.embed(self.shift(labels)), memory, memory_mask))

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Return scores (B, S, V) of labels given one row per question, as transformers' forward does."""
        return self.answer_logits(labels, self.encode(ids, mask), mask)
