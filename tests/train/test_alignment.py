"""KALE and LEAF: losses against their formulas, layers kept, a killed run, what is recorded, mistakes."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors

from btr.corpus import Passage
from btr.errors import InputError
from btr.retrieve.dense.encoder import Embedder, Encoder
from btr.retrieve.dense.index import Dense
from btr.retrieve.dense.writer import DenseWriter, Plan
from btr.train.__main__ import main
from btr.train.alignment import Alignment, Text, agreement, shortened, spread, targets
from btr.train.encoders import read_layers
from btr.train.kale import divergence
from btr.train.leaf import fit_projection, squared_error, with_projection
from btr.train.schedule import Schedule

ASKED = [
    "Who built the lighthouse?",
    "What does a mule take?",
    "When was the harbour dug?",
    "Which bridge still stands?",
]
ASKED += [f"{question} {word}" for question in ASKED for word in ("salt", "reeds", "hills", "ships", "mill")]


@pytest.fixture(scope="module")
def teacher(encoder_folder: Path) -> Encoder:
    return Encoder.from_pretrained(str(encoder_folder))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("asked") / "questions.jsonl"
    path.write_text("\n".join(json.dumps({"question": question, "answers": ["x"]}) for question in ASKED))
    return path


def test_kale_is_the_divergence_of_softmaxes() -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(3, 8), torch.randn(3, 8)
    for normalised, stretch in ((False, 1.0), (True, 8**0.5)):
        p, q = (torch.softmax(stretch * x / 2.5, dim=1) for x in (theirs, ours))
        expected = 2.5**2 * (p * (p / q).log()).sum(1)
        torch.testing.assert_close(divergence(2.5, normalised)(ours, theirs), expected)
    assert divergence(2.5, False)(theirs, theirs).abs().max() < 1e-6


def test_leaf_is_the_squared_error() -> None:
    ours, theirs = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 3.0]])
    assert squared_error(ours, theirs).tolist() == [5.0, 9.0]


def test_layers_kept_are_the_teachers(teacher: Encoder) -> None:
    short = shortened(teacher, [0, 3])
    assert short.bert.config.num_hidden_layers == 2
    own, whole = short.state_dict(), teacher.model.state_dict()
    assert torch.equal(own["bert.layers.1.wi.weight"], whole["bert.layers.3.wi.weight"])
    assert torch.equal(own["bert.embedding.weight"], whole["bert.embedding.weight"])
    assert not short.bert.embedding.weight.requires_grad and short.bert.layers[0].wi.weight.requires_grad
    everything = Encoder(shortened(teacher, [0, 1, 2, 3]), teacher.tokenizer, "whole")
    assert everything.fingerprint == teacher.fingerprint
    assert np.array_equal(everything.embed(ASKED), teacher.embed(ASKED))
    for layers in ([], [0, 0], [4], [-1]):
        with pytest.raises(InputError, match="has 0 to 3"):
            shortened(teacher, layers)


def test_layers_are_spread_or_named() -> None:
    assert [spread(6, n) for n in (1, 2, 3, 4, 6)] == [[0], [0, 5], [0, 2, 5], [0, 2, 3, 5], [0, 1, 2, 3, 4, 5]]
    assert (read_layers("2", 6), read_layers("1,4", 6), read_layers("3,", 6)) == ([0, 5], [1, 4], [3])
    for text in ("0", "7", "x", "", ",", "-1", "1;2"):
        with pytest.raises(InputError, match="--layers"):
            read_layers(text, 6)


def test_projection_starts_as_nothing_or_orthogonal(teacher: Encoder) -> None:
    model = with_projection(shortened(teacher, [0, 1]), teacher.model)
    plain = Encoder(shortened(teacher, [0, 1]), teacher.tokenizer, "plain")
    same = Encoder(model, teacher.tokenizer, "projected")
    np.testing.assert_allclose(same.embed(ASKED), plain.embed(ASKED), atol=1e-6)
    narrow = shortened(teacher, [0])
    narrow.projection = torch.nn.Linear(64, 24)
    with pytest.raises(InputError, match="24 dimensions, the teacher's 64"):
        with_projection(narrow, teacher.model)


def test_every_text_comes_once_an_epoch(teacher: Encoder, tmp_path: Path) -> None:
    student = Encoder(shortened(teacher, [0]), teacher.tokenizer, "short")
    run = Alignment(student, squared_error, Schedule(steps=9, matrices="adamw"), 8, tmp_path, {})
    drawn = np.concatenate([run.chosen(step, 20) for step in range(5)])
    assert sorted(drawn[:20]) == sorted(drawn[20:]) == list(range(20))
    assert drawn[:20].tolist() != drawn[20:].tolist()


def test_targets_go_on_after_a_kill(teacher: Encoder, tmp_path: Path) -> None:
    texts = [Text(text, kind) for text in ASKED for kind in ("query", "passage")]
    whole = np.array(targets(teacher, texts, tmp_path, print))
    [path] = tmp_path.glob("targets-*.bin")
    path.write_bytes(path.read_bytes()[:1000])  # 3 rows and a piece of the fourth
    np.testing.assert_allclose(targets(teacher, texts, tmp_path, print), whole, atol=1e-6)
    np.testing.assert_allclose(whole[::2], teacher.embed(ASKED), atol=1e-6)
    targets(teacher, texts[:4], tmp_path, print)
    assert len(list(tmp_path.glob("targets-*.bin"))) == 2  # other texts, another file


def words(method: str, encoder: Path, questions: Path, out: Path, *more: str) -> list[str]:
    common = ["--encoder", str(encoder), "--questions", str(questions), "--out", str(out), "--batch", "8"]
    return [method, *common, "--warmup", "2", "--learning-rate", "0.002", "--least-recall", "0", *more]


@pytest.mark.parametrize("method", ["kale", "leaf"])
def test_student_comes_nearer_and_serves_the_index(
    method: str, encoder_folder: Path, questions: Path, teacher: Encoder, tmp_path: Path
) -> None:
    more = ["--layers", "2", "--steps", "40", "--dev", str(questions)]
    assert main(words(method, encoder_folder, questions, tmp_path / "run", *more)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41))
    if method == "leaf":
        assert lines[0]["loss"] < 0.01  # it starts from a fit to these texts, which are fewer than dimensions
    else:
        assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    student = Encoder.from_pretrained(str(tmp_path / "run/encoder"))
    assert student.aligned == (teacher.fingerprint,) and student.fingerprint != teacher.fingerprint
    untrained = Encoder(shortened(teacher, [0, 3]), teacher.tokenizer, "untrained")
    before, after = ((e.embed(ASKED) * teacher.embed(ASKED)).sum(1).mean() for e in (untrained, student))
    assert after > before + 0.1
    facts = json.loads((tmp_path / "run/encoder/btr_encoder.json").read_text())
    assert facts["dev_cosine"] == pytest.approx(after, abs=1e-3) and facts["steps"] == 40
    plan = Plan(str(encoder_folder), teacher.fingerprint, 64)
    writer = DenseWriter.create_or_resume(tmp_path / "dense", plan)
    writer.append([Passage("a", "", "salt mules"), Passage("b", "", "grey heron")], teacher)
    writer.finish()
    assert len(Dense.open(tmp_path / "dense", student).search(["salt"], 2)[0][0]) == 2


def test_killed_run_sees_the_same_losses(encoder_folder: Path, questions: Path, tmp_path: Path) -> None:
    def run(out: str, *more: str) -> list[str]:
        words_ = words("kale", encoder_folder, questions, tmp_path / out, "--layers", "1", "--steps", "12", *more)
        assert main(words_) == 0
        return (tmp_path / out / "metrics.jsonl").read_text().splitlines()

    whole = run("whole")
    stop = FloatingPointError("killed")
    original = Alignment.train_step

    def dying(self: Alignment, *arguments: object) -> float:
        if self.step == 7:
            raise stop
        return original(self, *arguments)

    Alignment.train_step = dying  # type: ignore[method-assign, assignment]
    try:
        cut = words("kale", encoder_folder, questions, tmp_path / "cut", "--layers", "1", "--steps", "12")
        assert main([*cut, "--save-every", "0"]) == 2
    finally:
        Alignment.train_step = original  # type: ignore[method-assign]
    assert len((tmp_path / "cut/metrics.jsonl").read_text().splitlines()) == 7
    assert run("cut") == whole
    read = [Encoder.from_pretrained(str(tmp_path / out / "encoder")).fingerprint for out in ("whole", "cut")]
    assert read[0] == read[1]


def test_leaf_learns_from_passages_too(encoder_folder: Path, questions: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"id": "1", "title": "Salt", "text": "Salt was carried over."}))
    more = ["--layers", "1", "--steps", "3", "--text", str(tmp_path / "text.jsonl")]
    assert main(words("leaf", encoder_folder, questions, tmp_path / "run", *more)) == 0
    facts = json.loads((tmp_path / "run/encoder/btr_encoder.json").read_text())
    assert facts["texts"] == len(ASKED) + 1 and 0 <= facts["learnt_recall_at_20"] <= 1  # no --dev


def test_linear_layer_starts_as_the_best_fit(teacher: Encoder) -> None:
    """Of vectors that are a linear map of the student's, it finds the map."""
    drawn = torch.Generator().manual_seed(1)
    plain = replace(teacher.model.recipe, normalise=False)
    bare = Encoder(Embedder(teacher.model.bert, plain), teacher.tokenizer, "bare")
    model = with_projection(Embedder(teacher.model.bert, plain), Embedder(teacher.model.bert, plain, 24))
    student = Encoder(model, teacher.tokenizer, "student")
    texts = [Text(text, kind) for text in ASKED for kind in ("query", "passage")]
    vectors = np.concatenate([bare.embed([text.text], text.kind) for text in texts])
    wanted = vectors @ torch.randn(64, 24, generator=drawn).numpy() + 3
    before = np.square(student.embed(ASKED) - wanted[::2]).sum(1).mean()
    fit_projection(student, texts, wanted)
    assert np.square(student.embed(ASKED) - wanted[::2]).sum(1).mean() < 0.01 * before


def test_agreement_is_the_mean_cosine_and_the_share_of_neighbours(teacher: Encoder) -> None:
    student = Encoder(shortened(teacher, [0, 3]), teacher.tokenizer, "short")
    texts = teacher.embed([f"{text} {word}" for text in ASKED for word in ("red", "blue")])
    near, recall = agreement(student, teacher, ASKED, texts, k=5)
    found = []
    for ours, theirs in zip(student.embed(ASKED), teacher.embed(ASKED), strict=True):
        mine, wanted = (set(np.argsort(-(texts @ vector), kind="stable")[:5].tolist()) for vector in (ours, theirs))
        found.append(len(mine & wanted) / 5)
    assert recall == pytest.approx(np.mean(found)) and 0 < recall < 1
    assert near == pytest.approx((student.embed(ASKED) * teacher.embed(ASKED)).sum(1).mean(), abs=1e-5)
    assert agreement(teacher, teacher, ASKED, texts) == (pytest.approx(1), 1)


def test_a_student_too_far_away_is_not_written(
    encoder_folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [{"question": f"{word} of the mill, and {n} herons", "answers": ["x"]} for n, word in enumerate(ASKED)]
    (tmp_path / "dev.jsonl").write_text("\n".join(map(json.dumps, other)))
    more = ["--layers", "1", "--steps", "1", "--dev", str(tmp_path / "dev.jsonl")]
    start = words("leaf", encoder_folder, questions, tmp_path / "run", *more)
    assert main([*start, "--least-recall", "1"]) == 2
    *_, said, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and "--least-recall is 1, so it is not written" in error
    assert "mean cosine to the teacher" in said and "of its 20 nearest texts found again" in said
    assert not (tmp_path / "run/encoder").exists() and not (tmp_path / "run/routed").exists()
    assert main(start) == 0  # the same run, a lower floor
    facts = json.loads((tmp_path / "run/encoder/btr_encoder.json").read_text())
    assert -1 <= facts["dev_cosine"] < 1 and 0 <= facts["dev_recall_at_20"] < 1


def test_student_of_another_vocabulary_shares_the_teachers_vectors(
    encoder_folder: Path, questions: Path, make_wordpiece: Callable[[Iterable[str], int], Tokenizer], tmp_path: Path
) -> None:
    """Its own tokenizer reads for it; a second run finds the vectors that the first has left."""
    other = tmp_path / "other"
    shutil.copytree(encoder_folder, other)
    tokenizer = make_wordpiece(["mule salt reeds lighthouse harbour"], 60)
    ends = [(piece, tokenizer.token_to_id(piece)) for piece in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(other / "tokenizer.json"))
    more = ["--student", str(other), "--steps", "2", "--embeddings", str(tmp_path / "vectors")]
    assert main(words("leaf", encoder_folder, questions, tmp_path / "whole", *more)) == 0
    [path] = (tmp_path / "vectors").glob("targets-*.bin")
    spoilt = np.zeros_like(np.fromfile(path, np.float32))
    spoilt.tofile(path)  # not made again, so these are what is learnt from
    assert main(words("leaf", encoder_folder, questions, tmp_path / "half", *more, "--layers", "2")) == 0
    assert not np.fromfile(path, np.float32).any()
    whole, half = (Encoder.from_pretrained(str(tmp_path / run / "encoder")) for run in ("whole", "half"))
    assert (len(whole.model.bert.layers), len(half.model.bert.layers)) == (4, 2)
    assert whole.tokenizer.get_vocab() == half.tokenizer.get_vocab() == tokenizer.get_vocab()


MISTAKES = [
    ("kale", [], "which encoder is to be trained? pass --layers N"),
    ("leaf", [], "pass --layers N or --student ENCODER"),
    ("kale", ["--layers", "9"], "--layers is 9; the encoder has 4"),
    ("kale", ["--layers", "1", "--temperature", "0"], "--temperature is 0; give one above 0"),
    ("kale", ["--layers", "1", "--batch", "0"], "--batch is 0; give at least 1"),
]


@pytest.mark.parametrize(("method", "more", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_one_line(
    method: str, more: list[str], message: str, encoder_folder: Path, questions: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(words(method, encoder_folder, questions, tmp_path / "run", "--steps", "2", *more)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_other_settings_are_refused(
    encoder_folder: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = words("kale", encoder_folder, questions, tmp_path / "run", "--layers", "1", "--steps", "2")
    assert main(start) == 0
    assert main([*start, "--temperature", "3"]) == 2
    assert "--no-resume" in capsys.readouterr().err
    assert main([*start, "--temperature", "3", "--no-resume"]) == 0
    assert main([*start[:-1], "0", "--out", str(tmp_path / "none")]) == 0  # no step: the layers as they were
