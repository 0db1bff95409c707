"""Ask a running server many questions at once, and say how long the answers took.

    python examples/load.py --url http://127.0.0.1:8080 --questions corpus/questions.jsonl

For each number of clients: answers a second; the median, 95th and 99th percentile of the seconds an answer took; what
HTTP and the line added to the reading itself (the server says how long that was) in the median; and the statuses.
`--store` also reads the same questions without a server, in batches of several sizes. `--soak` keeps on for so many
seconds and shows the server's memory; with `--edits` one more client puts, looks up and deletes passages meanwhile.
Talks to loopback alone, and sends no more than it is told to.
"""

import argparse
import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle, islice
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class Tally:
    """What came back, in seconds."""

    took: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


class Client:
    """One connection that is kept: small, so that two cores are left to the server."""

    def __init__(self, host: str, port: int, key: str = "") -> None:
        self.host, self.port = host, port
        self.headers = f"Host: {host}\r\nContent-Type: application/json\r\n"
        self.headers += f"Authorization: Bearer {key}\r\n" if key else ""

    async def __aenter__(self) -> "Client":
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.close()

    async def send(self, method: str, path: str, body: bytes = b"") -> tuple[int, str, bytes]:
        """Return status, headers and body of one request."""
        head = f"{method} {path} HTTP/1.1\r\n{self.headers}Content-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        headers = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        found = re.search(r"content-length: (\d+)", headers)
        return int(headers.split()[1]), headers, await self.reader.readexactly(int(found[1]) if found else 0)


async def ask(client: Client, bodies: Iterator[bytes], tally: Tally) -> None:
    """Ask until the questions are used up; a refused one is not asked again."""
    for body in bodies:
        began = time.perf_counter()
        status, headers, _ = await client.send("POST", "/v1/answer", body)
        tally.statuses[status] += 1
        if status == 200:
            tally.took.append(time.perf_counter() - began)
            compute = re.search(r"compute;dur=([\d.]+)", headers)
            tally.added.append(tally.took[-1] - float(compute[1]) / 1000 if compute else 0.0)


async def load(where: tuple[str, int, str], bodies: Iterator[bytes], clients: int) -> tuple[Tally, float]:
    """Let so many clients ask; returns what came back, and the seconds it took in all."""
    tally, began = Tally(), time.perf_counter()

    async def one() -> None:
        async with Client(*where) as client:
            await ask(client, bodies, tally)

    await asyncio.gather(*(one() for _ in range(clients)))
    return tally, time.perf_counter() - began


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that so large a share does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def report(clients: int, tally: Tally, seconds: float) -> None:
    """Print one line of the table."""
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(tally.statuses.items()))
    p50, p95, p99 = (percentile(tally.took, share) for share in (0.50, 0.95, 0.99))
    added = 1000 * median(tally.added) if tally.added else float("nan")
    rate = len(tally.took) / seconds
    print(f"{clients:>7} {rate:>9.2f} {p50:>8.3f} {p95:>8.3f} {p99:>8.3f} {added:>9.1f}  {statuses}", flush=True)


def offline(store: str, questions: Sequence[str], reader: str | None) -> None:
    """Read the questions without a server: search, load, read, in batches of several sizes."""
    from btr import Reader, Store
    from btr.retrieve.bm25 import BM25

    model = Reader.from_pretrained(reader)
    kept, index = Store.open(store, model.fingerprint), BM25.open(Path(store) / "bm25")
    top = model.config.passages
    for size in (1, 1, 4, 16):  # the first to warm up
        began = time.perf_counter()
        for start in range(0, len(questions), size):
            asked = list(questions[start : start + size])
            found = [kept.at(ordinals.tolist()) for ordinals, _ in index.search(asked, top)]
            model.answer_batch(asked, found, mode="binary")
        print(
            f"offline, {size:>2} together: {len(questions) / (time.perf_counter() - began):.2f} answers/s", flush=True
        )


async def memory(where: tuple[str, int, str]) -> float:
    """Return the server's resident memory in MB, from its metrics."""
    async with Client(*where) as client:
        text = (await client.send("GET", "/metrics"))[2].decode()
    found = re.search(r"^process_resident_memory_bytes (\S+)$", text, re.MULTILINE)
    return float(found[1]) / 1e6 if found else float("nan")


async def edit(where: tuple[str, int, str], until: float, edits: Counter[str]) -> None:
    """Put, look up and delete passages until then; counts what came back, and lookups that knew nothing of an edit."""
    async with Client(*where) as client:
        for number in count():
            name, text = f"load-{number % 20}", f"Passage {number} was put here by a load script."
            body = json.dumps({"passages": [{"id": name, "text": text}]}).encode()
            edits[f"put {(await client.send('PUT', '/v1/passages', body))[0]}"] += 1
            found = await client.send("GET", f"/v1/passages/{name}")
            edits["stale"] += found[0] == 200 and text not in found[2].decode()
            if number % 2:
                edits[f"delete {(await client.send('DELETE', f'/v1/passages/{name}'))[0]}"] += 1
                edits["stale"] += (await client.send("GET", f"/v1/passages/{name}"))[0] == 200
                if time.perf_counter() > until:
                    return


async def soak(where: tuple[str, int, str], bodies: Sequence[bytes], clients: int, seconds: float, edits: bool) -> None:
    """Ask for so many seconds, and print memory and statuses about every thirty."""
    began, statuses, edited = time.perf_counter(), Counter[int](), Counter[str]()

    async def show(since: float) -> None:
        changed = f"  {dict(edited)}" if edits else ""
        print(f"{since:>7.0f} s  {await memory(where):>8.1f} MB  {dict(statuses)}{changed}", flush=True)

    while (since := time.perf_counter() - began) < seconds:
        await show(since)
        until = time.perf_counter() + min(30.0, seconds - since)
        source = iter(lambda: next(endless) if time.perf_counter() < until else b"", b"")  # noqa: B023 - used up here
        endless = cycle(bodies)
        asking = load(where, source, clients)
        (tally, _), *_ = await asyncio.gather(asking, *([edit(where, until, edited)] if edits else []))
        statuses += tally.statuses
    await show(seconds)


def main() -> None:
    """Run the table, or the soak."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--questions", default="corpus/questions.jsonl", help="JSON lines with a field question")
    parser.add_argument("--clients", default="1,4,16,64,96", help="numbers of clients, one after the other")
    parser.add_argument("--requests", type=int, default=128, help="questions for each number of clients")
    parser.add_argument("--store", help="read the same questions without a server, from this store")
    parser.add_argument("--reader", help="the server's reader, for --store")
    parser.add_argument("--key", default="")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="keep on, with the first number of clients")
    parser.add_argument("--edits", action="store_true", help="with --soak: change an --editable server's store, too")
    args = parser.parse_args()
    url = urlsplit(args.url)
    if url.hostname not in LOOPBACK:
        parser.error(f"--url is {args.url}; this script loads no machine but this one")
    where = (url.hostname, url.port or 80, args.key)
    lines = Path(args.questions).read_text(encoding="utf-8").splitlines()
    questions = list(islice(cycle([json.loads(line)["question"] for line in lines]), args.requests))
    bodies = [json.dumps({"question": question}).encode() for question in questions]
    clients = [int(count) for count in args.clients.split(",")]
    if args.soak:
        asyncio.run(soak(where, bodies, clients[0], args.soak, args.edits))
        return
    if args.store:
        offline(args.store, questions, args.reader)
    print("clients answers/s      p50      p95      p99  added ms  statuses")
    for number in clients:
        asked = islice(cycle(bodies), max(args.requests, 2 * number))  # so that all clients ask at once
        report(number, *asyncio.run(load(where, asked, number)))


if __name__ == "__main__":
    main()
