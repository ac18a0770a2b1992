"""Loader: batches in an order, and where one is in it."""

from __future__ import annotations

__all__ = ["Loader"]


class Loader:
    """Iterates over batches."""
