"""KALE (Campos, Magnani and Zhai 2023, arXiv 2304.01016): shorten the encoder of questions, leave the index alone.

Layers are dropped from a copy of the encoder, and the rest is aligned to it on questions alone, by the divergence
between softmaxes over the dimensions of the two vectors:

    loss = t^2 KL(softmax(teacher / t) || softmax(student / t))

The paper's vectors (DPR's) are not normalised. Components of a vector of length 1 are too small for a softmax to tell
apart, so those are multiplied by sqrt(D) first.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from btr.train.alignment import Loss


def divergence(temperature: float, normalised: bool) -> Loss:
    """Return KALE's loss, of each text, between vectors (B, D), normalised or not."""

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        stretch = math.sqrt(student.shape[1]) if normalised else 1.0
        ours, theirs = (F.log_softmax(stretch * x / temperature, dim=1) for x in (student, teacher))
        return temperature**2 * (theirs.exp() * (theirs - ours)).sum(1)

    return loss
