"""BM25: scores against the formula and against bm25s, order, shards, interruption, damage."""

import errno
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import bm25s
import numpy as np
import pytest

from btr.corpus import Passage
from btr.errors import InputError
from btr.retrieve import bm25 as retrieve
from btr.retrieve.bm25 import BM25, BM25Writer

WORDS = [f"word{n:02d}" for n in range(40)]


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Note what is forced to the disk in place of doing so, which is slow; the test in a process of its own does it."""
    paths: list[Path] = []
    monkeypatch.setattr(retrieve, "sync", paths.append)
    return paths


def make_passages(count: int, lengths: tuple[int, int] = (3, 12), seed: int = 1) -> list[Passage]:
    """Make passages of few words, unevenly frequent, so that scores tie and repeat often."""
    rng = random.Random(seed)
    weights = [1 / (n + 1) for n in range(len(WORDS))]
    draw = [rng.choices(WORDS, weights, k=rng.randint(*lengths)) for _ in range(count)]
    return [Passage(str(n), words[0].upper(), " ".join(words[1:]) + ".") for n, words in enumerate(draw)]


def build(path: Path, passages: list[Passage], shard_size: int = 1000, batch: int = 1000) -> Path:
    writer = BM25Writer.create_or_resume(path, shard_size=shard_size)
    for start in range(0, len(passages), batch):
        writer.append(passages[start : start + batch])
    writer.finish()
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def score_by_formula(passages: list[Passage], question: str) -> list[float]:
    """Lucene's BM25 from its definition, in plain Python."""
    bags = [Counter(f"{p.title} {p.text}".lower().replace(".", "").split()) for p in passages]
    mean = sum(bag.total() for bag in bags) / len(bags)
    scores = [0.0] * len(bags)
    for word in question.split():
        frequency = sum(word in bag for bag in bags)
        idf = math.log(1 + (len(bags) - frequency + 0.5) / (frequency + 0.5))
        for place, bag in enumerate(bags):
            norm = 1.5 * (1 - 0.75 + 0.75 * bag.total() / mean)
            scores[place] += idf * bag[word] / (bag[word] + norm)
    return scores


QUESTIONS = ["word00", "word03 word17", "word39 word39 word01", "word05 unknown word30 word31"]


@pytest.mark.parametrize("shard_size", [300, 299, 64, 17])
def test_retrieve_scores_are_the_formula(tmp_path: Path, shard_size: int) -> None:
    # All of one length: the mean length, which is a shard's own, is then the corpus's.
    passages = make_passages(300, lengths=(8, 8))
    index = BM25.open(build(tmp_path / "index", passages, shard_size))
    assert len(index) == 300
    for question, (ordinals, scores) in zip(QUESTIONS, index.search(QUESTIONS, 300), strict=True):
        expected = np.array(score_by_formula(passages, question))
        assert (ordinals.dtype, scores.dtype) == (np.int64, np.float32)
        assert sorted(ordinals) == np.flatnonzero(expected).tolist()
        np.testing.assert_allclose(scores, expected[ordinals], rtol=2e-6)
        assert (np.diff(scores) <= 0).all()


def test_retrieve_one_shard_scores_as_bm25s(tmp_path: Path) -> None:
    passages = make_passages(200)
    folder = build(tmp_path / "index", passages)
    oracle = bm25s.BM25.load(folder / "shard-00000")
    tokens = bm25s.tokenize(QUESTIONS, stopwords="en", return_ids=False, show_progress=False)
    expected = oracle.retrieve(tokens, k=20, show_progress=False, backend_selection="numpy").scores
    found = [scores for _, scores in BM25.open(folder).search(QUESTIONS, 20)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("top", [1, 2, 3, 5, 8, 13])
def test_retrieve_ties_stand_in_corpus_order(tmp_path: Path, top: int) -> None:
    # Three equal shards: every score occurs at least three times, and six times within and across shards for `red`.
    shard = [Passage("", "", text) for text in ("red fox", "blue fox", "red hen", "grey owl")]
    index = BM25.open(build(tmp_path / "index", shard * 3, shard_size=4))
    ((red, red_scores), (both, both_scores)) = index.search(["red", "red fox"], top)
    assert red.tolist() == [0, 2, 4, 6, 8, 10][:top]
    assert len(set(red_scores.tolist())) == 1
    assert both[:3].tolist() == [0, 4, 8][:top]
    assert both[3:].tolist() == [1, 2, 5, 6, 9, 10][: max(top - 3, 0)]  # `fox` and `red` are equally frequent
    assert (np.diff(both_scores) <= 0).all()


def test_retrieve_many_ties_stand_in_corpus_order(tmp_path: Path) -> None:
    # Enough of them that an unstable sort would show.
    passages = [Passage("", "", "red red hen" if n % 3 == 0 else "red grey hen") for n in range(240)]
    index = BM25.open(build(tmp_path / "index", passages, shard_size=120))
    best, rest = list(range(0, 240, 3)), [n for n in range(240) if n % 3]
    for top in (70, 80, 81, 200, 240):
        assert index.search(["red"], top)[0][0].tolist() == (best + rest)[:top]


def test_retrieve_last_small_shard_is_not_at_a_loss(tmp_path: Path) -> None:
    # By its own count the word is in every passage of the last shard, so by its own count it would weigh nothing.
    passages = [
        *(Passage("", "", f"hen number{n} sits still") for n in range(63)),
        Passage("", "", "hen the owl hunts"),
    ]
    passages += [Passage("", "", "an owl hunts at night")]
    index = BM25.open(build(tmp_path / "index", passages, shard_size=64))
    ((ordinals, scores),) = index.search(["owl"], 5)
    assert sorted(ordinals.tolist()) == [63, 64]
    assert scores.min() > 0.8 * scores.max()


def test_letter_is_found_and_an_article_is_not(tmp_path: Path) -> None:
    texts = ("A cat. A hen has a vitamin D.", "Eyes need vitamin A to see.", "Vitamin K is a vitamin too.")
    index = BM25.open(build(tmp_path / "index", [Passage("", "Salt", text) for text in texts]))
    (found, _), (article, _) = index.search(["What is vitamin A?", "A"], 3)
    assert found[0] == 1 and len(found) == 3 and len(article) == 0


def test_retrieve_words_are_lower_case_without_stopwords(tmp_path: Path) -> None:
    passages = [Passage("a", "Barn OWL", "It hunts."), Passage("b", "", "The of and"), Passage("c", "", "Élan, naïve!")]
    index = BM25.open(build(tmp_path / "index", passages))
    questions = [
        "owl",
        "The ÉLAN of it",
        "HUNTS the owl",
        "the of and",
        "",
        "x ?",
        "zebra",
        "\ud800 \udc00\ud800\udc00",
    ]
    found = index.search(questions, 3)
    assert [ordinals.tolist() for ordinals, _ in found] == [[0], [2], [0], [], [], [], [], []]
    assert all((o.dtype, s.dtype) == (np.int64, np.float32) for o, s in found)
    assert index.search([], 3) == []


def test_retrieve_question_and_passage_share_words_in_any_script(tmp_path: Path) -> None:
    texts = [
        "Vitamin D is made in the skin.", "Vitamin C is found in fruit.", "R is a language.", "Mu\u0308ller opened it.",
        "\u6cd5\u56fd\u7684\u9996\u90fd\u662f\u5df4\u9ece\u3002", "\u65e5\u672c\u7684\u9996\u90fd",
    ]  # fmt: skip
    index = BM25.open(build(tmp_path / "index", [Passage("", "", text) for text in texts]))
    questions = [
        "What is vitamin C?", "What is R?", "M\u00fcller", "MULLER",
        "\u6cd5\u56fd\u7684\u9996\u90fd\u662f\u54ea\u91cc\uff1f", "\u65e5\u672c",
    ]  # fmt: skip
    found = [ordinals.tolist() for ordinals, _ in index.search(questions, 9)]
    assert found == [[1, 0], [2], [3], [3], [4, 5], [5]]


def test_retrieve_corpus_without_a_word(tmp_path: Path) -> None:
    index = BM25.open(build(tmp_path / "index", [Passage("a", "", "the"), Passage("b", "", "?")], shard_size=1))
    assert [ordinals.tolist() for ordinals, _ in index.search(["the", "owl"], 1)] == [[], []]


def test_retrieve_top_is_clipped(tmp_path: Path) -> None:
    index = BM25.open(build(tmp_path / "index", make_passages(9), shard_size=4))
    everything = index.search(["word00"], 10**9)[0][0]
    for top in range(1, len(everything) + 3):
        assert index.search(["word00"], top)[0][0].tolist() == everything[:top].tolist()
    with pytest.raises(ValueError, match="top is 0"):
        index.search(["word00"], 0)


@pytest.mark.parametrize("batch", [1, 3, 16, 100])
def test_retrieve_index_does_not_depend_on_batches(tmp_path: Path, batch: int) -> None:
    passages = make_passages(50)
    whole = contents(build(tmp_path / "whole", passages, shard_size=16))
    assert len({name.split("/")[0] for name in whole}) == 5  # four shards and index.json
    assert contents(build(tmp_path / "batched", passages, shard_size=16, batch=batch)) == whole


class Killed(BaseException):
    """Stand in for the end of the process."""


@pytest.mark.parametrize("step", range(1, 20))
def test_retrieve_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Kill the writer at its `step`-th touch of the disk, then feed on from `done`: every byte is the same."""
    passages = make_passages(50)
    whole = contents(build(tmp_path / "whole", passages, shard_size=16))
    touches = 0

    def dying(act):
        def touch(*args, **kwargs):
            nonlocal touches
            touches += 1
            if touches == step:
                raise Killed
            return act(*args, **kwargs)

        return touch

    with monkeypatch.context() as patch, pytest.raises(Killed):
        for name in ("_write_json", "_publish", "_terms"):
            patch.setattr(retrieve, name, dying(getattr(retrieve, name)))
        patch.setattr(bm25s.BM25, "save", dying(bm25s.BM25.save))
        patch.setattr(Path, "rename", dying(Path.rename))
        build(tmp_path / "index", passages, shard_size=16, batch=5)
        raise Killed  # fewer touches than steps: killed at the very end
    writer = BM25Writer.create_or_resume(tmp_path / "index", shard_size=16)
    assert writer.done in (0, 16, 32, 48, 50)
    writer.append(passages[writer.done :])
    writer.finish()
    assert contents(tmp_path / "index") == whole


def test_retrieve_bytes_are_on_disk_before_their_name(tmp_path: Path, synced: list[Path]) -> None:
    files = contents(build(tmp_path, make_passages(5), shard_size=4))
    names = [str(path.relative_to(tmp_path)) for path in synced]
    early = {name.replace(".building", "") for name in names if ".building" in name}
    assert early == {*files, "shard-00000", "shard-00001"}
    assert [name for name in names if ".building" not in name] == ["."] * 3  # the folder, after each new name


def test_retrieve_done_counts_what_is_on_disk(tmp_path: Path) -> None:
    passages = make_passages(10)
    writer = BM25Writer.create_or_resume(tmp_path / "deep" / "index", shard_size=4)
    counts = []
    for passage in passages:
        writer.append([passage])
        counts.append(writer.done)
    assert counts == [0, 0, 0, 4, 4, 4, 4, 8, 8, 8]
    assert BM25Writer.create_or_resume(tmp_path / "deep" / "index", shard_size=4).done == 8
    assert not (tmp_path / "deep" / "index" / "index.json").exists()


def test_retrieve_other_settings_start_again(tmp_path: Path) -> None:
    BM25Writer.create_or_resume(tmp_path, shard_size=4).append(make_passages(9))
    assert BM25Writer.create_or_resume(tmp_path, shard_size=5).done == 0
    assert list(tmp_path.iterdir()) == []


def test_retrieve_broken_shard_is_written_again(tmp_path: Path) -> None:
    BM25Writer.create_or_resume(tmp_path, shard_size=4).append(make_passages(13))
    (tmp_path / "shard-00001" / "shard.json").write_text("{")
    assert BM25Writer.create_or_resume(tmp_path, shard_size=4).done == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["shard-00000"]


def test_retrieve_finished_index_takes_no_more(tmp_path: Path) -> None:
    passages = make_passages(10)
    before = contents(build(tmp_path, passages, shard_size=4))
    writer = BM25Writer.create_or_resume(tmp_path, shard_size=5)
    assert (writer.done, writer.finished) == (10, True)
    writer.append([])
    with pytest.raises(InputError, match=r"finished \(10 passages\) and takes no more; delete the folder"):
        writer.append(passages[:1])
    writer.finish()
    assert contents(tmp_path) == before


def test_retrieve_writer_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no passage to index"):
        BM25Writer.create_or_resume(tmp_path / "index").finish()
    with pytest.raises(ValueError, match="shard_size is 0"):
        BM25Writer.create_or_resume(tmp_path / "index", shard_size=0)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file: a file, not a folder"):
        BM25Writer.create_or_resume(tmp_path / "file")
    with pytest.raises(InputError, match="not an index, it holds file; give an empty or a new folder"):
        BM25Writer.create_or_resume(tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


def test_retrieve_open_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BM25Writer.create_or_resume(tmp_path / "begun", shard_size=4).append(make_passages(9))
    for name in ("begun", "nowhere"):
        with pytest.raises(InputError, match=f"{name}: no finished BM25 index .*; build it with: python -m btr.prec"):
            BM25.open(tmp_path / name)
    build(tmp_path / "index", make_passages(9), shard_size=4)
    terms = tmp_path / "index" / "shard-00001" / "terms.npy"
    whole = terms.read_bytes()
    for damage in (whole[:-8], whole[:20], b""):
        terms.write_bytes(damage)
        with pytest.raises(InputError, match=r"shard-00001: a damaged shard .*; delete the index and build it"):
            BM25.open(tmp_path / "index")
    terms.unlink()
    with pytest.raises(InputError, match=r"shard-00001: a damaged shard .*No such file"):
        BM25.open(tmp_path / "index")
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"too many open files; .*ulimit -n"):
        patch.setattr(np, "load", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.EMFILE, "many")))
        BM25.open(tmp_path / "index")
    index = tmp_path / "index" / "index.json"
    whole_index = json.loads(index.read_text())
    index.write_text(json.dumps(whole_index | {"format": 4}))
    with pytest.raises(InputError, match="index format 4, this btr reads format 3; upgrade btr, or build it"):
        BM25.open(tmp_path / "index")
    with pytest.raises(InputError, match="index format 4, this btr reads format 3"):
        BM25Writer.create_or_resume(tmp_path / "index", shard_size=4)
    index.write_text(json.dumps(whole_index | {"format": 1}))
    with pytest.raises(InputError, match=r"index format 1, this btr reads format 3; do that$"):
        BM25.open(tmp_path / "index", "do that")
    for settings in (tmp_path / "index").glob("shard-*/shard.json"):
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"format": 1}))
    writer = BM25Writer.create_or_resume(tmp_path / "index", shard_size=4)
    assert (writer.done, writer.finished, list((tmp_path / "index").iterdir())) == (0, False, [])


def test_retrieve_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    BM25.open(build(tmp_path, make_passages(9), shard_size=4)).search(["word00", ""], 3)
    assert capfd.readouterr() == ("", "")


def test_retrieve_leaves_jax_alone(tmp_path: Path) -> None:
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("print('awake')")
    (tmp_path / "jax" / "lax.py").write_text("top_k = None")
    code = """
import logging, sys
logging.basicConfig(level=logging.INFO)
import btr.corpus, btr.retrieve.bm25
assert not {"bm25s", "jax"} & set(sys.modules), "imported before it is used"
writer = btr.retrieve.bm25.BM25Writer.create_or_resume(sys.argv[1])
writer.append([btr.corpus.Passage("a", "Owl", "Owls hunt.")])
writer.finish()
assert len(btr.retrieve.bm25.BM25.open(sys.argv[1]).search(["owl", ""], 1)[0][0]) == 1
assert "bm25s" in sys.modules and "jax" not in sys.modules
import jax
"""
    command = [sys.executable, "-c", code, str(tmp_path / "index")]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (run.returncode, run.stdout, run.stderr) == (0, "awake\n", "")
