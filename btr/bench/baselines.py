"""What others do with the same weights and texts: transformers, torch.compile, ONNX Runtime.

Each row is [question; passage]; transformers has all of them in one batch, ONNX Runtime as many at once as the reader,
which is faster. It has float32, and weights rounded to int8 with activations rounded as they come (`quantize_dynamic`);
of a T5 it runs the encoder alone, so that its row is short of what decoding takes. Shapes: R rows, T tokens.
"""

import copy
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from btr.corpus import Passage
from btr.model.layout import BATCH_TOKENS
from btr.model.span_head import SpanReader
from btr.model.t5 import T5
from btr.reader import Reader

TRANSFORMERS, ONNX = "transformers", "onnx"
OTHERS = ("eager", "compile", ONNX, "onnx-int8")  # beside `transformers`, whose attention is the one it chooses
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
Baseline = Callable[[Sequence[str], Sequence[Passage], int], None]  # questions, passages, new tokens


def possible(name: str) -> bool:
    """Whether what a row needs is installed."""
    return not name.startswith(ONNX) or all(importlib.util.find_spec(package) for package in PACKAGES)


def make(name: str, reader: Reader, folder: Path, device: torch.device) -> Baseline:
    """Make the contender of a row; folder / "reader" holds the reader, and folder what is exported."""
    if name.startswith(ONNX):
        return onnx(reader, folder, name != ONNX)
    attention, compiled = ("eager" if name == "eager" else None), name == "compile"
    kind = transformers_fid if reader.family == "generative" else transformers_bert
    return kind(reader, folder / "reader", device, attention, compiled)


def span_rows(reader: Reader, questions: Sequence[str], passages: Sequence[Passage]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows of a BERT, (R, T), their mask, and where the passage begins, (R, 1)."""
    read = reader.passage_ids([(p.title, p.text) for p in passages])[0]
    asked = [reader.question_ids(question) for question in questions]
    rows, mask = padded([[*question, *ids] for question in asked for ids in read])
    return rows, mask, torch.tensor([[len(question)] for question in asked for _ in read])


def fid_rows(reader: Reader, questions: Sequence[str], passages: Sequence[Passage]) -> tuple[Tensor, Tensor]:
    """Return the rows of a T5, (R, T), and their mask."""
    texts = [f"question: {question} title: {p.title} context: {p.text}" for question in questions for p in passages]
    return padded([[*e.ids, 1] for e in reader.tokenizer.encode_batch(texts, add_special_tokens=False)])


def padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return rows padded with 0, (R, T), and their mask."""
    rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], batch_first=True)
    return rows, torch.arange(rows.shape[1])[None] < torch.tensor([[len(row)] for row in ids])


def point(logits: Sequence[Tensor], questions: int) -> None:
    """Do with logits of starts and ends, (R, T) each, what pointing at a span takes; it is done when this returns."""
    for values in logits:
        values.reshape(questions, -1).float().log_softmax(1).argmax(1).tolist()


def transformers_bert(
    reader: Reader, folder: Path, device: torch.device, attention: str | None, compiled: bool
) -> Baseline:
    """Return a function that points at spans with transformers' model of the kind, the same weights."""
    from transformers import BertForQuestionAnswering, MPNetForQuestionAnswering

    kinds = {"bert": BertForQuestionAnswering, "mpnet": MPNetForQuestionAnswering}
    kind = kinds[reader.model.bert.config.family if isinstance(reader.model, SpanReader) else "bert"]
    model = kind.from_pretrained(folder, dtype=reader.model.dtype, attn_implementation=attention).to(device)
    run, segmented = torch.compile(model.eval()) if compiled else model.eval(), kind is BertForQuestionAnswering

    @torch.inference_mode()
    def answer(questions: Sequence[str], passages: Sequence[Passage], new_tokens: int) -> None:
        rows, mask, starts = (part.to(device) for part in span_rows(reader, questions, passages))
        types = (torch.arange(rows.shape[1], device=device)[None] >= starts).long()
        found = run(input_ids=rows, attention_mask=mask, **({"token_type_ids": types} if segmented else {}))
        point((found.start_logits, found.end_logits), len(questions))

    return answer


def transformers_fid(
    reader: Reader, folder: Path, device: torch.device, attention: str | None, compiled: bool
) -> Baseline:
    """Return a function that answers with transformers' T5 as Fusion-in-Decoder, the same weights.

    Compiled is the encoder alone: what it writes grows, and would be compiled anew.
    """
    from transformers import T5ForConditionalGeneration
    from transformers.modeling_outputs import BaseModelOutput

    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=reader.model.dtype, attn_implementation=attention)
    model.to(device)
    encoder = torch.compile(model.eval().encoder) if compiled else model.eval().encoder

    @torch.inference_mode()
    def answer(questions: Sequence[str], passages: Sequence[Passage], new_tokens: int) -> None:
        rows, mask = (part.to(device) for part in fid_rows(reader, questions, passages))
        states = encoder(input_ids=rows, attention_mask=mask).last_hidden_state
        memory = BaseModelOutput(last_hidden_state=states.reshape(len(questions), -1, states.shape[-1]))
        written = model.generate(
            encoder_outputs=memory,
            attention_mask=mask.reshape(len(questions), -1),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
        )
        written.tolist()  # until it is written

    return answer


class Pointing(nn.Module):
    """A span reader from rows to logits, as it is exported."""

    def __init__(self, model: SpanReader) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, positions: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Read rows (R, T) without padding; returns the logits of starts and ends, (R, T) each."""
        return self.model.point(self.model.bert(self.model.bert.embed(ids, positions, segments), None))


class Encoding(nn.Module):
    """The encoder of a T5, as it is exported."""

    def __init__(self, t5: T5) -> None:
        super().__init__()
        self.t5 = t5

    def forward(self, ids: Tensor) -> Tensor:
        """Read rows (R, T) without padding to memory (R, T, D)."""
        return self.t5.encode(ids, torch.ones_like(ids, dtype=torch.bool))


def onnx(reader: Reader, folder: Path, rounded: bool) -> Baseline:
    """Return a function that reads with ONNX Runtime, in rows of one length, which the graph is made for."""
    import onnxruntime

    points = reader.family == "extractive"
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    sessions: dict[tuple[int, ...], onnxruntime.InferenceSession] = {}

    def session(inputs: dict[str, Tensor]) -> onnxruntime.InferenceSession:
        shape = tuple(inputs["ids"].shape)
        if shape not in sessions:
            path = export(reader, inputs, folder / f"{'x'.join(map(str, shape))}.onnx", rounded)
            sessions[shape] = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        return sessions[shape]

    @torch.inference_mode()
    def answer(questions: Sequence[str], passages: Sequence[Passage], new_tokens: int) -> None:
        inputs = {} if points else {"ids": fid_rows(reader, questions, passages)[0]}
        if points:
            rows, _, starts = span_rows(reader, questions, passages)
            index = torch.arange(rows.shape[1])[None]
            segments = (index >= starts).long()
            positions = index + (reader.config.max_question_tokens - starts) * segments
            inputs = {"ids": rows, "positions": positions, "segments": segments}
        R, T = inputs["ids"].shape
        size = max(n for n in range(1, R + 1) if R % n == 0 and n * T <= max(BATCH_TOKENS, T))
        parts = [{name: values[i : i + size] for name, values in inputs.items()} for i in range(0, R, size)]
        found = [session(part).run(None, {name: rows.numpy() for name, rows in part.items()}) for part in parts]
        if points:
            point([torch.from_numpy(np.concatenate(rows)) for rows in zip(*found, strict=True)], len(questions))

    return answer


def export(reader: Reader, inputs: dict[str, Tensor], path: Path, rounded: bool) -> Path:
    """Write a reader as a graph for inputs of these shapes, unless it is there; returns where it is."""
    if not path.exists():
        model = copy.deepcopy(reader.model).float()
        whole: nn.Module = Pointing(model) if isinstance(model, SpanReader) else Encoding(model.t5)
        with sdpa_kernel(SDPBackend.MATH):  # the layout of what others return is not that of the exported graph
            torch.onnx.export(whole.eval(), tuple(inputs.values()), path, input_names=list(inputs), verbose=False)
    if not rounded:
        return path
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = path.with_suffix(".int8.onnx")
    if not small.exists():
        quantize_dynamic(path, small, weight_type=QuantType.QInt8)
    return small
