"""What images come from: one file a kind, all opened by one call."""

from __future__ import annotations

from patchloom.sources.opening import open_images

__all__ = ["open_images"]
