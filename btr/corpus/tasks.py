"""How claims and multiple-choice questions are put to a reader and its words read, in training and evaluation alike.

FEVER (Thorne et al. 2018, arXiv 1803.05355) is label generation, MMLU (Hendrycks et al. 2021, arXiv 2009.03300) letter
generation, as in Atlas (Izacard et al. 2022, arXiv 2208.03299); questions of yes or no are told from others by what
stands before them. `btr.metrics.exact_match` is not for letters: it drops the article "a".
"""

from collections.abc import Sequence

FEVER_LABELS = ("supports", "refutes", "not enough info")
LETTERS = ("A", "B", "C", "D")  # of MMLU; other letters work as well
YES_NO = ("yes", "no")

_OTHER_NAMES = {
    "supported": "supports",
    "support": "supports",
    "refuted": "refutes",
    "refute": "refutes",
    "nei": "not enough info",
    "not enough information": "not enough info",
}


def fever_question(claim: str) -> str:
    """Put a claim as a question; its answer is one of FEVER_LABELS."""
    return f"claim: {claim.strip()}"


def yes_no_question(question: str) -> str:
    """Put a question whose answer is one of YES_NO."""
    return f"yes or no: {question.strip()}"


def yes_or_no(text: str) -> str | None:
    """Return which of YES_NO a file or a reader means, as `Yes.`; None if it is neither."""
    plain = text.strip(" .!").lower()
    return plain if plain in YES_NO else None


def fever_label(text: str) -> str | None:
    """Return the label that a file or a reader means, whatever its case and spacing; None if it is none."""
    plain = " ".join(text.replace("_", " ").lower().strip(" .").split())
    label = _OTHER_NAMES.get(plain, plain)
    return label if label in FEVER_LABELS else None


def mmlu_question(question: str, options: Sequence[tuple[str, str]]) -> str:
    """Put a question with its (letter, text) options; its answer is a letter."""
    return f"{question.strip()} options: " + " ".join(f"({letter}) {text.strip()}" for letter, text in options)


def mmlu_letter(text: str, options: Sequence[tuple[str, str]]) -> str | None:
    """Return the letter that a reader means, as `B`, `b.` or `(b)`; None if it is none of the options."""
    plain = text.strip(" ().:").lower()
    return next((letter for letter, _ in options if letter.lower() == plain), None)
