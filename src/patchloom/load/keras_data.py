"""Keras: batches as a PyDataset."""

from __future__ import annotations

__all__ = ["KerasBatches"]


class KerasBatches:
    """Batches."""
