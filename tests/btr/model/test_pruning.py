"""Reading a few of many passages to the end: what is left out changes nothing else, and what cannot be is refused."""

import copy
import itertools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from btr.corpus import Passage
from btr.errors import InputError
from btr.model.fid import FiD
from btr.model.pruning import Pruner
from btr.model.span_head import SpanReader
from btr.reader import Reader
from btr.reader.answer import Answer

QUESTIONS = ["Who built the lighthouse?", "What do herons eat in hard winters?", "salt"]
EPS = 2**-23


def same(one: Answer, other: Answer) -> bool:
    """Tell whether two answers agree in every bit of everything but the time they took."""
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(Answer) if f.name != "timings"]
    return all(str(x) == str(y) if not isinstance(x, np.ndarray) else np.array_equal(x, y) for x, y in pairs) and all(
        np.array_equal(x, y) for x, y in zip(one.token_evidence, other.token_evidence, strict=True)
    )


def chosen(answer: Answer) -> list[int]:
    return [n for n, part in enumerate(answer.token_evidence) if part.any()]


@pytest.fixture(params=["span", "t5", "bert-fid"])
def pair(request: pytest.FixtureRequest) -> tuple[Reader, Reader]:
    """A reader that can prune and the same one that cannot, of each family."""
    names = {
        "span": ("pruning_reader", "span_reader"),
        "t5": ("pruning_t5", "tiny_reader"),
        "bert-fid": ("pruning_writer", "writing_reader"),
    }[request.param]
    one, other = (request.getfixturevalue(name) for name in names)
    return one, other


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("mode", ["binary", "float"])
def test_all_or_none_is_plain_reading(
    pair: tuple[Reader, Reader], tiny_passages: list[Passage], question: str, mode: Any
) -> None:
    pruning, whole = pair
    plain = whole.answer(question, tiny_passages, mode)
    assert plain.read == len(tiny_passages)
    for prune in (0, 5, 6, 1000):
        assert same(pruning.answer(question, tiny_passages, mode, prune=prune), plain)


@pytest.mark.parametrize("question", QUESTIONS)
def test_mode_full_reads_what_the_bits_choose_as_if_nothing_was_kept(
    pair: tuple[Reader, Reader], tiny_passages: list[Passage], question: str
) -> None:
    pruning, whole = pair
    encoded = pruning.encode_passages(tiny_passages)
    for prune in (1, 2, 4):
        kept = chosen(pruning.answer(question, encoded, "binary", 8, prune=prune))
        answer = pruning.answer(question, encoded, "full", 8, prune=prune)
        assert chosen(answer) == kept and answer.mode == "full" and answer.read == prune
        alone = whole.answer(question, [tiny_passages[n] for n in kept], "full", 8)
        span = alone.span and replace(alone.span, passage=kept[alone.span.passage])
        assert (answer.text, answer.tokens, answer.score, answer.span) == (alone.text, alone.tokens, alone.score, span)
        assert answer.no_answer == alone.no_answer and answer.evidence[kept].tolist() == alone.evidence.tolist()
        assert same(answer, pruning.answer(question, tiny_passages, "full", 8, prune=prune))
        blank = replace(encoded, texts=("",) * 5)  # a store without texts has the tokens
        decoded = pruning.answer(question, blank, "full", 8, prune=prune).tokens  # which begins with a word
        assert decoded[len(decoded) - len(answer.tokens) :] == answer.tokens
    for prune in (0, 5, 1000):
        assert same(
            pruning.answer(question, tiny_passages, "full", 8, prune=prune),
            whole.answer(question, tiny_passages, "full", 8),
        )
    with pytest.raises(InputError, match="the passages hold float states"):
        pruning.answer(question, pruning.encode_passages(tiny_passages, "float"), "full", prune=2)


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("question", QUESTIONS)
def test_pruned_t5_writes_what_the_passages_read_would_have_it_write(
    pruning_t5: Reader, tiny_passages: list[Passage], question: str, merge: bool
) -> None:
    schedule = replace(pruning_t5.schedule("algorithm", 0.2), bits=0.3) if merge else None
    for prune in (1, 2, 4):
        answer = pruning_t5.answer(question, tiny_passages, "binary", 8, schedule, prune)
        kept = chosen(answer)
        assert answer.read == len(kept) == prune
        alone = pruning_t5.answer(question, [tiny_passages[n] for n in kept], "binary", 8, schedule)
        assert (answer.text, answer.tokens, answer.score) == (alone.text, alone.tokens, alone.score)
        assert answer.evidence[kept].tolist() == alone.evidence.tolist()
        assert len(answer.evidence) == 5 and np.delete(answer.evidence, kept).tolist() == [0.0] * (5 - prune)
        ids, _ = pruning_t5.passage_ids([(p.title, p.text) for p in tiny_passages])
        assert [len(part) for part in answer.token_evidence] == [len(row) for row in ids]


def test_pruned_t5_knows_no_company(pruning_t5: Reader, tiny_passages: list[Passage]) -> None:
    alone = [pruning_t5.answer(question, tiny_passages, "binary", 8, prune=2) for question in QUESTIONS]
    turned = [pruning_t5.answer(question, tiny_passages[::-1], "binary", 8, prune=2) for question in QUESTIONS]
    together = pruning_t5.answer_batch(QUESTIONS, [tiny_passages] * 3, "binary", 8, prune=2)
    for one, other, third in zip(alone, turned, together, strict=True):
        assert chosen(other) == [4 - n for n in reversed(chosen(one))] and chosen(third) == chosen(one)
        assert third.tokens == one.tokens


@pytest.mark.parametrize("normed", [False, True])
def test_t5_glances_as_its_whole_layer_does(pruning_t5: Reader, normed: bool) -> None:
    model, question, k = pruning_t5.model, 6, pruning_t5.config.k
    assert isinstance(model, FiD)
    hidden, lengths = rows(pruning_t5, [30, 17, 7])
    u = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2)) if normed else model.join_norm(hidden)
    encoder = model.t5.encoder
    with torch.inference_mode():
        found = model.pruning_features(hidden.clone(), lengths, question, u if normed else None)
        for r, n in enumerate(lengths.tolist()):
            row, positions = slice(r, r + 1), torch.arange(n)[None]
            bias = encoder.bias(positions, torch.ones(1, n, dtype=torch.bool))
            state = encoder(hidden[row, :n].clone(), bias, k, k + 1, u[row, :n])[0, :question].mean(0)
            unit = torch.nn.functional.normalize(u[r, :n], dim=1)
            alike = (unit[:question] @ unit[question:].T).amax(1).mean()
            # as many additions as the widest matrix has rows, in another order, in each of a layer's five products
            assert found[r, :-1] == pytest.approx(state, abs=96 * 5 * EPS * float(state.abs().max()))
            assert found[r, -1] == pytest.approx(float(alike), abs=64 * EPS)


@pytest.mark.parametrize("prune", [1, 2, 4])
@pytest.mark.parametrize("question", QUESTIONS)
def test_pruned_answer_is_that_of_the_passages_read(
    pruning_reader: Reader, tiny_passages: list[Passage], question: str, prune: int
) -> None:
    answer = pruning_reader.answer(question, tiny_passages, "binary", prune=prune)
    kept = chosen(answer)
    assert answer.read == len(kept) == prune
    alone = pruning_reader.answer(question, [tiny_passages[n] for n in kept], "binary")
    assert answer.span is not None and alone.span is not None and answer.text == alone.text
    assert answer.span == replace(alone.span, passage=kept[alone.span.passage])
    assert answer.score == pytest.approx(alone.score, abs=1e-4)
    assert answer.no_answer == pytest.approx(alone.no_answer, abs=1e-4)
    assert answer.evidence[kept] == pytest.approx(alone.evidence, abs=1e-4)
    assert len(answer.evidence) == 5 and np.delete(answer.evidence, kept).tolist() == [0.0] * (5 - prune)
    ids, _ = pruning_reader.passage_ids([(p.title, p.text) for p in tiny_passages])
    assert [len(part) for part in answer.token_evidence] == [len(row) for row in ids]


def test_winner_keeps_its_span_if_it_is_read(pruning_reader: Reader, tiny_passages: list[Passage]) -> None:
    kept = 0
    turned = copy.deepcopy(pruning_reader)  # whose best are the worst of the other
    turned.model.pruner.weight.neg_()  # type: ignore[union-attr,operator]
    for question, one in itertools.product(QUESTIONS, (pruning_reader, turned)):
        plain = one.answer(question, tiny_passages, "binary")
        for prune in (1, 2, 3, 4):
            answer = one.answer(question, tiny_passages, "binary", prune=prune)
            assert plain.span is not None
            if plain.span.passage in chosen(answer):
                assert answer.span == plain.span and answer.score >= plain.score - 1e-4
                kept += 1
    assert kept > 3


def test_order_and_company_change_nothing(pruning_reader: Reader, tiny_passages: list[Passage]) -> None:
    alone = [pruning_reader.answer(question, tiny_passages, "binary", prune=2) for question in QUESTIONS]
    turned = [pruning_reader.answer(question, tiny_passages[::-1], "binary", prune=2) for question in QUESTIONS]
    together = pruning_reader.answer_batch(QUESTIONS, [tiny_passages] * 3, "binary", prune=2)
    for one, other, third in zip(alone, turned, together, strict=True):
        assert same(one, third)
        assert one.span is not None and other.span == replace(one.span, passage=4 - one.span.passage)
        assert chosen(other) == [4 - n for n in reversed(chosen(one))]


def rows(reader: Reader, lengths: list[int]) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(len(lengths), max(lengths), reader.D, generator=torch.Generator().manual_seed(1))
    return drawn, torch.tensor(lengths)


def test_glance_is_what_the_whole_layer_says_of_the_question(pruning_reader: Reader) -> None:
    model, question = pruning_reader.model, 6
    assert isinstance(model, SpanReader)
    hidden, lengths = rows(pruning_reader, [30, 17, 7])
    with torch.inference_mode():
        found = model.pruning_features(hidden, lengths, question)
        for r, n in enumerate(lengths.tolist()):
            row = hidden[r : r + 1, :n]
            state = model.bert(row, None, pruning_reader.config.k, pruning_reader.config.k + 1)[0, :question].mean(0)
            unit = torch.nn.functional.normalize(row[0], dim=1)
            alike = (unit[:question] @ unit[question:].T).amax(1).mean()
            # as many additions as the wider matrix has rows, in another order, in each of a layer's four products
            assert found[r, :-1] == pytest.approx(state, abs=96 * 4 * EPS * float(state.abs().max()))
            assert found[r, -1] == pytest.approx(float(alike), abs=64 * EPS)


def test_best_are_in_their_own_order_and_of_equals_the_first() -> None:
    pruner = Pruner(1)
    pruner.weight.copy_(torch.tensor([1.0, 10.0]))
    features = torch.tensor([[3.0, 0.0], [0.0, 0.5], [5.0, 0.0], [1.0, 0.0], [0.0, 0.5]])
    assert [pruner.best(features, n) for n in (1, 2, 3, 9)] == [[1], [1, 2], [1, 2, 4], [0, 1, 2, 3, 4]]


def test_fit_finds_what_tells_passages_of_a_question_apart() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    scale = torch.tensor([1.0, 100.0, 0.01, 1.0])  # whose ridge is each feature's own
    drawn = [torch.randn(4, 4, generator=generator) for _ in range(200)]
    shifts = [50 * torch.randn(1, generator=generator) for _ in drawn]  # a question may be hard: no passage's merit
    samples = [((x + s) * scale, x @ weights + s) for x, s in zip(drawn, shifts, strict=True)]
    pruner = Pruner.fit([*samples, (torch.ones(1, 4), torch.ones(1))])
    assert (pruner.weight * scale) == pytest.approx(weights, rel=0.08)
    with pytest.raises(InputError, match="no question has two passages"):
        Pruner.fit([(torch.ones(1, 4), torch.ones(1))])


@pytest.mark.parametrize("prune", [-1, True, 1.5, "2", None])
def test_what_is_no_number_of_passages_is_refused(
    pruning_reader: Reader, tiny_passages: list[Passage], prune: Any
) -> None:
    with pytest.raises(InputError, match="give the number of passages"):
        pruning_reader.answer(QUESTIONS[0], tiny_passages, "binary", prune=prune)


def test_readers_that_cannot_say_how_to_or_why_not(
    pruning_reader: Reader, span_reader: Reader, tiny_reader: Reader, tiny_passages: list[Passage]
) -> None:
    with pytest.raises(InputError, match=r"make it with: python -m btr\.train skim --reader FOLDER"):
        span_reader.answer(QUESTIONS[0], tiny_passages, "binary", prune=2)
    with pytest.raises(InputError, match=r"make it with: python -m btr\.train skim --reader FOLDER"):
        tiny_reader.answer(QUESTIONS[0], tiny_passages, "binary", prune=2)
    assert [r.prunes for r in (pruning_reader, span_reader, tiny_reader)] == [True, False, False]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folder_keeps_the_weights_as_long_as_they_fit(
    pruning_reader: Reader, tiny_passages: list[Passage], tmp_path: Path, dtype: str
) -> None:
    pruning_reader.save_pretrained(tmp_path)
    loaded = Reader.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.prunes and loaded.fingerprint == pruning_reader.fingerprint
    if dtype == "float32":
        answers = [r.answer(QUESTIONS[0], tiny_passages, "binary", prune=2) for r in (pruning_reader, loaded)]
        assert same(*answers)
    assert loaded.answer(QUESTIONS[0], tiny_passages, "binary", prune=2).read == 2
    with torch.no_grad():
        loaded.model.bert.layers[2].wi.bias[0] += 1  # type: ignore[union-attr,index]
    (tmp_path / "skim.safetensors").rename(tmp_path / "kept")
    loaded.model.pruner = None  # type: ignore[assignment]
    loaded.save_pretrained(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "skim.safetensors")
    assert not Reader.from_pretrained(tmp_path).prunes


def test_folder_of_a_t5_keeps_the_weights_as_long_as_they_fit(
    pruning_t5: Reader, tiny_passages: list[Passage], tmp_path: Path
) -> None:
    pruning_t5.save_pretrained(tmp_path)
    loaded = Reader.from_pretrained(tmp_path)
    assert loaded.prunes and loaded.fingerprint == pruning_t5.fingerprint
    assert same(*(r.answer(QUESTIONS[0], tiny_passages, "binary", 8, prune=2) for r in (pruning_t5, loaded)))
    with torch.no_grad():
        loaded.model.t5.decoder.layers[-1].cross.k.weight[0] += 1  # type: ignore[union-attr]
    loaded.save_pretrained(tmp_path / "trained")
    (tmp_path / "skim.safetensors").rename(tmp_path / "trained" / "skim.safetensors")
    assert not Reader.from_pretrained(tmp_path / "trained").prunes


def test_damaged_weights_are_refused(pruning_reader: Reader, tmp_path: Path) -> None:
    pruning_reader.save_pretrained(tmp_path)
    path = tmp_path / "skim.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"skim\.safetensors: damaged"):
        Reader.from_pretrained(tmp_path)
    path.write_bytes((tmp_path / "btr.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"holds weights None, expected \(65,\)"):
        Reader.from_pretrained(tmp_path)
