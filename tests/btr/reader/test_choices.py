"""Choices: the likeliest of given texts is the answer, through every mode and through merging."""

import pytest
import torch

from btr.corpus import Passage
from btr.errors import InputError
from btr.model.config import MODES, Mode
from btr.reader import Reader

CHOICES = ("supports", "refutes", "not enough info")
QUESTION = "claim: Salt was carried over the hills."


@pytest.fixture(params=["tiny_reader", "writing_reader"])
def reader(request: pytest.FixtureRequest) -> Reader:
    """A reader that writes, of each kind."""
    found: Reader = request.getfixturevalue(request.param)
    return found


@torch.no_grad()
def likelihoods(reader: Reader, passages: list[Passage], mode: Mode) -> list[float]:
    """What each choice has among them by the definition: rows whole under a mask, its tokens given at once."""
    model = reader.model
    asked = reader.question_ids(QUESTION)
    read = [asked + ids for ids in reader.passage_ids([(p.title, p.text) for p in passages])[0]]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in read], batch_first=True)
    lengths = torch.tensor([len(row) for row in read])
    memory = model.rows(ids, lengths, torch.full_like(lengths, len(asked)), mode).memory
    totals = []
    for text in CHOICES:
        written = reader.tokenizer.encode(text, add_special_tokens=False).ids
        labels = torch.tensor([[*written, model.t5.config.eos_token_id]])  # type: ignore[union-attr, arg-type]
        scores = model.answer_logits(memory, lengths, labels).log_softmax(-1)  # type: ignore[union-attr, operator]
        totals.append(scores.gather(2, labels[..., None]).sum())
    found: list[float] = torch.stack(totals).softmax(0).tolist()
    return found


@pytest.mark.parametrize("mode", MODES)
def test_likeliest_of_the_choices_is_the_answer(reader: Reader, tiny_passages: list[Passage], mode: Mode) -> None:
    answer = reader.answer(QUESTION, tiny_passages, mode, choices=CHOICES)
    expected = likelihoods(reader, tiny_passages, mode)
    assert answer.choices == pytest.approx(expected, abs=0.05 if mode == "binary" else 1e-3)
    assert answer.text == CHOICES[max(range(3), key=lambda n: answer.choices[n])]
    assert answer.evidence.sum() == pytest.approx(1, abs=1e-4) and answer.span is None
    turned = reader.answer(QUESTION, tiny_passages, mode, choices=CHOICES[::-1])
    assert turned.choices[::-1] == pytest.approx(answer.choices, abs=1e-4) and turned.text == answer.text


def test_questions_together_choose_as_alone(reader: Reader, tiny_passages: list[Passage]) -> None:
    kept = reader.encode_passages(tiny_passages)
    asked, given = [QUESTION, "yes or no: is it salt?"], [CHOICES, ("yes", "no")]
    together = reader.answer_batch(asked, [kept, tiny_passages[:2]], "binary", choices=given)
    for question, passages, choices, answer in zip(asked, (kept, tiny_passages[:2]), given, together, strict=True):
        alone = reader.answer(question, passages, "binary", choices=choices)
        assert alone.text == answer.text and answer.choices == pytest.approx(alone.choices, abs=1e-4)


def test_choices_go_through_merging(reader: Reader, tiny_passages: list[Passage]) -> None:
    plain = reader.answer(QUESTION, tiny_passages, "binary", choices=CHOICES)
    slight, much = (
        reader.answer(QUESTION, tiny_passages, "binary", merge=reader.schedule("algorithm", ratio), choices=CHOICES)
        for ratio in (1e-9, 0.4)
    )
    assert slight.choices == pytest.approx(plain.choices, abs=1e-4)
    assert sum(much.choices) == pytest.approx(1) and much.choices != pytest.approx(plain.choices, abs=1e-6)


def test_what_cannot_be_chosen_is_refused(
    tiny_reader: Reader, span_reader: Reader, tiny_passages: list[Passage]
) -> None:
    with pytest.raises(InputError, match="a span reader quotes passages and chooses nothing"):
        span_reader.answer(QUESTION, tiny_passages, choices=CHOICES)
    for wrong in ([], ["yes", " "]):
        with pytest.raises(InputError, match="has no choices, or a blank one"):
            tiny_reader.answer(QUESTION, tiny_passages, choices=wrong)
    with pytest.raises(InputError, match="1 questions and 2 lists of choices"):
        tiny_reader.answer_batch([QUESTION], [tiny_passages], choices=[CHOICES, CHOICES])
