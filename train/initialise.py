"""Weights to start from when there is no checkpoint.

T5's own scales (Raffel et al. 2020), with one change that short training from scratch lives on: half of the heads begin with
query = key and output = valueᵀ, so that a token looks at tokens like itself and copies them (after "mimetic initialization",
Trockman & Kolter 2023, arXiv 2305.09828). Finding the question's words in a passage, and copying an answer, is there from step 0.
"""

import torch

from btr.t5 import T5, Attention, FeedForward


@torch.no_grad()
def initialise(model: T5, seed: int, mimetic: bool = True) -> None:
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
            if mimetic:
                half = config.num_heads // 2 * config.d_kv
                module.q.weight[:half] = module.k.weight[:half] * config.d_kv**-0.5
                module.o.weight[:, :half] = module.v.weight[:half].T
