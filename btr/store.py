"""Look into a store: `python -m btr.store info STORE` says what it holds and costs, `verify` reads and checks all."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from btr.storage import Store, StoreError
from btr.storage.format import PAYLOAD

# Part of the sizes: what the table calls it.
PARTS = {
    "signs": "signs",
    "scalars": "scalars",
    "token_ids": "token ids",
    "text": "text and titles",
    "ids": "ids",
    "ids_index": "index of ids",
    "block_headers": "block headers",
    "pages": "page overhead",
}
SHOWN = 20  # problems that `verify` prints before it only counts
PERIOD = 5.0  # seconds between two lines of progress


def account(store: Store) -> dict[str, Any]:
    """Return the bytes on disk by part, in all and per token, beside those of float states."""
    sizes, manifest = store.sizes(), store.manifest
    own = {part: sizes[part] for part in PARTS}
    total, payload = sum(own.values()), sum(own[part] for part in PAYLOAD)
    tokens = max(manifest.tokens, 1)
    return {
        "path": str(store.path),
        "manifest": manifest.to_json() | manifest.totals(),
        "bytes": {**own, "total": total, "other_files": sizes["other_files"]},
        "bytes_per_token": {part: number / tokens for part, number in {**own, "total": total}.items()},
        "overhead": total / payload - 1 if payload else 0.0,
        "float_bytes_per_token": {"bf16": 2 * manifest.D, "fp32": 4 * manifest.D},
    }


def describe(account: dict[str, Any]) -> str:
    """Return the account as text: what the store is, then a table of its bytes."""
    m, sizes, per_token = account["manifest"], account["bytes"], account["bytes_per_token"]
    lines = [
        f"store    {account['path']} (format {m['format_version']}, {m['created_by'] or 'unknown version'})",
        f"reader   {m['reader'] or 'shipped with btr,'} {m['fingerprint']}, k = {m['k']}, D = {m['D']}",
        f"corpus   {m['corpus'] or 'unnamed'}: {m['passages']:,} passages, {m['tokens']:,} tokens, "
        f"{m['cut']:,} passages cut at {m['max_passage_tokens']} tokens, {m['duplicates']:,} duplicates skipped",
        "",
        f"{'part':<16}{'bytes':>18}{'bytes/token':>13}{'share':>8}",
    ]
    for part, name in {**PARTS, "total": "on disk (du)"}.items():
        share = sizes[part] / max(sizes["total"], 1)
        lines.append(f"{name:<16}{sizes[part]:>18,}{per_token[part]:>13.2f}{share:>8.1%}")
    if sizes["other_files"]:
        lines.append(f"{'other files':<16}{sizes['other_files']:>18,}")
    lines += ["", f"overhead over signs, scalars, token ids, text and ids: {account['overhead']:.2%}"]
    for kind, number in account["float_bytes_per_token"].items():
        ratio = f" ({number / per_token['total']:.1f}x)" if m["tokens"] else ""
        lines.append(f"{kind} states alone would take {number:,} bytes/token{ratio}")
    return "\n".join(lines)


def info(store: Store, as_json: bool) -> int:
    """Print what the store holds and what it costs."""
    found = account(store)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else describe(found))
    return 0


def verify(store: Store, as_json: bool) -> int:
    """Print the problems of the store, each as soon as it is found; return 2 if there is one."""
    shown: list[str] = []
    number = 0
    for problem in store.verify(report_progress()):
        number += 1
        if number <= SHOWN:
            shown.append(problem)
            print(f"problem: {problem}", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps({"path": str(store.path), "problems": number, "first_problems": shown}, ensure_ascii=False))
    elif number:
        print(f"{store.path}: {number} problems")
    else:
        print(f"{store.path}: {len(store):,} passages, {store.manifest.tokens:,} tokens, all sound")
    return 2 if number else 0


def report_progress() -> Callable[[int, int], None]:
    """Return a function that writes passages done, rate and time left to stderr, at most once in a while."""
    begun = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PERIOD:
            last, rate = now, done / (now - begun)
            print(
                f"{done:,} of {total:,} passages, {rate:,.0f}/s, {(total - done) / rate:,.0f} s left", file=sys.stderr
            )

    return report


def main(argv: list[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for a store that cannot be read or has a problem."""
    parser = argparse.ArgumentParser(prog="python -m btr.store", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function, purpose in ((info, "say what it holds and what that costs"), (verify, "read and check all of it")):
        command = commands.add_parser(function.__name__, help=purpose, description=purpose)
        command.add_argument("store", metavar="STORE", help="directory written by python -m btr.precompute")
        command.add_argument("--json", action="store_true", help="print JSON")
        command.set_defaults(run=function)
    arguments = parser.parse_args(argv)
    try:
        with Store.open(arguments.store) as store:
            return int(arguments.run(store, arguments.json))
    except (StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
