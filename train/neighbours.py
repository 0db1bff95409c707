"""Give questions passages to read: their own, cut to size, among the BM25 neighbours of the question.

A question that comes with a gold passage keeps it; one without gets distant supervision: neighbours that hold an answer are gold.
"""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from btr.corpus import Passage, Question, cut_text, read_passages, read_questions
from btr.retrieve import BM25, BM25Writer
from btr.train.data import holds

WORDS = 100
BATCH = 256  # questions searched at a time


def own_passages(question: Question) -> Iterator[tuple[Passage, bool]]:
    """Cut the question's own passages to size; a piece is gold if its passage is and it holds an answer."""
    for passage, gold in zip(question.passages, question.gold or [False] * len(question.passages), strict=True):
        pieces = cut_text(passage.text, WORDS)
        for number, piece in enumerate(pieces):
            yield (
                Passage(f"{passage.id}:{number}", passage.title, piece),
                gold and (len(pieces) == 1 or holds(piece, question.answers)),
            )


def write_neighbours(
    paths: Sequence[str], text: str, limit: int | None, top: int, out: Path, say: Callable[[str], None]
) -> None:
    """Write the questions of `paths` with passages, gold ones marked, to a FiD-style .jsonl; neighbours come from `text` and from the
    questions' own passages."""
    out.parent.mkdir(parents=True, exist_ok=True)
    pool: list[Passage] = []
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        writer = BM25Writer.create_or_resume(Path(folder) / "bm25")
        for batch in batched(pooled(paths, text, limit), 4096):
            writer.append(batch)
            pool += batch
        writer.finish()
        index = BM25.open(Path(folder) / "bm25")
        say(f"{len(pool):,} passages to find neighbours in")
        temporary = out.with_name(out.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            written = 0
            for asked in batched((q for path in paths for q in read_questions(path)), BATCH):
                for question, (ordinals, _) in zip(asked, index.search([q.question for q in asked], top), strict=True):
                    file.write(
                        json.dumps(with_neighbours(question, [pool[i] for i in ordinals]), ensure_ascii=False) + "\n"
                    )
                written += len(asked)
                say(f"{written:,} questions")
        temporary.replace(out)


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
    """Build the FiD record: gold passages first, then neighbours that are not the same text; those holding an answer are gold only
    where the question came without a gold passage."""
    own = list(own_passages(question))
    supervised = any(gold for _, gold in own)
    texts = {passage.text for passage, _ in own}
    near = [(p, not supervised and holds(p.text, question.answers)) for p in found if p.text not in texts]
    if supervised:  # a neighbour with the answer in it is neither gold nor a fair distractor
        near = [(p, gold) for p, gold in near if not holds(p.text, question.answers)]
    passages = [pair for pair in own if pair[1]] + near + [pair for pair in own if not pair[1]]
    ctxs = [{"id": p.id, "title": p.title, "text": p.text, "is_gold": gold} for p, gold in passages]
    return {"id": question.id, "question": question.question, "answers": list(question.answers), "ctxs": ctxs}


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of at most `size` items."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
