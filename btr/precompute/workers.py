"""Write shards in several processes of one machine; one that dies is replaced, and its shard gone on with."""

import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from btr.corpus.statistics import Cursor
from btr.errors import InputError
from btr.precompute.encode import Report, ShardTask, Source, threads_of, write_shard
from btr.progress import say
from btr.storage import Shard, StoreError

TRIES = 3  # times that a shard may kill its worker


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: ShardTask


def run(jobs: Sequence[ShardTask], source: Source, workers: int, report: Report) -> dict[str, Shard]:
    """Write shards with so many workers; returns them by name.

    Raises:
        InputError, StoreError, OSError: what a worker met; what was committed stays, and the others' too.
        StoreError: a shard's worker was killed again and again.
    """
    return _Pool(source, threads_of(workers), report).run(deque(jobs), workers)


class _Pool:
    """Hand out shards, in order, to whoever is free."""

    def __init__(self, source: Source, threads: int, report: Report) -> None:
        self.source, self.threads, self.report = source, threads, report
        self.spawn = multiprocessing.get_context("spawn")  # a fork would share torch's threads, and LMDB's files
        self.working: list[_Worker] = []
        self.deaths = Counter[str]()
        self.done: dict[str, Shard] = {}

    def run(self, waiting: deque[ShardTask], workers: int) -> dict[str, Shard]:
        """Write all shards that wait."""
        try:
            while waiting or self.working:
                while waiting and len(self.working) < workers:
                    self._start(waiting.popleft())
                ready = set(wait([worker.pipe for worker in self.working]))
                for worker in [worker for worker in self.working if worker.pipe in ready]:
                    self._listen(worker, waiting)
        finally:
            for worker in self.working:
                worker.process.terminate()
            for worker in self.working:
                worker.process.join()
        return self.done

    def _start(self, job: ShardTask) -> None:
        mine, theirs = self.spawn.Pipe()
        process = self.spawn.Process(target=work, args=(theirs, self.source, self.threads), daemon=True)
        process.start()
        theirs.close()
        worker = _Worker(process, mine, job)
        self.working.append(worker)
        self._hand(worker, job)

    def _hand(self, worker: _Worker, job: ShardTask) -> None:
        """Give a worker a shard; of one that has died meanwhile the pipe tells next, and the shard is another's."""
        worker.job = job
        with suppress(BrokenPipeError, ConnectionResetError):
            worker.pipe.send(job)

    def _listen(self, worker: _Worker, waiting: deque[ShardTask]) -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._bury(worker, waiting)
            return
        if isinstance(message, Exception):
            raise message
        if not isinstance(message, Shard):
            self.report(*message)
            return
        self.done[worker.job.name] = message
        if waiting:
            self._hand(worker, waiting.popleft())
        else:
            self._dismiss(worker)

    def _dismiss(self, worker: _Worker) -> None:
        worker.pipe.close()
        worker.process.join()
        self.working.remove(worker)

    def _bury(self, worker: _Worker, waiting: deque[ShardTask]) -> None:
        """Give the shard of a worker that died to another."""
        self._dismiss(worker)
        name, code = worker.job.name, worker.process.exitcode or 0
        self.deaths[name] += 1
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if self.deaths[name] == TRIES:
            cure = "if memory is short, use fewer --workers; the same command goes on where it stopped"
            raise StoreError(f"shard {name}: its worker {how}, the {TRIES}rd time; {cure}")
        say(f"warning: the worker of shard {name} {how}; another goes on with it")
        waiting.appendleft(worker.job)


def work(pipe: Connection, source: Source, threads: int) -> None:
    """Write the shards that come through a pipe, until it closes; report each batch, and what is met, through it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's goes to all; the driver decides
    torch.set_num_threads(threads)
    cursors: dict[object, Cursor] = {}
    try:
        reader = source.load()
        while True:
            job = pipe.recv()
            cursor = cursors.setdefault(job.corpus, Cursor(job.corpus))
            pipe.send(write_shard(job, reader, cursor, lambda passages, tokens: pipe.send((passages, tokens))))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # no more work, or the driver was killed
        os._exit(0)
    except (InputError, StoreError, OSError) as error:
        pipe.send(error)
