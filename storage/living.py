"""Change a store that is being read: every change is one new manifest, and what readers still use stays."""

import fcntl
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from .deletions import delete_records, stale_bitmaps
from .disk import LOCK, ROOM, check_room, disk_errors, take_lock
from .errors import Corrupt, StoreError
from .format import Settings
from .manifest import MANIFEST, SHARDS, Manifest, Shard, parse_manifest, read_json, write_json, write_manifest
from .record import decode_records
from .shard import ShardWriter
from .view import View
from .writer import shard_name

PENDING = "pending.json"  # names of shards that are being written and belong to no manifest yet
RETIRED = "manifest.*.retired"  # a manifest that was replaced, for as long as readers look at the store by it
BATCH = 1024  # records copied at a time


class Editor:
    """Hold the right to change a store; readers see all of a commit or nothing."""

    def __init__(self, path: Path, lock: int) -> None:
        """Use `edit`."""
        self.path, self._lock = path, lock
        self.view = View.open(path)

    @property
    def manifest(self) -> Manifest:
        """Return the manifest as committed last."""
        return self.view.manifest

    def delete(self, ordinals: Iterable[int]) -> tuple[Shard, ...]:
        """Return the shards without the passages of these ordinals; nothing is changed before `commit`.

        Raises:
            Corrupt: a record cannot be read.
        """
        tokens: defaultdict[int, dict[int, int]] = defaultdict(dict)
        with self.view.read() as reading:
            for ordinal in ordinals:
                number, record = self.view.locate(ordinal)
                tokens[number][record] = reading.shard(number).record(record).tokens
        shards = list(self.manifest.shards)
        for number, gone in tokens.items():
            shards[number] = delete_records(self.view.folder(shards[number]), shards[number], gone)
        return tuple(shards)

    def folders(self, count: int, *origin: object) -> list[Path]:
        """Return the directories of so many new shards, which stay till the next commit.

        A call with the same origin gives the same ones until something is committed, so that a killed run finds its
        own; after that never again: a reader may still look at a shard that left the store long ago.
        """
        first, now = len(self.manifest.shards), self.manifest.generation
        names = [shard_name(first + number, now, number, *origin) for number in range(count)]
        write_json(self.path / PENDING, names)
        return [self.path / SHARDS / name for name in names]

    def commit(
        self, shards: Sequence[Shard], indexed: int | None = None, options: Mapping[str, str] | None = None
    ) -> Manifest:
        """Make these the shards of the store, and delete what no reader uses any more.

        options: those of the store that are others from now on.

        Raises:
            StoreError: the store was replaced meanwhile.
            DiskFull: nothing is changed.
        """
        if not self.view.is_current():
            raise StoreError(f"store {self.path} was replaced while it was changed; run the same command again")
        before = self.manifest
        kept = before.indexed if indexed is None else indexed
        after = replace(before, shards=tuple(shards), generation=before.generation + 1, indexed=kept)
        if options:
            after = replace(after, options={**before.options, **options})
        with disk_errors(self.path, ROOM):
            check_room(self.path)
            retired = self.path / RETIRED.replace("*", str(before.generation))
            retired.unlink(missing_ok=True)
            with suppress(OSError):  # a file system without links: readers keep only what they have open
                os.link(self.path / MANIFEST, retired)
            write_manifest(self.path, after)
        self.forget()
        return after

    def forget(self) -> None:
        """Give up the shards that were to come, and delete all that nobody uses."""
        (self.path / PENDING).unlink(missing_ok=True)
        self.view = View.open(self.path)
        self.sweep()

    def sweep(self) -> None:
        """Delete the shards and bitmaps that neither the store, nor a reader, nor an unfinished change uses."""
        used: defaultdict[str, list[Shard]] = defaultdict(list)
        for manifest in (self.manifest, *self._looked_at()):
            for shard in manifest.shards:
                used[shard.name].append(shard)
        for folder in (self.path / SHARDS).iterdir():
            if folder.is_symlink() or not folder.is_dir():  # somebody else's, such as .DS_Store
                continue
            if folder.name in used:
                for file in stale_bitmaps(folder, used[folder.name]):
                    file.unlink()
            elif folder.name not in self._pending():
                shutil.rmtree(folder)

    def _pending(self) -> list[str]:
        with suppress(FileNotFoundError, Corrupt):
            names = read_json(self.path / PENDING)
            return names if isinstance(names, list) else []
        return []

    def _looked_at(self) -> Iterator[Manifest]:
        """Yield the manifests that were replaced and by which readers still look at the store; delete the others."""
        for file in self.path.glob(RETIRED):
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.unlink()
            except BlockingIOError:
                yield parse_manifest(self.path, read_json(descriptor, str(file)))
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Let others change the store."""
        with suppress(FileNotFoundError):
            (self.path / LOCK).unlink()
        os.close(self._lock)


@contextmanager
def edit(path: str | os.PathLike[str]) -> Iterator[Editor]:
    """Open a store to change it.

    Raises:
        StoreBusy: another process is changing it.
        StoreError: as `Store.open`.
    """
    folder = Path(path).absolute()
    View.open(folder)  # not a store: say so, and leave no lock there
    lock = take_lock(folder)
    try:
        editor = Editor(folder, lock)
        editor.sweep()  # what killed runs left, and readers that have gone
    except BaseException:
        os.close(lock)
        raise
    try:
        yield editor
    finally:
        editor.close()


def compact(editor: Editor, start: int = 0) -> tuple[int, int]:
    """Drop deleted records, and join small neighbours; returns the shards written and the least ordinal that changed.

    Ordinals above the first deleted one move down to close the gaps; the search index is then gone, if it knew them.
    Shards before number `start` stay as they are. Killed, it leaves the store as it was.

    Raises:
        DiskFull: there is no room for the shards to be written anew; the store is as it was.
    """
    manifest, settings = editor.manifest, editor.manifest.settings
    groups = [[number] for number in range(start)] + _groups(manifest, start)
    moved = editor.view.first_deleted(start)
    rewritten = [group for group in groups[start:] if not _stays(manifest, group)]
    if not rewritten:
        return 0, moved
    hashes = [[manifest.shards[n].content_hash + manifest.shards[n].deletions for n in group] for group in rewritten]
    needed = sum(manifest.shards[number].data_bytes for group in rewritten for number in group)
    with disk_errors(editor.path, needed):
        check_room(editor.path, needed + ROOM)
    folders = iter(editor.folders(len(rewritten), "compact", hashes))
    shards: list[Shard] = []
    for group in groups:
        if group[0] < start or _stays(manifest, group):
            shards += [manifest.shards[group[0]]]
        elif sum(manifest.shards[number].passages - manifest.shards[number].deleted for number in group):
            shards.append(_join(editor.view, group, next(folders), settings))
    editor.commit(shards, indexed=0 if moved < manifest.indexed else None)
    return len(rewritten), moved


def _stays(manifest: Manifest, group: Sequence[int]) -> bool:
    return len(group) == 1 and not manifest.shards[group[0]].deleted


def _groups(manifest: Manifest, start: int) -> list[list[int]]:
    """Put neighbouring shards together while their passages fit into one; those of which nothing is left stay alone."""
    groups: list[list[int]] = []
    held = 0
    for number, shard in enumerate(manifest.shards[start:], start):
        count = shard.passages - shard.deleted
        if groups and count and held and held + count <= manifest.shard_passages:
            groups[-1].append(number)
            held += count
        else:
            groups.append([number])
            held = count
    return groups


def _join(view: View, group: Sequence[int], folder: Path, settings: Settings) -> Shard:
    """Write the records of some shards that are not deleted into one, coded anew by its own codebook."""
    shutil.rmtree(folder, ignore_errors=True)  # of a killed run
    cut = sum(view.manifest.shards[number].cut for number in group)
    with ShardWriter(folder, settings) as writer:
        for number in group:
            live = view.live(number).tolist()
            for start in range(0, len(live), BATCH):
                with view.snapshot(number) as snapshot:
                    part = live[start : start + BATCH]
                    records = [snapshot.record(record) for record in part]
                    writer.append(decode_records(records, settings), 0, cut)
                    cut = 0
        return writer.finish({"joined": [view.manifest.shards[number].name for number in group]})
