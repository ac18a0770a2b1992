"""DataFlow: batches of arrays that are read in tandem, and worked on in processes of their own."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from patchloom.arrays.array_view import ArrayView
from patchloom.errors import ConfigError, SourceError, WorkerLostError
from patchloom.load.batching import Batching
from patchloom.load.order import Order, Ordering
from patchloom.load.reader import Ints
from patchloom.load.sampling import Sampling
from patchloom.load.weights import Floats
from patchloom.randomness import key_of

__all__ = ["DataFlow"]

Batch = list[npt.NDArray[Any]]


class DataFlow:
    """Batches of several arrays, read in tandem: data_tools' ``data_flow``, addressed chance.

    Rows are read by threads, and batches worked on in processes, some batches ahead of whoever
    takes them; they come in the order of the rows, whoever is done first. An error in a thread or
    a process is raised where batches are taken, and so is it that a process died.

    Parameters
    ----------
    data
        Arrays with as many rows each: anything that `ArrayView` takes, such as zarr arrays, HDF5
        datasets, NumPy arrays, memory maps and views. A batch has an array of each.
    batch_size
        Rows of a batch; the last one of an epoch may be smaller.
    nb_io_workers
        Threads that read. With one, rows are asked for by one thread at a time.
    nb_proc_workers
        Processes that call the preprocessor. 0: the threads that read call it.
    loop_forever
        Whether one epoch follows on another without an end.
    sample_random
        Whether rows are in an order of chance, another one in each epoch.
    sample_with_replacement
        With `sample_random`: whether each row of a batch is a draw of its own, as many an epoch as
        there are rows.
    sample_weights
        With `sample_random`: one number a row, which the chance to be drawn is proportional to.
        Without replacement, rows of weight 0 are in no epoch.
    drop_incomplete_batches
        Whether a last batch of fewer rows is left out.
    preprocessor
        Called with the list of arrays of a batch, which it may write to; what it returns is the
        batch. One that has an argument ``rng`` gets a NumPy generator, fixed by seed, epoch and
        batch: the same numbers in a thread or in any process. In a process, ``numpy.random`` and
        ``random`` are also seeded so, for each batch.
    rng
        A NumPy generator or RandomState that the seed is drawn from, once; or a seed.
    seed
        Fixes all chance, with the epoch.

    Raises
    ------
    NotAnArrayError
        If one of `data` cannot be sliced.
    SourceError
        If arrays differ in their rows.
    ConfigError
        If an argument is none of these.

    Examples
    --------
    >>> x, y = np.arange(10).reshape(5, 2), np.arange(5)
    >>> flow = DataFlow([x, y], 2, sample_random=True, seed=3)
    >>> len(flow), [rows.tolist() for _, rows in flow.flow(epoch=0)] == [
    ...     rows.tolist() for _, rows in flow.flow(epoch=0)]
    (3, True)
    >>> all((images[:, 0] == 2 * rows).all() for images, rows in flow.flow())
    True
    """

    def __init__(
        self,
        data: Sequence[Any],
        batch_size: int,
        nb_io_workers: int = 1,
        nb_proc_workers: int = 0,
        loop_forever: bool = False,
        sample_random: bool = False,
        sample_with_replacement: bool = False,
        sample_weights: npt.ArrayLike | None = None,
        drop_incomplete_batches: bool = False,
        preprocessor: Callable[..., Any] | None = None,
        rng: Any = None,
        *,
        seed: int = 0,
    ) -> None:
        if hasattr(data, "shape"):
            raise ConfigError("data= lists arrays, got one array; a batch of it alone: [array]")
        self._data = [one if isinstance(one, ArrayView) else ArrayView(one) for one in data]
        lengths = [len(view) for view in self._data]
        if len({*lengths}) != 1:
            raise SourceError(
                f"arrays that are read in tandem have as many rows each, got {lengths}; take a "
                "part: ArrayView(array, 0, n)"
            )
        for name, number, least in (
            ("batch_size", batch_size, 1),
            ("nb_io_workers", nb_io_workers, 1),
            ("nb_proc_workers", nb_proc_workers, 0),
        ):
            if number != int(number) or number < least:
                raise ConfigError(f"{name}= is a whole number from {least} on, got {number}")
        if not sample_random and (sample_with_replacement or sample_weights is not None):
            raise ConfigError(
                "weights and replacement are about draws, got them without sample_random=True"
            )
        if preprocessor is not None and not callable(preprocessor):
            raise ConfigError(f"a preprocessor is called with a batch, got {preprocessor!r:.60}")
        self._threads, self._processes = int(nb_io_workers), int(nb_proc_workers)
        self._forever = loop_forever
        self._seed = seed if rng is None else _seed_of(rng)
        self._order = _order(
            lengths[0], self._seed, sample_random, sample_with_replacement, sample_weights
        )
        self._batching = Batching(
            self._order.n, int(batch_size), drop_last=bool(drop_incomplete_batches)
        )
        self._preprocessor = preprocessor
        self.epoch = 0
        """That the next `flow` begins with."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._batching.n_steps

    def __iter__(self) -> Iterator[Any]:
        return self.flow()

    def flow(self, epoch: int | None = None) -> Iterator[Any]:
        """Batches, each a list of arrays or what the preprocessor makes of it.

        What it has started (threads, processes) ends with it: when it is exhausted, closed,
        or collected, or when an error was raised.

        Parameters
        ----------
        epoch
            To begin with; None: the one after that of the last `flow`.

        Yields
        ------
        list
            Of arrays [k, ...].
        """
        first = self.epoch if epoch is None else int(epoch)
        self.epoch = first + 1
        return self._flow(first)

    def _flow(self, first: int) -> Iterator[Any]:
        with ExitStack() as held:
            processes = self._pool() if self._processes and self._preprocessor else None
            if processes is not None:
                held.callback(_end, processes)
            threads = ThreadPoolExecutor(self._threads, "patchloom-flow")
            held.callback(threads.shutdown, wait=True, cancel_futures=True)
            ahead = self._threads + 2 * self._processes + 1
            asked: deque[Future[Any]] = deque()
            for epoch, step in self._steps(first):
                asked.append(threads.submit(self._made, processes, epoch, step))
                if len(asked) > ahead:
                    yield _taken(asked.popleft())
            while asked:
                yield _taken(asked.popleft())

    def _steps(self, epoch: int) -> Iterator[tuple[int, int]]:
        n = len(self)
        while True:
            yield from ((epoch, step) for step in range(n))
            if not self._forever or not n:
                return
            epoch += 1
            self.epoch = epoch + 1

    def _made(self, processes: ProcessPoolExecutor | None, epoch: int, step: int) -> Any:
        """A batch, or the promise of one from another process."""
        rows = self._order.at(epoch, self._batching.batch(step))
        batch = [np.asarray(view[rows]) for view in self._data]
        if self._preprocessor is None:
            return batch
        key = key_of(self._seed, "flow", epoch, step)
        if processes is None:
            return _worked(self._preprocessor, batch, key)
        return processes.submit(_worked_there, batch, key)

    def _pool(self) -> ProcessPoolExecutor:
        # By value, so that functions of a notebook or a script go too.
        import cloudpickle

        way = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        return ProcessPoolExecutor(
            self._processes,
            multiprocessing.get_context(way),
            initializer=_prepare,
            initargs=(cloudpickle.dumps(self._preprocessor),),
        )


def _order(
    n: int, seed: int, chance: bool, replacement: bool, weights: npt.ArrayLike | None
) -> Ordering:
    if not chance:
        return Order(n, _blocks(n), shuffle="none")
    if not replacement and weights is None:
        return Order(n, _blocks(n), seed, shuffle="exact")
    told: Floats | None = None if weights is None else np.asarray(weights, np.float64)
    return Sampling(n, None, told, replacement, seed)


def _blocks(n: int) -> Ints:
    return np.array([0, n], np.int64)


def _seed_of(rng: Any) -> int:
    """A seed from a generator of NumPy's, or one that is given."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    if isinstance(rng, np.random.RandomState):
        return int.from_bytes(rng.bytes(8), "little") >> 1
    if isinstance(rng, int | np.integer):
        return int(rng)
    raise ConfigError(f"rng= is a generator of numpy.random, or a seed, got {rng!r:.60}")


# -- in a thread or process --------------------------------------------------------------

_PREPROCESSOR: list[Callable[..., Any]] = []


def _prepare(pickled: bytes) -> None:
    """What a process does before its first batch."""
    _PREPROCESSOR[:] = [pickle.loads(pickled)]


def _worked_there(batch: Batch, key: int) -> Any:
    """One batch in a process that does nothing else."""
    np.random.seed(key & 0xFFFFFFFF)  # noqa: NPY002 - for preprocessors that draw from it
    random.seed(key)
    try:
        return _worked(_PREPROCESSOR[0], batch, key)
    except Exception as error:
        # One that does not survive pickling would take the process with it.
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise


def _worked(preprocessor: Callable[..., Any], batch: Batch, key: int) -> Any:
    if not _takes_rng(preprocessor):
        return preprocessor(batch)
    return preprocessor(batch, rng=np.random.Generator(np.random.Philox(key=key)))


def _takes_rng(function: Callable[..., Any]) -> bool:
    try:
        return "rng" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # functions of other languages
        return False


# -- where batches are taken -------------------------------------------------------------


def _taken(asked: Future[Any]) -> Any:
    """A batch when it is there, or the error that it met."""
    try:
        found = asked.result()
        return found.result() if isinstance(found, Future) else found
    except BrokenProcessPool as error:
        raise WorkerLostError(
            "the processes of nb_proc_workers= live until their batches are done, but one of them "
            "ended at once (killed, out of memory, or it could not import what the preprocessor "
            "needs); see what it wrote, or call the preprocessor here: nb_proc_workers=0. A script "
            'that starts processes does so below if __name__ == "__main__"'
        ) from error


def _end(processes: ProcessPoolExecutor) -> None:
    processes.shutdown(wait=True, cancel_futures=True)
