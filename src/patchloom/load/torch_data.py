"""PyTorch: patches and batches as datasets."""

from __future__ import annotations

__all__ = ["TorchBatches", "TorchPatches"]


class TorchBatches:
    """Batches."""


class TorchPatches:
    """Patches."""
