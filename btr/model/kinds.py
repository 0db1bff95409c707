"""The models that a reader may have."""

import os
from functools import partial

import torch

from btr.model.bert_fid import BertFiD
from btr.model.fid import FiD
from btr.model.span_head import SpanReader

Model = FiD | SpanReader | BertFiD

# The threads of PyTorch's OpenMP do not survive a fork: a child that uses more than one waits for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))
