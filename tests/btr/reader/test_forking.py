"""A reader answers in a forked process, though threads of its parent do not survive there."""

import os
import subprocess
import sys

import pytest

ANSWER = """
import multiprocessing
import torch
torch.set_num_threads(2)
from btr import Passage, Reader
reader = Reader.from_pretrained()
passages = [Passage("1", "Saffron", "Saffron is made from the red threads of the crocus flower.")]
def work(question):
    return torch.get_num_threads(), reader.answer(question, passages).text
question = "What is saffron made from?"
expected = reader.answer(question, passages).text
with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map_async(work, [question]).get(60) == [(1, expected)], torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_child_answers_on_one_thread() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ANSWER], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "2"], done.stderr
