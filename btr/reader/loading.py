"""Load what a reader is made of."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from btr.command import INT8
from btr.errors import InputError
from btr.model.bert_fid import BertFiD
from btr.model.checkpoint import load_reader, load_tokenizer
from btr.model.devices import DTYPES, choose_device, choose_dtype
from btr.model.fid import FiD
from btr.model.kinds import Model
from btr.model.weights import resolve
from btr.reader.extractive import Extractive
from btr.reader.generative import BertGenerative, Generative

DEFAULT_READER = Path(__file__).parents[1] / "default_reader"


def load(
    path_or_id: str | Path | None, k: int | None, dtype: str, device: str | torch.device
) -> tuple[Model, Tokenizer]:
    """Load model and tokenizer of a folder or hub id; None is the reader shipped with btr.

    Raises:
        InputError: as `Reader.from_pretrained`.
    """
    place = choose_device(device)
    asked = choose_dtype(dtype, place)
    precision = DTYPES[choose_dtype("auto", place) if asked == INT8 else asked]
    if path_or_id is None and not DEFAULT_READER.is_dir():
        raise InputError("this installation has no default reader; pass a reader folder or a hub id")
    folder = resolve(str(path_or_id if path_or_id is not None else DEFAULT_READER))
    model, tokenizer = load_reader(folder, precision, k), load_tokenizer(folder)
    pieces, rows = tokenizer.get_vocab_size(), model.vocab_size
    if pieces > rows:
        raise InputError(
            f"{folder}: the tokenizer has {pieces} pieces, the model {rows}; copy the one it was made with"
        )
    return model.to(place), tokenizer


def text_of(model: Model, tokenizer: Tokenizer) -> Generative | Extractive:
    """Return how a model takes text in and gives answers out."""
    if isinstance(model, BertFiD):
        return BertGenerative(model, tokenizer)
    return Generative(model, tokenizer) if isinstance(model, FiD) else Extractive(model, tokenizer)
