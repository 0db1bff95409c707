"""Shorten a question to what a reader reads: its last words, since what is asked stands at the end of a long turn."""

from typing import Protocol

from btr.errors import InputError


class QuestionTokenizer(Protocol):
    """Tokenize questions, as a reader does."""

    def question_ids(self, question: str) -> list[int]:
        """Return the tokens of a question; InputError where there are more than the reader reads."""
        ...


def shorten(question: str, reader: QuestionTokenizer) -> str:
    """Return a question that fits as it is, and of others as many of their last words as fit (of one word, letters)."""
    if _fits(question, reader):
        return question
    low, high = 0, len(question)  # what follows `low` is too long, what follows `high` is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(question[middle:], reader) else (middle, high)
    end = question[high:]
    words = end if question[high - 1].isspace() else "".join(end.partition(" ")[2:])
    return words.strip() or end.strip()


def _fits(question: str, reader: QuestionTokenizer) -> bool:
    try:
        reader.question_ids(question)
    except InputError:
        return not question.strip()
    return True
