"""The laws of token merging, and merging itself against loops written out by hand."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from btr import kernels
from btr.errors import InputError
from btr.model.merge import Preset, Schedule, Tokens, concatenate, merge, merge_bits, preset, shrink

D, QUESTION = 8, 3
LENGTHS = [19, 4, 12, 3, 16, 5]  # of rows: one has nothing but a question, one a single token more
# float64: at most 2000 additions of values of size 1 are rounded by 2^-53 each
TOLERANCE = 2000 * 2**-53


def make_tokens(lengths: list[int] = LENGTHS, question: Tensor | int = QUESTION, seed: int = 0) -> Tokens:
    hidden = torch.randn(len(lengths), max(lengths), D, generator=torch.Generator().manual_seed(seed)).double()
    return Tokens.of(hidden, torch.tensor(lengths), question)


def merge_often(tokens: Tokens, ratios: tuple[float, ...] = (0.5, 0.3, 0.5)) -> Tokens:
    for ratio in ratios:
        tokens = merge(tokens, ratio)
    return tokens


def take(tokens: Tokens, rows: list[int]) -> Tokens:
    """Take rows as a batch of their own, as wide as its longest needs."""
    T, T0 = int(tokens.lengths[rows].max()), int((tokens.owner[rows] >= 0).sum(1).max())
    values = (tokens.hidden, tokens.sizes, tokens.positions.expand_as(tokens.sizes), tokens.mergeable)
    return Tokens(*(value[rows, :T] for value in values), owner=tokens.owner[rows, :T0])


def assert_equal(one: Tokens, other: Tokens) -> None:
    for name in ("sizes", "mergeable", "owner"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    mask = one.mask
    assert torch.equal(one.positions.expand_as(mask)[mask], other.positions.expand_as(mask)[mask])
    assert torch.equal(one.hidden[mask], other.hidden[mask])


# Merging by hand: a token is (hidden, size, position, mergeable, the original tokens in it).


@dataclass
class Part:
    hidden: np.ndarray
    size: int
    position: int
    mergeable: bool
    held: list[int]


def merge_by_hand(row: list[Part], ratio: float, weight: np.ndarray | float = 1.0) -> list[Part]:
    movable = [part for part in row if part.mergeable]
    even, odd = movable[0::2], movable[1::2]
    edges = []
    for n, a in enumerate(even):
        for b in odd:
            x, y = a.hidden * weight, b.hidden * weight
            edges.append((float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)), n, b))
    best = [max((edge for edge in edges if edge[1] == n), key=lambda edge: edge[0]) for n in range(len(even)) if odd]
    best.sort(key=lambda edge: -edge[0])
    groups: dict[int, list[Part]] = {}
    gone = []
    for _, n, target in best[: int(ratio * len(movable) + 1e-9)]:
        groups.setdefault(id(target), []).append(even[n])
        gone.append(id(even[n]))
    result = []
    for part in row:
        if id(part) not in gone:
            parts = [part, *groups.get(id(part), [])]
            size = sum(p.size for p in parts)
            mean = sum((p.hidden * p.size for p in parts), np.zeros(D)) / size
            position = min(parts, key=lambda p: (-p.size, p.position)).position
            result.append(Part(mean, size, position, part.mergeable, [i for p in parts for i in p.held]))
    return result


def assert_is(tokens: Tokens, r: int, row: list[Part]) -> None:
    T = len(row)
    assert int(tokens.lengths[r]) == T and tokens.sizes[r, T:].eq(0).all() and not tokens.mergeable[r, T:].any()
    assert tokens.sizes[r, :T].tolist() == [part.size for part in row]
    assert tokens.positions[r, :T].tolist() == [part.position for part in row]
    assert tokens.mergeable[r, :T].tolist() == [part.mergeable for part in row]
    owner = {i: column for column, part in enumerate(row) for i in part.held}
    assert tokens.owner[r].tolist() == [owner.get(i, -1) for i in range(tokens.owner.shape[1])]
    expected = torch.tensor(np.array([part.hidden for part in row]))
    assert float((tokens.hidden[r, :T] - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ratios", [(0.2,), (0.5,), (0.2, 0.2, 0.2, 0.2), (0.5, 0.5, 0.5, 0.5)], ids=str)
def test_merging_is_what_loops_make_of_it(ratios: tuple[float, ...], weighted: bool) -> None:
    tokens = make_tokens(seed=len(ratios))
    weight = torch.linspace(0.1, 3, D).double() if weighted else None
    rows = [
        [Part(tokens.hidden[r, i].numpy(), 1, i, i >= QUESTION, [i]) for i in range(length)]
        for r, length in enumerate(LENGTHS)
    ]
    for ratio in ratios:
        tokens = merge(tokens, ratio, weight)
        rows = [merge_by_hand(row, ratio, 1.0 if weight is None else weight.numpy()) for row in rows]
        for r, row in enumerate(rows):
            assert_is(tokens, r, row)
    assert tokens.sizes.max() > 2 or len(ratios) == 1


def test_weights_and_lengths_of_vectors_matter_as_they_should() -> None:
    """The cosine does not ask how long a vector is, and a weight can turn the choice round."""
    tokens = make_tokens()
    scales = torch.rand(len(LENGTHS), max(LENGTHS), 1, generator=torch.Generator().manual_seed(1)).double() + 0.1
    scaled = replace(tokens, hidden=tokens.hidden * scales)
    assert torch.equal(merge(scaled, 0.4).owner, merge(tokens, 0.4).owner)
    weight = torch.tensor([100.0] + [0.01] * (D - 1)).double()
    assert not torch.equal(merge(tokens, 0.4, weight).owner, merge(tokens, 0.4).owner)


def test_ratio_0_is_the_identity() -> None:
    tokens = make_tokens()
    assert merge(tokens, 0.0) is tokens
    assert all(level is tokens for level in shrink(tokens, (0.0, 0.0)))


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.integers(0, 12),
    st.lists(st.floats(0, 0.5), min_size=1, max_size=4),
)
def test_every_token_is_kept_in_one_place(lengths: list[int], question: int, ratios: list[float]) -> None:
    tokens = make_tokens(lengths, question)
    for ratio in ratios:
        before, tokens = tokens, merge(tokens, ratio)
        fewer = [int(ratio * count + 1e-9) for count in before.mergeable.sum(1).tolist()]
        assert (before.lengths - tokens.lengths).tolist() == fewer
    assert tokens.sizes.sum(1).tolist() == lengths
    assert tokens.sizes.shape[1] == int(tokens.lengths.max())
    for r, length in enumerate(lengths):
        T, asked = int(tokens.lengths[r]), min(question, length)
        owner = tokens.owner[r, :length]
        assert torch.equal(torch.bincount(owner, minlength=T), tokens.sizes[r, :T])
        assert tokens.owner[r, length:].eq(-1).all()
        assert tokens.sizes[r, :T].gt(0).all() and tokens.sizes[r, T:].eq(0).all()  # no gaps
        position = tokens.positions.expand_as(tokens.sizes)[r, :T]
        assert torch.equal(owner[position], torch.arange(T))  # each stands where one of its parts stood
        assert torch.equal(owner[:asked], torch.arange(asked)) and not tokens.mergeable[r, :asked].any()
        assert tokens.sizes[r, :asked].eq(1).all() and torch.equal(position[:asked], torch.arange(asked))
        assert tokens.mergeable[r, asked:T].all()


def test_shares_are_those_of_decimal_numbers() -> None:
    """0.29 * 100 is 28.999999999999996 in binary."""
    assert merge(make_tokens([100], 0), 0.29).lengths.tolist() == [71]
    assert merge_bits(np.arange(100, dtype=np.uint64)[:, None], [100], 0.29).lengths == [71]


def test_question_tokens_stay_as_they_are() -> None:
    """Also where a passage token is the very same."""
    tokens = make_tokens([12, 12], torch.tensor([3, 5]))
    tokens.hidden[:, 5:8] = tokens.hidden[:, :3]
    merged = merge_often(tokens)
    assert torch.equal(merged.hidden[0, :3], tokens.hidden[0, :3])
    assert torch.equal(merged.hidden[1, :5], tokens.hidden[1, :5])
    assert merged.lengths.tolist() != tokens.lengths.tolist()


def test_a_row_is_merged_as_if_it_were_alone() -> None:
    tokens = make_tokens()
    together = merge_often(tokens)
    for r in range(len(LENGTHS)):
        assert_equal(merge_often(take(tokens, [r])), take(together, [r]))


def test_padding_is_never_looked_at() -> None:
    tokens = make_tokens()
    spoilt = replace(tokens, hidden=tokens.hidden.masked_fill(~tokens.mask[..., None], float("nan")))
    assert_equal(merge_often(spoilt), merge_often(tokens))


def test_the_largest_part_gives_the_position() -> None:
    """Of two parts as large, the earlier: tokens 1 and 0 go into one, then it with the pair of 2 and 3."""
    hidden = torch.tensor([[1, 0, 0], [1, 0.1, 0], [0, 1, 0.3], [0, 1, 0.2], [0.1, 1, 0]]).double()[None]
    tokens = merge(Tokens.of(hidden, torch.tensor([5]), 0), 0.4)
    assert tokens.sizes.tolist() == [[2, 2, 1]] and tokens.positions.tolist() == [[0, 2, 4]]
    tokens = replace(tokens, mergeable=torch.tensor([[False, True, True]]))
    last = merge(tokens, 0.5)
    assert last.sizes.tolist() == [[2, 3]] and last.positions.tolist() == [[0, 2]]
    assert last.owner.tolist() == [[0, 0, 1, 1, 1]]


def test_means_of_bfloat16_are_rounded_once() -> None:
    """All 30 tokens of the first set go into the first of the second, the one that is like them."""
    hidden = torch.full((1, 60, 64), -1.0, dtype=torch.bfloat16)
    hidden[0, 0::2] = torch.rand(30, 64, generator=torch.Generator().manual_seed(0)).bfloat16() + 1
    hidden[0, 1] = 1.5
    merged = merge(Tokens.of(hidden, torch.tensor([60]), 0), 0.5)
    assert merged.sizes[0, 0] == 31 and merged.hidden.dtype is torch.bfloat16
    exact = (hidden[0, 0::2].double().sum(0) + 1.5) / 31
    assert torch.equal(merged.hidden[0, 0], exact.bfloat16())


def test_similarities_in_blocks_are_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = make_tokens()
    whole = merge_often(tokens)
    monkeypatch.setattr("btr.model.merge.BLOCK", 100)
    assert_equal(merge_often(tokens), whole)


def test_tokens_of_zeros_can_be_merged() -> None:
    tokens = make_tokens()
    assert merge(replace(tokens, hidden=torch.zeros_like(tokens.hidden)), 0.5).hidden.eq(0).all()


def test_shares_are_spread_over_the_original_tokens() -> None:
    merged = merge_often(make_tokens())
    shares = torch.rand(merged.sizes.shape, generator=torch.Generator().manual_seed(0)).double() * merged.mask
    spread = merged.spread(shares / shares.sum(1, keepdim=True))
    assert spread.shape == (len(LENGTHS), max(LENGTHS))
    assert float((spread.sum(1) - 1).abs().max()) <= TOLERANCE
    for r, length in enumerate(LENGTHS):
        assert spread[r, length:].eq(0).all() and spread[r, :length].gt(0).all()
        for column in range(int(merged.lengths[r])):
            assert len(set(spread[r][merged.owner[r] == column].tolist())) == 1


# The memory of several rows


@pytest.mark.parametrize("merged", [False, True])
def test_rows_stand_end_to_end_in_their_order(merged: bool) -> None:
    rows = merge_often(make_tokens()) if merged else make_tokens()
    batches, counts = [[4, 0, 2], [1, 5, 3]], [1, 3, 2]
    memory = concatenate([take(rows, batch) for batch in batches], batches, counts)
    firsts = [0, 1, 4, 6]
    for b in range(3):
        held = [take(rows, [r]) for r in range(firsts[b], firsts[b + 1])]
        M, M0 = sum(part.sizes.shape[1] for part in held), sum(part.owner.shape[1] for part in held)
        for name in ("hidden", "sizes", "positions", "mergeable"):
            expected = torch.cat([getattr(part, name)[0] for part in held])
            assert torch.equal(getattr(memory, name)[b, :M], expected), name
        assert memory.sizes[b, M:].eq(0).all() and memory.owner[b, M0:].eq(-1).all()
        owner, sizes = memory.owner[b, :M0], memory.sizes[b, :M]
        assert torch.equal(torch.bincount(owner, minlength=M), sizes)
        starts = np.cumsum([0] + [part.sizes.shape[1] for part in held])
        assert torch.equal(owner, torch.cat([part.owner[0] + int(s) for part, s in zip(held, starts, strict=False)]))
        assert memory.passage is not None
        assert memory.passage[b, :M].tolist() == [n for n, part in enumerate(held) for _ in part.sizes[0]]
    assert memory.sizes.shape[1] == int(memory.lengths.max())


@pytest.mark.parametrize("order", [[5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 3, 4]], ids=str)
def test_order_of_passages_makes_no_difference(order: list[int]) -> None:
    """Rows of odd lengths, which would turn the two sets round in all rows after them."""
    rows = merge(make_tokens(), 0.2)
    levels = []
    for numbers in (list(range(6)), order):
        memory = concatenate([take(rows, numbers)], [list(range(6))], [6])
        levels.append(shrink(memory, (0.5, 0.0, 0.3, 0.4)))
    before = np.split(np.arange(sum(LENGTHS)), np.cumsum(LENGTHS)[:-1])
    moved = np.concatenate([before[r] for r in order])
    for one, other in zip(*levels, strict=True):
        groups, others = one.owner[0][moved], other.owner[0]
        assert torch.equal(groups[:, None] == groups[None], others[:, None] == others[None])  # the same are together
        assert float((one.hidden[0][groups] - other.hidden[0][others]).abs().max()) <= TOLERANCE
        assert torch.equal(one.positions[0][groups], other.positions[0][others])
        shares = torch.rand(1, one.sizes.shape[1]).double()
        turned = torch.empty_like(shares)
        turned[0, others] = shares[0, groups]
        assert torch.equal(one.spread(shares)[0, moved], other.spread(turned)[0])
    assert levels[0][-1].sizes.max() > 2


def test_memory_merges_across_passages() -> None:
    tokens = make_tokens([6, 6], 1)
    tokens.hidden[1] = -tokens.hidden[0].roll(1, 0)
    tokens.hidden[1, 2] = tokens.hidden[0, 1] * 1.5  # sets: 1, 3, 5 and 2, 4 of each row
    memory = merge(concatenate([tokens], [[0, 1]], [2]), 0.1)
    assert memory.sizes.sum() == 12 and memory.sizes.shape[1] == 11
    assert memory.owner[0, 1] == memory.owner[0, 8]


def test_passages_of_one_token_have_nothing_to_go_into() -> None:
    """All of the first question's are in the first set."""
    memory = merge(concatenate([make_tokens([4, 4, 4, 9])], [[0, 1, 2, 3]], [3, 1]), 0.5)
    assert memory.lengths.tolist() == [12, 6]
    alone = concatenate([make_tokens([4, 4, 4])], [[0, 1, 2]], [3])
    assert merge(alone, 0.5).lengths.tolist() == [12]


def test_layers_share_a_memory_until_one_merges() -> None:
    memory = make_tokens()
    levels = shrink(memory, (0.0, 0.5, 0.0, 0.2))
    assert levels[0] is memory and levels[1] is levels[2] is not memory and levels[3] is not levels[2]
    assert_equal(levels[1], merge(memory, 0.5))
    assert_equal(levels[3], merge(levels[1], 0.2))


# The first merge, on bits

BIT_LENGTHS = [17, 1, 2, 30, 8]


@pytest.fixture(params=["numba", "numpy"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("btr.kernels._name", request.param)
    return str(request.param)


def make_bits() -> Tensor:
    """Make signs ±1 (M, 300): of every passage, tokens of the second set are random, the i-th of the first set differs
    in i + 1 channels from one of them."""
    generator = torch.Generator().manual_seed(1)
    passages = []
    for n in BIT_LENGTHS:
        row = torch.where(torch.rand(n, 300, generator=generator) < 0.5, -1.0, 1.0)
        for i, a in enumerate(torch.randperm((n + 1) // 2, generator=generator).tolist()):
            if n > 1:
                row[2 * a] = row[1 + 2 * (3 * a % (n // 2))]
                row[2 * a, : i + 1] *= -1
        passages.append(row.double())
    return torch.cat(passages)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5])
def test_bits_are_merged_as_their_signs_would_be(backend: str, ratio: float) -> None:
    signs = make_bits()
    bits = merge_bits(kernels.pack(signs.numpy()), BIT_LENGTHS, ratio)
    padded = torch.nn.utils.rnn.pad_sequence(signs.split(BIT_LENGTHS), batch_first=True)
    expected = merge(Tokens.of(padded, torch.tensor(BIT_LENGTHS), 0), ratio)
    assert_equal(replace(bits.passages, hidden=expected.hidden), expected)
    assert bits.lengths == expected.lengths.tolist()
    assert torch.equal(bits.average(signs), expected.hidden[expected.mask])


def test_merged_bits_become_rows_behind_a_question() -> None:
    values = torch.randn(sum(BIT_LENGTHS), 130, generator=torch.Generator().manual_seed(1)).double()
    bits = merge_bits(kernels.pack(values.numpy()), BIT_LENGTHS, 0.4)
    passages = bits.average(values).split(bits.lengths)
    chosen, question = [3, 1, 0], 4
    padded = torch.nn.utils.rnn.pad_sequence([passages[n] for n in chosen], batch_first=True)
    hidden = torch.cat([torch.zeros(3, question, 130).double(), padded], 1)
    rows = bits.rows(hidden, chosen, question)
    assert rows.hidden is hidden and rows.sizes.shape == hidden.shape[:2]
    assert rows.lengths.tolist() == [question + bits.lengths[n] for n in chosen]
    for r, n in enumerate(chosen):
        T, T0 = question + bits.lengths[n], question + BIT_LENGTHS[n]
        assert rows.sizes[r].sum() == T0 and rows.owner[r, T0:].eq(-1).all()
        assert torch.equal(torch.bincount(rows.owner[r, :T0], minlength=T), rows.sizes[r, :T])
        assert rows.mergeable[r].tolist() == [question <= t < T for t in range(hidden.shape[1])]
        assert rows.positions[r, :question].tolist() == list(range(question))
        assert torch.equal(rows.owner[r][rows.positions[r, :T]], torch.arange(T))
    again = merge(rows, 0.5)
    assert again.sizes.sum(1).tolist() == rows.sizes.sum(1).tolist()


# Schedules


def test_presets_are_the_papers_two_readings() -> None:
    assert preset("none", 3, 0.2) == (0, 0, 0)
    assert preset("every", 7, 0.2) == (0, 0, 0.2, 0, 0, 0.2, 0)
    assert preset("algorithm", 7, 0.2) == (0.2, 0.2, 0, 0.2, 0.2, 0, 0.2)
    assert preset("every", 3, 0.1, g=1) == (0.1, 0.1, 0.1) and preset("algorithm", 3, 0.1, g=1) == (0, 0, 0)
    schedule = Schedule.preset("every", 4, 6, 0.3)
    assert schedule == Schedule((0, 0, 0.3, 0), (0, 0, 0.3, 0, 0, 0.3), 0.0, True)
    assert schedule.merges and not Schedule.preset("none", 4, 6).merges and Schedule((0.0,), (0.0,), bits=0.1).merges


@pytest.mark.parametrize("ratio", [-0.1, 0.51, 1.0, float("nan")])
def test_impossible_ratios_are_refused(ratio: float) -> None:
    ways: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (merge, (make_tokens(), ratio)),
        (merge_bits, (np.zeros((3, 1), np.uint64), [3], ratio)),
        (preset, ("every", 3, ratio)),
        *((Schedule, ratios) for ratios in (((ratio,), ()), ((), (0.2, ratio)), ((), (), ratio))),
    ]
    for function, arguments in ways:
        with pytest.raises(InputError, match=r"the merge ratio is .*, a layer can merge 0 to 0.5"):
            function(*arguments)


def test_unknown_schedules_are_refused() -> None:
    name: Preset = "sometimes"  # type: ignore[assignment]
    with pytest.raises(InputError, match="'sometimes'; use 'none', 'every' or 'algorithm'"):
        Schedule.preset(name, 3, 3)
    with pytest.raises(InputError, match="g is 0"):
        preset("every", 3, 0.2, 0)
