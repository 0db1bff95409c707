"""A decoder for a span reader, so that it writes its answers, and batches to learn that from.

The decoder begins with what copying needs (`train/initialise.py` does the same for whole T5s): half of the heads that
look at the memory ask for the place whose previous token is the one just written, and say what stands there.
"""

import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from btr.model.bert_fid import BertFiD
from btr.model.config import ReaderConfig, T5Config
from btr.model.span_head import SpanReader
from btr.model.t5 import RMSNorm
from btr.train.data import Batch, Example, pad
from btr.train.spans import build_row, encode, first_and_last

HEAD_WIDTH = 32
TOLD = 0.5  # root mean square of what a memory token is told of the words there, to that of its state
ASKING = 0.3  # scale of the queries for the place to copy from


def with_decoder(reader: SpanReader, tokenizer: Tokenizer, layers: int, seed: int) -> BertFiD:
    """Return a reader with the BERT and the binarizer of another, and a new decoder in place of the head."""
    bert, config = reader.bert, reader.config
    first, last = first_and_last(tokenizer)
    shape = T5Config(
        vocab_size=reader.vocab_size, d_model=reader.width, d_kv=HEAD_WIDTH, d_ff=8 * reader.width // 3,
        num_layers=0, num_decoder_layers=layers, num_heads=reader.width // HEAD_WIDTH, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", scale_decoder_outputs=False,
        pad_token_id=reader.pad_token_id, eos_token_id=last, decoder_start_token_id=first,
    )  # fmt: skip
    made = BertFiD(bert, shape, ReaderConfig(**{**vars(config), "unread": ()}))
    made.binarizer = reader.binarizer
    initialise(made, seed)
    return made.eval()


@torch.no_grad()
def initialise(model: BertFiD, seed: int) -> None:
    """Fill the decoder and what tells memory tokens of their words, deterministically in seed; BERT stays as it is."""
    generator = torch.Generator().manual_seed(seed)
    decoder, config, D = model.t5.decoder, model.t5.config, model.width
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)
        if isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, 0.1, generator=generator)
    turn = torch.linalg.qr(torch.randn(D, D, generator=generator))[0]
    states, embedded = (float(part.float().square().mean()) ** 0.5 for part in (ending(model), model.embedding))
    scale = TOLD * states / max(embedded, 1e-6)
    model.words.weight.copy_(torch.cat((torch.eye(D), turn, torch.zeros(D, D)), 1) * scale)
    copying = config.num_heads // 2 * config.d_kv
    for layer in decoder.layers:
        for part in (layer.attention, layer.cross):
            part.q.weight.mul_(config.d_kv**-0.5)
        queries = torch.randn(copying, D, generator=generator) * D**-0.5
        layer.cross.q.weight[:copying] = ASKING * queries
        layer.cross.k.weight[:copying] = queries @ turn.T
        layer.cross.o.weight[:, :copying] = layer.cross.v.weight[:copying].T


def ending(model: BertFiD) -> Tensor:
    """Return the weights of BERT's last norm, as large as its states."""
    norm = model.bert.layers[-1].norm
    assert isinstance(norm, nn.LayerNorm | RMSNorm)
    return norm.weight


def collate(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    passages: int,
    row_tokens: int,
    question_tokens: int,
    answer_tokens: int,
    rng: random.Random,
) -> Batch:
    """Tokenize rows as a span reader does and answers to end in [SEP]; pad to fixed shapes, as `train.data.collate`."""
    first, last = first_and_last(tokenizer)
    prompts = [e.question if e.task == "question" else f"{e.task}: {e.question}" for e in examples]
    questions, answers = encode(tokenizer, prompts), encode(tokenizer, [e.answer for e in examples])
    titles = iter(encode(tokenizer, [title for e in examples for title, _ in e.passages]))
    texts = iter(encode(tokenizer, [text for e in examples for _, text in e.passages]))
    rows: list[list[int]] = []
    lengths: list[int] = []
    for example, question in zip(examples, questions, strict=True):
        start = [first, *question.ids[: question_tokens - 2], last]
        read = [
            build_row(start, (title, text, False), next(titles), next(texts), (), row_tokens).ids
            for title, text in example.passages
        ]
        rng.shuffle(read)
        rows += (read + [start] * passages)[:passages]
        lengths += [len(start)] * passages
    labels = [[*answer.ids[: answer_tokens - 1], last] for answer in answers]
    sizes = torch.tensor([len(row) for row in rows])
    return Batch(pad(rows, row_tokens, 0), sizes, torch.tensor(lengths), pad(labels, answer_tokens, -100))
