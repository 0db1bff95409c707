"""A trimmed BERT: what is kept is as it was, to the row, and what is gone falls into letters."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

from btr.corpus import Passage
from btr.errors import InputError
from btr.train.vocabulary import choose, trim

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def bert(
    passages: list[Passage],
    make_wordpiece: Callable[[Iterable[str], int], Tokenizer],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A tiny BERT with a head for pieces and some 700 pieces, four of which nothing uses."""
    folder = tmp_path_factory.mktemp("bert")
    trained = make_wordpiece((f"{p.title} {p.text}" for p in passages), 700)
    trained.enable_padding(length=12)  # as published ones may have it
    trained.enable_truncation(12)
    trained.save(str(folder / "tokenizer.json"))
    spec = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    vocabulary |= {piece: len(vocabulary) + n for n, piece in enumerate(("東", "##京", "ж", "[x]"))}
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    torch.manual_seed(0)
    size = len(vocabulary)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    BertForMaskedLM(BertConfig(vocab_size=size, max_position_embeddings=32, **shape)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(passages: list[Passage]) -> list[str]:
    return [passage.text for passage in passages]


@pytest.fixture(scope="module")
def trimmed(bert: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trimmed") / "bert"
    share = trim(bert, texts, 300, out)
    assert 0.5 < share < 1
    return out


@pytest.fixture(scope="module")
def before(bert: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(bert / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@pytest.fixture(scope="module")
def after(trimmed: Path) -> Tokenizer:
    return Tokenizer.from_file(str(trimmed / "tokenizer.json"))


def test_vocabulary_has_the_size_that_was_asked_for(trimmed: Path, after: Tokenizer) -> None:
    assert after.get_vocab_size() == 300
    assert json.loads((trimmed / "config.json").read_text())["vocab_size"] == 300
    assert [after.token_to_id(token) is not None for token in SPECIAL] == [True] * 5
    assert after.padding is None and after.truncation is None


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return list(tokenizer.encode(text, add_special_tokens=False).tokens)


@pytest.fixture(scope="module")
def same(before: Tokenizer, after: Tokenizer, texts: list[str]) -> list[str]:
    """Words of the texts whose pieces are all kept."""
    words = sorted({word for text in texts for word in text.split()})
    kept = [word for word in words if all(after.token_to_id(piece) is not None for piece in pieces(before, word))]
    assert 50 < len(kept) < len(words)
    return kept


def test_words_of_kept_pieces_have_the_same_pieces(before: Tokenizer, after: Tokenizer, same: list[str]) -> None:
    assert all(pieces(after, word) == pieces(before, word) for word in same)
    text = " ".join(random.Random(0).sample(same, 40))
    found = pieces(before, text)
    assert after.encode(text).tokens == ["[CLS]", *found, "[SEP]"]
    assert after.encode(text, text).tokens == ["[CLS]", *found, "[SEP]", *found, "[SEP]"]
    assert after.encode(text, text).type_ids == [0] * (len(found) + 2) + [1] * (len(found) + 1)


def test_other_words_fall_into_letters_and_not_to_unknown(
    before: Tokenizer, after: Tokenizer, texts: list[str]
) -> None:
    for text in [*texts, "Quizzical jackdaws, über-vexed!"]:
        found, known = pieces(after, text), pieces(before, text)
        assert found.count("[UNK]") == known.count("[UNK]")
        assert "".join(p.removeprefix("##") for p in found) == "".join(p.removeprefix("##") for p in known)


def test_kept_are_the_most_frequent(before: Tokenizer, after: Tokenizer, texts: list[str]) -> None:
    counts = Counter(t for text in texts for t in before.encode(text, add_special_tokens=False).tokens)
    whole = [piece for piece in before.get_vocab() if len(piece.removeprefix("##")) > 1 and piece not in SPECIAL]
    kept = [counts[piece] for piece in whole if after.token_to_id(piece) is not None]
    gone = [counts[piece] for piece in whole if after.token_to_id(piece) is None]
    assert min(kept) >= max(gone)
    assert not any(after.token_to_id(piece) for piece in ("東", "##京", "ж", "[x]"))


def test_rows_of_kept_pieces_are_as_they_were(bert: Path, trimmed: Path, before: Tokenizer, after: Tokenizer) -> None:
    old, new = (BertForMaskedLM.from_pretrained(folder) for folder in (bert, trimmed))
    assert new.get_input_embeddings().weight.shape == (300, 16)
    rows = torch.tensor([before.token_to_id(after.id_to_token(n)) for n in range(300)])
    assert rows.tolist() == sorted(rows.tolist())
    assert torch.equal(new.get_input_embeddings().weight, old.get_input_embeddings().weight[rows])
    assert torch.equal(new.cls.predictions.bias, old.cls.predictions.bias[rows])
    theirs, ours = old.state_dict(), new.state_dict()
    same = [name for name in ours if ours[name].shape == theirs[name].shape]
    assert len(same) > 15 and all(torch.equal(ours[name], theirs[name]) for name in same)


def test_transformers_reads_the_folder(
    bert: Path, trimmed: Path, before: Tokenizer, after: Tokenizer, same: list[str]
) -> None:
    text = " ".join(same[-4:])  # words, whose pieces have other numbers now
    tokenizer = AutoTokenizer.from_pretrained(str(trimmed))
    ids = tokenizer(text)["input_ids"]
    assert ids == after.encode(text).ids and tokenizer.pad_token_id == after.token_to_id("[PAD]")
    old_ids = [before.token_to_id(after.id_to_token(n)) for n in ids]
    assert old_ids != ids
    with torch.no_grad():
        old, new = (
            BertModel.from_pretrained(folder, add_pooling_layer=False).eval()(torch.tensor([row])).last_hidden_state
            for folder, row in ((bert, old_ids), (trimmed, ids))
        )
    assert torch.equal(old, new)


def test_out_is_never_written_over(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is there already; give another name"):
        trim(bert, [], 300, tmp_path)


@pytest.mark.parametrize("keep", [6, 4000])
def test_too_few_and_too_many_are_refused(bert: Path, keep: int, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"keep is {keep}; the vocabulary has \d+ pieces, of which \d+ .* have to stay"
    ):
        trim(bert, ["a"], keep, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_tokenizers_are_refused(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the tokenizer is BPE with 0 of \[CLS\] and \[SEP\], not the WordPiece"):
        trim(tiny_folders["1.0"], ["a"], 100, tmp_path / "out")


def test_equally_frequent_pieces_stay_in_order() -> None:
    vocabulary = {"[UNK]": 0, "bb": 2, "aa": 1, "a": 3, "cc": 4}
    assert choose(vocabulary, ["[UNK]"], Counter(), 4) == ["[UNK]", "aa", "bb", "a"]
    assert choose(vocabulary, ["[UNK]"], Counter({"cc": 1}), 3) == ["[UNK]", "a", "cc"]
