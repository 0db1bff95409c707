"""What a store is searched with: fusion by rank, thresholds and their calibration, what is refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from btr.corpus import Passage
from btr.errors import InputError
from btr.precompute import __main__ as precompute
from btr.retrieve.bm25 import BM25Writer
from btr.retrieve.dense.calibrate import choose, effect
from btr.retrieve.dense.encoder import Encoder
from btr.retrieve.dense.updates import shards_of
from btr.retrieve.dense.writer import DenseWriter, Plan
from btr.retrieve.fusion import Choice, fuse, keep, open_retriever
from btr.retrieve.indexed import StaleIndex, Tail
from btr.storage import Store, WrongLength
from btr.store import __main__ as store_command

TEXTS = ("salt mules hills", "grey heron reeds", "harbour ships", "nine bridges mill", "heron frogs mice")
PASSAGES = [Passage(str(n), "", text) for n, text in enumerate(TEXTS)]


@pytest.fixture
def store(tmp_path: Path, encoder_folder: Path) -> Path:
    """A folder with both indices."""
    words = BM25Writer.create_or_resume(tmp_path / "bm25")
    words.append(PASSAGES)
    words.finish()
    encoder = Encoder.from_pretrained(str(encoder_folder))
    writer = DenseWriter.create_or_resume(tmp_path / "dense", Plan(str(encoder_folder), encoder.fingerprint, 64))
    writer.append(PASSAGES, encoder)
    writer.finish()
    return tmp_path


def row(*ordinals: int) -> np.ndarray:
    return np.array(ordinals, np.int64)


def test_fusion_is_the_sum_of_reciprocal_ranks() -> None:
    ordinals, scores = fuse([row(7, 3, 5), row(3, 9)], 10)
    assert ordinals.tolist() == [3, 7, 9, 5]
    expected = [1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert fuse([row(7, 3, 5), row(3, 9)], 2)[0].tolist() == [3, 7]
    assert fuse([row(8, 2), row(2, 8)], 2)[0].tolist() == [2, 8]  # ties in corpus order
    assert fuse([row(), row()], 3)[0].tolist() == []


def test_first_passage_is_always_read() -> None:
    hits = (row(4, 6, 8), np.array([3, 2, 1], np.float32))
    assert keep(hits, np.array([0.1, 0.5, 0.4], np.float32), 0.45)[0].tolist() == [4, 6]
    assert keep(hits, np.array([0.1, 0.1, 0.1], np.float32), 0.45)[0].tolist() == [4]
    assert keep((row(), np.empty(0, np.float32)), np.empty(0, np.float32), 0.45)[0].tolist() == []


def test_threshold_keeps_the_share_asked_for() -> None:
    scores = [np.array([9, place], np.float32) for place in range(10)]
    holding = [np.array([False, True])] * 10
    assert choose(scores, holding, 1.0) == 0
    assert choose(scores, holding, 0.8) == 2
    assert effect(scores, holding, 2) == {"found": 10, "kept": 0.8, "read": 1.8}
    assert choose(scores, [np.array([True, False])] * 10, 0.5) == 9  # the first passage always stays
    with pytest.raises(InputError, match="no question has an answer"):
        choose(scores, [np.array([False, False])] * 10, 1.0)


@pytest.mark.parametrize("kind", ["bm25", "dense", "hybrid"])
def test_each_kind_finds(store: Path, kind: str) -> None:
    retriever = open_retriever(store, kind)
    assert (retriever.choice.kind, len(retriever)) == (kind, 5)
    hits = retriever.search(["nine bridges mill", "salt mules hills"], 3)
    assert [ordinals[0] for ordinals, _ in hits] == [3, 0]
    assert all(ordinals.dtype == np.int64 and scores.dtype == np.float32 for ordinals, scores in hits)
    assert all((np.diff(scores) <= 0).all() and len(scores) <= 3 for _, scores in hits)
    with pytest.raises(ValueError, match="top is 0"):
        retriever.search(["x"], 0)


def test_what_is_there_is_searched(store: Path, tmp_path: Path) -> None:
    assert Choice.read(store) == Choice("hybrid")
    (store / "dense").rename(store / "away")
    assert open_retriever(store).name == "BM25"
    with pytest.raises(InputError, match="no finished dense index"):
        open_retriever(store, "dense")
    (store / "bm25").rename(store / "gone")
    with pytest.raises(InputError, match="no index to search"):
        open_retriever(store)


def test_threshold_holds_for_its_own_kind_and_encoder(store: Path, encoder_folder: Path) -> None:
    scores = open_retriever(store, "dense").search(["heron frogs mice"], 5)[0][1]
    threshold = float(scores[1:3].mean())  # between the second and the third
    Choice("dense", threshold=threshold).write(store)
    retriever = open_retriever(store)
    assert retriever.name == f"dense, dense score at least {threshold:.3g}"
    assert len(retriever.search(["heron frogs mice"], 5)[0][0]) == 2
    for other in (
        open_retriever(store, threshold=False),
        open_retriever(store, "hybrid"),
        open_retriever(store, encoder=str(encoder_folder)),
    ):
        assert other.choice.threshold is None
        assert len(other.search(["heron frogs mice"], 5)[0][0]) == 5


def test_hybrid_threshold_is_of_the_dense_score(store: Path) -> None:
    dense = open_retriever(store, "dense").dense
    Choice("hybrid", threshold=0.999).write(store)
    assert dense is not None and dense.score(["harbour"], [row(2)])[0][0] < 0.999
    assert [len(ordinals) for ordinals, _ in open_retriever(store).search(["harbour", "salt"], 5)] == [1, 1]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"kind": "x"}', '{"kind": "bm25", "more": 1}', '{"kind": "dense", "threshold": "a"}']
)
def test_damaged_choice_is_refused(store: Path, text: str) -> None:
    (store / "retriever.json").write_text(text)
    with pytest.raises(InputError, match=r"retriever\.json: (damaged|not a retriever)"):
        open_retriever(store)


def test_wrong_kind_and_stale_index_are_refused(store: Path) -> None:
    with pytest.raises(InputError, match="retriever is 'colbert'; use bm25, dense, hybrid"):
        open_retriever(store, "colbert")
    state = json.loads((store / "dense" / "index.json").read_text())
    for file in (store / "dense").glob("*.bin"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 5 * 4])
    (store / "dense" / "index.json").write_text(json.dumps(state | {"passages": 4}))
    with pytest.raises(InputError, match="BM25 holds 5 passages, the dense index 4; bring it up to date"):
        open_retriever(store)


def test_store_that_grew_is_searched_by_what_is_known(
    reader_folder: Path, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(name: str, passages: list[Passage]) -> str:
        lines = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in passages]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        return str(tmp_path / name)

    path, tail = tmp_path / "s.btr", Tail()
    assert precompute.main([write("c", PASSAGES), "--reader", str(reader_folder), "--store", str(path)]) == 0
    encoder = Encoder.from_pretrained(str(encoder_folder))
    writer = DenseWriter.create_or_resume(path / "dense", Plan(str(encoder_folder), encoder.fingerprint, 64))
    writer.shards = shards_of(Store.open(path).manifest.shards)
    writer.append(PASSAGES, encoder)
    writer.finish()
    Choice("hybrid").write(path)
    first = open_retriever(Store.open(path), tail=tail)
    assert store_command.main(["add", str(path), write("more", [Passage("5", "", "a heron of iron")])]) == 0
    stale = "the store holds 6 passages, the dense index 5"
    with pytest.warns(StaleIndex, match="the last 1 passages"), pytest.raises(InputError, match=stale):
        open_retriever(Store.open(path))
    then = open_retriever(Store.open(path), tail=tail, before=first)
    assert then.dense is not None and first.dense is not None
    assert then.dense.encoder is first.dense.encoder  # not loaded again
    assert len(then.dense) == 6 and len(first.dense) == 5
    for how in ("rescored", "binary"):
        assert sorted(then.dense.search(["a heron of iron"], 6, how)[0][0].tolist()) == [*range(6)]
    known = dict(tail.vectors)
    again = open_retriever(Store.open(path), tail=tail, before=then)
    assert [tail.vectors[part] is vectors for part, vectors in known.items()] == [True]  # not embedded again
    whole = DenseWriter.create_or_resume(path / "dense", Plan(str(encoder_folder), encoder.fingerprint, 64))
    whole.shards = shards_of(Store.open(path).manifest.shards)
    whole.append([Passage("5", "", "a heron of iron")], encoder)
    whole.finish()
    built = open_retriever(Store.open(path), "dense", tail=tail, before=again)
    assert built.dense is not None and built.dense.indexed == 6
    questions = ["iron heron", "mill"]
    for ours, theirs in zip(then.dense.search(questions, 6), built.dense.search(questions, 6), strict=True):
        assert [part.tolist() for part in ours] == [part.tolist() for part in theirs]
    capsys.readouterr()


def test_encoder_of_passages_is_loaded_for_what_is_new(
    reader_folder: Path, encoder_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, tail = tmp_path / "s.btr", Tail()
    rows = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in [*PASSAGES, Passage("5", "", "iron")]]
    (tmp_path / "corpus").write_text("\n".join(rows[:5]), encoding="utf-8")
    (tmp_path / "more").write_text(rows[5], encoding="utf-8")
    words = [str(tmp_path / "corpus"), "--reader", str(reader_folder), "--store", str(path)]
    assert precompute.main([*words, "--retriever", str(encoder_folder)]) == 0
    assert store_command.main(["add", str(path), str(tmp_path / "more")]) == 0
    encoder = Encoder.from_pretrained(str(encoder_folder))
    original = encoder.fingerprint
    encoder.model.bert.layers[0].wi.bias.data += 0.01
    Encoder(encoder.model, encoder.tokenizer, "student", aligned=[original]).save(tmp_path / "student")
    Choice("dense", str(tmp_path / "student")).write(path)
    taught = open_retriever(Store.open(path), tail=tail)
    assert taught.dense is not None and len(taught.dense) == 6 and tail.embedder.fingerprint == original
    embedded, loaded = tail.vectors, tail.embedder
    np.testing.assert_array_equal(*embedded.values(), loaded.embed(["iron"], "passage"))
    open_retriever(Store.open(path), tail=tail)
    assert (tail.vectors, tail.embedder is loaded) == (embedded, True)
    # Where it has gone, what is new is found by its words.
    state = json.loads((path / "dense" / "index.json").read_text())
    state["plan"]["encoder"] = str(tmp_path / "gone")
    (path / "dense" / "index.json").write_text(json.dumps(state))
    tail = Tail()
    Choice("hybrid", str(tmp_path / "student"), 1e9).write(path)  # a threshold that no known passage reaches
    with pytest.warns(StaleIndex, match="the store holds 6 passages, the dense index 5"):
        then = open_retriever(Store.open(path), tail=tail)
    assert 5 in then.search(["iron heron"], 6)[0][0].tolist()  # by its words, and read although nothing scores it
    capsys.readouterr()


def test_codes_cut_under_their_map_are_an_error(store: Path) -> None:
    retriever = open_retriever(store, "dense")
    os.truncate(store / "dense" / "codes-0.bin", 8)
    with pytest.raises(WrongLength, match=r"codes-0\.bin was cut to 8 bytes of"):
        retriever.search(["heron"], 1)
