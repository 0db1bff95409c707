"""Look into a store, check it, change it while it is read, and copy passages out of it."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from btr import __version__
from btr.command import Parser, check_least, run_command
from btr.errors import InputError
from btr.progress import Progress, say
from btr.retrieve import indexed
from btr.storage import Store, StoreError, living
from btr.storage import merge as merging
from btr.storage.format import PAYLOAD
from btr.storage.living import Editor, edit
from btr.storage.manifest import store_command
from btr.store import export as exporting
from btr.store.articles import held, words_of
from btr.store.latency import measure

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
COUNTED = {
    "added": "added",
    "replaced": "replaced",
    "deleted": "of articles that are shorter now deleted",
    "there": "there already and left out",
    "same": "unchanged",
    "duplicates": "had the id of an earlier one and were left out",
    "empty": "without text left out",
}
DENSE = "dense"  # folder of a dense index, as in `btr.retrieve.fusion`
LANGUAGE = "what words are stemmed by: english, german, ..., none; default: what was given before, or as the texts look"
SHOWN = 20  # problems that `verify` prints before it only counts


def account(store: Store) -> dict[str, Any]:
    """Return the bytes on disk by part, in all and per token, beside those of float states."""
    sizes, manifest = store.sizes(), store.manifest
    width = manifest.width or manifest.D
    own = {part: sizes[part] for part in PARTS}
    total, payload = sum(own.values()), sum(own[part] for part in PAYLOAD)
    tokens = max(manifest.tokens, 1)
    return {
        "path": str(store.path),
        "manifest": manifest.to_json() | manifest.totals(),
        "bytes": {**own, "total": total, "other_files": sizes["other_files"]},
        "bytes_per_token": {part: number / tokens for part, number in {**own, "total": total}.items()},
        "overhead": total / payload - 1 if payload else 0.0,
        "float_bytes_per_token": {"bf16": 2 * width, "fp32": 4 * width},
    }


def describe(account: dict[str, Any]) -> str:
    """Return the account as text: what the store is, then a table of its bytes."""
    m, sizes, per_token = account["manifest"], account["bytes"], account["bytes_per_token"]
    lines = [
        f"store    {account['path']} (format {m['format_version']}, {m['created_by'] or 'unknown version'})",
        f"reader   {m['reader'] or 'shipped with btr,'} {m['fingerprint']}, k = {m['k']}, {m['D']} bits a token",
        f"corpus   {m['corpus'] or 'unnamed'}: {m['passages']:,} passages, {m['tokens']:,} tokens, "
        f"{m['cut']:,} passages cut at {m['max_passage_tokens']} tokens, {m['duplicates']:,} duplicates skipped",
        f"shards   {len(m['shards'])}, {m['ordinals'] - m['passages']:,} passages deleted and not compacted away; "
        f"search index: {_index_state(m)}; changed {m['generation']} times",
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


def _index_state(m: dict[str, Any]) -> str:
    """Say whether the index knows all passages."""
    if not m["indexed"]:
        return "none"
    return "current" if m["indexed"] == m["ordinals"] else f"{m['ordinals'] - m['indexed']:,} passages behind"


def info(arguments: argparse.Namespace) -> int:
    """Print what the store holds and what it costs."""
    with Store.open(arguments.store) as store:
        found = account(store)
    print(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else describe(found))
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Print the problems of the store, each as soon as it is found; return 2 if there is one."""
    shown: list[str] = []
    number = 0
    with Store.open(arguments.store) as store:
        report = Progress("verified", 0, store.manifest.ordinals)
        for problem in store.verify(lambda done, total: report.reach(done)):
            number += 1
            if number <= SHOWN:
                shown.append(problem)
                say(f"problem: {problem}")
        report.show(last=True)
        if arguments.json:
            found = {"path": str(store.path), "problems": number, "first_problems": shown}
            print(json.dumps(found, ensure_ascii=False))
        elif number:
            print(f"{store.path}: {number} problems")
        else:
            print(f"{store.path}: {len(store):,} passages, {store.manifest.tokens:,} tokens, all sound")
    return 2 if number else 0


def add(arguments: argparse.Namespace) -> int:
    """Read a corpus and add the passages whose ids are new."""
    return bring(arguments, replace=False)


def upsert(arguments: argparse.Namespace) -> int:
    """Read a corpus, add what is new, and put what is different in place of what is there."""
    return bring(arguments, replace=True)


def bring(arguments: argparse.Namespace, replace: bool) -> int:
    """Bring a corpus into a store, and print how much of it was new."""
    from btr.store.updates import bring as bring_in  # torch: slow to import, and the other commands do without

    with edit(arguments.store) as editor:
        a = arguments
        mirror = replace and a.mirror
        counts = bring_in(editor, a.corpus, a.limit, a.reader, a.workers, replace, mirror, a.device)
        words = COUNTED | ({"deleted": "that the corpus does not hold deleted"} if mirror else {})
        text = ", ".join(f"{count:,} {words[name]}" for name, count in counts.items() if count) or "nothing to do"
        return finish(arguments, editor, counts, text)


def delete(arguments: argparse.Namespace) -> int:
    """Delete passages, those divided into pieces as one; refuse ids that the store does not hold, unless told so."""
    ids = list(dict.fromkeys([*arguments.ids, *read_ids(arguments.ids_file)]))
    with edit(arguments.store) as editor:
        with editor.view.read() as reading:
            places = {passage_id: held(reading, passage_id, words_of(editor.manifest)) for passage_id in ids}
        missing = [passage_id for passage_id, ordinals in places.items() if not ordinals]
        if missing and not arguments.missing_ok:
            first = ", ".join(repr(passage_id[:60]) for passage_id in missing[:3]) + ", ..." * (len(missing) > 3)
            cure = "nothing is deleted; leave them out, or give --missing-ok"
            raise InputError(f"{len(missing)} of {len(ids)} ids are not in store {arguments.store}: {first}; {cure}")
        ordinals = sorted({ordinal for found in places.values() for ordinal in found})
        if ordinals:
            editor.commit(editor.delete(ordinals))
        return finish(arguments, editor, {"deleted": len(ordinals)}, f"{len(ordinals):,} deleted")


def read_ids(file: str | None) -> Iterator[str]:
    """Yield the ids in a file, one a line; "-" is standard input.

    Raises:
        InputError: it is not UTF-8.
    """
    if file is None:
        return
    try:
        with open(0 if file == "-" else file, encoding="utf-8-sig", closefd=file != "-") as handle:
            yield from (line.rstrip("\r\n") for line in handle if line.strip())
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 ({error.reason}); give one id a line") from None


def compact(arguments: argparse.Namespace) -> int:
    """Write anew the shards with deleted passages, and small ones as one."""
    with edit(arguments.store) as editor:
        view, before = editor.view, editor.manifest
        written, moved = living.compact(editor)
        if written and (editor.path / DENSE).is_dir():
            from btr.retrieve.dense.updates import after_compaction  # imports torch, which nothing else here needs

            after_compaction(editor.path / DENSE, view, Store(editor.path, editor.view))
        if before.indexed and not editor.manifest.indexed:
            indexed.drop_index(editor.path)
        kept = f"ordinals below {moved:,} are as they were, those above closed ranks"
        text = f"{written} shards written anew; {kept if moved < before.ordinals else 'all ordinals are as they were'}"
        return finish(arguments, editor, {"shards_written": written, "first_moved": moved}, text)


def index(arguments: argparse.Namespace) -> int:
    """Build the BM25 index of the store anew."""
    with edit(arguments.store) as editor:
        count = indexed.build_index(editor, arguments.language)
        return finish(arguments, editor, {"indexed": count}, f"{count:,} indexed")


def merge(arguments: argparse.Namespace) -> int:
    """Make one store of several."""
    manifest = merging.merge(arguments.out, arguments.stores, f"btr {__version__}", say)
    left_out = sum(shard.deleted for shard in manifest.shards)
    counts = {"passages": manifest.passages, "deleted": left_out}
    print(json.dumps(counts) if arguments.json else f"{arguments.out}: {manifest.passages:,} passages")
    print(f"build its index with: {store_command('index', Path(arguments.out))}", file=sys.stderr)
    return 0


def export(arguments: argparse.Namespace) -> int:
    """Write all passages as JSON lines, to a file that appears when it is whole, or to standard output."""
    with Store.open(arguments.store) as store:
        count = exporting.export(store, arguments.out, arguments.bits)
    if arguments.out:
        print(json.dumps({"passages": count}) if arguments.json else f"{arguments.out}: {count:,} passages")
    return 0


def finish(arguments: argparse.Namespace, editor: Editor, counts: dict[str, int], text: str) -> int:
    """Print what was done, and whether the index has fallen behind."""
    manifest = editor.manifest
    if arguments.json:
        print(json.dumps({**counts, "passages": manifest.passages, "indexed": manifest.indexed}))
    else:
        print(f"{arguments.store}: {text}; {manifest.passages:,} passages")
    if manifest.indexed < manifest.ordinals:
        print(f"the index does not know all of them; build it anew with: {store_command('index', editor.path)}",
              file=sys.stderr)  # fmt: skip
    return 0


def latency(arguments: argparse.Namespace) -> int:
    """Time opening the store and reading passages drawn at random."""
    found = measure(arguments.store, arguments.passages)
    if arguments.json:
        print(json.dumps(found))
        return 0
    print("opening {open:.1f} ms, the first passage {first_passage_cold:.1f} ms; {passages} passages drawn at random, "
          "{tokens_a_passage} tokens each: {warm:.2f} ms from the page cache (most {warm_most:.2f}), {cold:.1f} ms "
          "after it was dropped".format(**found))  # fmt: skip
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command's settings."""
    parser = Parser(prog="btr store", description=__doc__, epilog="Example: btr store upsert my.btr new-passages.jsonl")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function: Callable[[argparse.Namespace], int], purpose: str) -> Any:
        made = commands.add_parser(function.__name__, help=purpose, description=purpose)
        made.add_argument("--json", action="store_true", help="print JSON")
        made.set_defaults(run=function)
        if function is merge:
            made.add_argument("out", metavar="OUT", help="the store to write")
            made.add_argument("stores", nargs="+", metavar="STORE", help="stores of one reader")
        else:
            made.add_argument("store", metavar="STORE", help="directory written by python -m btr.precompute")
        return made.add_argument

    command(info, "say what it holds and what that costs")
    command(verify, "read and check all of it")
    more = command(
        latency, "time opening it and reading passages drawn at random, and drop its files from the page cache"
    )
    more("--passages", type=int, default=40, metavar="N", help="how many at a time (default %(default)s)")
    for function, purpose in (
        (add, "add the new passages of a corpus"),
        (upsert, "add them, and replace changed ones"),
    ):
        more = command(function, purpose)
        more("corpus", metavar="CORPUS", help="as for btr precompute")
        more("--reader", metavar="R", help="the reader that built the store, if it has moved")
        more("--limit", type=int, metavar="N", help="passages to read; default: all")
        more("--workers", type=int, default=1, metavar="N", help="processes that encode (default %(default)s)")
        more("--device", metavar="D", default="cpu", help="where the reader computes, as for btr precompute")
        if function is upsert:
            about = "delete what the corpus does not hold: the store is then as the corpus is"
            more("--mirror", action="store_true", help=about)
    more = command(delete, "delete passages by id")
    more("ids", nargs="*", metavar="ID", help="ids of passages")
    more("--ids-file", metavar="FILE", help="a file with one id a line; - is standard input")
    more("--missing-ok", action="store_true", help="pass over ids that the store does not hold")
    command(compact, "give back the room of deleted passages, and join small shards")
    command(merge, "make one store of several")
    more = command(export, "write the passages as JSON lines")
    more("--out", metavar="FILE", help="default: standard output")
    more("--bits", action="store_true", help="with their token ids, scales and signs, in base64")
    more = command(index, "build the BM25 index anew")
    more("--language", metavar="L", help=LANGUAGE)
    arguments = parser.parse_args(argv)
    check_least(arguments, 1, "limit", "workers", "passages")
    if getattr(arguments, "mirror", False) and arguments.limit is not None:
        raise InputError("--mirror would delete what --limit leaves out; give one of the two")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for bad input or a store that has a problem."""
    try:
        arguments = parse(argv)
        return int(arguments.run(arguments))
    except BrokenPipeError:
        raise  # the reader of a pipe has had enough
    except (InputError, StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was committed stays, and add, upsert and merge go on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    run_command(main)
