"""Write answers word by word, greedily, looking at a memory that is never projected to keys and values.

A head asks the memory itself: its query goes through the matrix that would have made the keys, and the mean of the
memory that it finds through the one that would have made the values (the absorbed form of DeepSeek-V2, arXiv
2405.04434 §2.1.2). For S answer tokens that is 4 S H M D products a layer in place of 4 M D H d + 4 S M H d, and all
layers read the same M D numbers instead of 2 M H d of their own.

Shapes: B questions, S answer tokens, M memory tokens, M0 before merging, D model width, H heads, d head width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from btr.model.int8_decoding import Int8Decoder, Matrices
from btr.model.memory import LayerMemory
from btr.model.merge import Tokens
from btr.model.t5 import T5, Attention


@dataclass(frozen=True)
class Generation:
    """Greedy decoding of B answers.

    tokens: int64 (B, S), padded after the end of sequence; log_probability: float32 (B, S), 0 where padded;
    attention: float32 (B, M0), cross-attention averaged over layers, heads and the steps before the end, rows sum to 1;
        what a merged token got is divided evenly among the tokens of the original memory in it.
    """

    tokens: Tensor
    log_probability: Tensor
    attention: Tensor


def self_attend(attention: Attention, x: Tensor, cache: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
    """Attend from x (B, D) to itself and the tokens before it under bias (1, H, 1, t+1); fills caches (B, H, S, d)."""
    B, H, t = len(x), attention.heads, bias.shape[-1] - 1
    query, key, value = (part(x).view(B, H, 1, -1) for part in (attention.q, attention.k, attention.v))
    (keys, values), now = cache, slice(t, t + 1)
    keys[:, :, now], values[:, :, now] = key, value
    seen = F.scaled_dot_product_attention(query, keys[:, :, : t + 1], values[:, :, : t + 1], bias, scale=1.0)
    return attention.o(seen.reshape(B, -1))


def cross_attend(attention: Attention, x: Tensor, level: LayerMemory) -> Tensor:
    """Attend from x (B, D) to a memory, and note where."""
    (B, D), H = x.shape, attention.heads
    to_keys, to_values = (part.weight.view(H, -1, D) for part in (attention.k, attention.v))
    query = attention.q(x).view(B, H, -1).transpose(0, 1)
    found = level.ask(torch.bmm(query, to_keys).transpose(0, 1))
    return attention.o(torch.bmm(to_values, found.permute(1, 2, 0)).permute(2, 0, 1).reshape(B, -1))


class StepDecoder:
    """The decoder of a T5, one position of B answers at a time."""

    def __init__(self, t5: T5, levels: Sequence[LayerMemory], length: int) -> None:
        B, decoder = len(levels[0].bias), t5.decoder
        self.t5, self.levels = t5, levels
        positions = torch.arange(length, device=levels[0].bias.device)[None]
        self.bias = decoder.position_bias(positions, positions)
        shape = (B, t5.config.num_heads, length, t5.config.d_kv)
        self.caches = [(self.bias.new_empty(shape), self.bias.new_empty(shape)) for _ in decoder.layers]

    def step(self, token: Tensor, t: int) -> Tensor:
        """Read the token at position t of each answer, (B,), and score the next: (B, V)."""
        hidden, bias = self.t5.embedding(token), self.bias[:, :, t : t + 1, : t + 1]
        for layer, cache, level in zip(self.t5.decoder.layers, self.caches, self.levels, strict=True):
            hidden = hidden + self_attend(layer.attention, layer.attention_norm(hidden), cache, bias)
            hidden = hidden + cross_attend(layer.cross, layer.cross_norm(hidden), level)
            hidden = hidden + layer.ffn(layer.ffn_norm(hidden))
        return self.t5.logits(self.t5.decoder.norm(hidden))


@torch.no_grad()
def greedy(
    t5: T5,
    memory: Sequence[Tokens],
    max_new_tokens: int,
    proportional: bool = True,
    matrices: Matrices | None = None,
    heard: Callable[[Tensor], Tensor] | None = None,
    given: Tensor | None = None,
) -> Generation:
    """Decode greedily, max_new_tokens at most; or score what is given, (B, max_new_tokens), ends included.

    memory: what each decoder layer looks at (`merge.shrink`), whose keys get the log of their sizes if proportional.
    matrices: the decoder's, rounded, for a single answer; several are written with its own.
    heard: takes the tokens (B,) of each step as they come, and returns which answers are to be gone on with, bool (B,).
    """
    known = {
        key: LayerMemory.of(tokens, proportional) for key, tokens in {id(tokens): tokens for tokens in memory}.items()
    }
    levels = [known[id(tokens)] for tokens in memory]
    stepper: StepDecoder | Int8Decoder
    if matrices is not None and len(levels[0].bias) == 1:
        stepper = Int8Decoder(t5, levels, max_new_tokens, matrices)
    else:
        stepper = StepDecoder(t5, levels, max_new_tokens)
    B, S, config, device = len(memory[0].hidden), max_new_tokens, t5.config, memory[0].hidden.device
    tokens = torch.full((B, S), config.pad_token_id, device=device)
    scores, steps = torch.zeros(B, S, device=device), torch.zeros(B, 1, device=device)
    attention = [torch.zeros_like(level.attended) for level in known.values()]
    token = torch.full((B,), config.decoder_start_token_id, device=device)
    going, count = torch.ones(B, dtype=torch.bool, device=device), 0
    while count < S and going.any():
        scored = stepper.step(token, count).float().log_softmax(-1)
        best = scored.argmax(-1) if given is None else given[:, count]
        log_probability = scored.gather(1, best[:, None])[:, 0]
        token = tokens[:, count] = torch.where(going, best, config.pad_token_id)
        scores[:, count] = log_probability * going
        for total, level in zip(attention, known.values(), strict=True):
            total += level.attended / len(memory) * going[:, None]
            level.attended.zero_()
        steps += going[:, None]
        going = going & (best != config.eos_token_id)
        if heard is not None:
            going = going & heard(token)
        count += 1
    shares = [level.tokens.spread(total) for level, total in zip(known.values(), attention, strict=True)]
    return Generation(tokens[:, :count], scores[:, :count], sum(shares[1:], shares[0]) / steps.clamp(min=1))
