"""Give questions passages to read: their own, cut to size, among the BM25 neighbours of the question.

A question that comes with a gold passage keeps it; one without gets distant supervision: passages that hold an answer
are gold. Of a question without answers its own passages are: what was read to ask it, and does not answer it.
"""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from btr.corpus.passages import Question, read_passages, read_questions
from btr.corpus.pieces import Passage, cut_text
from btr.retrieve.bm25 import BM25, BM25Writer
from btr.train.data import holds

WORDS = 100
BATCH = 256  # questions searched at a time
INDEXED = 4096  # passages indexed at a time

Item = TypeVar("Item")


def own_passages(question: Question) -> Iterator[tuple[Passage, bool]]:
    """Cut the question's own passages to size; a piece is gold if its passage is and it holds an answer.

    Of a question without answers, all pieces are.
    """
    unanswerable = not question.answers
    for passage, marked in zip(question.passages, question.gold or [False] * len(question.passages), strict=True):
        pieces = cut_text(passage.text, WORDS)
        for number, piece in enumerate(pieces):
            yield (
                Passage(f"{passage.id}:{number}", passage.title, piece),
                unanswerable or (marked and (len(pieces) == 1 or holds(piece, question.answers))),
            )


def write_neighbours(
    paths: Sequence[str], text: str, limit: int | None, top: int, out: Path, say: Callable[[str], None]
) -> None:
    """Write the questions of `paths` with passages, gold ones marked, to a FiD-style .jsonl.

    Neighbours come from `text` and from the questions' own passages.
    """
    for path in paths:
        list(read_questions(path, limit=1))  # a file that cannot be read is an error now, not after the text
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        pool, index = build_index(pooled(paths, text, limit), Path(folder) / "bm25")
        say(f"{len(pool):,} passages to find neighbours in")
        temporary, written = out.with_name(out.name + ".tmp"), 0
        with temporary.open("w", encoding="utf-8") as file:
            for batch in batched((q for path in paths for q in read_questions(path)), BATCH):
                hits = index.search([q.question for q in batch], top)
                for question, (ordinals, _) in zip(batch, hits, strict=True):
                    record = with_neighbours(question, [pool[i] for i in ordinals])
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                written += len(batch)
                say(f"{written:,} questions")
        temporary.replace(out)


def build_index(passages: Iterable[Passage], folder: Path) -> tuple[list[Passage], BM25]:
    """Index passages in a new folder; returns them by ordinal, and the index."""
    pool: list[Passage] = []
    writer = BM25Writer.create_or_resume(folder)
    for batch in batched(passages, INDEXED):
        writer.append(batch)
        pool += batch
    writer.finish()
    return pool, BM25.open(folder)


def pooled(paths: Sequence[str], text: str, limit: int | None) -> Iterator[Passage]:
    """Yield the passages to search: the text's, then each of the questions' own once."""
    yield from read_passages(text, limit=limit, words=WORDS)
    seen: set[int] = set()
    for question in (q for path in paths for q in read_questions(path)):
        for passage, _ in own_passages(question):
            if hash(passage.text) not in seen:
                seen.add(hash(passage.text))
                yield passage


def with_neighbours(question: Question, found: Sequence[Passage]) -> dict[str, object]:
    """Build the FiD record: gold passages first, then neighbours with another text, then the question's others.

    With a gold passage of its own, any other passage that holds an answer is left out: neither gold nor a fair
    distractor. Without one, passages that hold an answer are gold.
    """
    own = list(own_passages(question))
    gold = [passage for passage, good in own if good]
    texts = {passage.text for passage, _ in own}
    rest = [passage for passage in found if passage.text not in texts] + [passage for passage, good in own if not good]
    holding = [passage for passage in rest if holds(passage.text, question.answers)]
    others = [passage for passage in rest if not holds(passage.text, question.answers)]
    marked = [(passage, True) for passage in gold or holding] + [(passage, False) for passage in others]
    ctxs = [{"id": p.id, "title": p.title, "text": p.text, "is_gold": good} for p, good in marked]
    return {"id": question.id, "question": question.question, "answers": list(question.answers), "ctxs": ctxs}


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of at most `size` items."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
