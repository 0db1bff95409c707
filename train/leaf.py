"""LEAF (Vujanic and Rueckstiess 2025, arXiv 2509.12539): distil an encoder of texts into a smaller one.

The student's vectors, through a linear layer into the teacher's space, are to lie where the teacher's do, by squared
error, for questions and passages alike; no judgement of relevance is needed. Its questions can then be compared with
the teacher's passages (asymmetric) or with its own (symmetric).
"""

import torch
from torch import Tensor, nn

from btr.errors import InputError
from btr.retrieve.dense.encoder import Embedder


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return |student - teacher|^2 of each text, from vectors (B, D)."""
    return (student - teacher).square().sum(1)


def with_projection(student: Embedder, teacher: Embedder) -> Embedder:
    """Give a student the teacher's recipe, and a linear layer into its space where it has none.

    The layer starts as the identity where the widths are equal, else random and orthogonal.

    Raises:
        InputError: the student ends in a linear layer of another width.
    """
    width, dimension = student.dimension, teacher.dimension
    student.recipe = teacher.recipe
    if student.projection is not None:
        if width != dimension:
            raise InputError(f"the student's vectors have {width} dimensions, the teacher's {dimension}; use another")
        return student
    layer = nn.Linear(width, dimension)
    nn.init.zeros_(layer.bias)
    if width == dimension:
        nn.init.eye_(layer.weight)
    else:
        nn.init.orthogonal_(layer.weight, generator=torch.Generator().manual_seed(0))
    student.projection = layer
    return student
