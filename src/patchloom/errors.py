"""The errors of patchloom: each states the law, what it got, and the way out.

Every class is also the builtin that a caller would expect (``ValueError``,
``FileNotFoundError``, ...), takes one message and survives pickling, so that an error
raised on a worker reaches the client as itself.
"""

from __future__ import annotations

__all__ = [
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
    "SourceChangedError",
    "SourceError",
    "SourceMissingError",
    "StoreError",
    "WriteError",
]


class PatchloomError(Exception):
    """The base of all errors that patchloom raises on purpose."""


class SourceError(PatchloomError, ValueError):
    """An image, mask, label or target cannot be used as it is."""


class SourceMissingError(SourceError, FileNotFoundError):
    """Nothing that can be read stands at a URL (missing, or no permission)."""

    def __str__(self) -> str:
        # FileNotFoundError would print an errno tuple; ours is one sentence.
        return str(self.args[0]) if self.args else ""


class NotAnArrayError(SourceError, TypeError):
    """Something stands at a URL, but it is not an array of numbers."""


class AxesError(SourceError):
    """Axes are unknown, repeated, missing or do not fit the array."""


class CoverageError(SourceError):
    """A mask does not cover its image."""


class IdentityError(SourceError):
    """Two images have the same id, or roles cannot be joined to images."""


class ChunkError(SourceError, OSError):
    """A chunk of a source could not be fetched or decoded."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


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


class ExistsError(StoreError, FileExistsError):
    """Something else stands where the store should go; it is left untouched."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class FingerprintError(ExistsError):
    """The store at the output belongs to another plan or job."""


class WriteError(StoreError, OSError):
    """An object could not be written (disk full, permission, network)."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""
