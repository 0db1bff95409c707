"""Figures of knowing that nothing answers, against numbers worked out by hand."""

import numpy as np
import pytest

from btr.eval.abstention import abstention, answered_at, auroc, best_silence, coverage, threshold, with_silence

DOUBT = np.array([0.1, 0.2, 0.3, 0.4, 0.4, 0.8])
ANSWERABLE = np.array([True, True, False, True, False, False])
F1 = np.array([1.0, 0.0, 0.0, 0.9, 0.0, 0.0])


def test_auroc_counts_pairs_and_equal_doubts_half() -> None:
    assert auroc(DOUBT, ANSWERABLE) == pytest.approx((2 + 2.5 + 3) / 9)
    assert np.isnan(auroc(DOUBT[:2], ANSWERABLE[:2]))


def test_most_questions_are_answered_at_a_share_of_right_ones() -> None:
    right = F1 > 0.5
    assert [answered_at(DOUBT, right, share) for share in (1.0, 0.5, 0.4, 0.3, 0.0)] == [1, 2, 5, 6, 6]
    assert coverage(DOUBT, right, 0.4) == pytest.approx(5 / 6)
    assert answered_at(DOUBT, ~right, 1.0) == 0  # the least doubted one is wrong


def test_equal_doubts_are_answered_together() -> None:
    assert answered_at(np.array([0.4, 0.4]), np.array([True, False]), 0.9) == 0


def test_threshold_lies_between_those_answered_and_the_others() -> None:
    assert [threshold(DOUBT, count) for count in (0, 1, 5, 6)] == pytest.approx([0.05, 0.15, 0.6, 0.9])


def test_silence_is_right_where_nothing_answers_and_nowhere_else() -> None:
    assert with_silence(DOUBT, F1, ANSWERABLE, 0.35).tolist() == [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    assert best_silence(DOUBT, F1, ANSWERABLE) == 1  # 1 of it, and 3 that nothing answers
    assert best_silence(DOUBT, F1, np.ones(6, bool)) == 5  # the last one gains nothing


def test_question_that_was_not_read_is_answered_wrongly() -> None:
    unread = {"em": 0.0, "f1": 0.0, "unread": "too long"}
    rows = [{"em": 1.0, "f1": 1.0, "no_answer": 0.0}, unread]
    found = abstention(
        rows, [{"em": 1.0, "f1": 1.0, "no_answer": 0.9}, {"em": 0.0, "f1": 0.0, "unread": "too long"}], 0.5
    )
    assert (found["em"][0], found["auroc"][0], found["coverage"][0]) == (50.0, 75.0, 0.0)
    assert found["em"][1] < 50.0 < found["em"][2]
