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
    ids, begins = (torch.from_numpy(part.astype(np.int64)).to(model.embedding.device) for part in (tokens, offsets))
    return Known.of_passages(ids, begins, model.embedding)


def read_later(model: Model, tokens: np.ndarray) -> np.ndarray:
    """Return which passage tokens (M,) layers k+1..n read: bool (M,)."""
    unread = np.zeros(model.vocab_size, bool)
    unread[list(model.config.unread)] = True
    return ~unread[tokens]


def rebuilt(model: Model, encoded: Encoded, read: np.ndarray) -> list[Tensor]:
    """Return the streams that `join` takes of the tokens that are read, bool (M,), in the precision of the weights.

    Float states are the first, and all.
    """
    dtype, device, places = model.dtype, model.embedding.device, np.flatnonzero(read)
    if encoded.states is not None:
        return [torch.from_numpy(encoded.states[places]).to(device, dtype)]
    if encoded.packed is None:
        raise ValueError("the passages have neither bits nor states; encode them in mode 'binary' or 'float'")
    packed, scale = encoded.packed[places], torch.from_numpy(encoded.scale[places].astype(np.float32)).to(device)
    expand = with_kernels if device.type == "cpu" else with_torch
    if model.config.calibration != "predictive":
        tables = [(mean.float(), magnitude.float(), scaled) for mean, magnitude, scaled in model.tables()]
        return [expand(packed, mean, magnitude, scale if scaled else None, dtype) for mean, magnitude, scaled in tables]
    zero = torch.zeros(encoded.D, device=device)
    signs = expand(packed, zero, zero + 1, None, dtype)
    expected = model.binarizer.expected(known(model, encoded.token_ids, encoded.offsets[:-1]))
    u_hat = model.binarizer.rebuild(signs, expected=expected[torch.from_numpy(places).to(device)])
    return [stream.to(dtype) for stream in model.streams(u_hat, scale)]


def with_kernels(
    packed: np.ndarray, mean: Tensor, magnitude: Tensor, scale: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Expand words (M, W) to values (M, D), by kernels of the CPU; mean, magnitude (D,) and scale (M,) are float32."""
    bf16, scales = dtype == torch.bfloat16, None if scale is None else scale.numpy()
    values = kernels.expand(packed, len(mean), mean.numpy(), magnitude.numpy(), scales, bf16=bf16)
    return torch.from_numpy(values).view(torch.bfloat16) if bf16 else torch.from_numpy(values)


def with_torch(packed: np.ndarray, mean: Tensor, magnitude: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Do the same, to the bit, on the device of the other tensors: bits go there, and are expanded there."""
    octets = torch.from_numpy(packed.astype("<u8", copy=False).view(np.uint8)).to(mean.device)
    places = torch.arange(8, dtype=torch.uint8, device=mean.device)
    bits = ((octets[..., None] >> places) & 1).flatten(1)[:, : len(mean)].bool()
    values = torch.where(bits, mean + magnitude, mean - magnitude)
    if scale is not None:
        values *= scale[:, None]
    values = values.to(dtype)
    return values.masked_fill_(values.isnan(), torch.nan)  # whatever its origin, one NaN
