"""What each worker process of ``--cluster local`` runs as it starts: Dask calls it a preload."""

from __future__ import annotations

import logging
import signal
from typing import Any

__all__ = ["dask_setup"]

_CHATTY = ("distributed.worker", "distributed.worker.state_machine")


def dask_setup(worker: Any) -> None:
    """Leave it to the command to end the worker, and to say why.

    A terminal sends Ctrl-C to workers, too; and what they log of a scheduler that is gone is a
    stack trace for each of them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _CHATTY:
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    from distributed.comm import CommClosedError

    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, CommClosedError) and "CancelledError" not in record.getMessage()
