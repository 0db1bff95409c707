"""The models that a reader may have."""

from btr.bert_fid import BertFiD
from btr.fid import FiD
from btr.span import SpanReader

Model = FiD | SpanReader | BertFiD
