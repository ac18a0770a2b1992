"""What is shipped for those who write strategies: geometries, all strategies, and their laws."""

from __future__ import annotations

from patchloom.testing.strategies import STRATEGIES, Geometry, PatchingLaws, check_laws

__all__ = ["STRATEGIES", "Geometry", "PatchingLaws", "check_laws"]
