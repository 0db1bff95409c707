"""Several workers write one store: the same as one does, and none of them is needed to the end."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from btr.corpus.statistics import Corpus, Cursor
from btr.errors import InputError
from btr.precompute import __main__ as precompute
from btr.precompute import run as making
from btr.precompute import workers
from btr.precompute.encode import Source, shard_tasks, write_shard
from btr.reader import Reader
from btr.storage import Shard, Store

WAIT = 900  # seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 300 passages, some of whose ids come again, in the same shard and in others."""
    made = tmp_path_factory.mktemp("workers")
    rows = [
        {"id": f"p{n}", "title": "Salt", "text": f"Passage {n} is of salt and mules. " * (n % 7 + 1)}
        for n in range(300)
    ]
    for place, again in ((10, "p3"), (120, "p3"), (250, "p119")):
        rows[place]["id"] = again
    (made / "made.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def command(folder: Path, reader_folder: Path) -> Callable[..., list[str]]:
    def command(store: str, *flags: str) -> list[str]:
        corpus, out = str(folder / "made.jsonl"), str(folder / store)
        return [corpus, "--reader", str(reader_folder), "--store", out, "--shard-passages", "60", *flags]

    return command


@pytest.fixture(scope="module")
def content(folder: Path, command: Callable[..., list[str]]) -> str:
    """The content hash that one process comes to."""
    assert precompute.main(command("one", "--no-index")) == 0
    with Store.open(folder / "one") as store:
        assert (len(store), store.manifest.duplicates, len(store.manifest.shards)) == (297, 3, 5)
        assert store.get(["p3"]).texts[0].startswith("Passage 3 ")
        return store.manifest.content_hash


def children(pid: int) -> list[int]:
    """Return the processes of a driver that encode."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split() if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_for(found: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """Wait until something is found, while a process lives."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end and process.poll() is None:
        value = found()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"never came to be: {process.communicate()}")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_workers_and_driver_killed_come_to_the_same_store(
    folder: Path, command: Callable[..., list[str]], content: str
) -> None:
    argv = [sys.executable, "-m", "btr.precompute", *command("two", "--workers", "2", "--no-index")]
    with subprocess.Popen(argv, stdout=-1, stderr=-1, text=True) as driver:
        victim = wait_for(lambda: children(driver.pid), driver)[0]
        shards = folder / "two.building" / "shards"
        wait_for(lambda: shards.exists() and list(shards.iterdir()), driver)
        os.kill(victim, signal.SIGKILL)
        _, err = driver.communicate(timeout=WAIT)
    assert driver.returncode == 0, err
    assert "was killed by SIGKILL; another goes on with it" in err
    with subprocess.Popen([*argv, "--overwrite"], stdout=-1, stderr=-1, text=True) as driver:
        wait_for(lambda: list(shards.glob("*/shard.json")) if shards.exists() else [], driver)
        driver.kill()
        driver.communicate()
    done = subprocess.run([*argv, "--overwrite"], capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 0 and "going on after" in done.stderr, done.stderr
    with Store.open(folder / "two") as store:
        assert store.manifest.content_hash == content
        assert list(store.verify()) == []


class Deadly(dict[str, Shard]):
    """Take shards, and kill whoever wrote the first while he waits for the next."""

    def __setitem__(self, name: str, shard: Shard) -> None:
        super().__setitem__(name, shard)
        if len(self) == 1:
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()


def test_a_worker_killed_between_two_shards_is_replaced(
    folder: Path, reader_folder: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, settings = Corpus(str(folder / "made.jsonl"), 120, 100), Store.open(folder / "one").manifest.settings
    work = shard_tasks(corpus, 120, np.array([10]), settings, lambda number: tmp_path / f"0000{number}-00000000", True)
    pool = workers._Pool(Source(str(reader_folder)), 1, lambda passages, tokens: None)
    pool.done = Deadly()
    done = pool.run(deque(work), 1)
    assert [done[job.name].passages for job in work] == [59, 60]
    assert f"the worker of shard {work[1].name} was killed by SIGKILL; another goes on" in capsys.readouterr().err


def test_a_shard_is_of_the_reader_that_it_says(folder: Path, tiny_reader: Reader, tmp_path: Path, content: str) -> None:
    corpus, settings = Corpus(str(folder / "made.jsonl"), 9, 100), Store.open(folder / "one").manifest.settings
    other = replace(settings, fingerprint="91bc")
    (job,) = shard_tasks(corpus, 9, np.array([], np.int64), other, lambda number: tmp_path / "00000-00000000", True)
    with pytest.raises(InputError, match=rf"the reader is {tiny_reader.fingerprint}, shard 00000-0+ is of 91bc"):
        write_shard(job, tiny_reader, Cursor(corpus), lambda passages, tokens: None)
    assert not (tmp_path / "00000-00000000").exists()


def test_a_damaged_shard_of_a_killed_run_is_written_anew(
    folder: Path, command: Callable[..., list[str]], content: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(making.Building, "finish", stop)
        assert precompute.main(command("three", "--no-index")) == 130
    data = sorted((folder / "three.building" / "shards").glob("*/data.mdb"))[2]
    content_before = bytearray(data.read_bytes())
    content_before[-100] ^= 1
    data.write_bytes(content_before)
    assert precompute.main(command("three", "--no-index")) == 0
    assert f"shard {data.parent.name} of the interrupted run is damaged; it is written anew" in capsys.readouterr().err
    assert Store.open(folder / "three").manifest.content_hash == content


def test_a_dry_run_tells_and_writes_nothing(
    folder: Path, command: Callable[..., list[str]], content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert precompute.main(command("four", "--dry-run", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    manifest = Store.open(folder / "one").manifest
    assert told["passages"] == 300
    assert abs(told["tokens"] / manifest.tokens - 1) < 0.1
    assert min(told["bytes"], told["encoder_tokens_per_second"], told["tokens_per_second"]) > 0
    assert sorted(folder.rglob("*")) == before


def test_a_dry_run_needs_but_a_passage(tmp_path: Path, reader_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.jsonl").write_text('{"id": "1", "text": "an owl"}')
    assert precompute.main([str(tmp_path / "one.jsonl"), "--reader", str(reader_folder), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passages"] == 1


def test_ray_comes_to_the_same_store(folder: Path, command: Callable[..., list[str]], content: str) -> None:
    """On a cluster of one machine, in a process of its own: Ray's threads and warnings are not for the suite."""
    pytest.importorskip("ray", reason="an optional extra: pip install 'btr-reader[ray]'", exc_type=ImportError)
    argv = [sys.executable, "-m", "btr.precompute"]
    argv += command("ray", "--engine", "ray", "--workers", "2", "--no-index")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 0, done.stderr
    with Store.open(folder / "ray") as store:
        assert store.manifest.content_hash == content
        assert list(store.verify()) == []
