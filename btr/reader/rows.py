"""How readers with a BERT take text in: `[CLS] question [SEP] title [SEP] text [SEP]` (of MPNet: `<s>`, `</s>`)."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from btr.errors import InputError
from btr.model.marks import ends
from btr.words import readable


class BertRows:
    """Text as the rows of a BERT."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True  # "[SEP]" in a passage is text
        self.tokenizer = tokenizer
        found = ends(tokenizer)
        if found is None:
            raise InputError("the tokenizer has no [CLS] or no [SEP], as BERT's have; copy the one it was made with")
        self.cls, self.sep = found

    def question_ids(self, question: str) -> list[int]:
        """Tokenize a question as `[CLS] … [SEP]`."""
        return [self.cls, *self.tokenizer.encode(question, add_special_tokens=False).ids, self.sep]

    def passage_ids(self, passages: Sequence[tuple[str, str]], limit: int) -> tuple[list[list[int]], int]:
        """Tokenize (title, text) as `title [SEP] text [SEP]`, the title in at most a quarter; and count those cut."""
        read = [(readable(title, limit), readable(text, limit)) for title, text in passages]
        titles = self.tokenizer.encode_batch([title for title, _ in read], add_special_tokens=False)
        texts = self.tokenizer.encode_batch([text for _, text in read], add_special_tokens=False)
        begun = [[*title.ids[: limit // 4], self.sep] for title in titles]
        rows = [[*begin, *text.ids, self.sep] for begin, text in zip(begun, texts, strict=True)]
        cut = sum(
            len(row) > limit or text is not whole
            for row, (_, text), (_, whole) in zip(rows, read, passages, strict=True)
        )
        return [row if len(row) <= limit else [*row[: limit - 1], self.sep] for row in rows], cut

    def begins(self, ids: np.ndarray) -> int:
        """Return where the text begins among the tokens of a passage."""
        return int(np.argmax(ids == self.sep)) + 1

    def text_places(self, title: str, text: str, ids: np.ndarray) -> list[tuple[int, int]]:
        """Return, of each token of a passage that is of its text, its place and where in the text it ends."""
        begun = self.begins(ids)
        offsets = self.tokenizer.encode(readable(text, len(ids)), add_special_tokens=False).offsets
        return [(begun + n, end) for n, (_, end) in enumerate(offsets[: max(len(ids) - begun - 1, 0)])]
