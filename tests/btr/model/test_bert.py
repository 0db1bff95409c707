"""Our BERT against transformers', and the span reader's three modes against whole rows."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertForQuestionAnswering, BertModel

from btr.errors import InputError
from btr.model.binarize import Binarizer
from btr.model.checkpoint import configured, load_reader, save_reader
from btr.model.config import BertConfig, ConfigError, Mode
from btr.model.span_head import SpanReader
from btr.reader import Reader

IDS = torch.randint(1, 250, (3, 40), generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([40, 23, 31])
ASKED = torch.tensor([7, 7, 7])
REAL = torch.arange(40)[None] < LENGTHS[:, None]


def tolerance(reference: Tensor, additions: int = 6000) -> float:
    """Return what float32 sums in another order may come to."""
    return math.sqrt(additions) * 2**-24 * float(reference.abs().max())


@pytest.fixture(scope="module")
def model(span_reader: Reader) -> SpanReader:
    assert isinstance(span_reader.model, SpanReader)
    return span_reader.model


def test_plain_row_is_transformers(model: SpanReader, tiny_bert: BertForQuestionAnswering) -> None:
    positions, segments = torch.arange(40)[None], torch.zeros(1, 40, dtype=torch.long)
    with torch.no_grad():
        ours = model.bert(model.bert.embed(IDS, positions, segments), REAL[:, None])
        theirs = tiny_bert.bert(input_ids=IDS, attention_mask=REAL.long()).last_hidden_state
    assert (ours - theirs)[REAL].abs().max() <= tolerance(theirs)


def test_full_mode_is_transformers_with_the_passage_at_its_offset(
    model: SpanReader, tiny_bert: BertForQuestionAnswering
) -> None:
    index = torch.arange(40)[None].expand(3, -1)
    passage = index >= ASKED[:, None]
    positions = torch.where(passage, index - ASKED[:, None] + model.config.max_question_tokens, index)
    with torch.no_grad():
        theirs = tiny_bert(
            input_ids=IDS, attention_mask=REAL.long(), token_type_ids=passage.long(), position_ids=positions
        )
        for memory in (model.full(IDS, LENGTHS, ASKED), model.rows(IDS, LENGTHS, ASKED, "full").memory):
            start, end = model.point(memory)
            assert (start - theirs.start_logits)[REAL].abs().max() <= tolerance(theirs.start_logits)
            assert (end - theirs.end_logits)[REAL].abs().max() <= tolerance(theirs.end_logits)
    assert (start - end)[REAL].abs().max() > 100 * tolerance(theirs.start_logits)  # the two are not one


def test_gradients_are_those_of_transformers(model: SpanReader, tiny_bert: BertForQuestionAnswering) -> None:
    ours, theirs = copy.deepcopy(model), copy.deepcopy(tiny_bert)
    weight = torch.randn(3, 40, 64, generator=torch.Generator().manual_seed(2)) * REAL[..., None]
    positions, segments = torch.arange(40)[None], torch.zeros(1, 40, dtype=torch.long)
    (ours.bert(ours.bert.embed(IDS, positions, segments), REAL[:, None]) * weight).sum().backward()
    (theirs.bert(input_ids=IDS, attention_mask=REAL.long()).last_hidden_state * weight).sum().backward()
    layer, hf = ours.bert.layers[1], theirs.bert.encoder.layer[1]
    attention = hf.attention.self
    pairs = [
        (layer.qkv.weight, torch.cat([part.weight.grad for part in (attention.query, attention.key, attention.value)])),
        (layer.wi.bias, hf.intermediate.dense.bias.grad),
        (layer.norm.weight, hf.output.LayerNorm.weight.grad),
        (ours.bert.embedding.weight, theirs.bert.embeddings.word_embeddings.weight.grad),
        (ours.bert.positions.weight, theirs.bert.embeddings.position_embeddings.weight.grad),
    ]
    for parameter, expected in pairs:
        assert parameter.grad is not None
        assert (parameter.grad - expected).abs().max() <= tolerance(expected, 60000)


@pytest.mark.parametrize("calibration", ["channel", "paper"])
@pytest.mark.parametrize("mode", ["float", "binary"])
def test_halves_make_the_whole(model: SpanReader, mode: Mode, calibration: str) -> None:
    model = configured(model, replace(model.config, calibration=calibration)).eval()  # type: ignore[arg-type,assignment]
    if calibration == "paper":
        assert not model.binarizer.mean.any()
    with torch.no_grad():
        rows = model.rows(IDS, LENGTHS, ASKED, mode)
        for r, (length, asked) in enumerate(zip(LENGTHS.tolist(), ASKED.tolist(), strict=True)):
            question = model.lower(IDS[r : r + 1, :asked], torch.tensor([asked]))
            passage = model.lower(IDS[r : r + 1, asked:length], torch.tensor([length - asked]), passage=True)
            if mode == "binary":
                mean, magnitude, _ = model.tables()[0]
                bits = torch.where(model.binarizer.signs(passage), 1.0, -1.0)
                u_hat = mean + magnitude * bits
                passage = model.fit(passage, u_hat) * u_hat
            memory = model.join(torch.cat([question, passage], 1), torch.tensor([length]))
            assert (memory[0] - rows.memory[r, :length]).abs().max() <= tolerance(rows.memory, 60000)


def test_passages_do_not_see_the_question_below_the_join(model: SpanReader) -> None:
    other = IDS.clone()
    other[:, :7] = (other[:, :7] + 1) % 250
    with torch.no_grad():
        for mode, same in (("float", True), ("binary", True), ("full", False)):
            mine, theirs = (model.rows(ids, LENGTHS, ASKED, mode) for ids in (IDS, other))  # type: ignore[arg-type]
            assert torch.equal(mine.joined[:, 7:][REAL[:, 7:]], theirs.joined[:, 7:][REAL[:, 7:]]) is same
            assert not torch.equal(mine.memory[:, 7:][REAL[:, 7:]], theirs.memory[:, 7:][REAL[:, 7:]])


def test_scale_is_the_best_one(model: SpanReader) -> None:
    hidden = torch.randn(50, 64, generator=torch.Generator().manual_seed(4)) + 0.3
    with torch.no_grad():
        best, _ = model.binarized(hidden)
        u_hat = model.binarizer(hidden)[0]
        for change in (-0.1, 0.1):
            worse = (model.fit(hidden, u_hat) + change) * u_hat
            assert ((hidden - best).square().sum(-1) < (hidden - worse).square().sum(-1)).all()


def test_scale_passes_no_gradient_to_what_it_scales(model: SpanReader) -> None:
    """Of s * u_hat, with s fitted to both, the calibration gets s: else it would be moved to change s too."""
    model = copy.deepcopy(model)
    hidden, upstream = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(4))
    h_hat, signs = model.binarized(hidden)
    h_hat.backward(upstream)
    with torch.no_grad():
        given = upstream * model.fit(hidden, model.binarizer(hidden)[0])
    grad = model.binarizer.magnitude.grad
    assert grad is not None and torch.allclose(grad, (given * signs.detach()).sum(0), rtol=1e-4, atol=1e-4)


def test_gradient_passes_the_signs(model: SpanReader) -> None:
    model = copy.deepcopy(model)
    model.rows(IDS, LENGTHS, ASKED, "binary").memory[:, 8].sum().backward()
    for parameter in (model.bert.layers[0].wi.weight, model.binarizer.mean, model.binarizer.magnitude):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_saved_folder_is_read_by_transformers_and_by_us(span_reader: Reader, tmp_path: Path) -> None:
    save_reader(span_reader.model, span_reader.tokenizer, tmp_path)
    theirs, info = BertForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    again = Reader.from_pretrained(tmp_path)
    assert again.config == span_reader.config and again.fingerprint == span_reader.fingerprint
    for (name, mine), (_, theirs_) in zip(
        span_reader.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert torch.equal(mine, theirs_), name
    with torch.no_grad():
        start = theirs(input_ids=IDS, attention_mask=REAL.long()).start_logits
        positions, segments = torch.arange(40)[None], torch.zeros(1, 40, dtype=torch.long)
        memory = again.model.bert(again.model.bert.embed(IDS, positions, segments), REAL[:, None])
        assert (again.model.point(memory)[0] - start)[REAL].abs().max() <= tolerance(start)


def test_plain_bert_needs_a_head(tiny_bert: BertForQuestionAnswering, tmp_path: Path) -> None:
    BertModel(tiny_bert.config).save_pretrained(tmp_path)  # names without "bert.", a pooler, no head
    with pytest.raises(InputError, match="without a head for spans"):
        load_reader(tmp_path, torch.float32, None)
    model = load_reader(tmp_path, torch.float32, 2, new_head=True)
    again = load_reader(tmp_path, torch.float32, 2, new_head=True)
    assert isinstance(model, SpanReader) and isinstance(again, SpanReader)
    assert model.head.weight.abs().sum() > 0 and torch.equal(model.head.weight, again.head.weight)


def test_broken_folders(bert_folder: Path, tiny_bert: BertForQuestionAnswering, tmp_path: Path) -> None:
    tiny_bert.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    for change, message in (
        (('"hidden_act": "gelu"', '"hidden_act": "relu"'), "hidden_act is 'relu', expected 'gelu'"),
        (('"num_hidden_layers": 4', '"num_hidden_layers": 3'), "is of no layer there"),
        (('"num_hidden_layers": 4', '"num_hidden_layers": 5'), "is missing"),
        (('"intermediate_size": 96', '"intermediate_size": 95'), r"makes \(96, 64\), expected \(95, 64\)"),
        (('"max_position_embeddings": 400', '"max_position_embeddings": 383'), "need 384 positions, this BERT has 383"),
    ):
        (tmp_path / "config.json").write_text(config.replace(*change))
        with pytest.raises(InputError, match=message):
            load_reader(tmp_path, torch.float32, 2)
    with pytest.raises(InputError, match="k is 4, the encoder has 4 layers"):
        load_reader(bert_folder, torch.float32, 4)
    with pytest.raises(ConfigError, match="model_type is 't5'"):
        BertConfig.from_hf({"model_type": "t5"})


def test_tokenizer_of_another_kind(bert_folder: Path, tiny_reader: Reader, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bert_folder / name).read_bytes())
    tiny_reader.tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=r"no \[CLS\] or no \[SEP\]"):
        Reader.from_pretrained(tmp_path)


def test_other_settings_keep_the_weights(model: SpanReader) -> None:
    other = configured(model, replace(model.config, k=1))
    assert isinstance(other, SpanReader) and other.head is model.head and other.bert is model.bert
    assert isinstance(other.binarizer, Binarizer) and not other.binarizer.mean.any()
    assert configured(model, replace(model.config, passages=3)).binarizer is model.binarizer
