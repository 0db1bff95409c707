"""Time questions in the three modes, in turn in one process, beside transformers: `python -m btr.bench`."""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import sys
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from btr import __version__
from btr.bench import flatness
from btr.bench import kernels as kernel_bench
from btr.bench.baselines import OTHERS, TRANSFORMERS, possible
from btr.bench.contenders import SPLIT, contenders, make_texts, random_reader, store_of
from btr.command import Parser, add_computing, check_file, check_least, run_command
from btr.errors import InputError
from btr.eval import plots
from btr.model.config import MODES
from btr.model.devices import choose_device, choose_dtype, processor_says
from btr.progress import Progress, say
from btr.reader import DTYPES, Reader
from btr.storage import Encoded, Store

FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")  # of a CPU, that speeds depend on
PHASES = ("tokenize", "load", "expand", "look", "encode", "merge", "decode")
NAMES = (TRANSFORMERS, *MODES, "pruned", "reread", "merged")
ROUNDED = ("int8", "pruned-int8", "int8-decoder")  # rows that are only there if they are asked for, as OTHERS are
ON_CPU = (*ROUNDED, "onnx", "onnx-int8")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    main = Parser(
        prog="btr bench",
        description="Seconds per question in the modes full, float and binary, and of transformers: Fusion-in-Decoder "
        "for a T5 shape, its model with a head for spans over all passages for a BERT or MPNet shape.",
        epilog="Example: btr bench --shape minilm --passages 10,40 --only transformers,full,binary,pruned",
    )
    add = main.add_argument_group("what is timed").add_argument
    about = "T5, BERT or MPNet shape, with random weights; minilm is the shipped reader's (default %(default)s)"
    add("--shape", choices=list(SPLIT), default="base", help=about)
    add("--split", type=int, metavar="K", help="lower layers run apart (default: those of the shape)")
    about = "predictive signs kept of a token; 0: as many as the shape keeps (default %(default)s)"
    add("--bits", type=int, default=0, help=about)
    about = "which of them, with commas; int8 and pruned-int8: with int8 weights from layer k+1 on; int8-decoder: in a "
    about += "T5's decoder alone; eager, compile: of transformers; onnx, onnx-int8: ONNX Runtime, float32 and int8, of "
    about += "a T5 the encoder alone: needs the extra bench (default %(default)s)"
    add("--only", type=lambda text: text.split(","), default=",".join(NAMES), help=about)
    about = "passages that the row 'pruned' reads to the end; 0: no such row (default %(default)s)"
    add("--prune", type=int, default=4, help=about)
    about = "layers that the row 'merged' merges tokens in, of a T5 (default %(default)s)"
    add("--merge", choices=("none", "every", "algorithm"), default="algorithm", help=about)
    add("--merge-ratio", type=float, default=0.2, help="share it merges there (default %(default)s)")
    about = "share it merges before, by the bits alone (default %(default)s)"
    add("--merge-bits", type=float, default=0.0, help=about)
    about = "time the kernels instead, of a width, beside what does the same and the roof that they are held against"
    add("--kernels", type=int, nargs="*", metavar="D", help=about)
    about = "time N questions instead, in mode binary, each over passages never read together before"
    add("--combinations", type=int, metavar="N", help=about)
    add = main.add_argument_group("of what size").add_argument
    about = "how many, or several such numbers: 5,10,20,40,100 (default 40)"
    add("--passages", type=numbers, default=[40], help=about)
    add("--questions", type=int, default=1, help="answered together (default %(default)s)")
    add("--passage-tokens", type=int, default=160, help="(default %(default)s)")
    add("--question-tokens", type=int, default=32, help="(default %(default)s)")
    add("--new-tokens", type=int, default=8, help="of an answer (default %(default)s)")
    add_computing(add, "what is timed", "bfloat16")
    about = "timed runs of each, after one that is not counted (default %(default)s)"
    add("--runs", type=int, default=5, help=about)
    add = main.add_argument_group("what comes of it").add_argument
    add("--memory", action="store_true", help="also take the peak memory of each, in a process of its own")
    about = "print the figures as JSON, or write them to a file"
    add("--json", nargs="?", const="-", metavar="FILE", help=about)
    add("--plot", metavar="FILE", help="draw seconds and phases: .png, .pdf or .svg")
    return main


def numbers(text: str) -> list[int]:
    """Read whole numbers of at least 1 with commas between them."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(f"{min(found)} passages; use 1 or more")
    return found


def settle(options: argparse.Namespace) -> torch.device:
    """Return where to compute; what `--dtype auto` comes to there is put in its place.

    Raises:
        InputError: a size below what there can be, or as `choose_device` and `choose_dtype`.
    """
    check_least(options, 1, "questions", "passage_tokens", "question_tokens", "new_tokens", "runs", "split")
    check_least(options, 0, "prune", "bits")
    device = choose_device(options.device)
    options.dtype = choose_dtype(options.dtype, device)
    return device


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time all that was asked for, at each number of passages."""
    unknown = sorted(set(options.only) - set(NAMES) - set(ROUNDED) - set(OTHERS))
    if unknown:
        raise InputError(f"--only {','.join(unknown)}: not known; choose of {', '.join((*NAMES, *ROUNDED, *OTHERS))}")
    device = settle(options)
    if device.type != "cpu" and (
        ours := [name for name in options.only if name in ON_CPU] + ["--memory"] * options.memory
    ):
        raise InputError(f"{', '.join(ours)}: measured on the CPU alone; leave that out, or --device {options.device}")
    if missing := [name for name in options.only if not possible(name)]:
        say(f"left out: {', '.join(missing)}: not installed; pip install 'btr-reader[bench]'")
    reader = random_reader(options.shape, DTYPES[options.dtype], options.split, options.bits, device)
    reader.save_pretrained(folder / "reader")
    sizes = []
    for count in options.passages:
        place = folder / f"{count}.btr"
        began = perf_counter()
        encoded = store_of(reader, make_texts(reader, options, count)[1], place)
        written = {
            "seconds": round(perf_counter() - began, 4),
            "bytes": bytes_below(place),
            "tokens": encoded.num_tokens,
        }
        with Store.open(place, reader.fingerprint) as store:
            rows = time_in_turn(reader, folder, store, encoded, options)
        if options.memory:
            report = Progress(f"memory, {count} passages:", 0, len(rows), "processes")
            for name in rows:
                rows[name]["peak_mib"] = peak_of(name, count, folder, options)
                report(1)
            report.show(last=True)
        sizes.append({"passages": count, "written": written, "rows": rows})
    return {
        "reader": reader.name, "k": reader.config.k, "sizes": sizes, "questions": options.questions,
        "row_tokens": options.question_tokens + options.passage_tokens,
        "new_tokens": options.new_tokens if reader.family == "generative" else 0,
        "dtype": options.dtype, "device": name_of(device), "runs": options.runs,
        "merge": [options.merge, options.merge_ratio, options.merge_bits], **machine(),
        "command": shlex.join(["python", "-m", "btr.bench", *options.words]),
    }  # fmt: skip


def kernel_figures(options: argparse.Namespace) -> dict[str, Any]:
    """Time the kernels at each width asked for, or those of a T5-base and of the shipped reader."""
    if options.plot or options.memory:
        raise InputError("--kernels makes a table alone; leave --plot and --memory out")
    if any(width < 8 for width in options.kernels) or options.runs < 1:
        raise InputError(
            f"--kernels {options.kernels} --runs {options.runs}: use widths of 8 or more, and a run or more"
        )
    rows = [row for width in options.kernels or (768, 384) for row in kernel_bench.measure(width, options.runs)]
    return {"rows": rows, "runs": options.runs, **machine()}


def flat_figures(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time questions over ever new combinations of passages."""
    if options.plot or options.memory or len(options.passages) > 1:
        raise InputError("--combinations makes a table alone, of one number of passages; leave --plot and --memory out")
    device = settle(options)
    reader = random_reader(options.shape, DTYPES[options.dtype], options.split, options.bits, device)
    rows = flatness.measure(reader, folder, options)
    return {
        "reader": reader.name, "passages": options.passages[0], "rows": rows, "dtype": options.dtype,
        "device": name_of(device), "row_tokens": options.question_tokens + options.passage_tokens, **machine(),
        "command": shlex.join(["python", "-m", "btr.bench", *options.words]),
    }  # fmt: skip


def name_of(device: torch.device) -> str:
    """Return what a device is called, and by whom."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def bytes_below(folder: Path) -> int:
    """Return what the files of a folder hold."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def machine() -> dict[str, Any]:
    """Say what something was measured on, and with which packages."""
    processor = processor_says("model name") or platform.processor() or platform.machine()
    flags = set(processor_says("flags").split())
    versions = {}
    for name in ("transformers", "onnxruntime"):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "machine": " ".join([processor, *(flag for flag in FLAGS if flag in flags)]),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(),
        "torch": torch.__version__, **versions, "btr": __version__,
    }  # fmt: skip


def time_in_turn(
    reader: Reader, folder: Path, store: Store, encoded: Encoded, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Time the contenders in turn, `runs` times after a warm-up; seconds are of one question."""
    seconds: dict[str, list[float]] = {}
    phases: dict[str, dict[str, list[float]]] = {}
    timed = contenders(reader, folder, store, encoded, options, options.only)
    if not timed:
        raise InputError(f"--only {','.join(options.only)}: there is no such row of shape {options.shape}")
    report = Progress(f"{len(encoded)} passages:", 0, (options.runs + 1) * len(timed), "answers")
    for run in range(options.runs + 1):
        for name, answer in timed.items():
            began = perf_counter()
            found = answer()
            took = (perf_counter() - began) / options.questions
            if run:
                seconds.setdefault(name, []).append(took)
            if run and found is not None:
                for phase, value in (found[0][0].timings | {"load": found[1]}).items():
                    phases.setdefault(name, {}).setdefault(phase, []).append(value / options.questions)
            report(1)
    report.show(last=True)
    width = 2 if options.dtype == "bfloat16" else 4
    signs = 0 if encoded.packed is None else encoded.packed.nbytes // encoded.num_tokens
    kept = signs + encoded.scale.itemsize
    held = {"float": reader.D * width} | dict.fromkeys(("binary", "merged", "pruned", "reread", *ROUNDED), kept)
    first = next(iter(timed))
    rows = {}
    for name, values in seconds.items():
        middle = {phase: statistics.median(v) for phase, v in phases.get(name, {}).items()}
        ratios = [full / value for full, value in zip(seconds[first], values, strict=True)]
        rows[name] = {
            "seconds": round(statistics.median(values), 4),
            "least": round(min(values), 4), "most": round(max(values), 4),
            f"times_{first}": round(statistics.median(ratios), 2), "bytes_per_token": held.get(name, 0),
            "bytes_read": held.get(name, 0) * encoded.num_tokens,
            "phases": {phase: round(middle[phase], 4) for phase in PHASES if phase in middle},
        }  # fmt: skip
    return rows


def peak_of(name: str, count: int, folder: Path, options: argparse.Namespace) -> int:
    """Answer once in a process of its own; returns the most memory it held, weights and libraries included, in MiB."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=answer_alone, args=(name, count, folder, options, theirs))
    process.start()
    theirs.close()
    try:
        return int(ours.recv())
    except EOFError as error:
        raise InputError(f"the process that measures the memory of {name!r} ended early; see above") from error
    finally:
        process.join()


def answer_alone(name: str, count: int, folder: Path, options: argparse.Namespace, result: Any) -> None:
    """Load what one contender needs, answer with it, and send the peak of memory."""
    reader = Reader.from_pretrained(folder / "reader", dtype=options.dtype)
    with Store.open(folder / f"{count}.btr", reader.fingerprint) as store:
        encoded = store.get(list(store.ids()))
        if name in (TRANSFORMERS, *OTHERS):
            reader.model.to("meta")
        contenders(reader, folder, store, encoded, options, [name])[name]()
    result.send(peak_memory() // 2**20)


def peak_memory() -> int:
    """Return the most bytes that this process has held; not those of the one it was started from."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return flatness.memory("VmHWM") or most


def main(argv: list[str] | None = None) -> int:
    """Run `btr bench`; returns the exit code."""
    options = parser().parse_args(argv)
    options.words = sys.argv[1:] if argv is None else argv
    try:
        if options.json not in (None, "-"):
            check_file("--json", options.json)
        if options.plot is not None:
            check_file("--plot", options.plot)
            plots.check(options.plot)
        if options.kernels is not None:
            rates = kernel_figures(options)
            show(rates, options.json, kernel_bench.table(rates["rows"]))
            return 0
        with tempfile.TemporaryDirectory() as folder:
            if options.combinations is not None:
                flat = flat_figures(options, Path(folder))
                show(flat, options.json, flatness.table(flat["rows"]))
                return 0
            figures = measure(options, Path(folder))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(figures, options.json, table(figures))
    if options.plot:
        plots.draw_bench(figures, options.plot)
    return 0


def show(figures: dict[str, Any], file: str | None, text: str) -> None:
    """Print figures as a table, which a file may have as JSON, or as JSON alone (`-`)."""
    print(json.dumps(figures) if file == "-" else text)
    if file not in (None, "-"):
        Path(file).write_text(json.dumps(figures) + "\n", encoding="utf-8")


def table(figures: dict[str, Any]) -> str:
    """Lay out the figures for people."""
    head = "{reader}, k {k}, rows of {row_tokens} tokens, {questions} question(s) together, {new_tokens} new tokens, "
    head += "{dtype} on {device}, median of {runs}, {threads} threads, torch {torch}"
    memory = "peak_mib" in next(iter(figures["sizes"][0]["rows"].values()))
    columns = ("s/question", "min", "max", "speed", "bytes/token", *(("peak MiB",) if memory else ()), *PHASES)
    lines = [head.format(**figures)]
    for size in figures["sizes"]:
        lines.append(f"{size['passages']:>3} passages " + " ".join(f"{column:>11}" for column in columns))
        for name, row in size["rows"].items():
            speed = next(value for key, value in row.items() if key.startswith("times_"))
            cells = [f"{row[key]:.3f}" for key in ("seconds", "least", "most")]
            cells += [f"{speed:.2f}x", str(row["bytes_per_token"] or ""), *([str(row["peak_mib"])] if memory else [])]
            cells += [f"{row['phases'][phase]:.3f}" if phase in row["phases"] else "" for phase in PHASES]
            lines.append(f"{name:12} " + " ".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
