"""Make one store of several: their shards are copied as they are, since none knows its place in a store."""

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from .deletions import delete_records, stale_bitmaps
from .disk import ROOM, check_room, disk_errors
from .environment import DATA
from .errors import Corrupt, ReaderMismatch
from .format import Settings
from .manifest import Manifest, Shard, write_json
from .shard import SHARD, shard_source
from .view import Reading, View
from .writer import Building

SAME = ("fingerprint", "tokenizer_hash", "k", "D", "vocab_size", "max_passage_tokens", "passages_per_block")


def merge(
    out: str | os.PathLike[str],
    stores: Sequence[str | os.PathLike[str]],
    created_by: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Write the passages of some stores, in their order, to a new one; of those with one id the first is kept.

    Killed, the same call copies only the shards that are missing. `say` gets a line for each shard.

    Raises:
        ReaderMismatch: they were not built by one reader in one way.
        StoreExists, DiskFull: the new store cannot be written.
        Corrupt: a shard is damaged; it is named.
    """
    views = [View.open(Path(path).absolute()) for path in stores]
    settings = _settings(views)
    sources = [(view, number) for view in views for number in range(len(view.manifest.shards))]
    with Building.create_or_resume(out, settings) as building:
        needed = sum(view.manifest.shards[number].data_bytes for view, number in sources)
        with disk_errors(building.building, needed):
            check_room(building.building, needed + ROOM - _written(building.building))
            shards = []
            for place, (view, number) in enumerate(sources):
                shards.append(_copy(view, number, building, place))
                say(f"copied {place + 1} of {len(sources)} shards")
        shards = _drop_duplicates(views, shards, building)
        for place, shard in enumerate(shards):
            if shard.deleted == shard.passages:
                shutil.rmtree(building.folder(place))
                continue
            for file in stale_bitmaps(building.folder(place), [shard]):
                file.unlink()
        return building.finish([shard for shard in shards if shard.deleted < shard.passages], created_by)


def _settings(views: Sequence[View]) -> Settings:
    first = views[0].manifest
    for view in views[1:]:
        for name in SAME:
            mine, theirs = getattr(first, name), getattr(view.manifest, name)
            if mine != theirs:
                raise ReaderMismatch(
                    f"store {view.path} has {name} {theirs}, store {views[0].path} {mine}: only stores that one reader "
                    "built in one way can be merged"
                )
        mine, theirs = first.options.get("text"), view.manifest.options.get("text")
        if (mine is False) != (theirs is False):
            bare, other = (views[0], view) if mine is False else (view, views[0])
            raise ReaderMismatch(
                f"store {bare.path} keeps no texts, store {other.path} does: a store has all of them or none; build "
                "one of them as the other, with --no-text or without"
            )
    hashes = "".join(view.manifest.content_hash for view in views)
    return replace(first.settings, corpus_hash=hashlib.sha256(hashes.encode()).hexdigest()[:16])


def _written(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob(DATA))


def _copy(view: View, number: int, building: Building, place: int) -> Shard:
    """Copy a shard, unless a killed run has, and check what was copied."""
    shard, target = view.manifest.shards[number], building.folder(place)
    source = view.folder(shard)
    copied = building.shard(place, whole=True)
    found = "" if copied is None else copied.data_hash
    if found != shard.data_hash:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        found = _copy_file(source / DATA, target / DATA)
    if found != shard.data_hash:
        raise Corrupt(
            f"store {view.path}, shard {shard.name}: data_hash is {found}, the manifest says {shard.data_hash}; "
            f"{view.cure()}"
        )
    if shard.deleted:  # also to what was copied by a killed run: the store may have changed since
        _copy_file(source / shard.deletions_file, target / shard.deletions_file)
    shard = replace(shard, name=target.name)
    write_json(target / SHARD, {"shard": asdict(shard), "source": dict(shard_source(source))})
    return shard


def _copy_file(source: Path, target: Path) -> str:
    """Copy a file, bring it to the disk, and return the SHA-256 of what is there."""
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _drop_duplicates(views: Sequence[View], shards: list[Shard], building: Building) -> list[Shard]:
    """Delete the passages whose id is in a store before."""
    place, before = 0, list[Reading]()
    for view in views:
        with view.read() as reading:
            for number in range(len(view.manifest.shards)):
                tokens, bits = {}, view.deleted[number]
                for passage_id, record in reading.shard(number).ids() if before else ():
                    gone = bits is not None and bits[record]
                    if not gone and any(other.ordinal(passage_id) is not None for other in before):
                        tokens[record] = reading.shard(number).record(record).tokens
                shards[place] = delete_records(building.folder(place), shards[place], tokens)
                place += 1
        before.append(view.read())
    for reading in before:
        reading.__exit__()
    return shards
