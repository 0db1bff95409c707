"""Examples for span readers: where in which passage the answer stands, and batches of them as tensors.

A question's targets are all places in its gold passages that read like one of its answers, or, where no passage of the
batch shows one, the first token of every row. Every batch is a function of (seed, step) alone.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from btr.errors import InputError
from btr.model.marks import ends
from btr.train.data import TrainingQuestion, crop, pad
from btr.train.places import holds, places

TARGETS = 16  # most places of a question's answers that count
LONGEST = 30  # most tokens of an answer


@dataclass(frozen=True)
class SpanExample:
    """One question, its answers, and passages as (title, text, gold)."""

    question: str
    answers: tuple[str, ...]
    passages: tuple[tuple[str, str, bool], ...]


@dataclass(frozen=True)
class SpanSource:
    """Examples from questions with passages; a share `unanswerable` of those with answers without their gold passages.

    A question without answers is one that none of its passages answers, and is always read with a gold one. Passages
    longer than 1.15 * `words` words are cropped to whole sentences, gold ones around an answer.
    """

    questions: Sequence[TrainingQuestion]
    passages_per_question: int
    unanswerable: float = 0.0
    words: int = 100

    def draw(self, rng: random.Random) -> SpanExample:
        """Take a question, a gold passage or two, and some of the nearest other passages."""
        question, most = rng.choice(self.questions), self.passages_per_question
        near: Sequence[tuple[str, str]] = question.others[: 2 * most]
        gold_count = rng.choice((1, 1, 2)) if most > 2 else 1
        if question.answers and rng.random() < self.unanswerable:
            # a neighbour that happens to hold the answer must not be said to hold none
            silent = [passage for passage in near if not holds(passage[1], question.answers)]
            if len(silent) >= most:
                near, gold_count = silent, 0
        best = question.gold[:4]
        gold = rng.sample(best, min(len(best), gold_count))
        others = rng.sample(near, min(len(near), most - len(gold)))
        chosen = [(title, crop(text, question.answers, self.words, rng), True) for title, text in gold]
        chosen += [(title, crop(text, [], self.words, rng), False) for title, text in others]
        rng.shuffle(chosen)
        return SpanExample(question.question, question.answers, tuple(chosen))


@dataclass(frozen=True)
class SpanBatch:
    """Rows of a batch, R = B * N, rows of a question adjacent; int64.

    ids (R, T), 0 where padded; lengths, question_lengths (R,), [CLS] and [SEP] counted; targets (B, K, 2), first and
    last token of each place, counted over the question's N * T tokens, -1 where there are fewer than K; pointable bool
    (R, T), the tokens that an answer may start and end at: the text's, and the first, which says "no answer here".
    """

    ids: Tensor
    lengths: Tensor
    question_lengths: Tensor
    targets: Tensor
    pointable: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return ids, lengths, question_lengths, targets, pointable."""
        return self.ids, self.lengths, self.question_lengths, self.targets, self.pointable


@dataclass(frozen=True)
class Row:
    """A row's tokens `[CLS] question [SEP] title [SEP] text [SEP]`: the question's length, where the text stands."""

    ids: list[int]
    question_length: int
    text: range
    places: list[tuple[int, int]]  # first and last token of each answer


def collate_spans(
    examples: Sequence[SpanExample], tokenizer: Tokenizer, passages: int, row_tokens: int, question_tokens: int
) -> SpanBatch:
    """Tokenize rows as a span reader does, find the targets, pad to fixed shapes.

    A missing passage becomes a row of the question alone. Texts are cut to fit; question_tokens < row_tokens.

    Raises:
        InputError: a tokenizer without [CLS] and [SEP].
    """
    marks = first_and_last(tokenizer)
    questions = encode(tokenizer, [e.question for e in examples])
    titles = encode(tokenizer, [p[0] for e in examples for p in e.passages])
    texts = encode(tokenizer, [p[1] for e in examples for p in e.passages])
    read = zip(titles, texts, strict=True)
    rows: list[Row] = []
    for example, question in zip(examples, questions, strict=True):
        start = [marks[0], *question.ids[: question_tokens - 2], marks[1]]
        made = [build_row(start, p, *next(read), example.answers, row_tokens) for p in example.passages]
        rows += (made + [Row(start, len(start), range(0), [])] * passages)[:passages]
    targets = [shift(rows[n : n + passages], row_tokens) for n in range(0, len(rows), passages)]
    pointable = torch.zeros(len(rows), row_tokens, dtype=torch.bool)
    pointable[:, 0] = True
    for row, allowed in zip(rows, pointable, strict=True):
        allowed[row.text.start : row.text.stop] = True
    lengths, question_lengths = ([len(row.ids) for row in rows], [row.question_length for row in rows])
    ids = pad([row.ids for row in rows], row_tokens, 0)
    return SpanBatch(ids, torch.tensor(lengths), torch.tensor(question_lengths), torch.tensor(targets), pointable)


def first_and_last(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the ids of [CLS] and [SEP], after making the tokenizer take those in a text for text.

    Raises:
        InputError: it has none.
    """
    found = ends(tokenizer)
    if found is None:
        raise InputError("the tokenizer has no [CLS] and [SEP] to build rows with; give that of a BERT")
    tokenizer.encode_special_tokens = True
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return found


def build_row(
    start: list[int],
    passage: tuple[str, str, bool],
    title: Encoding,
    text: Encoding,
    answers: Iterable[str],
    row_tokens: int,
) -> Row:
    """Lay the tokens of a passage after a question's, the title's in at most a quarter of the row; places if gold."""
    begin = [*start, *title.ids[: row_tokens // 4], start[-1]][: row_tokens - 1]
    kept = text.ids[: row_tokens - 1 - len(begin)]
    found = find_spans(passage[1], text, answers, len(kept)) if passage[2] else ()
    spans = [(len(begin) + first, len(begin) + last) for first, last in found]
    return Row([*begin, *kept, start[-1]], len(start), range(len(begin), len(begin) + len(kept)), spans)


def shift(rows: Sequence[Row], row_tokens: int) -> list[list[int]]:
    """Count the places of a question's N rows over all its tokens: the first TARGETS; the N first tokens if none is."""
    most = max(TARGETS, len(rows))
    found = [[n * row_tokens + at for at in place] for n, row in enumerate(rows) for place in row.places]
    none = [[n * row_tokens] * 2 for n in range(len(rows))]
    chosen = found[:TARGETS] or none
    return chosen + [[-1, -1]] * (most - len(chosen))


def find_spans(text: str, encoding: Encoding, answers: Iterable[str], kept: int) -> Iterator[tuple[int, int]]:
    """Yield first and last token, among the `kept` first, of every place in text that reads like an answer, once."""
    found = dict.fromkeys(place for answer in answers for place in places(text, answer))
    tokens = ((encoding.char_to_token(start), last_token(encoding, start, end)) for start, end in found)
    for first, last in dict.fromkeys(tokens):
        if first is not None and last is not None and last < kept and last - first < LONGEST:
            yield first, last


def last_token(encoding: Encoding, start: int, end: int) -> int | None:
    """Return the last token of [start, end) of a text: an accent that the tokenizer strips has none."""
    tokens = (encoding.char_to_token(at) for at in range(end - 1, start - 1, -1))
    return next((token for token in tokens if token is not None), None)


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
    """Tokenize texts without special tokens."""
    return tokenizer.encode_batch(texts, add_special_tokens=False)
