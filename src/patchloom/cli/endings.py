"""Exit statuses of the command."""

from __future__ import annotations

from patchloom.errors import (
    AccessError,
    ChunkError,
    PatchloomError,
    SchedulerLostError,
    WorkerLostError,
    WriteError,
)

__all__ = ["BROKEN", "DAMAGED", "INTERRUPTED", "TERMINATED", "TROUBLE", "WRONG", "status_of"]

DAMAGED = 1
"""A check failed: something is damaged, or will not work."""
WRONG = 2
"""What was asked for cannot be done as it was asked."""
TROUBLE = 3
"""A store, a network, a disk or a cluster failed: the same command may do it later."""
BROKEN = 70
"""A mistake of patchloom."""
INTERRUPTED = 130
"""Ctrl-C, as shells number it."""
TERMINATED = 143
"""The signal TERM, as batch systems and containers send it."""

_TROUBLE = (AccessError, ChunkError, SchedulerLostError, WorkerLostError, WriteError)
_REFUSED = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)


def status_of(error: PatchloomError) -> int:
    """The exit status of an error.

    What is refused for want of a permission, or for a file where a folder should be, no repetition
    mends.

    >>> status_of(AccessError("no network")), status_of(PatchloomError("no"))
    (3, 2)
    """
    refused = isinstance(error.__cause__, _REFUSED)
    return TROUBLE if isinstance(error, _TROUBLE) and not refused else WRONG
