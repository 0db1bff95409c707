"""Our MPNet against transformers', its halves against whole rows, its folder, and a reader of it trained."""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, processors
from torch import Tensor
from transformers import MPNetConfig as TheirConfig
from transformers import MPNetForQuestionAnswering, MPNetModel

from btr.corpus import Passage
from btr.errors import InputError
from btr.model.bert import Bert
from btr.model.checkpoint import configured, load_reader, load_tokenizer, save_reader
from btr.model.config import BertConfig, ConfigError, Mode, MPNetConfig
from btr.model.layout import Halves, MergedRows
from btr.model.pruning import Pruner
from btr.model.span_head import SpanReader
from btr.model.split import unpadded
from btr.reader import Reader
from btr.retrieve.dense.encoder import Encoder
from btr.train.__main__ import main
from btr.train.objectives import attention
from btr.train.vocabulary import trim
from btr.train.written import with_decoder

IDS = torch.randint(4, 250, (3, 300), generator=torch.Generator().manual_seed(1))  # farther than any bucket's distance
LENGTHS = torch.tensor([300, 203, 31])
ASKED = torch.tensor([7, 7, 7])
REAL = torch.arange(300)[None] < LENGTHS[:, None]


def tolerance(reference: Tensor, additions: int = 6000) -> float:
    """Return what float32 sums in another order may come to."""
    return math.sqrt(additions) * 2**-24 * float(reference.abs().max())


@pytest.fixture(scope="module")
def theirs() -> MPNetForQuestionAnswering:
    """A random MPNet as transformers has it, in which no tensor is idle."""
    torch.manual_seed(3)
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 450}
    model = MPNetForQuestionAnswering(TheirConfig(**sizes, num_hidden_layers=4, num_attention_heads=4)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm.weight" in name:
                parameter.uniform_(0.5, 1.5)
            elif "relative" in name:
                parameter.normal_()
            else:
                parameter.normal_(std=0.3 if parameter.dim() == 1 or "embeddings" in name else 0.15)
    return model


@pytest.fixture(scope="module")
def folder(
    theirs: MPNetForQuestionAnswering,
    make_wordpiece: Callable[[Iterable[str], int], Tokenizer],
    tiny_passages: list[Passage],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Its folder, with MPNet's tokenizer: its own special tokens, and BERT's among the words."""
    path = tmp_path_factory.mktemp("mpnet")
    spec = json.loads(make_wordpiece([f"{p.title} {p.text}" for p in tiny_passages], 295).to_str())
    own = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*own, *sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__), "<mask>"]
    ids = {piece: n for n, piece in enumerate(pieces)}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    spec["model"]["vocab"] = ids
    spec["added_tokens"] = [{"id": ids[token], "content": token} | plain for token in (*own, "[UNK]", "<mask>")]
    (path / "tokenizer.json").write_text(json.dumps(spec))
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reader(folder: Path, tiny_passages: list[Passage]) -> Reader:
    """A reader of it, split after layer 2 of 4 and calibrated."""
    made = Reader.from_pretrained(folder, k=2)
    made.calibrate(tiny_passages)
    return made


@pytest.fixture(scope="module")
def model(reader: Reader) -> SpanReader:
    assert isinstance(reader.model, SpanReader)
    return reader.model


def test_plain_row_is_transformers(model: SpanReader, theirs: MPNetForQuestionAnswering) -> None:
    zero = torch.zeros(1, 300, dtype=torch.long)
    ids = IDS.masked_fill(~REAL, 1)  # transformers finds padding by its id
    with torch.no_grad():
        ours = model.bert(model.bert.embed(ids, torch.arange(300)[None], zero), REAL[:, None])
        expected = theirs.mpnet(input_ids=ids, attention_mask=REAL.long()).last_hidden_state
        alone = model.bert(model.bert.embed(ids[:1], torch.arange(300)[None], zero), None)
        blind = copy.deepcopy(model.bert)
        assert blind.relative is not None
        blind.relative.table.weight.zero_()
        without = blind(blind.embed(ids, torch.arange(300)[None], zero), REAL[:, None])
    assert (ours - expected)[REAL].abs().max() <= tolerance(expected)
    assert (alone[0] - expected[0]).abs().max() <= tolerance(expected)
    assert (without - expected)[REAL].abs().max() > 100 * tolerance(expected)  # distances matter


def test_full_mode_is_transformers_with_the_passage_at_its_offset(
    model: SpanReader, theirs: MPNetForQuestionAnswering
) -> None:
    """Positions have the offset; distances, which transformers takes of these alone, are those of the row."""
    index = torch.arange(300)[None].expand(3, -1)
    passage = index >= ASKED[:, None]
    positions = torch.where(passage, index - ASKED[:, None] + model.config.max_question_tokens, index)
    positions = positions.clamp(max=model.bert.config.room - 1)
    mpnet = copy.deepcopy(theirs.mpnet)
    compute = mpnet.encoder.compute_position_bias
    mpnet.encoder.compute_position_bias = lambda x, position_ids=None, num_buckets=32: compute(x, None, num_buckets)
    with torch.no_grad():
        states = mpnet(input_ids=IDS, attention_mask=REAL.long(), position_ids=positions + 2).last_hidden_state
        start, end = (logits.squeeze(-1) for logits in theirs.qa_outputs(states).split(1, -1))
        for memory in (model.full(IDS, LENGTHS, ASKED), model.rows(IDS, LENGTHS, ASKED, "full").memory):
            ours = model.point(memory)
            assert (ours[0] - start)[REAL].abs().max() <= tolerance(start)
            assert (ours[1] - end)[REAL].abs().max() <= tolerance(end)
    assert (start - end)[REAL].abs().max() > 100 * tolerance(start)


def test_gradients_are_those_of_transformers(model: SpanReader, theirs: MPNetForQuestionAnswering) -> None:
    ours, hf = copy.deepcopy(model).bert, copy.deepcopy(theirs).mpnet
    weight = torch.randn(3, 300, 64, generator=torch.Generator().manual_seed(2)) * REAL[..., None]
    ids, zero = IDS.masked_fill(~REAL, 1), torch.zeros(1, 300, dtype=torch.long)
    (ours(ours.embed(ids, torch.arange(300)[None], zero), REAL[:, None]) * weight).sum().backward()
    (hf(input_ids=ids, attention_mask=REAL.long()).last_hidden_state * weight).sum().backward()
    layer, other = ours.layers[1], hf.encoder.layer[1]
    parts = (other.attention.attn.q, other.attention.attn.k, other.attention.attn.v)
    assert ours.relative is not None
    for parameter, expected in (
        (layer.qkv.weight, torch.cat([part.weight.grad for part in parts])),
        (layer.out.weight, other.attention.attn.o.weight.grad),
        (ours.relative.table.weight, hf.encoder.relative_attention_bias.weight.grad),
        (ours.positions.weight, hf.embeddings.position_embeddings.weight.grad),
    ):
        assert isinstance(parameter, Tensor) and parameter.grad is not None
        assert (parameter.grad - expected)[2:].abs().max() <= tolerance(
            expected, 60000
        )  # of padding they learn nothing


@pytest.mark.parametrize("mode", ["float", "binary"])
def test_halves_make_the_whole(model: SpanReader, mode: Mode) -> None:
    with torch.no_grad():
        rows = model.rows(IDS, LENGTHS, ASKED, mode)
        for r, (length, asked) in enumerate(zip(LENGTHS.tolist(), ASKED.tolist(), strict=True)):
            question = model.lower(IDS[r : r + 1, :asked], torch.tensor([asked]))
            passage = model.lower(IDS[r : r + 1, asked:length], torch.tensor([length - asked]), passage=True)
            if mode == "binary":
                mean, magnitude, _ = model.tables()[0]
                u_hat = mean + magnitude * torch.where(model.binarizer.signs(passage), 1.0, -1.0)
                passage = model.fit(passage, u_hat) * u_hat
            memory = model.join(torch.cat([question, passage], 1), torch.tensor([length]))
            assert (memory[0] - rows.memory[r, :length]).abs().max() <= tolerance(rows.memory, 60000)


def test_unread_tokens_leave_no_gap(model: SpanReader) -> None:
    """Training reads rows as the reader lays them out: what is left of a passage, right after the question."""
    some = configured(model, replace(model.config, unread=tuple(range(10, 60)))).eval()
    assert isinstance(some, SpanReader)
    with torch.no_grad():
        rows = some.rows(IDS, LENGTHS, ASKED, "float")
        assert rows.read is not None
        row, read = rows.joined[:1], rows.read[0]
        memory = some.join(row[:, read], read.sum()[None])
    assert not read[: int(LENGTHS[0])].all()
    assert (memory[0] - rows.memory[0, read]).abs().max() <= tolerance(rows.memory, 60000)


def test_first_look_is_what_the_layer_makes_of_the_question(model: SpanReader) -> None:
    hidden = torch.randn(3, 300, 64, generator=torch.Generator().manual_seed(5))
    for lengths in (LENGTHS, torch.tensor([300, 300, 300])):
        mask = model.bert.scores(unpadded(lengths, 300), 300)
        with torch.no_grad():
            whole, some = model.bert.layers[2](hidden, mask), model.bert.layers[2](hidden, mask, 7)
            looked = attention(model.bert.layers[2], hidden, mask)  # type: ignore[arg-type]
        assert (whole[:, :7] - some).abs().max() <= tolerance(whole)
        assert looked.shape == (3, 4, 300, 300) and torch.allclose(looked.sum(-1), torch.ones(()), atol=1e-5)
        assert not looked[2, :, :, int(lengths[2]) :].any()


def test_reads_from_bits_as_from_text(reader: Reader, tiny_passages: list[Passage]) -> None:
    """With and without pruning."""
    question = "who built the lighthouse"
    ids = reader.question_ids(question)
    assert (ids[0], ids[-1]) == (0, 2)  # <s> … </s>, and not BERT's, which are in the vocabulary
    pruning = Reader(copy.deepcopy(reader.model), reader.tokenizer)
    pruning.model.pruner = Pruner(reader.D)
    pruning.model.pruner.weight.normal_(generator=torch.Generator().manual_seed(1))
    for one in (reader, pruning):
        texts, bits = (
            one.answer(question, given, "binary") for given in (tiny_passages, one.encode_passages(tiny_passages))
        )
        assert texts.text and texts.text == bits.text and texts.span == bits.span
    assert pruning.answer(question, tiny_passages, "binary", prune=2).text
    assert reader.answer(question, tiny_passages, "full").text in " ".join(p.text for p in tiny_passages)


def test_one_that_writes_merges_by_distance(reader: Reader, model: SpanReader, tmp_path: Path) -> None:
    writer = with_decoder(copy.deepcopy(model), reader.tokenizer, 2, seed=1)
    save_reader(writer, reader.tokenizer, tmp_path)
    again = load_reader(tmp_path, torch.float32, None)
    for (name, mine), (_, other) in zip(writer.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(mine, other), name
    hidden = torch.randn(60, 64, generator=torch.Generator().manual_seed(5))
    halves = Halves([hidden[:7]], [hidden[7:]], [30, 23])
    schedule = Reader(writer, reader.tokenizer).schedule("none")
    with torch.no_grad():
        merged = MergedRows.join(halves, schedule, writer.merging)
        filled, lengths = halves.batch([0, 1])
        whole = writer.bert(filled[0], unpadded(lengths, filled[0].shape[1]), 2)
    for part, numbers in zip(merged.parts, merged.numbers, strict=True):
        for r, number in enumerate(numbers):
            length = halves.rows[number]
            assert (part.hidden[r, :length] - whole[number, :length]).abs().max() <= tolerance(whole, 60000)


def test_saved_folder_is_read_by_transformers_and_by_us(reader: Reader, tmp_path: Path) -> None:
    save_reader(reader.model, reader.tokenizer, tmp_path)
    theirs, info = MPNetForQuestionAnswering.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    again = Reader.from_pretrained(tmp_path)
    assert again.config == reader.config and again.fingerprint == reader.fingerprint
    facts = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (facts["cls_token"], facts["sep_token"], facts["pad_token"]) == ("<s>", "</s>", "<pad>")
    ours = dict(again.model.named_parameters())
    assert set(ours) == {name for name, _ in reader.model.named_parameters()}
    assert torch.equal(ours["bert.relative.table.weight"], theirs.mpnet.encoder.relative_attention_bias.weight)


def test_bits_depend_on_the_bias_of_distances(reader: Reader) -> None:
    other = Reader(copy.deepcopy(reader.model), reader.tokenizer)
    assert isinstance(other.model, SpanReader) and other.model.bert.relative is not None
    with torch.no_grad():
        other.model.bert.relative.table.weight += 1
    assert other.fingerprint != reader.fingerprint


def test_wrong_configurations() -> None:
    shape = TheirConfig(vocab_size=300, hidden_size=64, num_attention_heads=4).to_dict()
    read = BertConfig.from_hf(shape)
    assert isinstance(read, MPNetConfig) and read.room == shape["max_position_embeddings"] - 2
    assert BertConfig.from_hf(read.to_hf()) == read
    for change, message in (
        ({"relative_attention_num_buckets": 2}, "from 4 to 255"),
        ({"type_vocab_size": 2}, "no segments"),
        ({"max_position_embeddings": 2}, "at least 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            BertConfig.from_hf(shape | change)
    with pytest.raises(ConfigError, match="expected 'bert' or 'mpnet'"):
        BertConfig.from_hf({"model_type": "roberta"})


def test_too_little_room(folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 385}))
    with pytest.raises(InputError, match="need 384 positions, this BERT has 383"):
        load_reader(tmp_path, torch.float32, 2)


def test_encoder_of_questions(folder: Path, theirs: MPNetForQuestionAnswering, tmp_path: Path) -> None:
    """Is the mean of transformers' states; and is saved as it was."""
    shutil.copytree(folder, tmp_path / "encoder")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.save(str(tmp_path / "encoder" / "tokenizer.json"))
    encoder = Encoder.from_pretrained(str(tmp_path / "encoder"))
    text = "salt was carried over the hills"
    ids = torch.tensor(encoder.tokenize([text], "query"))
    with torch.no_grad():
        mean = theirs.mpnet(input_ids=ids).last_hidden_state[0].mean(0)
    assert (torch.from_numpy(encoder.embed([text])[0]) - mean).abs().max() <= tolerance(mean)
    encoder.save(tmp_path / "saved")
    assert Encoder.from_pretrained(str(tmp_path / "saved")).fingerprint == encoder.fingerprint
    assert not MPNetModel.from_pretrained(tmp_path / "saved", output_loading_info=True)[1]["unexpected_keys"]


def test_without_bias_the_stack_is_a_bert() -> None:
    """With no distances and no segments, the layers are BERT's."""
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    mpnet = Bert(MPNetConfig(**sizes, intermediate_size=24, max_position_embeddings=22))
    bert = Bert(BertConfig(**sizes, intermediate_size=24, max_position_embeddings=20))
    assert mpnet.relative is not None
    with torch.no_grad():
        mpnet.relative.table.weight.zero_()
        bert.load_state_dict({n: v for n, v in mpnet.state_dict().items() if n.startswith("layers.")}, strict=False)
        hidden = torch.randn(2, 9, 16)
        mask = torch.arange(9)[None, None] < torch.tensor([9, 5])[:, None, None]
        ours, plain = mpnet(hidden, mask), bert(hidden, mask)
    assert (ours - plain).abs().max() <= tolerance(plain)


def test_is_trained_from_a_folder(folder: Path, tiny_passages: list[Passage], tmp_path: Path) -> None:
    """The task, then cut and binarized with a teacher, of whose attention the tokens are chosen that are distilled."""
    ctxs = [{"title": p.title, "text": p.text, "is_gold": not n} for n, p in enumerate(tiny_passages[:2])]
    asked = [{"question": f"when was harbour {n} dug", "answers": ["1712"], "ctxs": ctxs} for n in range(6)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    shape = ["--batch", "2", "--passages", "2", "--row-tokens", "64", "--question-tokens", "24", "--steps", "2"]
    given = ["--questions", str(tmp_path / "asked.jsonl"), *shape, "--warmup", "1"]
    first = tmp_path / "first" / "reader"
    assert main(["reader", "--out", str(tmp_path / "first"), "--reader", str(folder), *given]) == 0
    cut = ["--reader", str(first), "--teacher", str(first), "--k", "2", *given]
    assert main(["decomposed", "--out", str(tmp_path / "second"), *cut]) == 0
    second = ["--reader", str(tmp_path / "second" / "reader"), *given]
    assert main(["binarized", "--out", str(tmp_path / "third"), "--freeze", "lower", *second]) == 0
    trained = [Reader.from_pretrained(tmp_path / run / "reader") for run in ("first", "second", "third")]
    tables = []
    for reader in trained:
        assert isinstance(reader.model, SpanReader) and reader.model.bert.relative is not None
        tables.append(reader.model.bert.relative.table.weight)
    assert not torch.equal(tables[0], tables[1])  # learnt
    assert torch.equal(tables[1], tables[2])  # but not where the lower layers, which share it, are frozen
    assert trained[2].answer("when was the harbour dug", tiny_passages).mode == "binary"


def test_trimmed_vocabulary_keeps_its_marks(folder: Path, theirs: MPNetForQuestionAnswering, tmp_path: Path) -> None:
    trim(folder, ["salt was carried over the hills"], 280, tmp_path / "small")
    small, config = load_tokenizer(tmp_path / "small"), json.loads((tmp_path / "small" / "config.json").read_text())
    assert (small.get_vocab_size(), config["vocab_size"]) == (280, 280)
    assert [small.token_to_id(mark) for mark in ("<s>", "<pad>", "</s>")] == [0, 1, 2]
    assert small.encode("salt").tokens[0] == "<s>" and small.encode("salt").tokens[-1] == "</s>"
    weights = MPNetModel.from_pretrained(tmp_path / "small").embeddings.word_embeddings.weight
    mask = small.token_to_id("<mask>")
    assert torch.equal(weights[mask], theirs.mpnet.embeddings.word_embeddings.weight[299])
