"""Merge tokens that say nearly the same while a question is read: rows and memory get shorter from layer to layer.

Bipartite soft matching (Bolya et al. 2023, arXiv 2210.09461, §3; BTR §3.3, arXiv 2310.01329): the mergeable tokens of a
row are dealt in turn to two sets, each token of the first looks for the most similar one of the second, and the best of
these pairs are merged. A merged token is the mean of its parts weighted by their sizes; it has the sum of their sizes,
the position of its largest part, and stands where the token of the second set stood. Nothing here is learned.

Shapes: R rows, T tokens, T0 tokens before any was merged, D width, B questions, N passages, M tokens of N passages
end to end, P merged pairs, W words of bits a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from btr import kernels
from btr.errors import InputError

__all__ = ["MergedBits", "Preset", "Schedule", "Tokens", "concatenate", "merge", "merge_bits", "preset", "shrink"]

Preset = Literal["none", "every", "algorithm"]
LARGEST = 0.5  # of the mergeable tokens: one of the two sets
BLOCK = 2**24  # similarities held at a time
LATEST = 2**32 - 1  # positions lie below


def check_ratio(ratio: float) -> None:
    """Refuse a ratio that no merge can reach.

    Raises:
        InputError: below 0 or above 0.5.
    """
    if not 0 <= ratio <= LARGEST:
        raise InputError(
            f"the merge ratio is {ratio}, a layer can merge 0 to {LARGEST} of its tokens; choose one there"
        )


def preset(name: Preset, layers: int, ratio: float, g: int = 3) -> tuple[float, ...]:
    """Return a ratio per layer: the readings of BTR's runtime compression, whose text and algorithm differ.

    'every' merges in every g-th layer (the text), 'algorithm' in all but those (Algorithm 2), 'none' in none.

    Raises:
        InputError: another name, a ratio out of 0 to 0.5, or g below 1.
    """
    if name not in ("none", "every", "algorithm"):
        raise InputError(f"the merge schedule is {name!r}; use 'none', 'every' or 'algorithm'")
    if g < 1:
        raise InputError(f"g is {g}; merge every 1 or more layers")
    check_ratio(ratio)
    merging = {"none": (), "every": range(g, layers + 1, g), "algorithm": [n for n in range(1, layers + 1) if n % g]}
    return tuple(ratio if n in merging[name] else 0.0 for n in range(1, layers + 1))


@dataclass(frozen=True)
class Schedule:
    """How much is merged where, as shares of the mergeable tokens, 0 to 0.5.

    encoder: in each joint layer k+1..n, within rows, between its attention and its feed-forward.
    decoder: across passages, of the memory that each decoder layer (and all after it) looks at.
    bits: within passages, on their bits, before layer k+1.
    proportional: whether attention adds log(size) to a key, so that a token counts as often as it did unmerged.
    """

    encoder: tuple[float, ...]
    decoder: tuple[float, ...]
    bits: float = 0.0
    proportional: bool = True

    def __post_init__(self) -> None:
        for ratio in (*self.encoder, *self.decoder, self.bits):
            check_ratio(ratio)

    @classmethod
    def preset(cls, name: Preset, joint: int, decoder: int, ratio: float = 0.2, g: int = 3) -> "Schedule":
        """Build from a preset for both stacks: n - k joint encoder layers and `decoder` decoder layers."""
        return cls(preset(name, joint, ratio, g), preset(name, decoder, ratio, g))

    @property
    def merges(self) -> bool:
        """Whether anything is merged at all."""
        return any((*self.encoder, *self.decoder, self.bits))


@dataclass(frozen=True, eq=False)
class Tokens:
    """Rows of tokens that may each stand for several.

    hidden (R, T, D).
    sizes int64 (R, T): how many tokens of the row each stands for; 0 is padding, which follows the last token.
    positions int64 (R or 1, T): the index that each had in the row, or its largest part had; below 2^32.
    mergeable bool (R, T): false for question tokens and padding.
    owner int64 (R, T0): which of the T tokens each token of the original row is now in; -1 is padding.
    passage int64 (R, T) or None: which passage each stands in, those of a passage being adjacent; None: one alone.
    """

    hidden: Tensor
    sizes: Tensor
    positions: Tensor
    mergeable: Tensor
    owner: Tensor
    passage: Tensor | None = None

    @classmethod
    def of(cls, hidden: Tensor, lengths: Tensor, question: Tensor | int) -> "Tokens":
        """Wrap unmerged rows (R, T, D) of lengths (R,), whose first `question` tokens, one number or (R,), stay."""
        index = torch.arange(hidden.shape[1], device=hidden.device)[None]
        mask = index < lengths[:, None]
        first = torch.as_tensor(question, device=hidden.device).reshape(-1, 1)
        return cls(hidden, mask.long(), index, mask & (index >= first), torch.where(mask, index, -1))

    @property
    def mask(self) -> Tensor:
        """True (R, T) where there is a token."""
        return self.sizes > 0

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row, int64 (R,)."""
        return self.mask.sum(1)

    @property
    def merged(self) -> bool:
        """Whether any token stands for several."""
        return bool((self.sizes > 1).any())

    def to(self, device: torch.device) -> "Tokens":
        """Return them on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return Tokens(**moved)

    def spread(self, shares: Tensor) -> Tensor:
        """Divide what tokens have, (R, T), evenly among the original tokens in them, (R, T0); padding gets 0."""
        each = (shares / self.sizes.clamp(min=1)).gather(1, self.owner.clamp(min=0))
        return each.masked_fill(self.owner < 0, 0.0)


def columns(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Gather the true places of bool (R, T), in order and without gaps, as K columns.

    Returns where they lie among the R*T places, int64 (R, K), and which of the columns are filled, bool (R, K); the
    others point at the first place of their row.
    """
    R, T = mask.shape
    counts = mask.sum(1)
    K = int(counts.max()) if R else 0
    index = torch.arange(T, device=mask.device).expand(R, T)
    found = index.new_zeros(R, K + 1).scatter_(1, torch.where(mask, mask.cumsum(1) - 1, K), index)[:, :K]
    filled = torch.arange(K, device=mask.device)[None] < counts[:, None]
    starts = torch.arange(R, device=mask.device)[:, None] * T
    return torch.where(filled, found, 0) + starts, filled


def deal(mergeable: Tensor, passage: Tensor | None) -> tuple[Tensor, Tensor]:
    """Deal the mergeable tokens (R, T) in turn to two sets, bool (R, T), beginning anew with every passage.

    So the sets, and what is merged, do not depend on the order of the passages.
    """
    before = mergeable.cumsum(1) - mergeable.long()
    if passage is not None:
        begins = torch.ones_like(mergeable)
        begins[:, 1:] = passage[:, 1:] != passage[:, :-1]
        before = before - torch.where(begins, before, 0).cummax(1).values
    even = mergeable & (before % 2 == 0)
    return even, mergeable & ~even


def length(vectors: Tensor) -> Tensor:
    """Return the Euclidean length of vectors (..., D) as (..., 1), summed in float32 at least; never 0."""
    wide = torch.promote_types(vectors.dtype, torch.float32)
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=wide).clamp(min=1e-12)


def most_similar(asking: Tensor, offered: Tensor, filled: Tensor) -> tuple[Tensor, Tensor]:
    """Find for each of `asking` (R, E, D) the nearest of `offered` (R, O, D), where filled (R, O), by the cosine.

    Returns the cosine and the index, (R, E) each. Products are of the vectors' dtype: in bfloat16, cosines that agree
    to 8 bits are equal, and the first of equals is taken.
    """
    offered = (offered / length(offered).to(offered.dtype)).transpose(1, 2)
    step = max(1, BLOCK // max(1, offered.shape[0] * offered.shape[2]))
    found = []
    for part in asking.split(step, 1):
        scores = part @ offered
        if not filled.all():
            scores.masked_fill_(~filled[:, None], float("-inf"))
        found.append(scores.max(-1))
    scores, index = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return scores / length(asking).squeeze(-1), index


def best(scores: Tensor, counts: Tensor) -> Tensor:
    """Choose the counts (R,) largest scores (R, E) of each row, never -inf, the first of equals: bool (R, E)."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device)[None].expand_as(order)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, places < counts[:, None])
    return chosen & (scores > float("-inf"))


@torch.no_grad()
def match(tokens: Tokens, ratio: float, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Choose the pairs to merge: which tokens go into which, int64 (P,) each, counted over all R*T places."""
    even, odd = deal(tokens.mergeable, tokens.passage)
    (source, asking), (target, offered) = columns(even), columns(odd)
    if not target.shape[1]:
        return source.new_empty(0), source.new_empty(0)
    flat = tokens.hidden.reshape(-1, tokens.hidden.shape[-1])
    ours, theirs = (flat.index_select(0, at.flatten()).view(*at.shape, flat.shape[1]) for at in (source, target))
    if weight is not None:
        ours, theirs = ours * weight, theirs * weight
    scores, index = most_similar(ours, theirs, offered)
    # 0.29 * 100 is a little less than 29 in binary
    counts = (tokens.mergeable.sum(1).double() * ratio + 1e-9).long()
    chosen = best(scores.masked_fill(~asking, float("-inf")), counts)
    return source[chosen], target.gather(1, index)[chosen]


def average(values: Tensor, sizes: Tensor, kept: Tensor, source: Tensor, place: Tensor) -> Tensor:
    """Take the rows `kept` (n',) of values (n, D), and average the rows `source` (P,) into the taken ones `place` (P,).

    Means are weighted by sizes (n,). Sums are taken in float32 at least, and of the merged tokens alone.
    """
    out = values.index_select(0, kept)
    into, group = place.unique(return_inverse=True)
    wide = torch.promote_types(values.dtype, torch.float32)

    def weighted(at: Tensor) -> Tensor:
        return values.index_select(0, at).to(wide) * sizes[at, None]

    total = sizes[kept[into]].index_add_(0, group, sizes[source])
    mean = weighted(kept[into]).index_add_(0, group, weighted(source)) / total[:, None]
    return out.index_copy_(0, into, mean.to(values.dtype))


def largest_position(positions: Tensor, sizes: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Give each target the position of its largest part, the earliest of equals; all four flat, int64."""
    key = (sizes << 32) | (LATEST - positions)
    return LATEST - (key.scatter_reduce(0, target, key[source], "amax") & LATEST)


def merge(tokens: Tokens, ratio: float, weight: Tensor | None = None) -> Tokens:
    """Merge floor(ratio * count) of the mergeable tokens of each row into others; ratio 0 returns `tokens` itself.

    Similar is what has a large cosine between hidden states, channel by channel times weight (D,) if given: a norm's,
    so that states are compared as the network reads them. Rows may have different counts: the result has no gaps and
    is as wide as its longest row.

    Raises:
        InputError: a ratio below 0 or above 0.5.
    """
    check_ratio(ratio)
    if not ratio:
        return tokens
    source, target = match(tokens, ratio, weight)
    return combine(tokens, source, target)


def combine(tokens: Tokens, source: Tensor, target: Tensor) -> Tokens:
    """Merge tokens `source` into tokens `target`, (P,) each, counted over all R*T places; none is in both."""
    R, T = tokens.sizes.shape
    keep = tokens.mask
    keep.view(-1)[source] = False
    column = keep.cumsum(1) - 1
    column.view(-1)[source] = column.view(-1)[target]
    kept, filled = columns(keep)
    sizes, positions = tokens.sizes.flatten(), tokens.positions.expand(R, T).flatten()
    place = target // T * kept.shape[1] + column.view(-1)[target]
    D = tokens.hidden.shape[2]
    hidden = average(tokens.hidden.reshape(R * T, D), sizes, kept.flatten(), source, place)
    owner = column.gather(1, tokens.owner.clamp(min=0))
    return Tokens(
        hidden=hidden.view(*kept.shape, D),
        sizes=sizes.index_add(0, target, sizes[source])[kept] * filled,
        positions=largest_position(positions, sizes, source, target)[kept],
        mergeable=tokens.mergeable.flatten()[kept] & filled,
        owner=torch.where(tokens.owner < 0, -1, owner),
        passage=None if tokens.passage is None else tokens.passage.flatten()[kept],
    )


def shrink(memory: Tokens, ratios: Sequence[float]) -> list[Tokens]:
    """Return what each decoder layer looks at: its ratio of what the layer before looked at is merged first.

    It does not depend on the answer, so it is done once a question. Layers that merge nothing share a memory.
    """
    levels = []
    for ratio in ratios:
        memory = merge(memory, ratio)
        levels.append(memory)
    return levels


def concatenate(parts: Sequence[Tokens], rows: Sequence[Sequence[int]], counts: Sequence[int]) -> Tokens:
    """Lay the rows of B questions end to end: the memory of each, as Tokens (B, M, D).

    parts: batches of rows; rows: the number of each of their rows, counted over all questions, those of a question
    being adjacent; counts (B,): how many rows each question has. `owner` is then about the original rows end to end.
    """
    B, most, device = len(counts), max(counts), parts[0].hidden.device
    slots = torch.tensor([b * most + n for b, count in enumerate(counts) for n in range(count)], device=device)

    def stack(values: Sequence[Tensor], fill: int) -> Tensor:
        width = max(value.shape[1] for value in values)
        out = values[0].new_full((B * most, width, *values[0].shape[2:]), fill)
        for value, batch in zip(values, rows, strict=True):
            out[slots[list(batch)], : value.shape[1]] = value
        return out

    def joined(values: Sequence[Tensor]) -> Tensor:
        return stack(values, 0).view(B, -1, *values[0].shape[2:])

    sizes, owner = joined([part.sizes for part in parts]), stack([part.owner for part in parts], -1)
    number, T = torch.arange(most, device=device), sizes.shape[1] // most
    owner = torch.where(owner < 0, -1, owner + T * number.repeat(B)[:, None]).view(B, -1)
    kept, filled = columns(owner >= 0)
    memory = Tokens(
        hidden=joined([part.hidden for part in parts]),
        sizes=sizes,
        positions=joined([part.positions.expand_as(part.sizes) for part in parts]),
        mergeable=joined([part.mergeable for part in parts]),
        owner=torch.where(filled, owner.flatten()[kept], -1),
        passage=number.repeat_interleave(T).expand(B, -1),
    )
    nothing = slots.new_empty(0)
    return combine(memory, nothing, nothing)  # closes the gaps


@dataclass(frozen=True, eq=False)
class MergedBits:
    """Which of M tokens, those of N passages end to end, are averaged into M' once they are expanded.

    passages: their sizes, positions and owners, as Tokens without hidden states, (N, T, 0).
    kept int64 (M',): the tokens that stay; source, place (P,): those that go, and into which of the kept.
    """

    passages: Tokens
    kept: Tensor
    source: Tensor
    place: Tensor

    @property
    def lengths(self) -> list[int]:
        """Tokens of each passage after merging."""
        return self.passages.lengths.tolist()

    def to(self, device: torch.device) -> "MergedBits":
        """Return them on a device."""
        return MergedBits(self.passages.to(device), *(part.to(device) for part in (self.kept, self.source, self.place)))

    def average(self, values: Tensor) -> Tensor:
        """Average expanded vectors (M, D) to (M', D)."""
        ones = torch.ones(len(values), dtype=torch.long, device=values.device)
        return average(values, ones, self.kept, self.source, self.place)

    def rows(self, hidden: Tensor, passages: Sequence[int], question: int) -> Tokens:
        """Wrap rows (R, T, D): a question of that many tokens, then the averaged tokens of one of the passages."""
        chosen, T = torch.tensor(passages, device=hidden.device), hidden.shape[1] - question
        asked = torch.arange(question, device=hidden.device).expand(len(chosen), -1)
        sizes, owner = self.passages.sizes[chosen, :T], self.passages.owner[chosen]
        return Tokens(
            hidden,
            sizes=torch.cat([torch.ones_like(asked), sizes], 1),
            positions=torch.cat([asked, self.passages.positions[chosen, :T] + question], 1),
            mergeable=torch.cat([asked < 0, sizes > 0], 1),
            owner=torch.cat([asked, torch.where(owner < 0, -1, owner + question)], 1),
        )


def merge_bits(packed: np.ndarray, lengths: Sequence[int], ratio: float) -> MergedBits:
    """Choose which tokens of each passage to merge by their bits alone: most similar is the least Hamming distance.

    packed uint64 (M, W): the tokens of passages of `lengths` (N,), end to end. It is what `merge` would do with signs
    ±1, but for the order of equals, and does not depend on the question.

    Raises:
        InputError: a ratio below 0 or above 0.5.
    """
    check_ratio(ratio)
    ends = np.cumsum(lengths, dtype=np.int64)
    pairs = [np.empty((2, 0), np.int64)]
    for start, stop in zip(ends - lengths, ends, strict=True):
        count = int(ratio * (stop - start) + 1e-9)
        if count:
            index, distance = kernels.nearest(packed[start:stop:2], packed[start + 1 : stop : 2])
            source = distance.argsort(kind="stable")[:count]
            pairs.append(start + np.stack([2 * source, 2 * index[source] + 1]))
    source, target = torch.from_numpy(np.concatenate(pairs, 1))
    kept = torch.ones(len(packed), dtype=torch.bool).index_fill_(0, source, False).nonzero().squeeze(1)
    number, T = torch.repeat_interleave(torch.tensor(lengths)), max(lengths)
    shift = number * T - torch.from_numpy(ends - lengths)[number]
    passages = Tokens.of(torch.empty(len(lengths), T, 0), torch.tensor(lengths), 0)
    merged = combine(passages, source + shift[source], target + shift[target])
    return MergedBits(merged, kept, source, torch.searchsorted(kept, target))
