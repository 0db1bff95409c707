"""Files of a reader's folder: where it is, its JSON, its tensors."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from btr.errors import POINTER, InputError, check_fetched

WANTED = ["*.json", "*.safetensors", "*.bin", "spiece.model", "vocab.txt"]
# in the order of transformers: a file that save_pretrained has just written comes before the shards of an older one
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def resolve(path_or_id: str) -> Path:
    """Return the folder of a reader, downloading a hub id's files if it is not a folder.

    Raises:
        InputError: neither a folder with config.json nor a hub id that can be had.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise InputError(
                f"{folder}: no config.json, so this is not a reader; "
                "pass a folder written by save_pretrained, or a hub id"
            )
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path_or_id):
        raise InputError(f"{path_or_id}: no such folder, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download  # only when a hub is asked for

    try:
        return Path(snapshot_download(path_or_id, allow_patterns=WANTED))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path_or_id}: no such folder, and the hub gave nothing ({first_line(error)}); "
            "check the name or the network"
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error of another package says, or its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; InputError names the file."""
    refuse_pointer(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); fetch or write the reader again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {type(value).__name__}, expected an object; fetch or write the reader again")
    return value


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint: safetensors (sharded or not), else a PyTorch file without code in it.

    Raises:
        InputError: no weights, or damaged ones.
    """
    path = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if path is None:
        raise InputError(f"{folder}: no model.safetensors or pytorch_model.bin; copy the weights next to config.json")
    if path.suffix != ".json":
        return read_weights(path)
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{path}: has no weight_map, so it names no weights; copy the file again")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(names.values())):
        tensors |= read_weights(folder / name)
    return tensors


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read one file of tensors; InputError names the file."""
    if not path.exists():
        raise InputError(f"{path}: no such file; copy it next to config.json")
    refuse_pointer(path)
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # safetensors, zip and pickle fail in many ways
        raise InputError(f"{path}: damaged weights ({first_line(error)}); copy the file again") from error
    if wrong := [name for name, tensor in found.items() if not is_finite(tensor)]:
        raise InputError(
            f"{path}: {len(wrong)} tensors hold infinities or NaN ({wrong[0]}); copy the file again, or take a "
            "checkpoint from before the training failed"
        )
    return found


def is_finite(tensor: Tensor) -> bool:
    """Tell whether all of a tensor's values are; by its sum, which is quick, and by each where that is not finite."""
    if not tensor.is_floating_point() or bool(tensor.sum(dtype=torch.float32).isfinite()):
        return True
    return bool(tensor.isfinite().all())


def refuse_pointer(path: Path) -> None:
    """Raise InputError for what Git LFS leaves in place of a file that was not fetched."""
    if path.is_file():
        with path.open("rb") as file:
            check_fetched(str(path), file.read(len(POINTER)))
