"""Answer a question from passages: text in, text out.

In: a question, and passages as text (title, text) or as stored bits (`Encoded`: N passages, M tokens, D bits a token).
Out: `Answer`: the text, how sure, where it stands, which tokens were evidence; or the bits of passages (`encode`).
`reader` puts it together, `loading` finds the parts, `extractive` and `generative` are the two ways to find the words,
`rows` and `expansion` lay out what the network reads. Knows no store, no retrieval, no command.
"""

from btr.model.devices import DTYPES
from btr.reader.answer import Answer
from btr.reader.reader import Reader

__all__ = ["DTYPES", "Answer", "Reader"]
