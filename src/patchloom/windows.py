"""Windows: several frames of a time series that belong together."""

from __future__ import annotations

from pydantic import Field

from patchloom.configs import Strict

__all__ = ["Windows"]


class Windows(Strict):
    """Several frames as the channels of one sample: ``t``, ``t + step``, and so on.

    >>> Windows(window=3, step=2).reach
    4
    """

    window: int = Field(strict=True, ge=1)
    """Frames of a window."""
    step: int = Field(default=1, strict=True, ge=1)
    """From one frame of a window to its next."""

    @property
    def reach(self) -> int:
        """From its first frame to its last."""
        return (self.window - 1) * self.step
