"""Lending: credentials reach the workers of a cluster beside the graph, for as long as a run."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator
from typing import Any

import cloudpickle
from distributed import WorkerPlugin

from patchloom import vault

__all__ = ["lending"]

_WAITS = (0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds until a worker that died while it was lent to is forgotten by the scheduler."""


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
    _register(client, _Lending(), name)
    try:
        yield
    finally:
        # If the scheduler is gone, so is what it knew.
        with contextlib.suppress(Exception):
            client.unregister_worker_plugin(name)


def _register(client: Any, plugin: _Lending, name: str) -> None:
    """Hand a plugin to all workers, also if one of them dies while it is handed over."""
    for wait in _WAITS:
        try:
            client.register_plugin(plugin, name=name)
            return
        except OSError:  # the connection to one worker, or to the scheduler
            time.sleep(wait)
    client.register_plugin(plugin, name=name)
