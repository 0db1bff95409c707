"""What a question is read with: its own passages."""

import pytest

from btr.corpus import Passage, Question
from btr.errors import InputError
from btr.eval.evidence import Evidence, own_passages

PASSAGES = tuple(Passage(str(i), "", f"text {i}") for i in range(8))
QUESTION = Question("q", "what", ("text 5",), PASSAGES, (False,) * 5 + (True,) + (False,) * 2)


def test_own_passages_keep_the_gold_one_in_an_order_of_the_question_alone() -> None:
    chosen = own_passages(QUESTION, 3)
    assert {p.id for p in chosen} == {"5", "0", "1"}
    assert chosen == own_passages(QUESTION, 3)
    assert [p.id for p in own_passages(QUESTION, 1)] == ["5"]
    orders = {tuple(p.id for p in own_passages(Question("q", f"what {n}", (), PASSAGES), 8)) for n in range(9)}
    assert len(orders) == 9  # the gold passage is not always the first


def test_claims_are_read_with_all_of_their_gold_evidence() -> None:
    claim = Question("c", "so", ("SUPPORTS",), PASSAGES, (False, True) * 4)
    assert {p.id for p in own_passages(claim, 4, every=True)} == {"1", "3", "5", "7"}
    assert {p.id for p in own_passages(claim, 4)} == {"1", "0", "2", "4"}
    assert {p.id for p in Evidence([claim], 4, every=True).take(0, 2)} == {"1", "3"}


def test_passages_and_the_place_of_the_answer() -> None:
    other = Question("r", "who", ("nobody",), PASSAGES[:2])
    evidence = Evidence([QUESTION, other], 3)
    evidence.check()
    assert evidence.take(0, 1) == own_passages(QUESTION, 1) and len(evidence.take(0, 3)) == 3
    assert evidence.ranks() == [[p.id for p in own_passages(QUESTION, 3)].index("5") + 1, None]
    assert evidence.has_texts()


def test_question_with_nothing_to_read() -> None:
    with pytest.raises(InputError, match="question 'r' has no passages to read; pass --store"):
        Evidence([QUESTION, Question("r", "who", ("x",))], 3).check()
