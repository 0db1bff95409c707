"""Feed damaged and crafted bytes to what reads a store: python tests/storage/fuzz.py INPUTS [SEED].

Each input is a sound block or manifest, mutated; half of the blocks get right checksums again, so that the lies behind
them are read too. Whatever it is, it must be read or refused as Corrupt (or as another StoreError), without a large
allocation: the process may map 4 GiB.
"""

import json
import random
import resource
import runpy
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

from btr.storage import StoreError
from btr.storage.codebook import Codebook
from btr.storage.format import build_block, check_block, record_view
from btr.storage.manifest import parse_manifest
from btr.storage.record import decode_records, encode_records, read_record

tests = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
SETTINGS = tests["make_settings"](passages_per_block=4)
PASSAGES = tests["make_encoded"](range(200), tokens=(0, 40))
assert PASSAGES.packed is not None
PASSAGES.packed[::3], PASSAGES.scale[::3] = 0, 0  # of which nothing is written
CODEBOOK = Codebook.learn(PASSAGES, SETTINGS.vocab_size)  # with a dictionary
BLOCK = build_block(encode_records(PASSAGES.select(range(4)), SETTINGS, CODEBOOK), SETTINGS)
NUMBERS = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
VALUES: tuple[Any, ...] = (0, -1, 1, 1 << 31, 1 << 62, 1 << 63, 1e300, True, None, "", "../x", "\ud800", [], [[]], {})


def mutate(data: bytearray, rng: random.Random) -> None:
    """Change some bytes, or some numbers of 32 bits, or the length."""
    for _ in range(rng.randint(1, 4)):
        place, way = rng.randrange(len(data)), rng.random()
        if way < 0.5:
            data[place] ^= 1 << rng.randrange(8)
        elif way < 0.9 and place + 4 <= len(data):
            struct.pack_into("<I", data, place & ~3, rng.choice(NUMBERS))
        elif len(data) > 1:
            del data[max(place, 1) :]


def mend(data: bytearray) -> None:
    """Give a mutated block right checksums wherever its own header lets them be found."""
    if len(data) < 12:
        return
    size = 20 + 4 * struct.unpack_from("<H", data, 6)[0]
    if len(data) < size:
        return
    for place in range(12, size - 8, 4):
        start, end = struct.unpack_from("<II", data, place)
        if size <= start and start + 4 <= end <= len(data):
            struct.pack_into("<I", data, start, zlib.crc32(data[start + 4 : end]))
    struct.pack_into("<I", data, size - 8, len(data))
    struct.pack_into("<I", data, size - 4, zlib.crc32(data[: size - 4]))


def read_block(data: bytes) -> None:
    """Read all records of a block, as a store does."""
    view = memoryview(data)
    for index in range(check_block(view, SETTINGS)):
        record = read_record(record_view(view, index), SETTINGS, CODEBOOK)
        decode_records([record], SETTINGS)


def sound_manifest() -> dict[str, Any]:
    """Return a manifest of two shards, parsed."""
    parts = dict.fromkeys(("signs", "scalars", "token_ids", "text", "ids", "block_headers"), 100)
    shard = {"passages": 9, "tokens": 99, "cut": 0, "duplicates": 0, "part_bytes": parts, "content_hash": "00"}
    shard |= {"data_bytes": 4096, "data_hash": "11", "deleted": 1, "deleted_tokens": 5, "deletions": "ab" * 32}
    shards = [{"name": f"0000{number}-0a1b2c3d", **shard} for number in range(2)]
    more = {"format_version": 2, "generation": 1, "shards": shards, "indexed": 3, "created_by": "btr"}
    return {**SETTINGS.to_json(), **more}


def read_manifest(rng: random.Random) -> None:
    """Change some values of a manifest, or some bytes of its text, and parse it."""
    data = sound_manifest()
    owners = [data, *data["shards"], data["shards"][0]["part_bytes"]]
    for owner in rng.sample(owners, rng.randint(0, 2)):
        owner[rng.choice(list(owner))] = rng.choice(VALUES)
    text = bytearray(json.dumps(data).encode())
    if rng.random() < 0.5:
        mutate(text, rng)
    try:
        parsed = json.loads(bytes(text))
    except (ValueError, RecursionError):
        return  # what read_json makes Corrupt of
    manifest = parse_manifest(Path("store"), parsed)
    assert manifest.passages >= 0 and manifest.content_hash and manifest.part_bytes


def run(inputs: int, seed: int) -> dict[str, int]:
    """Feed so many inputs; returns how many were read and how many refused."""
    rng, counts = random.Random(seed), {"read": 0, "refused": 0}
    for number in range(inputs):
        try:
            if number % 4 == 0:
                read_manifest(rng)
            else:
                data = bytearray(BLOCK)
                mutate(data, rng)
                if number % 2:
                    mend(data)
                read_block(bytes(data))
            counts["read"] += 1
        except StoreError:
            counts["refused"] += 1
    return counts


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, limit))  # of addresses; numpy and LMDB alone map some
    print(run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
