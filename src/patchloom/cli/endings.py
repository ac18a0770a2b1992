"""Exit statuses of the command."""

from __future__ import annotations

__all__ = ["DAMAGED", "INTERRUPTED", "WRONG"]

DAMAGED = 1
"""A check failed."""
WRONG = 2
"""What was asked for cannot be done as it was asked."""
INTERRUPTED = 130
"""Ctrl-C, as shells number it."""
