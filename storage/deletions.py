"""Keep which records of a shard are deleted: a bitmap beside its data, named after its SHA-256 and never changed."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from bitarray import bitarray

from .errors import Corrupt
from .manifest import Shard, sync


def read_deletions(folder: Path, shard: Shard) -> bitarray | None:
    """Read the bitmap of a shard, one bit per record; None if nothing is deleted.

    Raises:
        Corrupt: the file is missing, or not the one that the manifest names.
    """
    if not shard.deleted:
        return None
    file, bits = folder / shard.deletions_file, bitarray(endian="little")
    try:
        content = file.read_bytes() if file.stat().st_size == -(-shard.passages // 8) else b""
    except OSError as error:
        raise Corrupt(f"{file} cannot be read ({error.strerror}); open the store again, or copy it again") from None
    bits.frombytes(content)
    if hashlib.sha256(content).hexdigest() != shard.deletions or bits.count() != shard.deleted:
        raise Corrupt(f"{file} is not the bitmap that the manifest names for shard {shard.name}; copy it again")
    return bits


def delete_records(folder: Path, shard: Shard, tokens: dict[int, int]) -> Shard:
    """Delete records, given by number with their tokens, and return the shard's new entry; the old bitmap stays.

    Raises:
        Corrupt: the old bitmap is damaged.
    """
    bits = read_deletions(folder, shard)
    bits = _empty(shard.passages) if bits is None else bits.copy()
    new = {number: count for number, count in tokens.items() if not bits[number]}
    if not new:
        return shard
    for number in new:
        bits[number] = True
    content = bits.tobytes()
    gone = shard.deleted_tokens + sum(new.values())
    digest = hashlib.sha256(content).hexdigest()
    changed = replace(shard, deleted=shard.deleted + len(new), deleted_tokens=gone, deletions=digest)
    file = folder / changed.deletions_file
    temporary = file.with_name(file.name + ".tmp")
    with open(temporary, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, file)
    sync(folder)
    return changed


def _empty(count: int) -> bitarray:
    bits = bitarray(8 * -(-count // 8), endian="little")
    bits.setall(False)
    return bits


def stale_bitmaps(folder: Path, used: Iterable[Shard]) -> list[Path]:
    """Return the bitmaps in a shard's directory that none of its entries names."""
    names = {shard.deletions_file for shard in used if shard.deleted}
    return [file for file in folder.glob("*.deleted*") if file.name not in names]
