"""LEAF (Vujanic and Rueckstiess 2025, arXiv 2509.12539): distil an encoder of texts into a smaller one.

The student's vectors, through a linear layer into the teacher's space, are to lie where the teacher's do, by squared
error, for questions and passages alike; no judgement of relevance is needed. Its questions can then be compared with
the teacher's passages (asymmetric) or with its own (symmetric).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from btr.errors import InputError
from btr.retrieve.dense.encoder import Embedder, Encoder
from btr.train.alignment import KINDS, Text

FITTED = 4096  # texts that the linear layer is fitted to
RIDGE = 1e-3


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return |student - teacher|^2 of each text, from vectors (B, D)."""
    return (student - teacher).square().sum(1)


def with_projection(student: Embedder, teacher: Embedder) -> Embedder:
    """Give a student a linear layer into the teacher's space where it has none; its vectors as long as the teacher's.

    The layer starts as the identity where the widths are equal, else random and orthogonal (`fit_projection`).

    Raises:
        InputError: the student ends in a linear layer of another width.
    """
    width, dimension = student.dimension, teacher.dimension
    student.recipe = replace(student.recipe, normalise=teacher.recipe.normalise)
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


def fit_projection(student: Encoder, texts: Sequence[Text], targets: NDArray[np.float32]) -> None:
    """Let training start from the linear layer that fits the teacher's vectors (N, D) of texts best, by least squares.

    From a random one the first hundreds of steps go into what is solved here at once.
    """
    layer, model = student.model.projection, student.model
    if layer is None:
        return
    bare = Embedder(model.bert, replace(model.recipe, normalise=False))
    vectors = np.empty((len(texts), bare.dimension))
    for kind in KINDS:
        places = [place for place, text in enumerate(texts) if text.kind == kind]
        read = Encoder(bare, student.tokenizer, student.name, "bare").embed([texts[i].text for i in places], kind)
        vectors[places] = read
    ridge = RIDGE * np.square(vectors).mean() * len(texts) * np.eye(bare.dimension)
    mean, target = vectors.mean(0), targets.mean(0, dtype=np.float64)
    centred = vectors - mean
    weight = np.linalg.solve(centred.T @ centred + ridge, centred.T @ (targets - target)).T
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(target - weight @ mean))
