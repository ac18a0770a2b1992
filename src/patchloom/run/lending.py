"""Lending: credentials reach the workers of a cluster beside the graph, for as long as a run."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

import cloudpickle
from distributed import WorkerPlugin

from patchloom import vault

__all__ = ["lending"]


class _Lending(WorkerPlugin):  # type: ignore[misc]  # Dask is untyped
    """Puts credentials into the vault of each worker, also of those that join later."""

    def __init__(self) -> None:
        self._kept = {key: value for key, value in vault.contents().items() if _travels(value)}

    def setup(self, worker: Any) -> None:
        vault.hand_over(self._kept)


def _travels(value: Any) -> bool:
    """Whether it can be pickled; what else was given may be of no use to this very run."""
    try:
        cloudpickle.dumps(value)
    except Exception:  # each object has errors of its own
        return False
    return True


@contextlib.contextmanager
def lending(client: Any) -> Iterator[None]:
    """Lend the workers of a cluster what this process keeps; the scheduler forgets it at the end.

    Parameters
    ----------
    client
        A ``distributed.Client``.
    """
    if not vault.contents():
        yield
        return
    name = f"patchloom-{uuid.uuid4().hex}"
    client.register_plugin(_Lending(), name=name)
    try:
        yield
    finally:
        # If the scheduler is gone, so is what it knew.
        with contextlib.suppress(Exception):
            client.unregister_worker_plugin(name)
