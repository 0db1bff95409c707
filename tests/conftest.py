"""What every test stands on: no network but loopback, few threads, the same examples on every run."""

import ipaddress
import itertools
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything imports torch or transformers, which read these once; processes started by a test inherit them.
os.environ |= {"HF_HUB_OFFLINE": "1", "BTR_DTYPE": "float32"}  # a server's own precision depends on the processor
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: a second thread costs more than it gives
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warning about forks would be an error here

import pytest
from hypothesis import settings

import btr.progress

if TYPE_CHECKING:  # slow to import, and most tests do without
    from tokenizers import Tokenizer
    from torch import Tensor
    from transformers import BertForQuestionAnswering, T5ForConditionalGeneration

    from btr.corpus import Passage
    from btr.model.binarize import Binarizer, Known
    from btr.reader import Reader

settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")
btr.progress.PLAIN = float("inf")  # the lines that come now and then: how many there are depends on the load


class NetworkBlocked(RuntimeError):
    """A test reached for the network. Not an OSError: code that expects those would swallow it and try again."""


def is_local(host: object) -> bool:
    """Tell whether `host` (text, bytes or None) is this machine: a loopback address, its name, or no name at all."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(name).partition("%")[0]).is_loopback
    except ValueError:
        return False


def refuse_unless_local(host: object) -> None:
    """Raise NetworkBlocked unless `host` is this machine."""
    if not is_local(host):
        raise NetworkBlocked(f"a test reached for {host!r}; only loopback is allowed")


def guard_method(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `socket.connect` and its kin, whose last argument is the address: (host, port, ...), or a path."""

    def guarded(self: socket.socket, *args: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse_unless_local(args[-1][0])
        return method(self, *args)

    return guarded


def guard_lookup(lookup: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `socket.getaddrinfo` and its kin, whose first argument is the host."""

    def guarded(host: object, *args: Any, **kwargs: Any) -> Any:
        refuse_unless_local(host)
        return lookup(host, *args, **kwargs)

    return guarded


# On import rather than in a fixture, so that collecting the tests is held to it too.
for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, guard_method(getattr(socket.socket, _name)))
for _name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    setattr(socket, _name, guard_lookup(getattr(socket, _name)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which tests were skipped, where NO_SKIPS is set: the gate has all they need but hardware."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    stats = getattr(reporter, "stats", {})  # a worker of pytest-xdist has no reporter
    skipped = [one for one in stats.get("skipped", ()) if not {"cuda", "int8"} & set(getattr(one, "keywords", ()))]
    if os.environ.get("NO_SKIPS") and skipped and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.write_line("NO_SKIPS is set, and tests were skipped (reasons: pytest -rs)", red=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `cuda` or `int8` where there is none."""
    if item.get_closest_marker("cuda") and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    devices = pytest.importorskip("btr.model.devices") if item.get_closest_marker("int8") else None
    if devices and not devices.multiplies_int8(devices.torch.device("cpu")):
        pytest.skip("this CPU has no instructions that multiply int8")


# Fixtures shared by more than one room, made once for all tests: whoever wants to change one takes a deep copy.
# Shape of T5: seed. 1.0 has ReLU, its head tied to the embedding, its output scaled; 1.1 a gate, a head of its own, no
# scaling. With these seeds some answers end by themselves and some do not, and they are not all alike.
SHAPES = {"1.0": 5, "1.1": 1}
TEXTS = (
    ("Harbour of Vellin", "The harbour of Vellin was dug by hand in 1712 and is deep enough for two ships at a time."),
    ("", "Ada Berg built the lighthouse, and kept its lamp for thirty years."),
    ("Salt", "Salt was carried over the hills on mules; a mule takes forty kilos, and a day for the way."),
    ("Grey heron", "The grey heron nests in the reeds. It eats fish, frogs and, in hard winters, mice. " * 12),
    ("Bridges", "Of the nine bridges only the one at the mill still stands."),
)


def make_t5(shape: str, seed: int) -> "T5ForConditionalGeneration":
    """Make a random T5 in which no tensor is idle: norms that are not 1, positions that matter, answers that end."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    gated = shape == "1.1"
    sizes = {"vocab_size": 256, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_heads": 4}
    layers = {"num_layers": 4, "num_decoder_layers": 3, "dropout_rate": 0.0, "decoder_start_token_id": 0}
    kind = {"feed_forward_proj": "gated-gelu" if gated else "relu", "tie_word_embeddings": not gated}
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(T5Config(**sizes, **layers, **kind)).eval()
    if gated:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(256, 64))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif "relative" in name:
                parameter.normal_()
            elif name in ("shared.weight", "lm_head.weight"):
                parameter.normal_(std=0.2 if gated else 0.1)
                parameter[1] *= 2 if gated else 3  # the end of sequence comes now and then
        model.decoder.final_layer_norm.weight *= 3 if gated else 40  # answers one can be sure of
    return model


@pytest.fixture(scope="session")
def tiny_passages() -> "list[Passage]":
    """Five passages, of some 20 to 200 tokens, one without title."""
    from btr.corpus import Passage

    return [Passage(f"p{n}", title, text) for n, (title, text) in enumerate(TEXTS)]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "Tokenizer":
    """Byte pairs with T5's special tokens and word marks: <pad> 0, </s> 1, <unk> 2; some 150 pieces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator([f"question: title: {title} context: {text}" for title, text in TEXTS], trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tiny_t5s() -> "dict[str, T5ForConditionalGeneration]":
    """A random T5 of each shape, as transformers has it."""
    return {shape: make_t5(shape, seed) for shape, seed in SHAPES.items()}


@pytest.fixture(scope="session")
def tiny_folders(
    tiny_t5s: "dict[str, T5ForConditionalGeneration]",
    tiny_tokenizer: "Tokenizer",
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The folder of each shape, as transformers saves it: a plain T5 and its tokenizer."""
    folders = {}
    for shape, model in tiny_t5s.items():
        folders[shape] = tmp_path_factory.mktemp("t5")
        model.save_pretrained(folders[shape])
        tiny_tokenizer.save(str(folders[shape] / "tokenizer.json"))
    return folders


@pytest.fixture(scope="session")
def tiny_readers(tiny_folders: dict[str, Path], tiny_passages: "list[Passage]") -> "dict[str, Reader]":
    """A reader of each shape, split after layer 2 of 4 and calibrated."""
    from btr.reader import Reader

    readers = {shape: Reader.from_pretrained(folder, k=2) for shape, folder in tiny_folders.items()}
    for reader in readers.values():
        reader.calibrate(tiny_passages)
    return readers


@pytest.fixture(scope="session")
def tiny_reader(tiny_readers: "dict[str, Reader]") -> "Reader":
    """A reader of shape 1.1, for tests that need no more than one."""
    return tiny_readers["1.1"]


@pytest.fixture(scope="session", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    """Each shape of T5 in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def oracle(shape: str, tiny_t5s: "dict[str, T5ForConditionalGeneration]") -> "T5ForConditionalGeneration":
    """What transformers makes of the shape."""
    return tiny_t5s[shape]


@pytest.fixture(scope="session")
def tiny_bert() -> "BertForQuestionAnswering":
    """A random BERT with a head for spans, as transformers has it, in which no tensor is idle."""
    import torch
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(3)
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 400}
    model = BertForQuestionAnswering(BertConfig(**sizes, num_hidden_layers=4, num_attention_heads=4)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.3 if parameter.dim() == 1 or "embeddings" in name else 0.15)
    return model


@pytest.fixture(scope="session")
def make_wordpiece() -> "Callable[[Iterable[str], int], Tokenizer]":
    """Make a lower-cased WordPiece tokenizer of texts, of a number of pieces, that adds nothing to them.

    It is the same one in every process, as a trained one is not, whose ties fall by the order of hash maps. Letters
    come first, then what saves most pieces: the number of places, times letters beyond the first.
    """
    import json

    from tokenizers import BertWordPieceTokenizer, Tokenizer

    def make(texts: Iterable[str], size: int) -> Tokenizer:
        plain = BertWordPieceTokenizer()
        counts: Counter[str] = Counter()
        for text in texts:
            for word, _ in plain.pre_tokenizer.pre_tokenize_str(plain.normalizer.normalize_str(text)):
                ends = itertools.combinations(range(len(word) + 1), 2)
                counts.update(("##" if first else "") + word[first:last] for first, last in ends)
        length = {piece: len(piece.removeprefix("##")) for piece in counts}
        pieces = sorted(counts, key=lambda piece: (length[piece] > 1, -counts[piece] * (length[piece] - 1), piece))
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        made = BertWordPieceTokenizer({piece: n for n, piece in enumerate([*special, *pieces][:size])})
        return Tokenizer.from_str(json.dumps(json.loads(made.to_str()) | {"post_processor": None}))

    return make


@pytest.fixture(scope="session")
def bert_folder(
    tiny_bert: "BertForQuestionAnswering",
    make_wordpiece: "Callable[[Iterable[str], int], Tokenizer]",
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Its folder, with a WordPiece tokenizer of 300 pieces."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = make_wordpiece([f"{title} {text}" for title, text in TEXTS], 300)
    tiny_bert.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def encoder_folder(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of texts as sentence-transformers keeps it: the same BERT, mean pooling, normalised, 48 tokens."""
    import json
    import shutil

    from tokenizers import Tokenizer, processors

    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    shutil.copytree(bert_folder, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = [(piece, tokenizer.token_to_id(piece)) for piece in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "1_Pooling").mkdir()
    for name, value in (
        ("modules.json", modules),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}),
        ("sentence_bert_config.json", {"max_seq_length": 48}),
    ):
        (folder / name).write_text(json.dumps(value))
    return folder


@pytest.fixture(scope="session")
def span_reader(bert_folder: Path, tiny_passages: "list[Passage]") -> "Reader":
    """A span reader, split after layer 2 of 4 and calibrated."""
    from btr.reader import Reader

    reader = Reader.from_pretrained(bert_folder, k=2)
    reader.calibrate(tiny_passages)
    return reader


@pytest.fixture(scope="session")
def writing_reader(span_reader: "Reader") -> "Reader":
    """The same BERT, which writes: with a decoder as training begins with."""
    import copy

    from btr.model.span_head import SpanReader
    from btr.reader import Reader
    from btr.train.written import with_decoder

    model = copy.deepcopy(span_reader.model)
    assert isinstance(model, SpanReader)
    return Reader(with_decoder(model, span_reader.tokenizer, 2, seed=1), span_reader.tokenizer)


@pytest.fixture(scope="session")
def pruning_writer(writing_reader: "Reader") -> "Reader":
    """The same, which can prune: by random weights."""
    import copy

    import torch

    from btr.model.pruning import Pruner

    reader = copy.deepcopy(writing_reader)
    reader.model.pruner = Pruner(reader.D)
    reader.model.pruner.weight.copy_(torch.randn(reader.D + 1, generator=torch.Generator().manual_seed(5)))
    return reader


@pytest.fixture(scope="session")
def pruning_reader(span_reader: "Reader") -> "Reader":
    """The same span reader, which can prune: by random weights."""
    import copy

    import torch

    from btr.model.pruning import Pruner
    from btr.model.span_head import SpanReader

    reader = copy.deepcopy(span_reader)
    assert isinstance(reader.model, SpanReader)
    reader.model.pruner = Pruner(reader.D)
    reader.model.pruner.weight.copy_(torch.randn(reader.D + 1, generator=torch.Generator().manual_seed(5)))
    return reader


@pytest.fixture(scope="session")
def pruning_t5(tiny_reader: "Reader") -> "Reader":
    """The tiny T5 of shape 1.1, which can prune: by random weights."""
    import copy

    import torch

    from btr.model.pruning import Pruner

    reader = copy.deepcopy(tiny_reader)
    reader.model.pruner = Pruner(reader.D)
    reader.model.pruner.weight.copy_(torch.randn(reader.D + 1, generator=torch.Generator().manual_seed(6)))
    return reader


@pytest.fixture(scope="session")
def reader_folder(tiny_reader: "Reader", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the tiny reader."""
    folder = tmp_path_factory.mktemp("reader") / "tiny"
    tiny_reader.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def calibrate_clear() -> "Callable[..., None]":
    """Calibrate on states (M, D), and move each threshold into the widest gap about it.

    A state that lies on it but for its last digit has another bit on another machine, and all else with it.
    """

    def calibrate(binarizer: "Binarizer", u: "Tensor", known: "Known | None" = None) -> None:
        binarizer.calibrate(u, known)
        if binarizer.calibration == "channel":
            binarizer.mean.data = gap(u)
        elif binarizer.calibration == "predictive":
            code = binarizer.code.detach()
            binarizer.mean.data += code.pinverse() @ gap((u - binarizer.expected(known)) @ code.T)

    return calibrate


def gap(values: "Tensor") -> "Tensor":
    """Return the middle of the widest gap between the quartiles of values (M, D): (D,)."""
    middle = values.detach().sort(0).values[len(values) // 4 : -(len(values) // 4)]
    below = middle.diff(dim=0).argmax(0)[None]
    return (middle.gather(0, below) + middle.gather(0, below + 1))[0] / 2
