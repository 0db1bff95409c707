"""Find the places of a stream at which an id comes again, in bounded memory, whatever its length."""

import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import IO

import numpy as np

BUCKETS = 64
HELD = 1 << 20  # ids in memory, 24 bytes each, before they go to the disk

_ROW = np.dtype([("high", ">u8"), ("low", ">u8"), ("place", ">u8")])


class Duplicates:
    """Collect ids as hashes of 128 bits; two ids of 10^9 meet with a chance of 10^-21."""

    def __init__(self, folder: Path) -> None:
        """Begin; `folder` takes ids that memory should not hold, in nameless files, gone with the process."""
        self._folder = folder
        self._held = [bytearray() for _ in range(BUCKETS)]
        self._files: list[IO[bytes]] = []
        self.count = 0  # ids so far, and so the place of the next

    def add(self, passage_id: str) -> None:
        """Take the next id of the stream."""
        digest = blake2b(passage_id.encode(), digest_size=16).digest()
        self._held[digest[0] % BUCKETS] += digest + self.count.to_bytes(8, "big")
        self.count += 1
        if self.count % HELD == 0:
            self._spill()

    def _spill(self) -> None:
        self._files = self._files or [tempfile.TemporaryFile(dir=self._folder) for _ in range(BUCKETS)]  # noqa: SIM115
        for file, held in zip(self._files, self._held, strict=True):
            file.write(held)
            held.clear()

    def places(self) -> np.ndarray:
        """Return where an id stands that came before, int64 (n,) ascending; nothing can be added afterwards."""
        found = []
        for number, held in enumerate(self._held):
            content = bytes(held)
            if self._files:
                self._files[number].seek(0)
                content = self._files[number].read() + content
                self._files[number].close()
            rows = np.frombuffer(content, _ROW)
            rows = rows[np.lexsort((rows["place"], rows["low"], rows["high"]))]
            again = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
            found.append(rows["place"][1:][again].astype(np.int64))
        return np.sort(np.concatenate(found))
