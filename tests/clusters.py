"""A local cluster of real worker processes that also starts on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from distributed import LocalCluster

ATTEMPTS = 3


@contextmanager
def local_cluster(**options: Any) -> Iterator[Any]:
    """A cluster, its dashboard on a free port; starting is tried again if the machine was slow."""
    with dask.config.set({"distributed.comm.timeouts.connect": "120s"}):
        for attempt in range(ATTEMPTS):
            try:
                # Any free port: others on the machine, and clusters of other tests, have theirs.
                cluster = LocalCluster(
                    dashboard_address=":0", scheduler_kwargs={"dashboard": False}, **options
                )
            except RuntimeError:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                break
        with cluster:
            yield cluster
