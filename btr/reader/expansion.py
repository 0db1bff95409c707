"""Turn what is kept of passages into the streams that layers k+1..n read.

Shapes: N passages, M tokens of all of them, D width. Of an `Encoded` all tokens are there, read later or not.
"""

import numpy as np
import torch
from torch import Tensor

from btr import kernels
from btr.model.binarize import Known
from btr.model.kinds import Model
from btr.storage.encoded import Encoded


def known(model: Model, tokens: np.ndarray, offsets: np.ndarray) -> Known:
    """Say what is known beside their bits of tokens (M,) of passages that begin at these offsets (N,)."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    return Known.of_passages(ids, torch.from_numpy(offsets.astype(np.int64)), model.embedding)


def read_later(model: Model, tokens: np.ndarray) -> np.ndarray:
    """Return which passage tokens (M,) layers k+1..n read: bool (M,)."""
    unread = np.zeros(model.vocab_size, bool)
    unread[list(model.config.unread)] = True
    return ~unread[tokens]


def rebuilt(model: Model, encoded: Encoded, read: np.ndarray) -> list[Tensor]:
    """Return the streams that `join` takes of the tokens that are read, bool (M,), in the precision of the weights.

    Float states are the first, and all.
    """
    dtype, places = model.dtype, np.flatnonzero(read)
    if encoded.states is not None:
        return [torch.from_numpy(encoded.states[places]).to(dtype)]
    if encoded.packed is None:
        raise ValueError("the passages have neither bits nor states; encode them in mode 'binary' or 'float'")
    bf16, packed, scale = dtype == torch.bfloat16, encoded.packed[places], encoded.scale[places].astype(np.float32)

    def expand(mean: Tensor, magnitude: Tensor, scaled: bool) -> Tensor:
        values = kernels.expand(
            packed, encoded.D, mean.float().numpy(), magnitude.float().numpy(), scale if scaled else None, bf16=bf16
        )
        return torch.from_numpy(values).view(torch.bfloat16) if bf16 else torch.from_numpy(values)

    if model.config.calibration != "predictive":
        return [expand(*table) for table in model.tables()]
    signs = expand(torch.zeros(encoded.D), torch.ones(encoded.D), False)
    expected = model.binarizer.expected(known(model, encoded.token_ids, encoded.offsets[:-1]))
    u_hat = model.binarizer.rebuild(signs, expected=expected[torch.from_numpy(places)])
    return [stream.to(dtype) for stream in model.streams(u_hat, torch.from_numpy(scale))]
