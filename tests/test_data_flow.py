"""Batches read in tandem: equal to NumPy's indexing, in order, and no error is lost or hangs."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import patchloom
from patchloom.errors import ConfigError, NotAnArrayError, SourceError, WorkerLostError
from patchloom.load.data_flow import DataFlow
from patchloom.load.sampling import Sampling

pytestmark = pytest.mark.timeout(120)


def two(n: int) -> tuple[Any, Any]:
    return np.arange(3 * n).reshape(n, 3), np.arange(n)


def rows_of(flow: DataFlow, epoch: int = 0) -> list[list[int]]:
    found = []
    for x, rows in flow.flow(epoch):
        assert (x == np.arange(3) + 3 * rows[:, None]).all()
        found.append(rows.tolist())
    return found


def joined(batches: list[list[int]]) -> list[int]:
    return [*itertools.chain(*batches)]


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(0, 23),
    size=st.integers(1, 9),
    threads=st.integers(1, 4),
    chance=st.booleans(),
    drop=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_each_row_once_in_tandem(
    n: int, size: int, threads: int, chance: bool, drop: bool, epoch: int
) -> None:
    """In order, or permuted anew in each epoch; the same whatever the number of threads."""
    options: dict[str, Any] = {"sample_random": chance, "drop_incomplete_batches": drop, "seed": 5}
    flow = DataFlow(two(n), size, threads, **options)
    found = rows_of(flow, epoch)
    assert len(found) == len(flow) == (n // size if drop else -(-n // size))
    assert all(len(batch) == size for batch in found[:-1])
    rows = joined(found)
    if not chance:
        assert rows == [*range(len(rows))]
    assert sorted(rows) == sorted({*rows})
    assert drop or sorted(rows) == [*range(n)]
    assert rows_of(DataFlow(two(n), size, 1, **options), epoch) == found
    other = joined(rows_of(flow, epoch + 1))
    assert other != rows or not chance or n < 12


@settings(deadline=None, max_examples=40)
@given(
    weights=st.lists(st.sampled_from([0, 1, 2, 5]), min_size=1, max_size=20).filter(any),
    replacement=st.booleans(),
    size=st.integers(1, 7),
)
def test_weights(weights: list[int], replacement: bool, size: int) -> None:
    n = len(weights)
    flow = DataFlow(
        two(n),
        size,
        sample_random=True,
        sample_with_replacement=replacement,
        sample_weights=weights,  # a list, as well as an array
        seed=2,
    )
    rows = joined(rows_of(flow))
    drawn = Sampling(n, None, np.array(weights, float), replacement, 2)
    assert rows == drawn.at(0, np.arange(drawn.n)).tolist()
    assert all(weights[row] for row in rows)
    assert len(rows) == (n if replacement else np.count_nonzero(weights))


def test_epochs_follow_on() -> None:
    """Each flow is the next epoch, and one that never ends goes through all of them."""
    flow = DataFlow(two(6), 4, sample_random=True)
    found = [[rows.tolist() for _, rows in flow.flow()] for _ in range(3)]
    assert found == [rows_of(flow, epoch) for epoch in range(3)]
    endless = DataFlow(two(6), 4, loop_forever=True, sample_random=True)
    some = [rows.tolist() for _, rows in itertools.islice(endless.flow(), 6)]
    assert some == [*itertools.chain(*found)]
    assert len(endless) == 2
    assert [*DataFlow(two(0), 4, loop_forever=True)] == []


def test_anything_that_can_be_sliced(tmp_path: Path) -> None:
    x, y = two(20)
    stored = zarr.create_array(tmp_path / "x.zarr", data=x, chunks=(4, 3))
    mapped = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", y.dtype, y.shape)
    mapped[:] = y
    view = patchloom.ArrayView(stored)
    for data in ([stored, mapped], [view, y], [view[:], mapped]):
        flow = DataFlow(data, 6, 2, sample_random=True, seed=1)
        assert rows_of(flow) == rows_of(DataFlow([x, y], 6, sample_random=True, seed=1))


# -- preprocessors --------------------------------------------------------------------------


def noisy(batch: Any, rng: np.random.Generator) -> Any:
    x, rows = batch
    return x, rows, rng.random(2).tolist(), os.getpid()


def legacy(batch: Any) -> Any:
    return batch[1], np.random.random(2).tolist()  # noqa: NPY002


def slow(batch: Any) -> Any:
    # The first batches are done last.
    time.sleep(0.15 if batch[1][0] < 4 else 0)
    return batch[1].tolist()


def refuse(batch: Any) -> Any:
    if 4 in batch[1]:
        raise KeyError("four")
    return batch


class Stubborn(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def refuse_stubbornly(batch: Any) -> Any:
    raise Stubborn(1, 2)


def die(batch: Any) -> Any:
    if 4 in batch[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch


def wait_long(batch: Any) -> Any:
    time.sleep(0.5)
    return batch


def test_same_chance_in_any_process() -> None:
    """What is drawn is fixed by seed, epoch and batch; in order, with any number of processes."""
    found = {}
    for processes in (0, 1, 3):
        flow = DataFlow(two(12), 2, 2, processes, sample_random=True, preprocessor=noisy, seed=9)
        found[processes] = [
            (rows.tolist(), drawn)
            for _, rows, drawn, _ in itertools.chain(flow.flow(0), flow.flow(1))
        ]
        if processes:
            pids = {pid for *_, pid in flow.flow()}
            assert os.getpid() not in pids
    assert found[0] == found[1] == found[3]
    assert len({tuple(drawn) for _, drawn in found[0]}) == 12


def test_global_generators_are_seeded_a_batch() -> None:
    told = [
        [drawn for _, drawn in DataFlow(two(8), 2, 1, n, preprocessor=legacy, seed=1).flow(0)]
        for n in (1, 2)
    ]
    assert told[0] == told[1]
    assert len({tuple(drawn) for drawn in told[0]}) == 4


def test_order_is_kept_whoever_is_done_first() -> None:
    flow = DataFlow(two(12), 2, 3, 3, preprocessor=slow)
    assert [*flow] == [[k, k + 1] for k in range(0, 12, 2)]


def test_a_function_without_a_name_goes_to_processes() -> None:
    scale = 2.0
    flow = DataFlow(two(4), 2, 1, 1, preprocessor=lambda batch: (batch[1] * scale).tolist())
    assert [*flow] == [[0, 2], [4, 6]]


@pytest.mark.parametrize("processes", [0, 2])
def test_readme_of_data_tools_runs(processes: int) -> None:
    """Batches are arrays that can be written to."""

    def halved(batch: Any) -> Any:
        b0, b1 = batch
        b0 /= 2.0
        return b0, b1

    x, y = np.arange(8.0), np.arange(8)
    flow = DataFlow([x, y], 3, sample_random=True, preprocessor=halved, nb_proc_workers=processes)
    for b0, b1 in flow.flow():
        assert (b0 == b1 / 2).all()
    assert (x == np.arange(8.0)).all()


# -- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(
    ("preprocessor", "error"), [(refuse, KeyError), (refuse_stubbornly, Exception)]
)
def test_errors_reach_whoever_takes_batches(
    processes: int, preprocessor: Any, error: type[Exception]
) -> None:
    """At the batch that met it, after those before."""
    found: list[Any] = []
    flow = DataFlow(two(8), 2, 2, processes, preprocessor=preprocessor)
    with pytest.raises(error, match="four" if error is KeyError else "1 and 2"):
        found.extend(batch[1].tolist() for batch in flow)
    assert found == ([[0, 1], [2, 3]] if error is KeyError else [])


def test_errors_of_sources_reach_it_too() -> None:
    class Broken:
        shape, dtype = (6, 2), np.dtype("uint8")

        def __getitem__(self, index: Any) -> Any:
            raise OSError("the disk is gone")

    for processes in (0, 1):
        flow = DataFlow([Broken()], 2, 2, processes, preprocessor=legacy)
        with pytest.raises(OSError, match="the disk is gone"):
            next(flow.flow())


def test_a_killed_process_is_an_error() -> None:
    flow = DataFlow(two(8), 2, 1, 2, preprocessor=die)
    with pytest.raises(WorkerLostError, match="nb_proc_workers=0"):
        _ = [*flow]


SCRIPT = """
import numpy as np, patchloom
def twice(batch):
    return (2 * batch[0]).tolist()
GUARD
print([*patchloom.DataFlow([np.arange(4)], 2, 1, 1, preprocessor=twice)])
"""


@pytest.mark.parametrize(
    ("guard", "inside", "said"),
    [
        ("if __name__ == '__main__':", True, "[[0, 2], [4, 6]]"),
        ("", False, "WorkerLostError"),
    ],
)
def test_scripts(tmp_path: Path, guard: str, inside: bool, said: str) -> None:
    """With a guard a script works, and without one it is told; it does not wait for ever."""
    head, tail = SCRIPT.split("GUARD\n")
    path = tmp_path / "train.py"
    path.write_text(head + guard + "\n" + ("    " if inside else "") + tail, encoding="utf-8")
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60)
    assert said in done.stdout + done.stderr
    assert (done.returncode == 0) is inside


def test_a_session_without_a_file() -> None:
    """Functions of a notebook or of ``python -c`` go to processes by value."""
    program = SCRIPT.replace("GUARD\n", "")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[[0, 2], [4, 6]]", done.stderr


def test_what_was_started_ends() -> None:
    """Exhausted, closed, dropped or failed: no process and no thread is left."""
    before = threading.active_count()

    def left() -> set[int]:
        # The servers that Python keeps for itself are our children; workers are theirs.
        own = psutil.Process()
        every = {p.pid for p in own.children(recursive=True)}
        return every - {p.pid for p in own.children()}

    others = left()  # of servers that other tests started
    flow = DataFlow(two(40), 2, 2, 2, loop_forever=True, preprocessor=wait_long)
    for how in ("close", "drop"):
        batches = flow.flow()
        next(batches)
        if how == "close":
            batches.close()  # type: ignore[attr-defined]
        else:
            del batches
            gc.collect()
        assert threading.active_count() <= before, how
        assert left() <= others


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"data": [np.zeros(3), np.zeros(4)]}, SourceError),
        ({"data": []}, SourceError),
        ({"data": np.zeros((2, 3))}, ConfigError),
        ({"data": [[1, 2]]}, NotAnArrayError),
        ({"batch_size": 0}, ConfigError),
        ({"nb_io_workers": 0}, ConfigError),
        ({"nb_proc_workers": -1}, ConfigError),
        ({"sample_weights": [1, 2, 3]}, ConfigError),
        ({"sample_with_replacement": True}, ConfigError),
        ({"sample_random": True, "sample_weights": [1, 2]}, ConfigError),
        ({"sample_random": True, "sample_weights": [0, 0, 0]}, ConfigError),
        ({"preprocessor": 3}, ConfigError),
        ({"rng": "seed"}, ConfigError),
    ],
)
def test_arguments_that_cannot_be(given: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        DataFlow(**{"data": [np.zeros(3)], "batch_size": 2, **given})


def test_a_generator_gives_the_seed() -> None:
    def told(rng: Any) -> list[list[int]]:
        return rows_of(DataFlow(two(20), 5, sample_random=True, rng=rng))

    assert told(np.random.default_rng(1)) == told(np.random.default_rng(1))
    assert told(np.random.default_rng(1)) != told(np.random.default_rng(2))
    legacy = np.random.RandomState
    assert told(legacy(1)) == told(legacy(1)) != told(7)
