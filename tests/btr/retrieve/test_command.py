"""The command `btr retrieve`: an index from a store and from a corpus, search, calibration, measuring, mistakes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from btr.precompute import __main__ as precompute
from btr.retrieve import __main__ as command
from btr.retrieve.dense import bench
from btr.retrieve.dense.encoder import Encoder
from btr.retrieve.fusion import Choice, open_retriever
from btr.storage import Store
from btr.store import __main__ as store_command

QUESTIONS = [
    {"question": "Who built the lighthouse?", "answers": ["Ada Berg"]},
    {"question": "In which year was the harbour of Vellin dug?", "answers": ["1712"]},
    {"question": "What does the grey heron eat?", "answers": ["fish", "frogs"]},
    {"question": "How many moons has Jupiter?", "answers": ["ninety-five"]},
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_passages: list) -> Path:
    folder = tmp_path_factory.mktemp("retrieve")
    rows = [{"id": p.id, "title": p.title, "text": p.text} for p in tiny_passages]
    (folder / "passages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    return folder


@pytest.fixture(scope="module")
def plain_store(corpus: Path, reader_folder: Path) -> Path:
    path = corpus / "corpus.btr"
    words = [str(corpus / "passages.jsonl"), "--reader", str(reader_folder), "--store", str(path)]
    assert precompute.main(words) == 0
    return path


@pytest.fixture
def store(plain_store: Path, encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy of the store, with a dense index of its own that keeps floats."""
    path = tmp_path / "copy.btr"
    path.mkdir()
    for entry in plain_store.iterdir():
        (path / entry.name).symlink_to(entry)
    assert command.main(["build", str(path), "--retriever", str(encoder_folder), "--floats"]) == 0
    return path


def test_build_search_and_choice(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Choice.read(store) == Choice("hybrid")
    assert command.main(["search", str(store), "lighthouse", "harbour of Vellin", "--top", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["question"] for row in rows] == ["lighthouse"] * 2 + ["harbour of Vellin"] * 2
    assert all(row["text"] and row["id"].startswith("p") for row in rows)
    assert command.main(["search", str(store), "lighthouse", "--kind", "bm25"]) == 0
    assert "p1" in capsys.readouterr().out


def test_one_bit_may_have_its_scale(store: Path, encoder_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = (store / "dense" / "codes-0.bin").stat().st_size // 8  # D = 64
    words = ["build", str(store), "--retriever", str(encoder_folder), "--codes", "1", "--no-resume"]
    assert command.main(words) == 0
    assert not (store / "dense" / "scales.bin").exists()
    assert command.main([*words, "--scaled"]) == 0
    assert command.main(words[:4]) == 0  # goes on as it was begun
    assert (store / "dense" / "scales.bin").stat().st_size == 2 * count
    assert command.main(["search", str(store), "lighthouse", "--kind", "dense"]) == 0
    capsys.readouterr()


def test_what_is_deleted_before_or_after_building_is_not_found(
    plain_store: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "living.btr"
    shutil.copytree(plain_store, path)
    with Store.open(path) as held:
        first, second, *others = held.ids()
    assert store_command.main(["delete", str(path), first]) == 0
    assert command.main(["build", str(path), "--retriever", str(encoder_folder)]) == 0
    assert store_command.main(["delete", str(path), second]) == 0
    with Store.open(path) as held:
        for kind in ("dense", "hybrid"):
            (found,) = open_retriever(path, kind).search(["Who built the lighthouse?"], 9)
            assert {held.at([i]).ids[0] for i in found[0].tolist()} == set(others)


def test_building_again_embeds_what_is_new_alone(
    plain_store: Path, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, build_words = tmp_path / "living.btr", ["--retriever", str(encoder_folder)]
    shutil.copytree(plain_store, path)
    assert command.main(["build", str(path), *build_words]) == 0
    changed = tmp_path / "changed.jsonl"
    changed.write_text('{"id": "new", "text": "an owl"}\n{"id": "p1", "text": "Ada Berg built the old lighthouse."}')
    assert store_command.main(["upsert", str(path), str(changed)]) == 0
    embedded: list[str] = []
    embed = Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda self, texts, *a: embedded.extend(texts) or embed(self, texts, *a))
    assert command.main(["build", str(path), *build_words]) == 0
    assert embedded == ["an owl", "Ada Berg built the old lighthouse."]
    monkeypatch.undo()
    with Store.open(path) as held:
        (found,) = open_retriever(path, "dense").search(["an owl"], 9)
        assert sorted(held.at(found[0].tolist()).ids) == sorted(held.ids())


def test_index_follows_a_compaction_and_is_refused_where_it_could_not(
    plain_store: Path, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, build_words = tmp_path / "living.btr", ["--retriever", str(encoder_folder), "--floats"]
    shutil.copytree(plain_store, path)
    assert command.main(["build", str(path), *build_words]) == 0
    with Store.open(path) as held:
        first, second, *others = held.ids()
    codes = (path / "dense" / "codes-0.bin").read_bytes()
    assert store_command.main(["delete", str(path), second]) == 0
    shutil.copytree(path / "dense", tmp_path / "before")
    assert store_command.main(["compact", str(path)]) == 0
    assert (path / "dense" / "codes-0.bin").read_bytes() == codes[:8] + codes[16:]
    with Store.open(path) as held:
        (found,) = open_retriever(path, "dense").search(["Who built the lighthouse?"], 9)
        assert [held.at([i]).ids[0] for i in sorted(found[0].tolist())] == [first, *others]
    rows = (path / "dense" / "vectors.bin").read_bytes()
    assert command.main(["build", str(path), *build_words]) == 0
    assert (path / "dense" / "vectors.bin").read_bytes() == rows  # nothing is embedded anew
    shutil.rmtree(path / "dense")
    shutil.copytree(tmp_path / "before", path / "dense")  # as a kill before the index was moved leaves it
    capsys.readouterr()
    for words in (["search", str(path), "x", "--kind", "dense"], ["build", str(path), *build_words]):
        assert command.main(words) == 2
        assert "have moved since it was built; build it again with" in capsys.readouterr().err
    assert command.main(["build", str(path), *build_words, "--no-resume"]) == 0


def test_building_again_changes_nothing(store: Path, encoder_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file.name: file.read_bytes() for file in (store / "dense").iterdir()}
    assert command.main(["build", str(store), "--retriever", str(encoder_folder), "--floats"]) == 0
    assert {file.name: file.read_bytes() for file in (store / "dense").iterdir()} == before
    assert "dense: 6 passages" in capsys.readouterr().out  # five, one of which was cut in two


def test_corpus_gives_the_same_index(corpus: Path, store: Path, encoder_folder: Path, tmp_path: Path) -> None:
    words = ["build", str(corpus / "passages.jsonl"), "--retriever", str(encoder_folder), "--floats"]
    assert command.main([*words, "--out", str(tmp_path / "alone")]) == 0
    for name in ("codes-0.bin", "vectors.bin", "rotation.safetensors"):
        assert (tmp_path / "alone/dense" / name).read_bytes() == (store / "dense" / name).read_bytes()
    assert Choice.read(tmp_path / "alone") == Choice("dense")
    assert command.main(["search", str(tmp_path / "alone"), "lighthouse"]) == 0


def test_calibrate_writes_a_threshold(store: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = str(corpus / "questions.jsonl")
    capsys.readouterr()
    assert command.main(["calibrate", str(store), questions, "--keep", "1", "--top", "6", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kept"], facts["found"], facts["questions"]) == (1.0, 3, 4)
    assert facts["read"] <= 6
    assert Choice.read(store) == Choice("hybrid", threshold=facts["threshold"])


def test_bench_measures(
    store: Path,
    corpus: Path,
    encoder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "load", lambda name: None)  # faiss and usearch are another's to test
    words = ["bench", str(store), str(corpus / "questions.jsonl"), "--encoders", str(encoder_folder)]
    capsys.readouterr()
    assert command.main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["counted"], facts["questions"], facts["bytes"], facts["float_bytes"]) == (3, 4, 18, 256)
    own, again = facts["rows"]
    assert set(own["recall"]) == {"float", "rescored", "binary", "BM25", "BM25 + rescored"}
    assert own["recall"]["float"]["20"][0] == 100.0  # all six passages are found
    assert own["recall"]["float"] == again["recall"]["float"] and own["retained"]["float"]["20"] == 100.0
    ways = {row["way"] for row in facts["speed"]}
    assert {"bits, btr", "bits and rescored, btr", "floats, exact"} <= ways
    assert command.main([*words, "--no-speed"]) == 0
    shown = capsys.readouterr().out
    assert "3 of 4 questions count" in shown and "questions/s" not in shown


def test_other_encoder_is_refused_unless_aligned(
    store: Path, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = Encoder.from_pretrained(str(encoder_folder))
    original = encoder.fingerprint
    encoder.model.bert.layers[0].wi.bias.data += 0.01
    for name, aligned in (("stranger", ()), ("friend", (original,))):
        Encoder(encoder.model, encoder.tokenizer, name, aligned=aligned).save(tmp_path / name)
    search = ["search", str(store), "lighthouse", "--encoder"]
    assert command.main([*search, str(tmp_path / "stranger")]) == 2
    assert f"was built by encoder {original}" in capsys.readouterr().err
    assert command.main([*search, str(tmp_path / "friend")]) == 0
    Choice("dense", encoder=str(tmp_path / "friend")).write(store)
    assert command.main(["search", str(store), "lighthouse"]) == 0


MISTAKES = [
    (["build", "{corpus}", "--retriever", "{encoder}"], "is not a finished store; for a corpus, say with --out"),
    (["build", "{store}", "--retriever", "{corpus}"], "no config.json"),
    (["build", "{store}", "--retriever", "{encoder}", "--codes", "5"], "--codes is 5; use 1 to 4"),
    (["build", "{store}", "--retriever", "{encoder}", "--codes", "1"], "begun with codes 2, now it is 1"),
    (["build", "{store}", "--retriever", "{encoder}", "--scaled"], "with scaled False, now it is True"),
    (["search", "{corpus}", "x"], "no index to search"),
    (["search", "{store}", "x", "--top", "0"], "--top is 0; use 1 or more"),
    (["calibrate", "{store}", "{corpus}/questions.jsonl", "--keep", "2"], "--keep is 2.0; give a share"),
    (["calibrate", "{store}", "{corpus}/questions.jsonl", "--kind", "bm25"], "is searched by BM25"),
    (["calibrate", "{corpus}", "{corpus}/questions.jsonl"], "is not a finished store"),
    (["bench", "{store}", "{corpus}/nothing.jsonl"], "nothing.jsonl"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes_are_one_line(
    store: Path, corpus: Path, encoder_folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"store": store, "corpus": corpus, "encoder": encoder_folder}
    capsys.readouterr()
    assert command.main([word.format(**names) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_module_is_the_command(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "btr.retrieve", "search", str(tmp_path), "x"]
    done = subprocess.run(call, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no index to search" in done.stderr


def test_nothing_is_retained_of_a_recall_of_nothing() -> None:
    base: bench.Found = {"float": {1: [0.0, 0.0], 20: [1.0, 1.0]}}
    kept = bench.retained({"bits": {1: [1.0, 0.0], 20: [1.0, 0.0]}}, base)
    assert kept == {"bits": {"1": None, "20": 50.0}}
    assert [bench.share(one) for one in kept["bits"].values()] == ["–", "50.0 %"]
