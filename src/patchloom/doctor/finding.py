"""Finding: one thing that was looked at, how it is, and what mends it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from patchloom.errors import PatchloomError

__all__ = ["Finding", "State"]

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of what the doctor says.

    >>> print(Finding("fail", "disk", "no room at 'a.zarr'", "free some"))
    fail  disk: no room at 'a.zarr'; free some
    """

    state: State
    """`warn` is what may do, `fail` what will not."""
    subject: str
    said: str
    """What was found; never a secret."""
    mend: str = ""
    """What to do about it."""

    @classmethod
    def of_error(cls, subject: str, error: PatchloomError) -> Finding:
        """What failed: our errors state the finding first, then the way out."""
        said, _, mend = str(error).partition("; ")
        return cls("fail", subject, said, mend)

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.state:4}  {self.subject}: {self.said}{f'; {self.mend}' * bool(self.mend)}"
