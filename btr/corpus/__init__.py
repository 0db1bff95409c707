"""Passages and questions come in: files, folders, archives, data sets, in bounded memory, in the order they stand.

In: paths or ids of data sets, whose records are JSON, CSV, TSV, Parquet, Arrow or plain text, compressed or not; and
documents: Markdown, text, and what MarkItDown converts (`documents`, `markup`, `division`).
Out: `Passage(id, title, text)` of at most so many words each; `Question(question, answers, passages, ...)`.
`records` reads any file, `passages` and `questions` say what its fields mean, `statistics` looks a corpus through once
(count, hash, ids that come twice) and gives any part of it again, which is what makes a run resumable.
"""

from btr.corpus.passages import Question, read_passages, read_questions
from btr.corpus.pieces import Passage

__all__ = ["Passage", "Question", "read_passages", "read_questions"]
