"""ExportReport: what an export has written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from patchloom.public_names import PublicNames
from patchloom.table import as_bytes, html_table

__all__ = ["ExportReport"]


@dataclass(frozen=True)
class ExportReport(PublicNames):
    """What an export holds, and what this call has done for it."""

    url: str
    """Where it is, without credentials."""
    to: str
    n_patches: int
    """That it holds."""
    of_patches: int
    """That the store holds."""
    n_parts: int
    n_written: int
    """Parts that this call has made; the others were there."""
    n_tasks: int
    bytes_read: int
    bytes_written: int
    seconds: float

    @property
    def already_done(self) -> int:
        """Parts that were there."""
        return self.n_parts - self.n_written

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return {**asdict(self), "already_done": self.already_done}

    def rows(self) -> list[tuple[str, str]]:
        """All figures in words."""
        return [
            ("written to", self.url),
            ("format", self.to),
            ("patches", f"{self.n_patches:,} of {self.of_patches:,}"),
            ("parts made", f"{self.n_written:,} of {self.n_parts:,}, by {self.n_tasks:,} tasks"),
            ("read", as_bytes(self.bytes_read)),
            ("written", as_bytes(self.bytes_written)),
            ("time", f"{self.seconds:,.2f} s"),
        ]

    def __str__(self) -> str:
        return ", ".join(f"{label} {text}" for label, text in self.rows())

    def _repr_html_(self) -> str:
        return html_table("Export", dict(self.rows()))
