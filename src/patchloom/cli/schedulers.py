"""Which of Dask's schedulers a command goes to."""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator
from typing import Any

from patchloom.errors import ConfigError, SchedulerLostError

__all__ = ["SCHEDULERS", "check_scheduler", "scheduled"]

SCHEDULERS = ("threads", "synchronous", "processes")
"""What ``--scheduler`` takes besides the address of a cluster."""


def check_scheduler(name: str | None) -> None:
    """Refuse a scheduler that cannot be meant, before anything is read."""
    if name is None or name in SCHEDULERS or "://" in name:
        return
    near = difflib.get_close_matches(name, SCHEDULERS, 1)
    raise ConfigError(
        f"--scheduler is the address of a Dask cluster such as tcp://host:8786, or one of "
        f"{list(SCHEDULERS)}, got {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    )


@contextlib.contextmanager
def scheduled(name: str | None) -> Iterator[Any]:
    """Dask's scheduler for a while; None leaves what Dask's own configuration says.

    Yields
    ------
    distributed.Client or None
        None if it is no cluster.
    """
    if name is None:
        yield None
        return
    if "://" not in name:
        import dask

        with dask.config.set(scheduler=name):
            yield None
        return
    from distributed import Client

    try:
        client = Client(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--scheduler is the address of a running Dask scheduler, but {name!r} does not "
            f"answer: {error}; start one (dask scheduler), or leave the option out"
        ) from None
    logger = logging.getLogger("distributed.client")
    before = logger.level
    try:
        with client:
            try:
                yield client
            except SchedulerLostError:
                # A client that is closed while it looks for its scheduler logs a stack trace.
                logger.setLevel(logging.CRITICAL)
                raise
    finally:
        logger.setLevel(before)
