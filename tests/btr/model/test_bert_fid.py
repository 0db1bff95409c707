"""A BERT that writes: its memory, what it can copy, quotations, and the store that it shares with a span reader."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from btr.corpus import Passage
from btr.errors import InputError
from btr.model.bert_fid import BertFiD
from btr.model.binarize import Known
from btr.model.config import MODES, Mode, ReaderConfig
from btr.model.merge import Schedule, Tokens
from btr.reader import Reader
from btr.reader.answer import Answer, Memory, Span
from btr.reader.generative import BertGenerative, find
from btr.train.written import initialise

QUESTIONS = ["Who built the lighthouse?", "What do herons eat in hard winters?", "salt"]


def model_of(reader: Reader) -> BertFiD:
    assert isinstance(reader.model, BertFiD)
    return reader.model


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_score_is_that_of_the_words_given_whole_rows(
    writing_reader: Reader, tiny_passages: list[Passage], mode: Mode
) -> None:
    """Rows read at once under a mask, and in halves from bits or states; the scalars of the bits are rounded."""
    model = model_of(writing_reader)
    for question in QUESTIONS:
        answer = writing_reader.answer(question, tiny_passages, mode, max_new_tokens=6)
        asked = writing_reader.question_ids(question)
        read = [asked + ids for ids in writing_reader.passage_ids([(p.title, p.text) for p in tiny_passages])[0]]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in read], batch_first=True)
        lengths = torch.tensor([len(row) for row in read])
        memory = model.rows(ids, lengths, torch.full_like(lengths, len(asked)), mode).memory
        eos = [] if len(answer.tokens) == 6 else [model.t5.config.eos_token_id]
        labels = torch.tensor([[*answer.tokens, *eos]])
        scores = model.answer_logits(memory, lengths, labels).log_softmax(-1)
        expected = float(scores.gather(2, labels[..., None]).mean())
        assert answer.score == pytest.approx(expected, abs=0.05 if mode == "binary" else 1e-4)


@torch.no_grad()
def test_new_decoder_looks_for_what_follows_the_word_it_wrote(writing_reader: Reader) -> None:
    model = copy.deepcopy(model_of(writing_reader))
    initialise(model, 0)
    ids = torch.randperm(model.vocab_size, generator=torch.Generator().manual_seed(0))[:40]
    known = Known.of_passages(ids, torch.tensor([0]), model.embedding)
    memory = model.finish(torch.zeros(40, model.width), model.told(known, torch.ones(40, dtype=torch.bool)))[None]
    wrote = model.t5.decoder.layers[0].cross_norm(model.embedding[ids])[None]
    cross = model.t5.decoder.layers[0].cross
    weights = cross.attend_weights(wrote, *cross.keys_values(memory), None)[1][0, 0]  # the first head copies
    follows = weights[:-1].argmax(1) == torch.arange(1, 40)
    assert follows.float().mean() > 0.5  # by chance 0.025


def test_one_store_serves_the_reader_that_quotes_and_the_one_that_writes(
    writing_reader: Reader, span_reader: Reader, tiny_passages: list[Passage]
) -> None:
    assert writing_reader.fingerprint == span_reader.fingerprint
    assert (writing_reader.family, span_reader.family) == ("generative", "extractive")
    kept = span_reader.encode_passages(tiny_passages)
    for question in QUESTIONS:
        one, other = (writing_reader.answer(question, given, "binary", 6) for given in (kept, tiny_passages))
        assert one.text == other.text and one.score == pytest.approx(other.score, abs=1e-5)


def test_answers_together_are_those_alone(writing_reader: Reader, tiny_passages: list[Passage]) -> None:
    given = [tiny_passages, tiny_passages[:1], tiny_passages[2:]]
    together = writing_reader.answer_batch(QUESTIONS, given, "binary", 5)
    for question, passages, answer in zip(QUESTIONS, given, together, strict=True):
        alone = writing_reader.answer(question, passages, "binary", 5)
        assert answer.score == pytest.approx(alone.score, abs=1e-4)
        assert answer.evidence == pytest.approx(alone.evidence, abs=1e-4)


def quoted(reader: Reader, passages: list[Passage], words: str, evidence: list[float]) -> Answer:
    """Let a reader quote `words`, decoded with this evidence of the passages."""
    text = BertGenerative(model_of(reader), reader.tokenizer)
    told = [(p.title, p.text) for p in passages]
    ids = tuple(np.array(row) for row in reader.passage_ids(told)[0])
    tokens = tuple(reader.tokenizer.encode(words, add_special_tokens=False).ids)
    bare = Answer(words.lower(), 0.0, "full", {}, tokens, np.array(evidence, np.float32), ())
    return text._quoted(bare, Memory.whole(4, tuple(told), ids))


def test_what_was_copied_is_quoted_as_the_likeliest_passage_writes_it(writing_reader: Reader) -> None:
    passages = [
        Passage("0", "Mule", "a MULE and a mule"),
        Passage("1", "", "The Mule of St. Ives"),
        Passage("2", "mule", "salt"),
    ]
    first, second = (quoted(writing_reader, passages, "mule", e) for e in ([0.5, 0.3, 0.2], [0.3, 0.5, 0.2]))
    assert (first.text, first.span and (first.span.passage, first.span.start)) == ("MULE", (0, 2))
    assert (second.text, second.span and (second.span.passage, second.span.start)) == ("Mule", (1, 4))
    whole = quoted(writing_reader, passages, "mule of st . ives", [1, 0, 0])
    assert whole.text == "Mule of St. Ives" and whole.span is not None and whole.span.end == 20
    apart = [Passage("0", "", "Iveses and mules of Ives, muled"), Passage("1", "", "a mule")]
    assert quoted(writing_reader, apart, "mule", [0.9, 0.1]).span == Span(1, 2, 6)  # no part of another word
    accent = quoted(writing_reader, [Passage("0", "", "a mule\u0301, a")], "mule", [1])
    assert accent.text == "mule\u0301" and accent.span == Span(0, 2, 7)
    unsaid = quoted(writing_reader, passages, "ives mule", [1, 0, 0])
    assert unsaid.text == "ives mule" and unsaid.span is None
    assert quoted(writing_reader, passages, "", [1, 0, 0]).span is None


def test_find_is_every_place() -> None:
    ids = np.array([1, 2, 1, 2, 3])
    assert [find(ids, wanted) for wanted in ([1, 2], [1, 2, 3], [3, 1], [1] * 9)] == [[0, 2], [2], [], []]


def test_folder_keeps_all_of_it(writing_reader: Reader, tiny_passages: list[Passage], tmp_path: Path) -> None:
    writing_reader.save_pretrained(tmp_path)
    again, half = (Reader.from_pretrained(tmp_path, dtype=dtype) for dtype in ("float32", "bfloat16"))
    before, after = writing_reader.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert (
        model_of(again).t5.embedding.weight is model_of(again).bert.embedding.weight is model_of(again).t5.head.weight
    )
    assert again.fingerprint == half.fingerprint == writing_reader.fingerprint
    assert "t5.embedding.weight" not in load_file(tmp_path / "model.safetensors")
    for question in QUESTIONS:
        one, other = (reader.answer(question, tiny_passages, "binary", 5) for reader in (writing_reader, again))
        assert (one.text, one.score) == (other.text, other.score)
        assert half.answer(question, tiny_passages, "binary", 5).tokens


def test_damaged_folder_is_named(writing_reader: Reader, tmp_path: Path) -> None:
    writing_reader.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for lost in ("words.weight", "decoder.final_layer_norm.weight", "bert.embeddings.word_embeddings.weight"):
        save_file({name: tensor for name, tensor in weights.items() if name != lost}, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match="are missing or do not fit"):
            Reader.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for broken in (
        {"decoder": None},
        {"encoder": {"model_type": "t5"}},
        {"decoder": config["decoder"] | {"d_model": 3}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | broken))
        with pytest.raises(InputError, match=r"expected|model_type is None"):
            Reader.from_pretrained(tmp_path)


def test_what_it_cannot_do_is_refused(writing_reader: Reader) -> None:
    model = model_of(writing_reader)
    with pytest.raises(ValueError, match="leave `unread` empty"):
        BertFiD(model.bert, model.t5.config, ReaderConfig(k=2, unread=(5,)))
    with pytest.raises(ValueError, match="the decoder has num_layers 1; expected"):
        BertFiD(model.bert, replace(model.t5.config, num_layers=1), ReaderConfig(k=2))


@torch.no_grad()
def test_merged_token_is_told_the_mean_of_the_words_in_it(
    writing_reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(writing_reader)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.vocab_size, (3, 30), generator=generator)
    lengths = torch.tensor([30, 22, 9])
    index = torch.arange(30)[None]
    passage = (index >= 4) & (index < lengths[:, None])
    before = Tokens.of(torch.randn(3, 30, model.width, generator=generator), lengths, 4)
    told = model.told(Known.of_rows(ids, passage, model.embedding), passage)
    whole = model.finish_merged(before, ids, passage).hidden
    assert torch.equal(whole, model.finish(before.hidden, told))
    after = model.merging(before, Schedule((0.3,) * model.joint, (0.0,) * 2))
    assert after.sizes.max() > 1 and (after.sizes.sum(1) == lengths).all()
    monkeypatch.setattr(model, "finish", lambda states, told: told)
    found = model.finish_merged(after, ids, passage).hidden
    sums = torch.stack([told[r, after.owner[r] == t].sum(0) for r in range(3) for t in range(after.sizes.shape[1])])
    assert torch.allclose(found.flatten(0, 1) * after.sizes.flatten()[:, None], sums, atol=1e-5)


def test_merging_nothing_changes_nothing_and_much_still_answers(
    writing_reader: Reader, tiny_passages: list[Passage]
) -> None:
    model = model_of(writing_reader)
    kept = writing_reader.encode_passages(tiny_passages)
    plain = writing_reader.answer("salt", kept, "binary", 5)
    slight = Schedule((0.0,) * model.joint, (0.0, 1e-9))  # takes the way of merging, and merges no pair
    same = writing_reader.answer("salt", kept, "binary", 5, merge=slight)
    assert same.text == plain.text and same.score == pytest.approx(plain.score, abs=1e-4)
    assert same.evidence == pytest.approx(plain.evidence, abs=1e-4)
    for bits in (0.0, 0.2):
        schedule = replace(writing_reader.schedule("algorithm", 0.4), bits=bits)
        merged = writing_reader.answer("salt", kept, "binary", 5, merge=schedule)
        assert merged.evidence.sum() == pytest.approx(1, abs=1e-4) and merged.tokens
        assert [len(part) for part in merged.token_evidence] == kept.lengths.tolist()


def test_rounded_decoder_writes_nearly_the_same(writing_reader: Reader, tiny_passages: list[Passage]) -> None:
    rounded = Reader(writing_reader.model, writing_reader.tokenizer)
    rounded.round_decoder()
    one, other = (reader.answer("salt", tiny_passages, "binary", 1) for reader in (writing_reader, rounded))
    assert other.score == pytest.approx(one.score, abs=0.1) and other.score != one.score
