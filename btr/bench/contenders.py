"""What `btr bench` times against each other: what others do, and the reader's modes, with the same weights and texts.

Shapes: B questions that are answered together, N passages, which all of them read.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from btr.bench import baselines
from btr.bench.baselines import OTHERS, TRANSFORMERS
from btr.corpus import Passage
from btr.errors import InputError
from btr.model.bert import Bert
from btr.model.config import MODES, T5_SHAPES, BertConfig, Mode, MPNetConfig, ReaderConfig
from btr.model.devices import choose_device
from btr.model.fid import FiD
from btr.model.merge import Schedule
from btr.model.pruning import Pruner
from btr.model.span_head import SpanReader
from btr.model.t5 import T5
from btr.reader import Answer, Reader
from btr.storage import Encoded, Settings, Store, StoreWriter

# k: the paper's, or of the shipped reader
SPLIT = {"small": 4, "base": 9, "large": 20, "minilm": 1, "bert-base": 9, "mpnet-base": 9}
BERT_SHAPES = {
    "minilm": BertConfig(vocab_size=22_400, hidden_size=384, num_hidden_layers=6, intermediate_size=1536),
    "bert-base": BertConfig(),
    "mpnet-base": MPNetConfig(),
}
Contenders = dict[str, Callable[[], tuple[list[Answer], float] | None]]


def random_reader(
    shape: str, dtype: torch.dtype, k: int | None = None, bits: int = 0, device: torch.device | str = "cpu"
) -> Reader:
    """Make a reader of a shape with random weights, which prunes; a T5 never ends an answer. Its words are numbered.

    k: the shape's own unless given; bits: how many predictive signs are kept of a token, 0: as the shape has it.

    Raises:
        InputError: a k that it has no layer for, or more bits than it has dimensions.
    """
    torch.manual_seed(0)
    berts = {"bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), "mpnet": ("<s>", "<pad>", "</s>", "[UNK]")}
    marks = berts[BERT_SHAPES[shape].family] if shape in BERT_SHAPES else ("<pad>", "</s>", "<unk>")
    config = span_config(shape)
    if bits:
        config = replace(config, calibration="predictive", bits=bits)
    config = replace(config, k=config.k if k is None else k)
    model: FiD | SpanReader
    try:
        if shape in BERT_SHAPES:
            model = SpanReader(Bert(BERT_SHAPES[shape]), config)
        else:
            model = FiD(random_t5(shape), config)
    except ValueError as error:
        raise InputError(f"--shape {shape}: {error}") from error
    model.pruner = Pruner(model.width)
    model.pruner.weight.normal_()
    numbers = range(len(marks), model.vocab_size)
    vocabulary = {mark: i for i, mark in enumerate(marks)} | {f"w{i}": i for i in numbers}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(mark for mark in marks if "unk" in mark.lower())))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Reader(model.to(device, dtype), tokenizer, f"random {shape}")


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
    """Return how a reader of this shape keeps its tokens: as the shipped one does, or the paper's way."""
    if shape != "minilm":
        return ReaderConfig(k=SPLIT[shape])
    return ReaderConfig(k=SPLIT[shape], calibration="predictive", bits=BERT_SHAPES[shape].hidden_size * 5 // 16)


def make_texts(reader: Reader, options: argparse.Namespace, count: int) -> tuple[list[str], list[Passage]]:
    """Make questions and `count` passages of exactly the asked numbers of tokens, from words of one token each."""

    words = min(4000, reader.model.vocab_size - 5)

    def fill(count: int, start: int) -> str:
        return " ".join(f"w{5 + (start + 7 * j) % words}" for j in range(max(count, 1)))

    title = fill(1, 0)
    asking = options.question_tokens - len(reader.question_ids(title)) + 1
    reading = options.passage_tokens - len(reader.passage_ids([(title, title)])[0][0]) + 1
    passages = [Passage(str(i), fill(1, 31 * i), fill(reading, 31 * i + 7)) for i in range(count)]
    return [fill(asking, 5 + 11 * b) for b in range(options.questions)], passages


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


def contenders(
    reader: Reader, folder: Path, store: Store, encoded: Encoded, options: argparse.Namespace, names: Sequence[str]
) -> Contenders:
    """Return what is timed, of these names: each answers the questions; ours say how long it took to load.

    folder / "reader" holds the reader.
    """
    questions, passages = make_texts(reader, options, len(encoded))
    merge = schedule_of(reader, options)
    given: dict[Mode, Sequence[Passage] | Encoded] = {"full": passages}
    if "float" in names:
        given["float"] = reader.encode_passages(passages, "float")

    def ours(
        mode: Mode, merge: Schedule | None = None, prune: int = 0, reader: Reader = reader
    ) -> tuple[list[Answer], float]:
        began = perf_counter()
        read = store.get(encoded.ids) if prune or mode not in given else given[mode]
        loaded = perf_counter() - began
        return reader.answer_batch(questions, [read] * len(questions), mode, options.new_tokens, merge, prune), loaded

    found: Contenders = {mode: partial(ours, mode) for mode in MODES}
    if reader.prunes and options.prune:
        found["pruned"] = partial(ours, "binary", None, options.prune)
        found["reread"] = partial(ours, "full", None, options.prune)
    if {"int8", "pruned-int8"} & set(names):
        rounded = Reader.from_pretrained(folder / "reader", dtype=options.dtype)
        rounded.round_weights()
        found["int8"] = partial(ours, "binary", reader=rounded)
        if options.prune:
            found["pruned-int8"] = partial(ours, "binary", None, options.prune, rounded)
    if reader.family == "generative" and "int8-decoder" in names:
        decoding = Reader(reader.model, reader.tokenizer, reader.name)
        decoding.round_decoder()
        found["int8-decoder"] = partial(ours, "binary", reader=decoding)
    if merge is not None:
        found["merged"] = partial(ours, "binary", merge)
    device = choose_device(options.device)
    theirs = [name for name in (TRANSFORMERS, *OTHERS) if name in names and baselines.possible(name)]
    others = {name: baselines.make(name, reader, folder, device) for name in theirs}
    found = {name: partial(run, questions, passages, options.new_tokens) for name, run in others.items()} | found
    return {name: run for name, run in found.items() if name in names}
