"""Fit the pruner of a reader, so that it reads a few of many passages to the end: `btr train skim`."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from btr.corpus import Question, read_questions
from btr.errors import InputError
from btr.eval.evidence import own_passages
from btr.model.checkpoint import PRUNER, save_pruner
from btr.model.pruning import Pruner
from btr.reader import Reader

EVERY = 10  # questions between two reports


def fit_pruner(
    path: str,
    questions: Sequence[str],
    limit: int,
    passages: int,
    dtype: str,
    device: str,
    say: Callable[[str], None],
) -> None:
    """Fit to `limit` questions, taken from the files in turn, and write it into the folder of the reader.

    Raises:
        InputError: no folder, a reader without k, or questions without passages.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"--reader {path}: no such folder; give that of a reader, where skim.safetensors is to be")
    reader = Reader.from_pretrained(path, dtype=dtype, device=device)
    read = in_turn([read_questions(name) for name in questions])
    reader.model.pruner = Pruner.fit(pruning_samples(reader, itertools.islice(read, limit), passages, say))
    save_pruner(reader.model, folder)
    say(f"wrote {folder / PRUNER}")


def in_turn(files: Sequence[Iterator[Question]]) -> Iterator[Question]:
    """Yield a question of each file in turn, as long as there are any."""
    for row in itertools.zip_longest(*files):
        yield from (question for question in row if question is not None)


def pruning_samples(
    reader: Reader, questions: Iterator[Question], passages: int, say: Callable[[str], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features and outcomes of each question's passages; one that cannot be read is left out."""
    left = 0
    for number, question in enumerate(questions, 1):
        try:
            yield reader.pruning_samples(question.question, own_passages(question, passages))
        except InputError:  # too long, or no passage, or one without text
            left += 1
        if number % EVERY == 0:
            say(f"{number:,} questions, {left:,} left out")
