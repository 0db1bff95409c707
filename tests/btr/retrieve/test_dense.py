"""The index: codes against their definition, search against brute force, a killed build, damage, alignment."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from btr import kernels
from btr.corpus import Passage
from btr.errors import InputError
from btr.retrieve.dense import writer
from btr.retrieve.dense.encoder import Encoder
from btr.retrieve.dense.index import Dense
from btr.retrieve.dense.quantize import Quantizer, learn_rotation
from btr.retrieve.dense.updates import check_shards
from btr.retrieve.dense.writer import DenseWriter, Plan, Shards, rewrite

D = 64


def draw(seed: int, rows: int, width: int = D) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SAMPLE", 100)


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Encoder:
    return Encoder.from_pretrained(str(encoder_folder))


@pytest.fixture
def plan(encoder: Encoder, encoder_folder: Path) -> Plan:
    return Plan(str(encoder_folder), encoder.fingerprint, D, floats=True)


def fill(path: Path, plan: Plan, vectors: NDArray[np.float32], batch: int = 64) -> Path:
    making = DenseWriter.create_or_resume(path, plan)
    for start in range(making.held, len(vectors), batch):
        making.append_vectors(vectors[start : start + batch])
    making.finish()
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_rotation_is_orthogonal_and_brings_vectors_to_their_signs() -> None:
    sample = draw(1, 500) * np.linspace(2, 0.1, D, dtype=np.float32)  # unequal axes, as real encoders have
    rotation = learn_rotation(sample)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(D), atol=1e-5)

    def fit(values: NDArray[np.float32]) -> float:  # cosine between vectors and their signs
        return float((np.abs(values).sum(1) / np.linalg.norm(values, axis=1)).mean() / np.sqrt(D))

    assert fit(sample @ rotation) > fit(sample) + 0.05


@pytest.mark.parametrize(("codes", "each"), [(1, 16 + 2), (2, 16 + 9 + 2), (3, 16 + 18 + 2), (4, 16 + 27 + 2)])
def test_signs_come_first_and_rows_have_their_bytes(codes: int, each: int) -> None:
    vectors = draw(2, 500, 70) * np.linspace(2, 0.1, 70, dtype=np.float32)
    quantizer = Quantizer.fit(vectors, codes)
    rows = quantizer.encode(vectors)
    assert quantizer.bytes == each == sum(row[0].nbytes for row in rows.values())
    rotated = vectors @ quantizer.rotation
    assert np.array_equal(kernels.unpack(rows["codes-0.bin"], 70), np.where(rotated > 0, 1, -1))
    assert rows.keys() == quantizer.files.keys() and all(len(row) == 500 for row in rows.values())


@pytest.mark.parametrize("codes", [1, 2, 4])
def test_scaled_codes_keep_the_inner_product_of_a_vector_with_itself(codes: int) -> None:
    vectors = draw(20, 60, 70) * np.linspace(1, 3, 60, dtype=np.float32)[:, None]
    quantizer = Quantizer.fit(vectors, codes, scaled=True)
    assert quantizer.scaled
    rows = quantizer.encode(vectors)
    found = [
        quantizer.scores(row, {name: part[[n]] for name, part in rows.items()})[0]
        for n, row in enumerate(quantizer.rotate(vectors))
    ]
    np.testing.assert_allclose(found, (vectors**2).sum(1), rtol=1e-3)


@pytest.mark.parametrize("codes", [1, 2])
def test_nothing_is_of_no_length(codes: int) -> None:
    vectors = np.vstack([draw(21, 20), np.zeros((1, D), np.float32)])
    rows = Quantizer.fit(vectors[:20], codes, scaled=True).encode(vectors)
    assert rows["scales.bin"][20].tolist() == [0] and np.isfinite(rows["scales.bin"]).all()


def test_scores_are_products_with_the_estimates() -> None:
    vectors, query = draw(3, 300) * np.linspace(2, 0.2, D, dtype=np.float32), draw(4, 1)[0]
    for codes in (1, 3):
        quantizer = Quantizer.fit(vectors, codes)
        rows, asked = quantizer.encode(vectors), quantizer.rotate(query[None])[0]
        signs = kernels.unpack(rows["codes-0.bin"], D).astype(np.float32)
        if quantizer.telling is None or quantizer.residual is None:
            estimates = signs
        else:
            estimates = signs @ quantizer.telling + quantizer.residual.restore(rows["rest.bin"])
        estimates = rows["scales.bin"].astype(np.float32) * estimates
        np.testing.assert_allclose(quantizer.scores(asked, rows), estimates @ asked, atol=1e-4)
    error = ((estimates - vectors @ quantizer.rotation) ** 2).sum() / (vectors**2).sum()
    assert error < 0.05
    plain = Quantizer.fit(draw(3, 300))
    rows = plain.encode(vectors)
    signs = kernels.unpack(rows["codes-0.bin"], D).astype(np.float32)
    np.testing.assert_allclose(plain.scores(asked, rows), signs @ asked / np.sqrt(D), atol=1e-4)


def test_vectors_of_unequal_length_have_scales() -> None:
    assert not Quantizer.fit(draw(5, 50)).scaled
    assert Quantizer.fit(draw(5, 50) * np.linspace(1, 2, 50, dtype=np.float32)[:, None]).scaled


def test_search_is_brute_force(tmp_path: Path, plan: Plan, encoder: Encoder) -> None:
    vectors, queries = draw(6, 700), draw(7, 9)
    index = Dense.open(fill(tmp_path / "dense", plan, vectors), encoder)
    exact = index.search_vectors(queries, 11, "float")
    for query, (ordinals, scores) in zip(queries, exact, strict=True):
        expected = vectors @ query
        assert ordinals.tolist() == np.argsort(-expected, kind="stable")[:11].tolist()
        np.testing.assert_allclose(scores, expected[ordinals], rtol=1e-5)
    rows = index.quantizer.encode(vectors)
    rotated = index.quantizer.rotate(queries)
    distances = kernels.hamming(kernels.pack(rotated), rows["codes-0.bin"])
    for number, (ordinals, scores_) in enumerate(index.search_vectors(queries, 11, "binary")):
        assert ordinals.tolist() == np.argsort(distances[number], kind="stable")[:11].tolist()
        assert (-scores_).tolist() == distances[number][ordinals].tolist()
    for number, (ordinals, scores_) in enumerate(index.search_vectors(queries, 11, candidates=700)):
        expected = index.quantizer.scores(rotated[number], rows)
        assert ordinals.tolist() == np.argsort(-expected, kind="stable")[:11].tolist()
        assert np.array_equal(scores_, expected[ordinals])


@pytest.mark.parametrize("codes", [1, 2])
def test_what_follows_is_found_as_if_it_were_in_the_files(
    tmp_path: Path, plan: Plan, encoder: Encoder, codes: int
) -> None:
    vectors, queries, plan = draw(18, 300), draw(19, 6), replace(plan, codes=codes)
    vectors[250:260] = vectors[20:30]  # ties across the border stand in corpus order too
    whole = Dense.open(fill(tmp_path / "whole", plan, vectors), encoder)
    part = Dense.open(fill(tmp_path / "part", plan, vectors[:240]), encoder)
    longer = part.following(vectors[240:])
    assert (len(part), len(longer), longer.indexed) == (240, 300, 240)
    for how in ("float", "binary", "rescored"):
        for top in (1, 30, 300):
            for ours, theirs in zip(
                longer.search_vectors(queries, top, how), whole.search_vectors(queries, top, how), strict=True
            ):
                assert np.array_equal(ours[0], theirs[0]) and np.array_equal(ours[1], theirs[1])
    assert len(longer.following(vectors[:0])) == 240


def test_more_codes_find_more(tmp_path: Path, plan: Plan, encoder: Encoder) -> None:
    vectors, queries = draw(8, 1000), draw(9, 40)
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    shares = []
    for codes in (1, 2, 4):
        path = fill(tmp_path / str(codes), replace(plan, codes=codes), vectors)
        found = Dense.open(path, encoder).search_vectors(queries, 10, candidates=1000)
        shares.append(np.mean([len(set(a) & set(b)) for (a, _), b in zip(found, best, strict=True)]))
    assert shares[0] + 1 < shares[1] < shares[2] - 0.5


def test_ties_stand_in_corpus_order(tmp_path: Path, plan: Plan, encoder: Encoder) -> None:
    vectors = np.tile(draw(10, 5), (60, 1))
    index = Dense.open(fill(tmp_path / "dense", plan, vectors), encoder)
    for how in ("float", "binary", "rescored"):
        ordinals, _ = index.search_vectors(vectors[2:3], 7, how)[0]
        assert ordinals.tolist() == list(range(2, 37, 5))


def test_search_of_texts_finds_its_passage(tmp_path: Path, plan: Plan, encoder: Encoder) -> None:
    passages = [
        Passage(str(n), "", text) for n, text in enumerate(("salt mules", "grey heron", "harbour", "nine bridges"))
    ]
    making = DenseWriter.create_or_resume(tmp_path / "dense", plan)
    making.append(passages, encoder)
    making.finish()
    index = Dense.open(tmp_path / "dense")  # the encoder that it names
    assert len(index) == 4
    for way in ("float", "binary", "rescored"):
        for own, (ordinals, scores) in enumerate(index.search([p.text for p in passages], 9, way)):
            mine = scores[ordinals.tolist().index(own)]  # random weights may give another passage the same code
            assert sorted(ordinals.tolist()) == [0, 1, 2, 3] and mine == pytest.approx(scores.max(), rel=2**-20)
    score = index.score(["harbour"], [np.array([2, 0])])[0]
    found = dict(zip(*(x.tolist() for x in index.search(["harbour"], 4)[0]), strict=True))
    assert found[2] == pytest.approx(score[0], rel=2**-20)  # sums of 32 products, in another order
    assert index.search([], 3) == [] and index.score([], []) == []
    with pytest.raises(ValueError, match="top is 0"):
        index.search(["x"], 0)


@pytest.mark.parametrize("codes", [1, 2])
@pytest.mark.parametrize("lost", [0, 5])
def test_killed_build_ends_the_same(tmp_path: Path, plan: Plan, codes: int, lost: int) -> None:
    plan, vectors = replace(plan, codes=codes), draw(11, 500)
    whole = fill(tmp_path / "whole", plan, vectors)
    making = DenseWriter.create_or_resume(tmp_path / "cut", plan)
    for start in range(0, 320, 64):
        making.append_vectors(vectors[start : start + 64])
    assert making.done == 320 and not (tmp_path / "cut" / "index.json").exists()
    with pytest.raises(InputError, match="no finished dense index"):
        Dense.open(tmp_path / "cut")
    for file in (tmp_path / "cut").glob("*.bin"):  # rows that were written when it died
        file.write_bytes(file.read_bytes() + b"x" * lost)
    assert DenseWriter.create_or_resume(tmp_path / "cut", plan).done == 320
    assert contents(fill(tmp_path / "cut", plan, vectors)) == contents(whole)


def test_finished_index_takes_more(tmp_path: Path, plan: Plan, encoder: Encoder) -> None:
    vectors = draw(12, 300)
    fill(tmp_path / "dense", plan, vectors[:200])
    assert contents(fill(tmp_path / "dense", plan, vectors)) == contents(fill(tmp_path / "whole", plan, vectors))
    assert len(Dense.open(tmp_path / "dense", encoder)) == 300


def test_kill_before_the_first_write_starts_afresh(tmp_path: Path, plan: Plan) -> None:
    DenseWriter.create_or_resume(tmp_path / "dense", plan).append_vectors(draw(13, 40))
    assert DenseWriter.create_or_resume(tmp_path / "dense", plan).held == 0


@pytest.mark.parametrize("change", [{}, {"fingerprint": "another"}, {"codes": 2, "floats": False}])
def test_what_a_run_wrote_before_it_said_how_much_is_dropped(
    tmp_path: Path, plan: Plan, change: dict[str, Any]
) -> None:
    killed = DenseWriter.create_or_resume(tmp_path / "dense", plan)
    killed.append_vectors(draw(20, 150))
    (tmp_path / "dense" / "progress.json").unlink()  # as if it had died a line earlier
    plan = replace(plan, **change)
    whole = fill(tmp_path / "whole", plan, draw(21, 130))
    assert contents(fill(tmp_path / "dense", plan, draw(21, 130))) == contents(whole)


def test_an_index_written_anew_is_not_the_one_that_was_opened(tmp_path: Path, plan: Plan, encoder: Encoder) -> None:
    opened = Dense.open(fill(tmp_path / "dense", plan, draw(22, 120)), encoder)
    assert opened.is_current()
    rewrite(tmp_path / "dense", np.arange(110), [])
    assert not opened.is_current()
    again = Dense.open(tmp_path / "dense", encoder)
    assert again.is_current()
    (tmp_path / "dense" / "progress.json").write_text("{}")  # one that is being added to
    assert not again.is_current()


A, B = ("aa", 100), ("bb", 20)  # content and passages of shards


@pytest.mark.parametrize(
    ("covered", "passages", "there"),
    [
        ([A, B], 120, [("cc", 100), B]),  # written anew
        ([A, B], 120, [A]),  # gone: all of it was deleted
        ([A, B], 120, [B, A]),
        ([A, B], 101, [A, ("bb", 21)]),
        ([], 120, [A, B]),  # of a corpus, or by a version that named none
        ([A], 120, [A, B]),
        ([A], 100, []),
    ],
)
def test_shards_that_are_no_longer_those_of_the_index_are_told(
    tmp_path: Path, covered: Shards, passages: int, there: Shards
) -> None:
    with pytest.raises(InputError, match=r"build it again.* --no-resume"):
        check_shards(tmp_path, covered, passages, there)


def test_what_the_store_got_later_does_not_matter(tmp_path: Path) -> None:
    check_shards(tmp_path, [A], 100, [A, B])
    check_shards(tmp_path, [A, B], 100, [A, ("cc", 3)])  # the second was not embedded yet
    check_shards(tmp_path, [], 0, [A])


def test_other_plan_is_refused(tmp_path: Path, plan: Plan) -> None:
    fill(tmp_path / "dense", plan, draw(14, 120))
    with pytest.raises(InputError, match="begun with codes 1, now it is 2; use the same settings"):
        DenseWriter.create_or_resume(tmp_path / "dense", replace(plan, codes=2))
    DenseWriter.create_or_resume(tmp_path / "dense", replace(plan, encoder="moved/elsewhere"))


def test_foreign_folders_and_nothing_are_refused(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"not an index, it holds notes\.txt"):
        DenseWriter.create_or_resume(tmp_path, plan)
    with pytest.raises(InputError, match="a file, not a folder"):
        DenseWriter.create_or_resume(tmp_path / "notes.txt", plan)
    with pytest.raises(InputError, match="no passage to index"):
        DenseWriter.create_or_resume(tmp_path / "new", plan).finish()
    with pytest.raises(InputError, match="codes is 5; use 1 to 4"):
        fill(tmp_path / "five", replace(plan, codes=5), draw(1, 120))


def test_damage_is_seen(tmp_path: Path, plan: Plan, encoder: Encoder) -> None:
    path = fill(tmp_path / "dense", plan, draw(15, 120))
    state = json.loads((path / "index.json").read_text())
    with (path / "codes-0.bin").open("ab") as file:
        file.write(b"12345678")
    with pytest.raises(InputError, match="968 bytes, expected 960 for 120 passages"):
        Dense.open(path, encoder)
    (path / "index.json").write_text(json.dumps(state | {"format": 9}))
    with pytest.raises(InputError, match="index format 9, this btr reads format 2; upgrade btr"):
        Dense.open(path, encoder)
    (path / "codes-0.bin").write_bytes((path / "codes-0.bin").read_bytes()[:-8])
    (path / "index.json").write_text(json.dumps(state | {"format": 1}))
    assert len(Dense.open(path, encoder)) == 120  # one bit a dimension is as it was
    state["plan"]["codes"] = 2
    (path / "index.json").write_text(json.dumps(state | {"format": 1}))
    with pytest.raises(
        InputError, match=r"index format 1, .*; build it again with: python -m btr.retrieve build .* --no-"
    ):
        Dense.open(path, encoder)
    (path / "index.json").write_text("{")
    with pytest.raises(InputError, match=r"index.json: damaged"):
        Dense.open(path, encoder)


def test_encoder_must_be_aligned(tmp_path: Path, plan: Plan, encoder: Encoder) -> None:
    path = fill(tmp_path / "dense", replace(plan, fingerprint="another"), draw(16, 120))
    with pytest.raises(InputError, match=rf"built by encoder another .*this encoder is {encoder.fingerprint} .*kale"):
        Dense.open(path, encoder)
    Dense.open(path, Encoder(encoder.model, encoder.tokenizer, "aligned", aligned=["another"]))


def test_floats_must_be_kept_to_be_searched(tmp_path: Path, plan: Plan, encoder: Encoder) -> None:
    index = Dense.open(fill(tmp_path / "dense", replace(plan, floats=False), draw(17, 120)), encoder)
    assert not (tmp_path / "dense" / "vectors.bin").exists()
    with pytest.raises(InputError, match="keeps no floats; build it with --floats"):
        index.search(["salt"], 3, "float")
