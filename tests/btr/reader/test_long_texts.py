"""A text may be of any length: what is looked at is what can be read of it, and what is read of it is the same."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from btr.corpus import Passage
from btr.errors import InputError
from btr.model.config import MODES, Mode
from btr.reader import Reader
from btr.reader.truncation import shorten
from btr.retrieve.dense.encoder import Encoder
from btr.words import WIDEST, readable

LONG = "The lamp of Vellin was kept for thirty years. " * 40_000  # some 2 million characters, all words
SHAPES = ["spaces", "one word", "words"]


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.characters = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode(self, text: str, **more: Any) -> Any:
        self.characters += len(text)
        return self.tokenizer.encode(text, **more)

    def encode_batch(self, texts: Sequence[str], **more: Any) -> Any:
        self.characters += sum(map(len, texts))
        return self.tokenizer.encode_batch(texts, **more)


@pytest.fixture(params=["tiny_reader", "span_reader", "writing_reader"])
def reader(request: pytest.FixtureRequest) -> Reader:
    """Each kind of reader in turn."""
    found: Reader = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def counted(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> Counting:
    """The tokenizer of the reader, counting."""
    counting = Counting(reader.tokenizer)
    monkeypatch.setattr(reader._text, "tokenizer", counting)
    return counting


def text_of(shape: str) -> str:
    return {"spaces": "salt" + " " * 2_000_000 + "salt", "one word": "x" * 2_000_000, "words": LONG}[shape]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("part", ["title", "text"])
def test_tokenizer_gets_what_can_be_read(reader: Reader, counted: Counting, shape: str, part: str) -> None:
    title, text = (text_of(shape) if part == name else "Salt" for name in ("title", "text"))
    [ids], cut = reader.passage_ids([(title, text)])
    most = reader.config.max_passage_tokens
    assert 0 < len(ids) <= most and counted.characters <= 2 * WIDEST * most
    assert cut == 1 or part == "title"


def test_tokens_are_those_of_the_whole_text(reader: Reader) -> None:
    text = LONG[:200_000]
    [ids], cut = reader.passage_ids([("Lamp", text)])
    read = text if hasattr(reader._text, "sep") else f"title: Lamp context: {text}"
    whole = reader.tokenizer.encode(read, add_special_tokens=False).ids
    body = ids[ids.index(reader.tokenizer.token_to_id("[SEP]")) + 1 : -1] if read is text else ids[:-1]
    assert cut == 1 and len(ids) == reader.config.max_passage_tokens and body == whole[: len(body)]


@pytest.mark.parametrize("mode", MODES)
def test_answer_looks_no_further(reader: Reader, counted: Counting, mode: Mode) -> None:
    passages = [Passage("a", "Lamp", LONG), Passage("b", "", "Ada Berg built the lighthouse.")]
    answer = reader.answer("Who kept the lamp?", passages, mode, 8)
    assert counted.characters <= 6 * WIDEST * reader.config.max_passage_tokens
    if answer.span is not None:
        assert answer.text == passages[answer.span.passage].text[answer.span.start : answer.span.end]


def test_question_is_refused_and_shortened_unread(reader: Reader, counted: Counting) -> None:
    with pytest.raises(InputError, match=r"has \d+ characters, this reader reads \d+ tokens; shorten it"):
        reader.question_ids(LONG)
    assert counted.characters == 0
    kept = shorten(LONG, reader)
    assert LONG.strip().endswith(kept) and len(kept.split()) > 3
    assert counted.characters <= 40 * WIDEST * reader.config.max_question_tokens


def test_encoder_of_passages_looks_no_further(
    encoder_folder: Any, monkeypatch: pytest.MonkeyPatch, make_wordpiece: Callable[..., Any]
) -> None:
    encoder = Encoder.from_pretrained(str(encoder_folder))
    whole = encoder.tokenize([LONG[:100_000]], "passage")
    counting = Counting(encoder.tokenizer)
    monkeypatch.setattr(encoder, "tokenizer", counting)
    assert encoder.tokenize([LONG], "passage") == whole
    assert counting.characters <= WIDEST * encoder.model.recipe.max_tokens


@pytest.mark.parametrize(
    ("text", "tokens", "read"),
    [("a b", 1, "a b"), ("ab " * 22, 1, "ab " * 20 + "ab"), ("x" * 65, 1, "x" * 64), (" " * 70 + "a", 1, "")],
)
def test_what_can_be_read_ends_with_a_word(text: str, tokens: int, read: str) -> None:
    assert readable(text, tokens) == read
