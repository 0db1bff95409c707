"""Fusion-in-Decoder over T5, with the three ways to hold a passage: full, float, binary. Tensors only.

FiD (Izacard & Grave 2021, arXiv 2007.01282): each row is [question; passage]; the decoder attends to all rows of a
question. Decomposed (DeFormer; BTR §3): layers 1..k see question and passage apart, layers k+1..n see the row. T5's
position bias depends on distance alone, so a passage encoded from position 0 and placed after the question is exact.

`rows` runs whole rows under a block-diagonal mask: the definition, and what training uses.
`lower` and `join` run the same arithmetic in two halves: what the offline and the runtime side use.

Shapes: R rows (questions x passages), T row tokens, Q question tokens, P passage tokens, D width.
"""

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from btr.model.binarize import Binarizer, Known, safe_weight
from btr.model.config import Mode, ReaderConfig
from btr.model.merge import Schedule, Tokens
from btr.model.pruning import Pruner, features
from btr.model.t5 import T5, RMSNorm


@dataclass(frozen=True)
class Rows:
    """What `FiD.rows` saw.

    memory (R, T, D): after the last norm.
    joined (R, T, D): residual stream entering layer k+1, as the passage is held in this mode.
    apart (R, T, D): the same before binarization.
    signs (R, T, D): ±1 with straight-through gradient, or None.
    read (R, T): bool, the tokens that layers k+1..n saw; None: all of the rows.
    """

    memory: Tensor
    joined: Tensor
    apart: Tensor
    signs: Tensor | None
    read: Tensor | None = None


class FiD(nn.Module):
    """T5 plus the binarizer at layer k+1."""

    def __init__(self, t5: T5, config: ReaderConfig) -> None:
        super().__init__()
        n = t5.config.num_layers
        if not 0 <= config.k < n:
            raise ValueError(f"k is {config.k}, the encoder has {n} layers; choose 1 <= k <= {n - 1}")
        if config.unread:
            raise ValueError("unread tokens are known to span readers alone; leave `unread` empty for a T5")
        self.t5 = t5
        self.config = config
        self.binarizer = Binarizer(t5.config.d_model, config.calibration, bits=config.bits)
        self.pruner: Pruner | None = None  # fitted to these weights, when they are trained no more

    @property
    def join_norm(self) -> RMSNorm:
        """The first RMSNorm of layer k+1, where u is taken."""
        return self.t5.encoder.layers[self.config.k].attention_norm

    def binarized(self, hidden: Tensor, known: Known | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return h_hat (residual), u_hat (normalised) and the signs ±1 of hidden (..., D)."""
        norm = self.join_norm
        u_hat, signs = self.binarizer(norm(hidden), known)
        h_hat = u_hat / safe_weight(norm.weight) * norm.rms(hidden)
        return h_hat.to(hidden.dtype), u_hat.to(hidden.dtype), signs

    def rows(self, ids: Tensor, lengths: Tensor, question_lengths: Tensor, mode: Mode) -> Rows:
        """Encode rows ids (R, T), lengths (R,), the first question_lengths (R,) tokens of each being the question."""
        encoder, k = self.t5.encoder, self.config.k
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        mask = positions < lengths[:, None]
        passage = positions >= question_lengths[:, None]
        hidden = self.t5.embed(ids)
        joint = encoder.bias(positions, mask)
        if mode == "full":
            apart = encoder(hidden, joint, 0, k)
        else:
            blocks = mask[:, None, :] & (passage[:, None, :] == passage[:, :, None])
            apart = encoder(hidden, encoder.bias(positions, blocks), 0, k)
        joined, normed, signs = apart, None, None
        if mode == "binary":
            h_hat, u_hat, signs = self.binarized(apart, Known.of_rows(ids, passage & mask, self.embedding))
            joined = torch.where(passage[..., None], h_hat, apart)
            normed = torch.where(passage[..., None], u_hat, self.join_norm(apart))
        return Rows(encoder.finish(encoder(joined, joint, k, None, normed)), joined, apart, signs)

    def lower(self, ids: Tensor, lengths: Tensor, passage: bool = False) -> Tensor:
        """Run layers 1..k on questions or passages alone: ids (R, T) -> residual stream (R, T, D).

        T5's positions are distances, so it makes no difference which of the two it is.
        """
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        bias = self.t5.encoder.bias(positions, positions < lengths[:, None])
        return self.t5.encoder(self.t5.embed(ids), bias, 0, self.config.k)

    def join(self, hidden: Tensor, lengths: Tensor, normed: Tensor | None = None) -> Tensor:
        """Run layers k+1..n on rows (R, T, D), question before passage without a gap, to memory (R, T, D).

        normed (R, T, D): what the first norm of layer k+1 gives, with u_hat in place of passage tokens (binary); None
        computes it.
        """
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        bias = self.t5.encoder.bias(positions, positions < lengths[:, None])
        return self.t5.encoder.finish(self.t5.encoder(hidden, bias, self.config.k, None, normed))

    def pruning_features(self, hidden: Tensor, lengths: Tensor, question: int, normed: Tensor | None = None) -> Tensor:
        """Return the `features` of rows as `join` takes them, `question` tokens first, (R, D + 1) float32.

        Of layer k+1 the question's own tokens are followed.
        """
        normed = self.join_norm(hidden) if normed is None else normed
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        bias = self.t5.encoder.bias(positions, positions < lengths[:, None])[:, :, :question]
        layer = self.t5.encoder.layers[self.config.k]
        return features(layer.follow(hidden[:, :question], bias, normed), normed, lengths)

    def merging(self, tokens: Tokens, schedule: Schedule, normed: Tensor | None = None) -> Tokens:
        """Run layers k+1..n to memory as `join` does, merging passage tokens on the way."""
        return self.t5.encoder.merging(tokens, self.config.k, schedule, normed)

    def full(self, ids: Tensor, lengths: Tensor, question_lengths: Tensor) -> Tensor:
        """Encode rows (R, T) whole to memory (R, T, D); T5 does not ask where the question ends."""
        return self.t5.encode(ids, torch.arange(ids.shape[1], device=ids.device)[None] < lengths[:, None])

    def normalised(self, hidden: Tensor) -> Tensor:
        """Return u, what signs are taken of, for states (..., D) after layer k."""
        return self.join_norm(hidden)

    def keep(self, hidden: Tensor, known: Known) -> tuple[Tensor, Tensor]:
        """Return what a store keeps of hidden (M, D): signs as booleans (M, bits), and scalars (M,), float32."""
        return self.binarizer.signs(self.normalised(hidden), known), self.join_norm.rms(hidden)[:, 0].float()

    def tables(self) -> list[tuple[Tensor, Tensor, bool]]:
        """Return mean and magnitude (D,) of each stream that `join` takes, h_hat and u_hat, and if it is scaled."""
        mean, magnitude = self.binarizer.mean, self.binarizer.magnitude
        weight = safe_weight(self.join_norm.weight)
        return [(mean / weight, magnitude / weight, True), (mean, magnitude, False)]

    def streams(self, u_hat: Tensor, scale: Tensor) -> list[Tensor]:
        """Return the streams that `join` takes, h_hat and u_hat, of u_hat (M, D) and scalars (M,)."""
        return [u_hat * (scale[:, None] / safe_weight(self.join_norm.weight)).to(u_hat.dtype), u_hat]

    @property
    def embedding(self) -> Tensor:
        """Embeddings of the tokens, (V, D)."""
        return self.t5.embedding.weight

    @property
    def width(self) -> int:
        """D."""
        return self.t5.config.d_model

    @property
    def joint(self) -> int:
        """n - k, the layers that see question and passage together."""
        return self.t5.config.num_layers - self.config.k

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.t5.config.vocab_size

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows up."""
        return self.t5.config.pad_token_id

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.t5.dtype

    def identity(self) -> tuple[list[tuple[str, Tensor]], str]:
        """Return all that kept bits depend on: tensors (embedding, layers 1..k, the norm, means) and the shape."""
        encoder, k = self.t5.encoder, self.config.k
        lower = [encoder.position_bias, *encoder.layers[:k], self.join_norm, self.t5.embedding]
        tensors = [(f"{i}.{name}", p.bfloat16()) for i, part in enumerate(lower) for name, p in part.named_parameters()]
        shape = asdict(replace(self.t5.config, dropout_rate=0.0))
        facts = repr(sorted((name, shape[name]) for name in shape if "decoder" not in name))
        binarizer = [(name, p) for name, p in self.binarizer.named_parameters() if name in ("mean", "context", "code")]
        tensors += [(name, p.bfloat16()) for name, p in binarizer]
        return tensors, f"{facts}{k} {self.config.calibration} {self.binarizer.bits}"

    def answer_logits(self, memory: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        """Score labels (B, S) from memory (R, T, D) as (B, S, V); R a multiple of B, rows of a question adjacent."""
        B, (_, T, D) = labels.shape[0], memory.shape
        mask = torch.arange(T, device=memory.device)[None] < lengths[:, None]
        return self.t5.answer_logits(labels, memory.reshape(B, -1, D), mask.reshape(B, -1))
