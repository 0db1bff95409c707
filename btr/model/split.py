"""A BERT that reads passages apart from questions: layers 1..k, the bits, layers k+1..n. Tensors only.

Each row is [question; passage], the passage at a fixed offset of positions, so that layers 1..k can read it alone
(DeFormer, arXiv 2005.00697; BTR §3.1 for encoders). What is made of the rows is another's matter: `btr.model.span_head`
points at answers, `btr.model.bert_fid` writes them, from one store if layers 1..k are the same.

A post-norm layer ends in a LayerNorm, so the sign is taken of its output: u = h, and h_hat = s * (mean +
magnitude * sign(u - mean)) with one scalar s a token. The paper's plain variant is mean 0, magnitude 1, s = 1.

Shapes: R rows (questions x passages), T row tokens, Q question tokens, P passage tokens, D width.
"""

import torch
from torch import Tensor, nn

from btr.model.bert import Bert
from btr.model.binarize import Binarizer, Known
from btr.model.config import Mode, ReaderConfig
from btr.model.fid import Rows
from btr.model.pruning import Pruner, features


class SplitBert(nn.Module):
    """BERT and the binarizer after layer k."""

    unread: Tensor  # bool (V,), the types of `ReaderConfig.unread`

    def __init__(self, bert: Bert, config: ReaderConfig) -> None:
        super().__init__()
        n = bert.config.num_hidden_layers
        if not 0 <= config.k < n:
            raise ValueError(f"k is {config.k}, the encoder has {n} layers; choose 1 <= k <= {n - 1}")
        room = bert.config.room
        if config.max_question_tokens + config.max_passage_tokens > room:
            raise ValueError(
                f"questions of {config.max_question_tokens} tokens and passages of {config.max_passage_tokens} need "
                f"{config.max_question_tokens + config.max_passage_tokens} positions, this BERT has {room}; lower them"
            )
        self.bert = bert
        self.config = config
        self.binarizer = Binarizer(bert.config.hidden_size, config.calibration, bits=config.bits)
        self.pruner: Pruner | None = None  # fitted to these weights, when they are trained no more
        if config.unread and config.unread[-1] >= bert.config.vocab_size:
            raise ValueError(
                f"unread token {config.unread[-1]} is none of {bert.config.vocab_size}; give ids of tokens"
            )
        unread = torch.zeros(bert.config.vocab_size, dtype=torch.bool, device="cpu")  # where weights are meta, too
        unread[list(config.unread)] = True
        self.register_buffer("unread", unread, persistent=False)

    def fit(self, hidden: Tensor, u_hat: Tensor) -> Tensor:
        """Return the scalar of each token (..., 1): the best s for hidden ~ s * u_hat; 1 in the paper's variant."""
        if self.config.calibration == "paper":
            return torch.ones_like(hidden[..., :1], dtype=torch.float32)
        u_hat = u_hat.detach()
        return (hidden.float() * u_hat).sum(-1, keepdim=True) / u_hat.square().sum(-1, keepdim=True)

    def binarized(self, hidden: Tensor, known: Known | None = None) -> tuple[Tensor, Tensor]:
        """Return h_hat (..., D) and the signs ±1 of hidden (..., D)."""
        u_hat, signs = self.binarizer(hidden, known)
        return (u_hat * self.fit(hidden, u_hat)).to(hidden.dtype), signs

    def keep(self, hidden: Tensor, known: Known) -> tuple[Tensor, Tensor]:
        """Return what a store keeps of hidden (M, D): signs as booleans (M, bits), and scalars (M,), float32."""
        u_hat, signs = self.binarizer.keep(hidden, known)
        return signs, self.fit(hidden, u_hat)[:, 0]

    def normalised(self, hidden: Tensor) -> Tensor:
        """Return u, what signs are taken of: the layer's output itself, which a LayerNorm has just left."""
        return hidden

    def tables(self) -> list[tuple[Tensor, Tensor, bool]]:
        """Return mean and magnitude (D,) of the one stream that `join` takes, and that it is scaled."""
        return [(self.binarizer.mean, self.binarizer.magnitude, True)]

    def streams(self, u_hat: Tensor, scale: Tensor) -> list[Tensor]:
        """Return the one stream that `join` takes, of u_hat (M, D) and scalars (M,)."""
        return [u_hat * scale[:, None]]

    @property
    def embedding(self) -> Tensor:
        """Embeddings of the tokens, (V, D)."""
        return self.bert.embedding.weight

    @property
    def width(self) -> int:
        """D."""
        return self.bert.config.hidden_size

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.bert.config.vocab_size

    @property
    def pad_token_id(self) -> int:
        """Id that fills rows up."""
        return self.bert.config.pad_token_id

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.bert.dtype

    def identity(self) -> tuple[list[tuple[str, Tensor]], str]:
        """Return all that kept bits and scalars depend on: tensors (embeddings, layers 1..k, calibration) and shape."""
        bert, config = self.bert, self.config
        lower = enumerate(bert.below(config.k))
        tensors = [(f"{i}.{name}", p.bfloat16()) for i, part in lower for name, p in part.named_parameters()]
        tensors += [(name, p.bfloat16()) for name, p in self.binarizer.named_parameters()]
        facts = f"{bert.config} {config.k} {config.calibration} {self.binarizer.bits} {config.max_question_tokens}"
        facts += f" {config.unread}" if config.unread else ""
        return tensors, facts

    def embed(self, ids: Tensor, passage: Tensor, question_lengths: Tensor) -> Tensor:
        """Embed rows (R, T): the question from position 0, the passage (bool (R, T)) from the fixed offset."""
        index = torch.arange(ids.shape[1], device=ids.device)[None]
        shift = self.config.max_question_tokens - question_lengths[:, None]
        positions = index + shift * passage
        positions = positions.clamp(max=self.bert.config.room - 1)  # of padding
        return self.bert.embed(ids, positions, passage.long())

    def rows(self, ids: Tensor, lengths: Tensor, question_lengths: Tensor, mode: Mode) -> Rows:
        """Encode rows ids (R, T), lengths (R,), the first question_lengths (R,) tokens of each being the question."""
        k = self.config.k
        index = torch.arange(ids.shape[1], device=ids.device)[None]
        mask = index < lengths[:, None]
        passage = index >= question_lengths[:, None]
        hidden = self.embed(ids, passage, question_lengths)
        if mode == "full":
            apart = self.bert(hidden, mask[:, None], 0, k)
        else:
            apart = self.bert(hidden, mask[:, None] & (passage[:, None] == passage[:, :, None]), 0, k)
        joined, signs = apart, None
        if mode == "binary":
            h_hat, signs = self.binarized(apart, Known.of_rows(ids, passage & mask, self.embedding))
            joined = torch.where(passage[..., None], h_hat, apart)
        if mode == "full" or not self.config.unread:
            memory = self.ended(self.bert(joined, mask[:, None], k), ids, passage & mask)
            return Rows(memory, joined, apart, signs)
        read = mask & ~(passage & self.unread[ids])
        return Rows(self.ended(self.join_some(joined, read), ids, passage & read), joined, apart, signs, read)

    def ended(self, states: Tensor, ids: Tensor, passage: Tensor) -> Tensor:
        """Make memory of the last states of rows (R, T, D), whose tokens ids are a passage's where `passage` is."""
        return states

    def join_some(self, hidden: Tensor, read: Tensor) -> Tensor:
        """Run layers k+1..n on some tokens of rows (R, T, D), bool (R, T): memory (R, T, D), 0 for the others."""
        lengths = read.sum(1)
        places = (
            (~read).long().argsort(dim=1, stable=True)[:, : int(lengths.max()), None].expand(-1, -1, hidden.shape[2])
        )
        mask = torch.arange(places.shape[1], device=hidden.device)[None] < lengths[:, None]
        memory = self.bert(hidden.gather(1, places), mask[:, None], self.config.k)
        return torch.zeros_like(hidden, dtype=memory.dtype).scatter(1, places, memory * mask[..., None])

    def full(self, ids: Tensor, lengths: Tensor, question_lengths: Tensor) -> Tensor:
        """Encode rows (R, T), question and passage together, to memory (R, T, D)."""
        index = torch.arange(ids.shape[1], device=ids.device)[None]
        hidden = self.embed(ids, index >= question_lengths[:, None], question_lengths)
        return self.bert(hidden, unpadded(lengths, ids.shape[1]))

    def lower(self, ids: Tensor, lengths: Tensor, passage: bool = False) -> Tensor:
        """Run layers 1..k on questions or passages alone: ids (R, T) -> (R, T, D)."""
        index = torch.arange(ids.shape[1], device=ids.device)[None]
        offset = self.config.max_question_tokens if passage else 0
        hidden = self.bert.embed(ids, index + offset, torch.full_like(index, int(passage)))
        return self.bert(hidden, unpadded(lengths, ids.shape[1]), 0, self.config.k)

    def join(self, hidden: Tensor, lengths: Tensor, normed: Tensor | None = None) -> Tensor:
        """Run layers k+1..n on rows (R, T, D), question before passage without a gap, to memory (R, T, D).

        normed is what `FiD.join` needs; here there is no other stream than hidden.
        """
        return self.bert(hidden, unpadded(lengths, hidden.shape[1]), self.config.k)

    def pruning_features(self, hidden: Tensor, lengths: Tensor, question: int, normed: Tensor | None = None) -> Tensor:
        """Return the `features` of rows as `join` takes them, `question` tokens first, (R, D + 1) float32.

        Of layer k+1 the question's own tokens are followed.
        """
        mask = self.bert.scores(unpadded(lengths, hidden.shape[1]), hidden.shape[1])
        asked = self.bert.layers[self.config.k](hidden, mask, question)
        return features(asked, hidden, lengths)


def unpadded(lengths: Tensor, T: int) -> Tensor | None:
    """Return the mask (R, 1, T) of rows of these lengths (R,); None if no row is shorter: attention is faster then."""
    return (
        None
        if bool((lengths == T).all())
        else (torch.arange(T, device=lengths.device)[None] < lengths[:, None])[:, None]
    )
