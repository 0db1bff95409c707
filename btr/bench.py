"""Time one question in the three modes, in turn in one process: `python -m btr.bench`."""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from btr import __version__
from btr.bert import Bert
from btr.config import MODES, T5_SHAPES, BertConfig, Mode, ReaderConfig
from btr.corpus import Passage
from btr.errors import InputError
from btr.fid import FiD
from btr.merge import Schedule
from btr.reader import DTYPES, Answer, Reader
from btr.skim import Skim
from btr.span import SpanReader
from btr.storage import Encoded, Settings, Store, StoreWriter
from btr.t5 import T5

SPLIT = {"small": 4, "base": 9, "large": 20, "minilm": 2, "bert-base": 9}  # k: the paper's, or of the shipped reader
BERT_SHAPES = {
    "minilm": BertConfig(vocab_size=22_400, hidden_size=384, num_hidden_layers=6, intermediate_size=1536),
    "bert-base": BertConfig(),
}
Contenders = dict[str, Callable[[], tuple[Answer, float] | None]]
Baseline = Callable[[str, Sequence[Passage], int], None]  # question, passages, new tokens
PHASES = ("tokenize", "load", "expand", "encode", "project", "decode")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    main = argparse.ArgumentParser(
        prog="btr bench",
        description="Seconds per question in the modes full, float and binary, and of transformers: Fusion-in-Decoder "
        "for a T5 shape, BertForQuestionAnswering over all passages for a BERT shape.",
    )
    main.add_argument(
        "--shape",
        choices=list(SPLIT),
        default="base",
        help="T5 or BERT shape, with random weights; minilm is the shipped reader's (default %(default)s)",
    )
    main.add_argument("--passages", type=int, default=40)
    main.add_argument("--passage-tokens", type=int, default=160)
    main.add_argument("--question-tokens", type=int, default=32)
    main.add_argument("--new-tokens", type=int, default=8)
    about = "layers that the row 'merged' merges tokens in, of a T5 (default %(default)s)"
    main.add_argument("--merge", choices=("none", "every", "algorithm"), default="algorithm", help=about)
    main.add_argument("--merge-ratio", type=float, default=0.2, help="share it merges there (default %(default)s)")
    about = "share it merges before, by the bits alone (default %(default)s)"
    main.add_argument("--merge-bits", type=float, default=0.0, help=about)
    about = "passages that the row 'pruned' reads to the end, of a BERT; 0: no such row (default %(default)s)"
    main.add_argument("--prune", type=int, default=4, help=about)
    main.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    main.add_argument("--runs", type=int, default=5, help="timed runs of each, after one that is not counted")
    main.add_argument("--json", action="store_true", help="print the figures as JSON")
    return main


def random_reader(shape: str, dtype: torch.dtype) -> Reader:
    """Make a reader of a shape with random weights; a T5 never ends an answer. Its words are numbered."""
    torch.manual_seed(0)
    marks = ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if shape in BERT_SHAPES else ("<pad>", "</s>", "<unk>")
    if shape in BERT_SHAPES:
        model: FiD | SpanReader = random_span_reader(shape)
    else:
        model = FiD(random_t5(shape), ReaderConfig(k=SPLIT[shape]))
    numbers = range(len(marks), model.vocab_size)
    vocabulary = {mark: i for i, mark in enumerate(marks)} | {f"w{i}": i for i in numbers}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(mark for mark in marks if "unk" in mark.lower())))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Reader(model.to(dtype), tokenizer, f"random {shape}")


def random_span_reader(shape: str) -> SpanReader:
    """Make a BERT with random weights that points at spans, and prunes."""
    model = SpanReader(Bert(BERT_SHAPES[shape]), span_config(shape))
    model.skim = Skim(model.width)
    model.skim.weight.normal_()
    return model


def random_t5(shape: str) -> T5:
    """Make a T5 with random weights that never ends an answer."""
    config = replace(T5_SHAPES[shape], dropout_rate=0.0)
    model = T5(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, 1.0 if "embedding" in name else parameter.shape[1] ** -0.5 / 4)
        model.head.weight[config.eos_token_id] = 0.0
    return model


def span_config(shape: str) -> ReaderConfig:
    """Return how a BERT of this shape keeps its tokens: as the shipped reader does, or the paper's way."""
    if shape != "minilm":
        return ReaderConfig(k=SPLIT[shape])
    return ReaderConfig(k=SPLIT[shape], calibration="predictive", bits=BERT_SHAPES[shape].hidden_size // 2)


def make_texts(reader: Reader, options: argparse.Namespace) -> tuple[str, list[Passage]]:
    """Make a question and passages of exactly the asked numbers of tokens, from words of one token each."""

    words = min(4000, reader.model.vocab_size - 5)

    def fill(count: int, start: int) -> str:
        return " ".join(f"w{5 + (start + 7 * j) % words}" for j in range(max(count, 1)))

    title = fill(1, 0)
    asking = options.question_tokens - len(reader.question_ids(title)) + 1
    reading = options.passage_tokens - len(reader.passage_ids([(title, title)])[0][0]) + 1
    passages = [Passage(str(i), fill(1, 31 * i), fill(reading, 31 * i + 7)) for i in range(options.passages)]
    return fill(asking, 5), passages


def transformers_bert(
    reader: Reader, folder: Path, dtype: torch.dtype
) -> Callable[[str, Sequence[Passage], int], None]:
    """Return a function that points at spans with transformers' BertForQuestionAnswering, the same weights."""
    from transformers import BertForQuestionAnswering

    reader.save_pretrained(folder)
    model = BertForQuestionAnswering.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def answer(question: str, passages: Sequence[Passage], new_tokens: int) -> None:
        asked = reader.question_ids(question)
        read = reader.passage_ids([(p.title, p.text) for p in passages])[0]
        rows = [torch.tensor([*asked, *ids]) for ids in read]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(padded.shape[1])[None] < torch.tensor([[len(row)] for row in rows])
        types = (torch.arange(padded.shape[1])[None] >= len(asked)).long().expand_as(padded)
        found = model(input_ids=padded, attention_mask=mask, token_type_ids=types)
        found.start_logits.flatten().float().log_softmax(0).max()
        found.end_logits.flatten().float().log_softmax(0).max()

    return answer


def transformers_fid(reader: Reader, folder: Path, dtype: torch.dtype) -> Baseline:
    """Return a function that answers with transformers' T5 as Fusion-in-Decoder, the same weights."""
    from transformers import T5ForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    reader.save_pretrained(folder)
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def answer(question: str, passages: Sequence[Passage], new_tokens: int) -> None:
        rows = [f"question: {question} title: {p.title} context: {p.text}" for p in passages]
        ids = [[*e.ids, 1] for e in reader.tokenizer.encode_batch(rows, add_special_tokens=False)]
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)
        mask = torch.arange(padded.shape[1])[None] < torch.tensor([[len(row)] for row in ids])
        states = model.encoder(input_ids=padded, attention_mask=mask).last_hidden_state
        memory = BaseModelOutput(last_hidden_state=states.reshape(1, -1, states.shape[-1]))
        model.generate(
            encoder_outputs=memory,
            attention_mask=mask.reshape(1, -1),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
        )

    return answer


def store_of(reader: Reader, passages: Sequence[Passage], path: Path) -> Encoded:
    """Write the passages' bits to a store; returns them as encoded."""
    encoded = reader.encode_passages(passages)
    settings = Settings(
        fingerprint=reader.fingerprint, tokenizer_hash=reader.tokenizer_hash, k=reader.config.k,
        D=reader.bits, width=reader.D, vocab_size=reader.model.vocab_size,
        max_passage_tokens=reader.config.max_passage_tokens, corpus_hash="",
    )  # fmt: skip
    with StoreWriter.create_or_resume(path, settings) as writer:
        writer.append(encoded, len(passages))
        writer.finish()
    return encoded


def schedule_of(reader: Reader, options: argparse.Namespace) -> Schedule | None:
    """Return how the row `merged` merges; None if there is no such row."""
    if options.merge == "none" or reader.family != "generative":
        return None
    return replace(reader.schedule(options.merge, options.merge_ratio), bits=options.merge_bits)


def contenders(reader: Reader, folder: Path, store: Store, encoded: Encoded, options: argparse.Namespace) -> Contenders:
    """Return what is timed, by name: each answers the question and says how long it took to load, if it is ours."""
    question, passages = make_texts(reader, options)
    states, merge = reader.encode_passages(passages, "float"), schedule_of(reader, options)
    kind = transformers_fid if reader.family == "generative" else transformers_bert
    baseline = kind(reader, folder / "reader", reader.model.dtype)

    def theirs() -> None:
        baseline(question, passages, options.new_tokens)

    def ours(mode: Mode, merge: Schedule | None = None, prune: int = 0) -> tuple[Answer, float]:
        began = perf_counter()
        given = passages if mode == "full" else states if mode == "float" else store.get(encoded.ids)
        loaded = perf_counter() - began
        return reader.answer(question, given, mode, options.new_tokens, merge, prune), loaded

    found: Contenders = {"transformers": theirs} | {mode: partial(ours, mode) for mode in MODES}
    if reader.prunes and options.prune:
        found |= {"pruned": partial(ours, "binary", None, options.prune)}
    return found if merge is None else found | {"merged": partial(ours, "binary", merge)}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time all modes in turn, `runs` times after a warm-up."""
    reader = random_reader(options.shape, DTYPES[options.dtype])
    encoded = store_of(reader, make_texts(reader, options)[1], folder / "bench.btr")
    seconds: dict[str, list[float]] = {}
    phases: dict[str, dict[str, list[float]]] = {}
    tokens = 0
    with Store.open(folder / "bench.btr", reader.fingerprint) as store:
        timed = contenders(reader, folder, store, encoded, options)
        for run in range(options.runs + 1):
            for name, answer in timed.items():
                began = perf_counter()
                found = answer()
                took = perf_counter() - began
                if run:
                    seconds.setdefault(name, []).append(took)
                if run and found is not None:
                    tokens = len(found[0].tokens)
                    for phase, value in (found[0].timings | {"load": found[1]}).items():
                        phases.setdefault(name, {}).setdefault(phase, []).append(value)
    width = 2 if options.dtype == "bfloat16" else 4
    signs = 0 if encoded.packed is None else encoded.packed.nbytes // encoded.num_tokens
    held = {"float": reader.D * width} | dict.fromkeys(("binary", "merged", "pruned"), signs + encoded.scale.itemsize)
    rows = {}
    for name, values in seconds.items():
        middle = {phase: statistics.median(v) for phase, v in phases.get(name, {}).items()}
        ratios = [full / value for full, value in zip(seconds["transformers"], values, strict=True)]
        rows[name] = {
            "seconds": round(statistics.median(values), 4),
            "least": round(min(values), 4), "most": round(max(values), 4),
            "times_transformers": round(statistics.median(ratios), 2), "bytes_per_token": held.get(name, 0),
            "phases": {phase: round(middle[phase], 4) for phase in PHASES if phase in middle},
        }  # fmt: skip
    return {
        "reader": reader.name, "k": reader.config.k, "passages": options.passages,
        "row_tokens": options.question_tokens + options.passage_tokens,
        "new_tokens": tokens if reader.family == "generative" else 0, "dtype": options.dtype, "runs": options.runs,
        "prune": options.prune, "merge": [options.merge, options.merge_ratio, options.merge_bits], "rows": rows,
        "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__, "btr": __version__,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run `btr bench`; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(options, Path(folder))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(figures) if options.json else table(figures))
    return 0


def table(figures: dict[str, Any]) -> str:
    """Lay out the figures for people."""
    head = "{reader}, k {k}, {passages} passages x {row_tokens} tokens, {new_tokens} new tokens, {dtype}, "
    head += "median of {runs}, {threads} threads, torch {torch}"
    columns = ("s/question", "min", "max", "speed", "bytes/token", *PHASES)
    lines = [head.format(**figures), f"{'':12} " + " ".join(f"{column:>11}" for column in columns)]
    for name, row in figures["rows"].items():
        cells = [f"{row[key]:.3f}" for key in ("seconds", "least", "most")]
        cells += [f"{row['times_transformers']:.2f}x", str(row["bytes_per_token"] or "")]
        cells += [f"{row['phases'][phase]:.3f}" if phase in row["phases"] else "" for phase in PHASES]
        lines.append(f"{name:12} " + " ".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
