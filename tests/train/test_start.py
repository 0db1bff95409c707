"""What a run starts from: a reader as it is, one split elsewhere, a plain checkpoint, a new T5; and its teacher."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from btr.errors import InputError
from btr.model.checkpoint import save_reader
from btr.model.fid import FiD
from btr.model.span_head import SpanReader
from btr.reader import Reader
from btr.train.options import build_stage, parse
from btr.train.start import build_student, load_teacher

MakeReader = Callable[..., FiD]


def student(*given: str, stage: str = "reader") -> FiD | SpanReader:
    options = parse([stage, "--out", "-", "--steps", "1", *given])
    return build_student(options, build_stage(options))[0]


def teacher(*given: str) -> FiD | SpanReader | None:
    options = parse(["decomposed", "--out", "-", "--steps", "1", *given])
    made, tokenizer = build_student(options, build_stage(options))
    return load_teacher(options, made, tokenizer)


@pytest.fixture
def saved(make_reader: MakeReader, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A reader split after layer 2, whose binarizer has been set."""
    reader = make_reader(vocab_size=400)
    reader.binarizer.mean.data += 0.5
    save_reader(reader, tokenizer, tmp_path / "saved")
    return tmp_path / "saved"


def test_reader_is_taken_as_it_is(saved: Path) -> None:
    same = student("--reader", str(saved))
    assert (same.config.k, same.config.calibration) == (2, "channel") and (same.binarizer.mean == 0.5).all()


def test_split_and_calibration_can_be_changed(saved: Path) -> None:
    other = student("--reader", str(saved), "--k", "3")
    assert other.config.k == 3 and not other.binarizer.mean.any()
    paper = student("--reader", str(saved), "--calibration", "paper")
    assert (paper.config.k, paper.config.calibration) == (2, "paper") and not paper.binarizer.mean.requires_grad


def test_bits_are_a_predictive_readers_alone(saved: Path, tokenizer: Tokenizer) -> None:
    few = student("--reader", str(saved), "--calibration", "predictive", "--bits", "8")
    save_reader(few, tokenizer, saved.parent / "few")
    assert student("--reader", str(saved.parent / "few")).config.bits == 8
    all_signs = student("--reader", str(saved.parent / "few"), "--calibration", "channel")
    assert all_signs.config.bits == 0 and all_signs.binarizer.bits == all_signs.width


def test_new_t5_has_the_vocabulary_of_its_tokenizer(tokenizer_file: Path) -> None:
    fresh = student("--shape", "tiny", "--tokenizer", str(tokenizer_file))
    assert isinstance(fresh, FiD)
    assert (fresh.config.k, fresh.config.calibration, fresh.t5.config.vocab_size) == (0, "channel", 400)
    again, other = (student("--shape", "tiny", "--tokenizer", str(tokenizer_file), "--seed", s) for s in ("0", "1"))
    weights = [reader.state_dict()["t5.embedding.weight"] for reader in (fresh, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_limits_of_a_reader_are_kept(make_reader: MakeReader, tokenizer: Tokenizer, tmp_path: Path) -> None:
    reader = make_reader(vocab_size=400)
    object.__setattr__(reader.config, "max_passage_tokens", 77)
    save_reader(reader, tokenizer, tmp_path)
    assert student("--reader", str(tmp_path), "--k", "1").config.max_passage_tokens == 77
    with pytest.raises(InputError, match="--question-tokens is 65, this reader reads 64; pass 64 or fewer"):
        student("--reader", str(tmp_path), "--question-tokens", "65")


def test_plain_bert_becomes_a_span_reader(bert_folder: Path) -> None:
    made = student("--reader", str(bert_folder), "--k", "1")
    assert isinstance(made, SpanReader) and (made.config.k, made.config.max_question_tokens) == (1, 64)


def test_checkpoint_reads_questions_as_long_as_it_is_trained_on(
    tiny_folders: dict[str, Path], bert_folder: Path
) -> None:
    long = ["--question-tokens", "70"]
    for folder in (tiny_folders["1.1"], bert_folder):
        assert student("--reader", str(folder), *long).config.max_question_tokens == 70
    with pytest.raises(InputError, match="questions of 90 tokens and passages of 320 need 410 positions"):
        student("--reader", str(bert_folder), "--question-tokens", "90")


def test_rows_beyond_the_positions_of_a_bert_are_refused(bert_folder: Path) -> None:
    assert student("--reader", str(bert_folder), "--row-tokens", "336")
    expected = "--row-tokens is 337, this BERT has 400 positions and passages begin at 64; pass 336 or fewer"
    with pytest.raises(InputError, match=expected):
        student("--reader", str(bert_folder), "--row-tokens", "337")


@pytest.mark.parametrize("family", ["1.1", "bert"])
def test_tokenizer_neither_pads_nor_cuts(
    family: str, tiny_folders: dict[str, Path], bert_folder: Path, tmp_path: Path
) -> None:
    """As tokenizers of sentence encoders do, which come with a length of theirs."""
    folder = shutil.copytree(bert_folder if family == "bert" else tiny_folders[family], tmp_path / "cutting")
    cutting = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cutting.enable_truncation(4)
    cutting.enable_padding(length=4)
    cutting.save(str(folder / "tokenizer.json"))
    options = parse(["reader", "--out", "-", "--steps", "1", "--reader", str(folder)])
    tokenizer = build_student(options, build_stage(options))[1]
    assert len(tokenizer.encode("a heron", add_special_tokens=False).ids) != 4
    assert len(tokenizer.encode("the heron in the harbour " * 5).ids) > 10


def test_text_cannot_bring_special_tokens(bert_folder: Path) -> None:
    options = parse(["reader", "--out", "-", "--steps", "1", "--reader", str(bert_folder)])
    tokenizer = build_student(options, build_stage(options))[1]
    assert tokenizer.token_to_id("[SEP]") not in tokenizer.encode("salt [SEP] salt", add_special_tokens=False).ids


def test_default_mode_is_the_first_trained(saved: Path) -> None:
    given = ["--reader", str(saved)]
    assert student(*given, "--modes", "float=1,binary=2").config.default_mode == "float"
    assert student(*given, "--modes", "float", "--default-mode", "full").config.default_mode == "full"


def test_modes_need_a_split(tokenizer_file: Path, bert_folder: Path) -> None:
    for start in (["--shape", "tiny", "--tokenizer", str(tokenizer_file)], ["--reader", str(bert_folder)]):
        with pytest.raises(InputError, match="stage 'binarized' decomposes the encoder and the reader has k = 0"):
            student(*start, stage="binarized")
        with pytest.raises(InputError, match="k = 0; pass --k"):
            student(*start, "--default-mode", "float")
        with pytest.raises(InputError, match="--k: k is 4, the encoder has 4 layers"):
            student(*start, "--k", "4")


def test_teacher_is_split_as_the_student(saved: Path, bert_folder: Path) -> None:
    for folder in (saved, bert_folder):
        found = teacher("--reader", str(folder), "--teacher", str(folder), "--k", "3")
        assert found is not None and found.config.k == 3 and not found.training


def test_student_and_teacher_are_turned_alike(saved: Path, bert_folder: Path) -> None:
    """Their states are the old ones, turned by one and the same rotation; nothing is left of the old signs' values."""
    given = ["--reader", str(saved), "--teacher", str(saved), "--rotate"]
    plain, made, taught = student("--reader", str(saved)), student(*given), teacher(*given)
    assert isinstance(made, FiD) and isinstance(taught, FiD) and isinstance(plain, FiD)
    ids, lengths = torch.arange(3, 11)[None], torch.tensor([8])
    before, after, wanted = (reader.eval().lower(ids, lengths) for reader in (plain, made, taught))
    assert torch.equal(after, wanted) and not torch.allclose(before, after, atol=0.1)
    assert torch.allclose(before.norm(dim=-1), after.norm(dim=-1), rtol=1e-4)  # float32, 64 dimensions, 2 layers
    assert not made.binarizer.mean.any()
    with pytest.raises(InputError, match="--rotate is for T5 readers"):
        student("--reader", str(bert_folder), "--rotate")


def test_teacher_of_another_kind_is_refused(
    make_reader: MakeReader, saved: Path, bert_folder: Path, tokenizer: Tokenizer, tmp_path: Path, span_reader: Reader
) -> None:
    save_reader(make_reader(vocab_size=400, d_model=32), tokenizer, tmp_path / "narrow")
    save_reader(make_reader(vocab_size=400), swapped(tokenizer), tmp_path / "foreign")
    span_reader.save_pretrained(tmp_path / "near")
    config = json.loads((tmp_path / "near" / "btr_config.json").read_text())
    (tmp_path / "near" / "btr_config.json").write_text(json.dumps(config | {"max_question_tokens": 40}))
    for reader, name, expected in (
        (saved, "narrow", "--teacher has width 32, the student 64"),
        (saved, "foreign", "another vocabulary"),
        (bert_folder, "near", "--teacher has max_question_tokens 40, the student 64"),
        (bert_folder, "narrow", "--teacher has family T5, the student BERT"),
    ):
        with pytest.raises(InputError, match=expected):
            teacher("--reader", str(reader), "--k", "2", "--teacher", str(tmp_path / name))


def swapped(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with two pieces in each other's place."""
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    return Tokenizer.from_str(json.dumps(state))
