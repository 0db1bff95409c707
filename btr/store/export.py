"""Copy passages out of a store: JSON lines that `btr precompute` reads again, with the bits if they are wanted."""

import base64
import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from btr.command import check_file
from btr.errors import InputError
from btr.storage import Encoded, Store

BATCH = 256  # passages read at a time


def export(store: Store, out: str | None, bits: bool) -> int:
    """Write all passages by ascending ordinal, one JSON object a line; returns their number.

    A line has `id`, `title`, `text`; with `bits` also `token_ids` (uint32), `scale` (float16) and `signs` (ceil(D/8)
    bytes a token, as in the store), little-endian, in base64. A file appears under its name when it is whole.

    Raises:
        InputError: the store keeps no texts, and bits are not wanted.
    """
    if out is None:
        return _write(store, sys.stdout, bits)
    check_file("--out", out)
    temporary = Path(f"{out}.writing")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            count = _write(store, file, bits)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _write(store: Store, file: IO[str], bits: bool) -> int:
    count = 0
    for encoded in _batches(store):
        if not bits and not any(encoded.texts):
            raise InputError(f"store {store.path} keeps no texts; export it with --bits")
        for i in range(len(encoded)):
            row = {"id": encoded.ids[i], "title": encoded.titles[i], "text": encoded.texts[i]}
            file.write(json.dumps(row | (_bits(encoded.select([i])) if bits else {}), ensure_ascii=False) + "\n")
        count += len(encoded)
    return count


def _batches(store: Store) -> Iterator[Encoded]:
    ordinals = store.live()
    while part := list(islice(ordinals, BATCH)):
        yield store.at(part)


def _bits(one: Encoded) -> dict[str, str]:
    """Return the arrays of one passage as text."""
    assert one.packed is not None
    signs = one.packed.astype("<u8").view("u1")[:, : -(-one.D // 8)]
    arrays = {"token_ids": one.token_ids.astype("<u4"), "scale": one.scale.astype("<f2"), "signs": signs}
    return {name: base64.b64encode(array.tobytes()).decode() for name, array in arrays.items()}
