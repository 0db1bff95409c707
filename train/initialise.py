"""Weights to start from when there is no checkpoint.

T5's own scales (Raffel et al. 2020), and on top of them, in some heads, the three circuits that reading needs and that
short training from scratch is slow to find (after "mimetic initialization", Trockman & Kolter 2023, arXiv 2305.09828,
and the induction heads of Olsson et al. 2022, arXiv 2209.11895):

- matching: query = key and no look at itself, so that a token finds tokens like it elsewhere; half of these copy what
  they find;
- contexts: a token finds tokens that have the same neighbour ("who invented" finds "Bell invented");
- induction: an encoder head looks at the previous token, a decoder head looks for the place whose previous token is the
  one just written, and copies what stands there. The next head does the same with the next token, for reading backward.

Training may unlearn all of it.
"""

import torch

from btr.model.t5 import T5, Attention, FeedForward

SELF, NEAR = 0, 1  # buckets of the distances 0 and -1; that of +1 is NEAR in the second half of a bidirectional table
PREFER = 8.0  # logits towards the neighbour in heads that look at it
AVOID = -4.0  # logits away from itself in heads that match


@torch.no_grad()
def initialise(model: T5, seed: int, circuits: bool = True) -> None:
    """Fill all weights in place, deterministically in seed."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config

    def normal(weight: torch.Tensor, deviation: float) -> None:
        weight.normal_(0.0, deviation, generator=generator)

    normal(model.embedding.weight, 1.0)
    if not config.tied_head:
        normal(model.head.weight, config.d_model**-0.5)
    for stack in (model.encoder, model.decoder):
        normal(stack.position_bias.table.weight, 0.1)
    for module in model.modules():
        if isinstance(module, FeedForward):
            for linear in (module.wi, module.gate, module.wo):
                if linear is not None:
                    normal(linear.weight, linear.in_features**-0.5)
        if isinstance(module, Attention):
            normal(module.q.weight, (config.d_model * config.d_kv) ** -0.5)
            for linear in (module.k, module.v, module.o):
                normal(linear.weight, linear.in_features**-0.5)
    if circuits and config.num_heads >= 4:
        build_circuits(model)


def build_circuits(model: T5) -> None:
    """Give the first half of all heads to matching, two to the neighbours and to induction, two more to contexts."""
    config, half = model.config, model.config.num_heads // 2
    table = model.encoder.position_bias.table.weight
    table[SELF, :half] = AVOID
    table[NEAR, half] = table[len(table) // 2 + NEAR, half + 1] = PREFER
    first = model.encoder.layers[0].attention
    for number, encoding in enumerate(model.encoder.layers):
        match(encoding.attention, config.d_kv, half, copying=half // 2)
        if number and config.num_heads >= half + 4:
            table[SELF, half + 2 : half + 4] = AVOID
            for head in (half, half + 1):
                match_context(encoding.attention, head + 2, first, head, config.d_kv)
    for decoding in model.decoder.layers:
        match(decoding.attention, config.d_kv, half, copying=half // 2)
        match(decoding.cross, config.d_kv, half, copying=half)
        for head in (half, half + 1):
            induce(decoding.cross, first, rows(head, config.d_kv))


def rows(head: int, width: int) -> slice:
    """Return the rows of a head in a projection."""
    return slice(head * width, (head + 1) * width)


def match(attention: Attention, width: int, heads: int, copying: int) -> None:
    """Make the first `heads` heads look at tokens like the asking one, and the first `copying` of them copy those."""
    asking, copied = heads * width, copying * width
    attention.q.weight[:asking] = attention.k.weight[:asking] * width**-0.5
    attention.o.weight[:, :copied] = attention.v.weight[:copied].T


def match_context(attention: Attention, head: int, first: Attention, neighbour: int, width: int) -> None:
    """Make a head look for tokens with a neighbour like its own, as head `neighbour` of layer 1 wrote it, and copy."""
    at = rows(head, width)
    attention.k.weight[at] = first.o.weight[:, rows(neighbour, width)].T
    attention.q.weight[at] = attention.k.weight[at] * width**-0.5
    attention.o.weight[:, at] = attention.v.weight[at].T


def induce(cross: Attention, first: Attention, at: slice) -> None:
    """Make the head of rows `at` look where that head of encoder layer 1 wrote the asking token, and copy."""
    cross.q.weight[at] = first.v.weight[at] * 0.5
    cross.k.weight[at] = first.o.weight[:, at].T
    cross.o.weight[:, at] = cross.v.weight[at].T
