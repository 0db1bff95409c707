"""T5 as the reader needs it: positions as input, any layer as entry, memory of any length, attention given back.

One compact implementation of T5 1.0 and 1.1 (Raffel et al. 2020, arXiv 1910.10683; Shazeer 2020, arXiv 2002.05202 for
the gated form), equal to transformers' T5ForConditionalGeneration (tests/btr/test_t5.py holds it to that).

Shapes: B questions or rows, T tokens, S answer tokens, M memory tokens, D model width, H heads, d head width,
V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from btr.config import T5Config


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
        return self.weight * (hidden.float() * (hidden.float().pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()).to(
            self.weight.dtype
        )


class FeedForward(nn.Module):
    """ReLU (T5 1.0) or gated tanh-GELU (T5 1.1)."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=False) if config.gated else None
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.wi(x)) if self.gate is None else F.gelu(self.gate(x), approximate="tanh") * self.wi(x)
        return self.wo(self.dropout(inner))


class Attention(nn.Module):
    """Multi-head attention without 1/sqrt(d) and without biases; `bias` (B|1, H, Tq, Tk) carries positions and mask."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.dropout = config.dropout_rate
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)

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

    def forward(self, hidden: Tensor, bias: Tensor, normed: Tensor | None = None) -> Tensor:
        """Run one layer on (B, T, D); `normed` replaces what the first norm would give (there the bits enter)."""
        normed = self.attention_norm(hidden) if normed is None else normed
        hidden = hidden + self.dropout(self.attention(normed, bias))
        return hidden + self.dropout(self.ffn(self.ffn_norm(hidden)))


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


class PositionBias(nn.Module):
    """Relative position bias, one table per stack, shared by its layers (T5 §2.1)."""

    def __init__(self, config: T5Config, bidirectional: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
        self.bidirectional = bidirectional
        self.max_distance = config.relative_attention_max_distance

    def bucket(self, distance: Tensor) -> Tensor:
        """Map distance = key position - query position (int64) to a bucket: exact when near, logarithmic when far."""
        count, first = self.table.num_embeddings, torch.zeros_like(distance)
        if self.bidirectional:
            count //= 2
            first, distance = (distance > 0) * count, distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = count // 2
        steps = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact) * (count - exact)
        far = (exact + steps.long()).clamp(max=count - 1)
        return first + torch.where(distance < exact, distance, far)

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Return the bias (B|1, H, Tq, Tk) for int64 positions (B|1, Tq) and (B|1, Tk)."""
        distance = key_positions[:, None, :] - query_positions[:, :, None]
        return self.table(self.bucket(distance)).permute(0, 3, 1, 2)


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask, True where attention may look, (B, Tk) or (B, Tq, Tk), into an additive (B, 1, Tq|1, Tk)."""
    mask = mask[:, None, None, :] if mask.dim() == 2 else mask[:, None]
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


class Encoder(nn.Module):
    """The encoder stack; runs any slice of its layers."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.position_bias = PositionBias(config, bidirectional=True)
        layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.layers = cast("Sequence[EncoderLayer]", layers)
        self.norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def bias(self, positions: Tensor, mask: Tensor) -> Tensor:
        """Return the additive attention bias (B, H, T, T) of positions (B|1, T) under mask (B, T) or (B, T, T)."""
        bias = self.position_bias(positions, positions)
        return bias + mask_bias(mask, bias.dtype)

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


@dataclass(frozen=True)
class Generation:
    """Greedy decoding of B answers.

    tokens: int64 (B, S), padded after the end of sequence; log_probability: float32 (B, S), 0 where padded;
    attention: float32 (B, M), cross-attention averaged over layers, heads and the steps before the end, rows sum to 1.
    """

    tokens: Tensor
    log_probability: Tensor
    attention: Tensor


class Decoder(nn.Module):
    """The decoder stack: all positions at once for training, one at a time with caches for answering."""

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

    def project(self, memory: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Project memory (B, M, D) to each layer's cross-attention keys and values, once per question."""
        pairs = (layer.cross.keys_values(memory) for layer in self.layers)
        return [(keys.contiguous(), values.contiguous()) for keys, values in pairs]

    def step(
        self,
        hidden: Tensor,
        t: int,
        cache: list[tuple[Tensor, Tensor]],
        crossed: list[tuple[Tensor, Tensor]],
        memory_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run position t on the embedded token (B, 1, D), and fill `cache` there.

        Returns the output (B, 1, D) and the cross-attention (B, M), averaged over layers and heads.
        """
        positions = torch.arange(t + 1, device=hidden.device)[None]
        bias = self.position_bias(positions[:, t:], positions)
        attention = hidden.new_zeros(memory_bias.shape[0], memory_bias.shape[-1], dtype=torch.float32)
        for layer, (keys, values), (memory_keys, memory_values) in zip(self.layers, cache, crossed, strict=True):
            x = layer.attention_norm(hidden)
            keys[:, :, t : t + 1], values[:, :, t : t + 1] = layer.attention.keys_values(x)
            hidden = hidden + layer.attention.attend(x, keys[:, :, : t + 1], values[:, :, : t + 1], bias)
            mixed, weights = layer.cross.attend_weights(
                layer.cross_norm(hidden), memory_keys, memory_values, memory_bias
            )
            hidden = hidden + mixed
            hidden = hidden + layer.ffn(layer.ffn_norm(hidden))
            attention += weights.float().mean(1).squeeze(1)
        return self.norm(hidden), attention / len(self.layers)


class T5(nn.Module):
    """Encoder, decoder, embedding and head."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
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

    @torch.no_grad()
    def greedy(self, memory_mask: Tensor, crossed: list[tuple[Tensor, Tensor]], max_new_tokens: int) -> Generation:
        """Decode greedily from projected memory (`decoder.project`) under mask (B, M), max_new_tokens at most."""
        B, config = memory_mask.shape[0], self.config
        memory_bias = mask_bias(memory_mask, self.dtype)
        shape = (B, config.num_heads, max_new_tokens, config.d_kv)
        cache = [(memory_bias.new_empty(shape), memory_bias.new_empty(shape)) for _ in self.decoder.layers]
        tokens = memory_mask.new_full((B, max_new_tokens), config.pad_token_id, dtype=torch.long)
        scores = memory_mask.new_zeros((B, max_new_tokens), dtype=torch.float32)
        attention = memory_mask.new_zeros(memory_mask.shape, dtype=torch.float32)
        going = memory_mask.new_ones(B)
        steps = memory_mask.new_zeros((B, 1), dtype=torch.float32)
        token = memory_mask.new_full((B, 1), config.decoder_start_token_id, dtype=torch.long)
        for t in range(max_new_tokens):
            hidden, looked = self.decoder.step(self.embedding(token), t, cache, crossed, memory_bias)
            log_probability, best = self.logits(hidden)[:, 0].float().log_softmax(-1).max(-1)
            tokens[:, t] = torch.where(going, best, config.pad_token_id)
            scores[:, t] = log_probability * going
            attention += looked * going[:, None]
            steps += going[:, None]
            going = going & (best != config.eos_token_id)
            token = tokens[:, t : t + 1]
            if not going.any():
                return Generation(tokens[:, : t + 1], scores[:, : t + 1], attention / steps)
        return Generation(tokens, scores, attention / steps.clamp(min=1))
