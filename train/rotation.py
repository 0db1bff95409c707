"""Turn a T5's residual stream by a random rotation, without changing an answer: signs are then taken in another basis.

RMSNorm does not see a rotation Q once its weights w are moved into the matrices that read it. So with E' = E Qᵀ for the
embedding, W' = W diag(w) Qᵀ for matrices that read the stream, and O' = Q O for those that write to it, every state is
h' = Q h and every attention weight and logit is as before (SliceGPT, Ashkboos et al. 2024, arXiv 2401.15024, §3.1).
Nothing at run time knows of it: the signs of a turned reader are stored and expanded as those of any other. A post-norm
encoder (BERT) adds outputs of its LayerNorms, weights and all, and cannot be turned so.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from btr.model.t5 import T5, DecoderLayer, EncoderLayer, RMSNorm


@torch.no_grad()
def rotate(t5: T5, seed: int) -> T5:
    """Return a T5 that gives the same logits, its stream (both stacks', which share the embedding) turned by `seed`.

    Its head is its own, even if that of the given one is its embedding.
    """
    turned = T5(replace(t5.config, tied_head=False)).to(t5.embedding.weight.device, t5.dtype)
    turned.load_state_dict(t5.state_dict())
    Q = rotation(t5.config.d_model, seed).to(t5.embedding.weight.device)
    turned.embedding.weight.copy_(turned.embedding.weight.double() @ Q.T)
    for layer in turned.encoder.layers:
        turn(layer, Q)
    for crossing in turned.decoder.layers:
        turn(crossing, Q)
        read(crossing.cross_norm, (crossing.cross.q,), Q)
        write((crossing.cross.o,), Q)
    read(turned.encoder.norm, (m for layer in turned.decoder.layers for m in (layer.cross.k, layer.cross.v)), Q)
    read(turned.decoder.norm, (turned.head,), Q)
    return turned.train(t5.training)


def turn(layer: EncoderLayer | DecoderLayer, Q: Tensor) -> None:
    """Turn what a layer of either stack reads and writes, but for the cross-attention."""
    read(layer.attention_norm, (layer.attention.q, layer.attention.k, layer.attention.v), Q)
    read(layer.ffn_norm, (layer.ffn.wi, *([layer.ffn.gate] if layer.ffn.gate is not None else [])), Q)
    write((layer.attention.o, layer.ffn.wo), Q)


def rotation(width: int, seed: int) -> Tensor:
    """Draw an orthogonal matrix (width, width), float64, uniformly."""
    drawn = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    found, upper = torch.linalg.qr(drawn)
    return found * upper.diagonal().sign()  # without the signs, it would not be uniform (Mezzadri 2007)


def read(norm: RMSNorm, matrices: Iterable[nn.Linear], Q: Tensor) -> None:
    """Let the matrices that read a norm's output take its weights and a turned stream."""
    for matrix in matrices:
        matrix.weight.copy_((matrix.weight.double() * norm.weight.double()) @ Q.T)
    norm.weight.fill_(1)


def write(matrices: Iterable[nn.Linear], Q: Tensor) -> None:
    """Let matrices write to a turned stream."""
    for matrix in matrices:
        matrix.weight.copy_(Q @ matrix.weight.double())
