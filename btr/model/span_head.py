"""A span reader over BERT: the answer is a piece of one passage. Tensors only.

Two logits a token, start and end, are normalised over all passages of a question together (Clark & Gardner 2018,
arXiv 1710.10723); the first token of every row stands for "no answer here". Shapes as in `btr.model.split`.
"""

from torch import Tensor, nn

from btr.model.bert import Bert
from btr.model.config import ReaderConfig
from btr.model.split import SplitBert


class SpanReader(SplitBert):
    """A split BERT, and the head that points at spans."""

    def __init__(self, bert: Bert, config: ReaderConfig) -> None:
        super().__init__(bert, config)
        self.head = nn.Linear(bert.config.hidden_size, 2)

    def point(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits that each token of memory (..., D) starts and ends the answer: two (...), float32."""
        start, end = self.head(memory).float().unbind(-1)
        return start, end
