"""``python -m patchloom`` is the command ``patchloom``."""

from __future__ import annotations

from patchloom.cli import start

if __name__ == "__main__":
    start()
