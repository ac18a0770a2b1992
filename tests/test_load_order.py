"""Orders and batches as functions of seed, epoch and world, beside lists made by brute force.

Laws: an epoch visits each patch once, in whichever order; any visit is looked up without the
others; ranks and workers share an epoch without gap or overlap, in as many steps; who resumes after
any step, on any number of ranks, visits what is left.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchloom.errors import ConfigError
from patchloom.load.batching import Batching
from patchloom.load.budget import n_bytes
from patchloom.load.order import SHUFFLES, Order, permuted

SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=12)


@st.composite
def orders(draw: st.DrawFn) -> Order:
    """Any order of few patches."""
    blocks = np.cumsum([0, *draw(SIZES)])
    return Order(
        int(blocks[-1]),
        blocks,
        seed=draw(st.integers(0, 2**40)),
        shuffle=draw(st.sampled_from(SHUFFLES)),
        window=draw(st.integers(1, 5)),
        streams=draw(st.integers(1, 5)),
        granule=draw(st.integers(1, 9)),
    )


@given(orders(), st.integers(0, 3))
def test_an_epoch_visits_each_patch_once(order: Order, epoch: int) -> None:
    """And any visits, asked for in any order, are those of the whole list."""
    whole = order.at(epoch, np.arange(order.n))
    assert sorted(whole.tolist()) == list(range(order.n))
    some = np.random.default_rng(order.n).permutation(order.n)[: order.n // 2]
    again = pickle.loads(pickle.dumps(order))
    assert again.at(epoch, some).tolist() == whole[some].tolist()


@given(orders(), st.integers(0, 3))
def test_a_window_stays_with_its_blocks(order: Order, epoch: int) -> None:
    """Of one stream, as many blocks at a time as are mixed together; each only once."""
    order = Order(order.n, order.blocks, order.seed, "window", order.window)
    block = np.searchsorted(order.blocks, order.at(epoch, np.arange(order.n)), side="right") - 1
    come = list(dict.fromkeys(block.tolist()))
    at = 0
    for k in range(0, len(come), order.window):
        mine = come[k : k + order.window]
        end = at + int(np.diff(order.blocks)[mine].sum())
        assert set(block[at:end].tolist()) == set(mine)
        at = end
    assert at == order.n


@given(orders())
def test_streams_visit_the_same_by_turns(order: Order) -> None:
    """A stream of as many goes through a stretch of the sequence, a granule at each turn."""
    plain = Order(order.n, order.blocks, order.seed, order.shuffle, order.window)
    sequence = plain.at(0, np.arange(order.n)).tolist()
    turns = [sequence[k : k + order.granule] for k in range(0, order.n, order.granule)]
    each, more = divmod(len(turns), order.streams)
    sizes = [each + (k >= order.streams - more) for k in range(order.streams)]
    bounds = np.cumsum([0, *sizes]).tolist()
    streams = [turns[a:b] for a, b in pairwise(bounds)]
    expected = [stream[k] for k in range(each + 1) for stream in streams if k < len(stream)]
    found = order.at(0, np.arange(order.n)).tolist()
    assert found == [position for turn in expected for position in turn]


@pytest.mark.parametrize("shuffle", ["window", "exact"])
def test_epochs_and_seeds_differ_and_repeat(shuffle: str) -> None:
    """The same address, the same order; another one, another."""
    blocks, n = np.arange(0, 1001, 10), 1000

    def listed(seed: int, epoch: int) -> list[int]:
        found: list[int] = Order(n, blocks, seed, shuffle).at(epoch, np.arange(n)).tolist()
        return found

    assert listed(0, 0) == listed(0, 0)
    assert len({tuple(listed(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("n", [2**12 + 1, 5000, 65536, 65537, 100_003])
def test_long_permutations_are_bijections(n: int) -> None:
    """Also where the square grid of cells is larger than what is permuted."""
    assert np.array_equal(np.sort(permuted(7, n, np.arange(n))), np.arange(n))


def test_permutations_of_any_length_take_no_list() -> None:
    """Of 10**12 patches, a million visits: distinct, and spread evenly."""
    n = 10**12
    found = permuted(3, n, np.arange(10**6) * 17)
    assert len(np.unique(found)) == 10**6
    assert found.min() >= 0
    assert found.max() < n
    counts = np.histogram(found, 100, (0, n))[0]
    assert abs(counts - 10**4).max() < 6 * 100


def test_places_of_a_long_permutation_are_independent() -> None:
    """Where neighbours go tells nothing: each of 16 pairs of quarters is as frequent."""
    n = 2**14 + 3
    counts = np.zeros((4, 4))
    for key in range(20):
        found = permuted(key, n, np.arange(n)) * 4 // n
        np.add.at(counts, (found[:-1], found[1:]), 1)
    expected = counts.sum() / 16
    assert (abs(counts - expected) < 5 * expected**0.5).all()


def test_short_permutations_are_equally_likely() -> None:
    """All 24 of four patches, over keys."""
    found = [tuple(permuted(key, 4, np.arange(4)).tolist()) for key in range(2400)]
    counts = np.unique(np.array(found), axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert (abs(counts - 100) < 50).all()


def steps_of(n: int, size: int, world: int, start: int, **options: object) -> list[list[list[int]]]:
    """The visits of each rank in each step."""
    ranks = [
        Batching(n, size, start, rank, world, **options)  # type: ignore[arg-type]
        for rank in range(world)
    ]
    counts = {part.n_steps for part in ranks}
    assert len(counts) == 1, "ranks make as many steps"
    return [[part.batch(step).tolist() for part in ranks] for step in range(counts.pop())]


def flat(steps: list[list[list[int]]]) -> Iterator[int]:
    return (visit for step in steps for batch in step for visit in batch)


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 7))
def test_ranks_share_an_epoch(n: int, size: int, world: int) -> None:
    """Each visit once, in as many steps on each rank, none of which is empty or too long."""
    steps = steps_of(n, size, world, 0)
    visits = list(flat(steps))
    if (size > 1 and n >= world) or n % world == 0:
        assert visits == list(range(n))
    else:
        # Too few for a batch on each rank: those at the beginning are visited once more.
        assert visits[:n] == list(range(n))
        assert visits[n:] == [k % n for k in range(n, n + len(visits) - n)]
        assert len(visits) - n < world
    assert all(1 <= len(batch) <= size for step in steps for batch in step)
    assert all(len(batch) == size for step in steps[:-2] for batch in step)


@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 7))
def test_what_does_not_fit_can_be_dropped(n: int, size: int, world: int) -> None:
    """With drop_last=, what does not fill a step; with uneven=, only what cannot be shared."""
    whole = list(flat(steps_of(n, size, world, 0, drop_last=True)))
    assert whole == list(range(n - n % (size * world)))
    shared = list(flat(steps_of(n, size, world, 0, uneven="drop")))
    assert shared == list(range(len(shared)))
    assert n - len(shared) < world
    assert len(shared) == n or size == 1 or n < world


@given(
    st.integers(1, 150),
    st.tuples(st.integers(1, 6), st.integers(1, 5)),
    st.tuples(st.integers(1, 6), st.integers(1, 5)),
    st.data(),
)
def test_who_resumes_visits_what_is_left(
    n: int, before: tuple[int, int], after: tuple[int, int], data: st.DataObject
) -> None:
    """After any step; on as many ranks, the same steps; on others, the same visits."""
    steps = steps_of(n, *before, 0)
    done = data.draw(st.integers(0, len(steps)))
    visited = Batching(n, before[0], 0, 0, before[1]).visited(done)
    assert steps_of(n, *before, visited) == steps[done:]
    rest = list(flat(steps_of(n, *after, visited)))
    assert rest[: n - visited] == list(range(visited, n))
    assert len(rest) - (n - visited) < after[1]


@given(st.integers(1, 120), st.integers(1, 6), st.integers(1, 4), st.integers(1, 5))
def test_workers_in_turn_make_the_batches_of_a_rank(
    n: int, size: int, world: int, workers: int
) -> None:
    """Each worker every so-many-th one: handed out in turn, it is the list of one process."""
    part = Batching(n, size, 0, world - 1, world)
    steps = range(part.n_steps)
    made = [list(steps[worker::workers]) for worker in range(workers)]
    turns = [w[k] for k in range(len(steps)) for w in made if k < len(w)]
    assert turns == list(steps)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Order(3, np.array([0, 2])),
        lambda: Order(3, np.array([0, 2, 1, 3])),
        lambda: Order(3, np.array([0, 3]), shuffle="yes"),
        lambda: Order(3, np.array([0, 3]), window=0),
        lambda: Batching(3, 0),
        lambda: Batching(3, 1, rank=2, world=2),
        lambda: Batching(3, 1, uneven="pad"),
        lambda: n_bytes("many"),
        lambda: n_bytes("5 iB"),
        lambda: n_bytes(-1),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: object) -> None:
    """By name, with what was got."""
    with pytest.raises(ConfigError, match=r"got|is at least"):
        wrong()  # type: ignore[operator]
