"""Write one answer with a decoder rounded to int8, as `btr.model.decoding` does, in float32 between its matrices.

A row alone reads each matrix once and computes next to nothing with it: memory sets the pace, and the many small
operations of PyTorch cost as much again. Here a sublayer is one call of a kernel, which reads matrices that were
rounded to int8. (With bfloat16 ones, for which the kernels are as good, a tenth of the time was gained: too little to
have two.)

Shapes: D model width, H heads, d head width, M memory tokens, S answer tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from btr import kernels
from btr.kernels import Matrix, Norm
from btr.model.elementwise import gelu_table, patterns
from btr.model.memory import LayerMemory
from btr.model.t5 import T5, Attention, DecoderLayer, RMSNorm

Vector = NDArray[np.float32]
FEW = 2048  # tokens of a memory that is projected to keys and values


def rounded(linear: nn.Linear) -> Matrix:
    """Round a matrix to int8, each of its rows in steps of its own: a 127th of the greatest value in it."""
    weight = linear.weight.detach().float()
    step = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return Matrix((weight / step[:, None]).round().to(torch.int8).numpy(), step.numpy()).check()


@dataclass(frozen=True, eq=False)
class Sublayers:
    """What a decoder layer is made of, as kernels take it."""

    self_attention: kernels.Attention
    cross_attention: kernels.Attention
    wi: Matrix
    wo: Matrix
    gate: Matrix | None
    norms: tuple[Norm, Norm, Norm]

    @classmethod
    def of(cls, layer: DecoderLayer) -> "Sublayers":
        """Take a layer apart, and round its matrices."""
        self_attention, cross_attention = (
            kernels.Attention(*map(rounded, (part.q, part.k, part.v, part.o)))
            for part in (layer.attention, layer.cross)
        )
        gate = None if layer.ffn.gate is None else rounded(layer.ffn.gate)
        norms = (norm_of(layer.attention_norm), norm_of(layer.cross_norm), norm_of(layer.ffn_norm))
        return cls(self_attention, cross_attention, rounded(layer.ffn.wi), rounded(layer.ffn.wo), gate, norms)


def norm_of(norm: RMSNorm) -> Norm:
    """Take what a norm is made of."""
    return Norm(norm.weight.detach().float().numpy(), np.float32(norm.eps))


@dataclass(frozen=True, eq=False)
class Matrices:
    """What a decoder and its head are made of, as kernels take them."""

    layers: Sequence[Sublayers]
    head: Matrix

    @classmethod
    def of(cls, t5: T5) -> "Matrices":
        """Take a decoder apart, and round its matrices and the head's: a byte more of memory a weight."""
        return cls([Sublayers.of(layer) for layer in t5.decoder.layers], rounded(t5.head))


def project(attention: Attention, level: LayerMemory) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return keys and values (H, M, d) of the memory of one question, bfloat16 patterns.

    For a few passages that takes less time than asking the memory itself at each step.
    """
    keys, values = (states[0].bfloat16().contiguous() for states in attention.keys_values(level.tokens.hidden))
    return patterns(keys), patterns(values)


class Int8Decoder:
    """The decoder of a T5, one position of one answer at a time."""

    def __init__(self, t5: T5, levels: Sequence[LayerMemory], length: int, matrices: Matrices) -> None:
        config, decoder = t5.config, t5.decoder
        self.t5, self.levels, self.matrices = t5, levels, matrices
        positions = torch.arange(length)[None]
        self.bias = decoder.position_bias(positions, positions)[0].float().numpy()  # (H, S, S)
        self.caches = np.empty((len(levels), 2, config.num_heads, length, config.d_kv), np.float32)
        pairs = zip(decoder.layers, levels, strict=True)
        self.memories = [project(layer.cross, level) if few(level) else None for layer, level in pairs]
        self.table = gelu_table("tanh")
        self.norm = norm_of(decoder.norm)
        self.threads = torch.get_num_threads()

    def step(self, token: Tensor, t: int) -> Tensor:
        """Read the token at position t of the answer, (1,), and score the next: (1, V), float32."""
        row = self.t5.embedding.weight[int(token)].float().numpy().copy()
        for number, layer in enumerate(self.matrices.layers):
            keys, values = self.caches[number]
            kernels.self_attend(row, layer.norms[0], layer.self_attention, keys, values, self.bias, t, self.threads)
            self._look(row, number)
            kernels.feed_forward(row, layer.norms[2], layer.wi, layer.wo, layer.gate, self.table, self.threads)
        last = normed(row, self.norm)
        if self.t5.config.scale_decoder_outputs:
            last *= np.float32(self.t5.config.d_model**-0.5)
        return torch.from_numpy(kernels.multiply(self.matrices.head, last[None], self.threads))[None]

    def _look(self, row: Vector, number: int) -> None:
        """Attend to the memory."""
        layer, level, memory, threads = (
            self.matrices.layers[number], self.levels[number], self.memories[number], self.threads,
        )  # fmt: skip
        q, k, v, o = layer.cross_attention
        if memory is not None:
            bias, attended = level.bias[0, 0].float().numpy(), level.attended[0].numpy()
            kernels.cross_attend(row, layer.norms[1], q, o, memory[0], memory[1], bias, attended, threads)
            return
        heads = self.t5.config.num_heads
        query = kernels.multiply(q, normed(row, layer.norms[1])[None], threads)
        asked = torch.from_numpy(kernels.multiply_back(k, query, heads, threads))
        found = level.ask(asked[None].to(level.tokens.hidden.dtype))[0].float().numpy()
        row += kernels.multiply(o, kernels.multiply(v, found, threads)[None], threads)


def few(level: LayerMemory) -> bool:
    """Whether a memory is so small that it is projected."""
    return level.tokens.hidden.shape[1] <= FEW


def normed(row: Vector, norm: Norm) -> Vector:
    """Scale a row by its root mean square, and by the norm's weights."""
    return np.multiply(row / np.sqrt(row.dot(row) / np.float32(row.size) + norm.eps), norm.weight)
