"""The errors of patchloom: each states the law, what it got, and the way out.

Every class is also the builtin that a caller would expect (``ValueError``,
``FileNotFoundError``, ...), takes one message and survives pickling, so that an error
raised on a worker reaches the client as itself.
"""

from __future__ import annotations

from typing import Self

__all__ = [
    "AccessError",
    "AxesError",
    "BudgetError",
    "ChunkError",
    "ConfigError",
    "CoverageError",
    "ExistsError",
    "FingerprintError",
    "IdentityError",
    "NotAnArrayError",
    "PatchSizeError",
    "PatchloomError",
    "PlanError",
    "SchedulerLostError",
    "SourceChangedError",
    "SourceError",
    "SourceMissingError",
    "StoreError",
    "WorkerLostError",
    "WriteError",
]


class PatchloomError(Exception):
    """The base of all errors that patchloom raises on purpose."""


class _FromOS:
    """What an error needs that is also an OSError: our message, and a way to be unpickled.

    The tools that carry exceptions between processes make them with ``__new__``, which by the
    order of the bases would be ValueError's and refuse.
    """

    args: tuple[object, ...]

    def __new__(cls, *args: object) -> Self:
        return OSError.__new__(cls, *args)  # type: ignore[type-var]

    def __str__(self) -> str:
        # OSError would print an errno tuple; ours is one sentence.
        return str(self.args[0]) if self.args else ""


class AccessError(_FromOS, PatchloomError, OSError):
    """A store or a source cannot be reached (network, credentials, throttling)."""


class SchedulerLostError(_FromOS, PatchloomError, ConnectionError):
    """The Dask scheduler of a run, or the workers that tried one task, are gone."""


class SourceError(PatchloomError, ValueError):
    """An image, mask, label, target or table of points cannot be used as it is."""


class SourceMissingError(_FromOS, SourceError, FileNotFoundError):
    """Nothing that can be read stands at a URL (missing, or no permission)."""


class NotAnArrayError(SourceError, TypeError):
    """Something stands at a URL, but it is not an array of numbers."""


class AxesError(SourceError):
    """Axes are unknown, repeated, missing or do not fit the array."""


class CoverageError(SourceError):
    """A mask does not cover its image."""


class IdentityError(SourceError):
    """Two images have the same id, or roles cannot be joined to images."""


class ChunkError(_FromOS, SourceError, OSError):
    """A chunk of a source could not be fetched or decoded."""


class SourceChangedError(SourceError, RuntimeError):
    """A source is not what it was when the plan was made."""


class PlanError(PatchloomError, ValueError):
    """A plan cannot be made as asked."""


class PatchSizeError(PlanError):
    """A patch size does not fit the axes or the images."""


class BudgetError(PlanError, MemoryError):
    """One task would need more memory than it may use."""


class ConfigError(PatchloomError, ValueError):
    """A job file or a configuration has a wrong key or value."""


class StoreError(PatchloomError, ValueError):
    """A patch store cannot be opened, read or written."""


class ExistsError(_FromOS, StoreError, FileExistsError):
    """Something else stands where the store should go; it is left untouched."""


class FingerprintError(ExistsError):
    """The store at the output belongs to another plan or job."""


class WriteError(_FromOS, StoreError, OSError):
    """An object could not be written (disk full, permission, network)."""


class WorkerLostError(PatchloomError, RuntimeError):
    """A process that prepares batches ended before they were done."""
