"""Write an index of vectors, passage after passage, in bounded memory.

    INDEX/index.json         format, D, codes, the encoder's name and fingerprint, N; written last
    INDEX/rotation.safetensors   the quantizer, learned from the first SAMPLE passages
    INDEX/codes-0.bin        signs of every passage: uint64 little-endian (N, W), bit order as in `btr.kernels`
    INDEX/rest.bin           the further bits, of more than one a dimension: uint8 (N, bytes)
    INDEX/scales.bin         float16 (N, 1), where vectors have scales
    INDEX/vectors.bin        float32 (N, D), where floats are kept
    INDEX/progress.json      settings and number of passages on the disk; while building

Of a store's index both say which shards the store had then: content and passages of each, in order.

Passage i of the store is row i of every file. After each batch the files reach the disk before `progress.json` says so;
a killed run cuts them back to that number and goes on. A finished index takes further passages in the same way.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from btr.corpus import Passage
from btr.errors import InputError
from btr.model.checkpoint import write
from btr.retrieve.dense.encoder import Encoder
from btr.retrieve.dense.quantize import Quantizer
from btr.storage.manifest import sync

FORMAT = 2
SIGNS_ALONE = 1  # had further codes of signs, with scales of their own; of one bit a dimension it is the same
SAMPLE = 8192  # passages that the rotation is learned from; held in memory, as is one batch
INDEX, PROGRESS, ROTATION, VECTORS = "index.json", "progress.json", "rotation.safetensors", "vectors.bin"


Shards = list[tuple[str, int]]  # content and passages of a store's shards


@dataclass(frozen=True)
class Plan:
    """What an index depends on beside its passages."""

    encoder: str  # folder or hub id, as it was given
    fingerprint: str
    dimension: int
    codes: int = 1  # bits a dimension
    floats: bool = False
    dtype: str = "float32"
    scaled: bool = False  # a scale of 2 bytes where there is one bit a dimension too


def text_of(passage: Passage) -> str:
    """Return what is embedded of a passage."""
    return f"{passage.title} {passage.text}".strip()


class DenseWriter:
    """Append passages to an index; `done` tells where to go on."""

    def __init__(self, path: Path, plan: Plan, done: int) -> None:
        """Use `create_or_resume`."""
        self.path, self.plan, self.done = path, plan, done
        self.shards: Shards = []  # of the store that the passages come from
        self._quantizer = Quantizer.load(path / ROTATION) if done else None
        self._waiting: list[NDArray[np.float32]] = []  # until there are enough to learn the rotation from

    @classmethod
    def create_or_resume(cls, path: str | os.PathLike[str], plan: Plan) -> "DenseWriter":
        """Open an index for writing, and cut back what a killed run had not finished.

        Raises:
            InputError: the path holds something else, or an index of another plan.
        """
        folder = Path(path)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: a file, not a folder for an index; give another path or move it away")
        found = read_state(folder)
        others = [entry.name for entry in folder.iterdir()] if folder.exists() and found is None else []
        ours = ("codes-", "rest.", "scales.", "vectors.", "rotation.", "index.json", "progress.json")
        if strange := [name for name in others if not name.startswith(ours)]:
            raise InputError(f"{folder}: not an index, it holds {min(strange)}; give an empty or a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        if found is None:
            for name in others:  # of a run killed before it could say how far it was: nobody knows what they hold
                (folder / name).unlink()
            return cls(folder, plan, 0)
        check_plan(folder, found["plan"], plan)
        writer = cls(folder, plan, int(found["passages"]))
        writer.shards = found["shards"]
        writer._cut()
        return writer

    def append(self, passages: Sequence[Passage], encoder: Encoder) -> None:
        """Embed the next passages and add them."""
        self.append_vectors(encoder.embed([text_of(passage) for passage in passages], "passage"))

    def append_vectors(self, vectors: NDArray[np.float32]) -> None:
        """Add the vectors (N, D) of the next passages; the first SAMPLE are held until there are enough."""
        if self._quantizer is not None:
            self._write(vectors)
            return
        self._waiting.append(vectors)
        if sum(map(len, self._waiting)) >= SAMPLE:
            self._learn()

    def finish(self) -> None:
        """Write what waits, and `index.json`.

        Raises:
            InputError: there is no passage to index.
        """
        if self._waiting:
            self._learn()
        if not self.done:
            raise InputError(f"{self.path}: no passage to index; give at least one")
        quantizer = self._known()
        facts = {"words": quantizer.words, "scaled": quantizer.scaled, "bytes": quantizer.bytes}
        write(self.path / INDEX, json.dumps(self._state() | facts, indent=1))
        (self.path / PROGRESS).unlink(missing_ok=True)
        sync(self.path)

    @property
    def held(self) -> int:
        """Passages taken so far, on the disk or waiting."""
        return self.done + sum(map(len, self._waiting))

    def _known(self) -> Quantizer:
        assert self._quantizer is not None
        return self._quantizer

    def _learn(self) -> None:
        sample = np.concatenate(self._waiting)
        self._quantizer = Quantizer.fit(sample[:SAMPLE], self.plan.codes, self.plan.scaled)
        self._quantizer.save(self.path / ROTATION)
        self._waiting = []
        self._write(sample)

    def _state(self) -> dict[str, Any]:
        return {"format": FORMAT, "passages": self.done, "plan": asdict(self.plan), "shards": self.shards}

    def _write(self, vectors: NDArray[np.float32]) -> None:
        rows = self._known().encode(vectors) | {VECTORS: vectors}
        for name, (kind, _) in files_of(self._known(), self.plan.floats).items():
            with (self.path / name).open("ab") as file:
                file.write(rows[name].astype(kind).tobytes())
                file.flush()
                os.fsync(file.fileno())
        self.done += len(vectors)
        write(self.path / PROGRESS, json.dumps(self._state()))

    def _cut(self) -> None:
        """Cut every file back to the passages that are known to be whole."""
        for name, row in row_bytes(self._known(), self.plan.floats).items():
            path, size = self.path / name, row * self.done
            if not path.exists() or path.stat().st_size < size:
                cure = "delete the folder and build it again"
                raise InputError(f"{path}: shorter than the {size:,} bytes of {self.done:,} passages; {cure}")
            os.truncate(path, size)


def files_of(quantizer: Quantizer, floats: bool) -> dict[str, tuple[str, int]]:
    """Return the type and the columns of a passage's row in every file."""
    return quantizer.files | ({VECTORS: ("<f4", quantizer.dimension)} if floats else {})


def row_bytes(quantizer: Quantizer, floats: bool) -> dict[str, int]:
    """Return the bytes of a passage in every file."""
    files = files_of(quantizer, floats).items()
    return {name: np.dtype(kind).itemsize * columns for name, (kind, columns) in files}


def read_state(folder: Path) -> dict[str, Any] | None:
    """Read how far an index is; None if nothing was written yet.

    Raises:
        InputError: of another format, or damaged.
    """
    path = next((folder / name for name in (PROGRESS, INDEX) if (folder / name).exists()), None)
    if path is None:
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        plan, passages, version = Plan(**state["plan"]), int(state["passages"]), state["format"]
        shards = [(str(content), int(count)) for content, count in state.get("shards", [])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); delete the folder and build it again") from error
    if version == SIGNS_ALONE and plan.codes == 1:
        version = FORMAT
    if version != FORMAT:
        cure = f"python -m btr.retrieve build {folder.parent} --retriever {plan.encoder} --no-resume"
        cure = f"build it again with: {cure}" if version == SIGNS_ALONE else "upgrade btr or rebuild"
        raise InputError(f"{folder}: index format {version!r}, this btr reads format {FORMAT}; {cure}")
    return {**state, "plan": plan, "passages": passages, "shards": shards}


def rewrite(folder: Path, kept: NDArray[np.int64], shards: Shards) -> None:
    """Keep these rows (ascending) of a finished index, which from now on is one of these shards."""
    state, quantizer = json.loads((folder / INDEX).read_text(encoding="utf-8")), Quantizer.load(folder / ROTATION)
    new = folder.with_name(f"{folder.name}.building")
    shutil.rmtree(new, ignore_errors=True)  # of a killed run
    new.mkdir()
    shutil.copy(folder / ROTATION, new / ROTATION)
    for name, row in row_bytes(quantizer, Plan(**state["plan"]).floats).items():
        rows = np.memmap(folder / name, np.uint8, "r").reshape(-1, row)
        with (new / name).open("wb") as file:
            for start in range(0, len(kept), SAMPLE):
                file.write(rows[kept[start : start + SAMPLE]].tobytes())
            file.flush()
            os.fsync(file.fileno())
    write(new / INDEX, json.dumps(state | {"passages": len(kept), "shards": shards}, indent=1))
    sync(new)
    shutil.rmtree(folder)
    new.rename(folder)
    sync(folder.parent)


def check_plan(folder: Path, found: Plan, wanted: Plan) -> None:
    """Refuse to go on with another encoder or other codes; the encoder's name may differ."""
    for name, value in asdict(wanted).items():
        if name != "encoder" and getattr(found, name) != value:
            raise InputError(
                f"{folder}: was begun with {name} {getattr(found, name)}, now it is {value}; "
                "use the same settings, or delete the folder"
            )
