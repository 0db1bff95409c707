"""Find passages by meaning: `python -m btr.retrieve build STORE --retriever ENCODER` embeds them."""

import argparse
import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

from btr.command import Parser, add_computing, check_least, run_command
from btr.errors import InputError
from btr.model.devices import settle
from btr.progress import Progress, say
from btr.retrieve.dense import bench
from btr.retrieve.dense.build import build, is_store, read_corpus, read_store
from btr.retrieve.dense.calibrate import calibrate
from btr.retrieve.dense.encoder import Encoder
from btr.retrieve.dense.quantize import CODES, MOST_CODES
from btr.retrieve.dense.updates import shards_of
from btr.retrieve.dense.writer import Plan, read_state
from btr.retrieve.fusion import DENSE, KINDS, WORDS, Choice, Kind, open_retriever
from btr.storage import Store, StoreError


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    main = Parser(prog="btr retrieve", description="Find passages by meaning, by words, or by both.")
    main.epilog = 'Example: btr retrieve search my.btr "Who built the lighthouse?"'
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_build(commands)
    find = add_command(commands, "search", "print the best passages for questions", search)
    find.add_argument("questions", nargs="+", metavar="QUESTION")
    number(find, "--top", 5, "passages a question")
    fit = add_command(commands, "calibrate", "set below which dense score a passage is not read", fit_threshold)
    fit.add_argument("questions", metavar="QUESTIONS", help="file of questions with answers, not those measured on")
    number(fit, "--top", 40, "passages a question")
    number(fit, "--limit", None, "questions to use; default: all")
    about = "share of the questions with an answer among --top that keep one (default %(default)s)"
    fit.add_argument("--keep", type=float, default=0.97, metavar="X", help=about)
    measure = add_command(commands, "bench", "measure recall, bytes and speed of an index", run_bench)
    bench.add_options(measure)
    return main


def add_command(commands: Any, name: str, about: str, run: Any) -> argparse.ArgumentParser:
    """Add a command over a store that has an index."""
    added: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    added.add_argument("store", metavar="STORE", help="store, or folder that build wrote")
    added.add_argument("--kind", choices=KINDS, help="what to search; default: what the store is searched with")
    added.add_argument("--encoder", metavar="E", help="encoder of questions; default: the store's")
    added.add_argument("--json", action="store_true", help="print JSON")
    added.set_defaults(run=run)
    return added


def add_build(commands: Any) -> None:
    """Add the command that builds."""
    about = "embed every passage and keep it as bits; killed, the same command goes on"
    added = commands.add_parser("build", help=about, description=about)
    add = added.add_argument
    add("source", metavar="SOURCE", help="a finished store, or a corpus as for btr precompute")
    about = "encoder of the passages: a folder or hub id of a sentence-transformers or Contriever-style BERT"
    add("--retriever", required=True, metavar="R", help=about)
    add("--out", metavar="FOLDER", help="where to write dense/; needed for a corpus, default for a store: the store")
    number(added, "--codes", None, f"bits a dimension, 1 to {MOST_CODES}; default: as the index there, or {CODES}")
    add("--scaled", action="store_true", help="keep a scale, 2 bytes, of one bit a dimension too: better scores")
    add("--floats", action="store_true", help="keep float32 vectors too, to compare with; 32 times the bytes")
    add("--kind", choices=KINDS, help="what the store is searched with from now on; default: what is there, fused")
    add_computing(add, "the encoder")
    number(added, "--limit", None, "passages of a corpus to read; default: all")
    number(added, "--words", 100, "words per passage when articles of a corpus are cut")
    add("--no-resume", action="store_true", help="start afresh, dropping an index that is there")
    add("--json", action="store_true", help="print the summary as JSON")
    added.set_defaults(run=run_build)


def number(group: argparse.ArgumentParser, name: str, default: int | None, about: str) -> None:
    """Add an option that is a whole number from 1."""
    shown = about if default is None else f"{about} (default {default})"
    group.add_argument(name, type=int, default=default, metavar="N", help=shown)


def run_build(options: argparse.Namespace) -> int:
    """Build the index and say what is searched from now on."""
    source, began = Path(options.source), time.monotonic()
    if not is_store(source) and not options.out:
        raise InputError(f"{source} is not a finished store; for a corpus, say with --out where to write the index")
    out = Path(options.out) if options.out else source
    dtype, device = settle(options.dtype, options.device)
    encoder = Encoder.from_pretrained(options.retriever, dtype, device)
    if options.no_resume:
        shutil.rmtree(out / DENSE, ignore_errors=True)
    begun = read_state(out / DENSE)
    usual = Plan("", "", 0, CODES) if begun is None else begun["plan"]
    plan = Plan(
        options.retriever, encoder.fingerprint, encoder.dimension, options.codes or usual.codes,
        options.floats or usual.floats, dtype, options.scaled or usual.scaled,
    )  # fmt: skip
    if is_store(source):
        with Store.open(source) as store:
            report, shards = Progress("embedded", 0, store.manifest.ordinals), shards_of(store.manifest.shards)
            count = build(encoder, plan, out, partial(read_store, store), report, shards)
    else:
        read = partial(read_corpus, options.source, limit=options.limit, words=options.words)
        report = Progress("embedded", 0, options.limit)
        count = build(encoder, plan, out, read, report)
    report.show(last=True)
    kind = options.kind or ("hybrid" if (out / WORDS).is_dir() else "dense")
    Choice(cast(Kind, kind)).write(out)
    size = sum(file.stat().st_size for file in (out / DENSE).iterdir())
    seconds = round(time.monotonic() - began, 1)
    facts = {"index": str(out / DENSE), "passages": count, "bytes": size, "seconds": seconds, "kind": kind}
    text = "wrote {index}: {passages:,} passages, {bytes:,} bytes, {seconds} s; searched from now on: {kind}"
    print(json.dumps(facts) if options.json else text.format(**facts))
    return 0


def search(options: argparse.Namespace) -> int:
    """Print what is found for each question."""
    path = Path(options.store)
    retriever = open_retriever(path, options.kind, options.encoder)
    store = Store.open(path) if is_store(path) else None
    found = []
    for question, (ordinals, scores) in zip(
        options.questions, retriever.search(options.questions, options.top), strict=True
    ):
        rows = store.at(ordinals.tolist()) if store is not None and len(ordinals) else None
        for place, (ordinal, score) in enumerate(zip(ordinals.tolist(), scores.tolist(), strict=True)):
            row = {"question": question, "ordinal": ordinal, "score": round(score, 6)}
            if rows is not None:
                row |= {"id": rows.ids[place], "title": rows.titles[place], "text": rows.texts[place]}
            found.append(row)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
        return 0
    for row in found:
        text = f"  {row['id']}  {row['title']}: {row['text'][:100]}" if "id" in row else ""
        print(f"{row['score']:.4f}  {row['ordinal']}{text}")
    return 0


def fit_threshold(options: argparse.Namespace) -> int:
    """Calibrate, and write what the store is searched with."""
    facts = calibrate(
        Path(options.store), options.questions, options.keep, options.top, options.limit, options.kind, options.encoder
    )
    text = (
        "read from a dense score of {threshold:.4f} on: {kept:.1%} of {found:,} questions keep an answer, "
        "{read:.1f} passages read instead of {top}"
    )
    print(json.dumps(facts) if options.json else text.format(**facts))
    return 0


def run_bench(options: argparse.Namespace) -> int:
    """Measure, and print a table or JSON."""
    facts = bench.measure(options, say)
    print(json.dumps(facts) if options.json else bench.table(facts))
    return 0


def check(options: argparse.Namespace) -> None:
    """Raise InputError for a number out of range."""
    check_least(options, 1, "top", "limit", "words", "codes")
    if options.command == "build" and (options.codes or 1) > MOST_CODES:
        raise InputError(f"--codes is {options.codes}; use 1 to {MOST_CODES}")
    if options.command == "calibrate" and not 0 < options.keep <= 1:
        raise InputError(f"--keep is {options.keep}; give a share above 0, at most 1")


def main(argv: list[str] | None = None) -> int:
    """Run `btr retrieve`; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        check(options)
        return int(options.run(options))
    except BrokenPipeError:
        raise  # the reader of a pipe has had enough
    except (InputError, StoreError, OSError) as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        return 130


if __name__ == "__main__":
    run_command(main)
