"""Write shards on the machines of a Ray cluster; the corpus and the store's folder have one path on all of them."""

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from btr.corpus.statistics import Cursor
from btr.errors import InputError
from btr.precompute.encode import Report, ShardTask, Source, write_shard
from btr.storage import Shard
from btr.storage.shard import finished_shard

RETRIES = 3  # times that Ray begins a shard again whose machine or process was lost


class EncodingWorker:
    """Be one worker of the cluster: load the reader once, then write shards."""

    def __init__(self, source: Source, threads: int) -> None:
        torch.set_num_threads(threads)
        self._reader = source.load()
        self._cursors: dict[object, Cursor] = {}

    def write(self, job: ShardTask) -> tuple[Shard, int, int]:
        """Write a shard on a disk of this machine, for LMDB is not to write over a network; then copy it to its place.

        Returns it, and the passages and tokens that were encoded now.
        """
        done = finished_shard(Path(job.folder), whole=True)
        if done is not None:  # by a try whose answer was lost
            return done, job.stop - job.start, 0
        cursor = self._cursors.setdefault(job.corpus, Cursor(job.corpus))
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / job.name
            shard = write_shard(replace(job, folder=str(local)), self._reader, cursor, lambda passages, tokens: None)
            _copy(local, Path(job.folder))
        return shard, job.stop - job.start, shard.tokens


def _copy(source: Path, target: Path) -> None:
    """Copy a directory so that it is there wholly or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    incoming = Path(tempfile.mkdtemp(prefix="incoming-", dir=target.parent))
    shutil.copytree(source, incoming, dirs_exist_ok=True)
    for file in incoming.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(target, ignore_errors=True)
    os.rename(incoming, target)


def run(jobs: Sequence[ShardTask], source: Source, workers: int, report: Report) -> dict[str, Shard]:
    """Write shards with so many workers of the cluster of RAY_ADDRESS, or of one begun here; returned by name.

    Raises:
        InputError: Ray is not installed, or a worker met something.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("--engine ray needs Ray: pip install 'btr-reader[ray]'") from error
    begun = not ray.is_initialized()
    if begun:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
        encoder = ray.remote(num_cpus=cores, max_restarts=RETRIES, max_task_retries=RETRIES)(EncodingWorker)
        return _share_out(ray, deque(jobs), [encoder.remote(source, cores) for _ in range(workers)], report)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        cure = "the same command goes on where it stopped"
        raise InputError(f"a worker of the cluster failed ({cause}); {cure}") from error
    finally:
        if begun:
            ray.shutdown()


def _share_out(ray: Any, waiting: deque[ShardTask], encoders: list[Any], report: Report) -> dict[str, Shard]:
    """Give each worker one shard after another."""
    done: dict[str, Shard] = {}
    working: dict[Any, Any] = {}
    free = deque(encoders)
    while waiting or working:
        while waiting and free:
            encoder = free.popleft()
            working[encoder.write.remote(waiting.popleft())] = encoder
        (ready, *_), _ = ray.wait(list(working), num_returns=1)
        shard, passages, tokens = ray.get(ready)
        free.append(working.pop(ready))
        done[shard.name] = shard
        report(passages, tokens)
    return done
