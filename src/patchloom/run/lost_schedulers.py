"""Lost schedulers: what is said of a run whose Dask scheduler or workers die."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from patchloom.errors import SchedulerLostError

__all__ = ["naming_the_lost"]

_ON = "finished shards are kept"


@contextmanager
def naming_the_lost(client: Any) -> Iterator[None]:
    """Say of a lost scheduler, or of workers that die, what happened and the way out.

    Parameters
    ----------
    client
        A ``distributed.Client``.

    Raises
    ------
    SchedulerLostError
        In place of what ``distributed`` raises.
    """
    from distributed import KilledWorker
    from distributed.client import CancelledError
    from distributed.comm import CommClosedError

    # Asked before it is lost: a client that closes forgets it.
    address = getattr(client.scheduler, "address", "its scheduler")
    try:
        yield
    except KilledWorker as error:
        raise SchedulerLostError(
            f"a task needs a worker that lives until it is done, but {error.allowed_failures + 1} "
            f"workers died while they worked on {error.task}, most likely for lack of memory; {_ON}"
            ": give each worker more than memory= times its threads, or plan with less memory, and "
            "run the same call again"
        ) from None
    except (CancelledError, CommClosedError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise SchedulerLostError(
            f"a run needs its Dask scheduler to the end, but its tasks at {address} were cancelled "
            f"({reason}); {_ON}: start a scheduler if there is none any more, and run the same "
            "call again"
        ) from None
